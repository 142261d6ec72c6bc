"""Fixtures for pytest: `tabi_proxy`, `tabi_upstream`, `tabi_origin`, and a factory of each for options.

pytest finds them by itself if tabi is installed. Their modules are imported when a test first asks for one,
so that other tests start as quickly as without them. They are plain fixtures, for plain tests and those of
pytest-asyncio and anyio alike: each thing runs in a thread of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tabi.testing.origin import Origin
    from tabi.testing.proxy import ProxyServer
    from tabi.testing.upstream import Upstream


@pytest.fixture
def tabi_proxy_factory() -> Iterator[Callable[..., ProxyServer]]:
    """Make running proxies: ``tabi_proxy_factory(users={"alice": "secret"})``, see `tabi.testing.ProxyServer`.

    They are closed after the test, the last one first.
    """
    from tabi.testing.proxy import ProxyServer

    with ExitStack() as stack:
        yield lambda *listen, **options: stack.enter_context(ProxyServer(*listen, **options))


@pytest.fixture
def tabi_proxy(tabi_proxy_factory: Callable[..., ProxyServer]) -> ProxyServer:
    """A proxy on a free port of 127.0.0.1 that takes SOCKS5, SOCKS4 and HTTP: ``tabi_proxy.url``. It has faults for
    tests of bad networks: ``with tabi_proxy.fault("3g"): …``"""
    return tabi_proxy_factory()


@pytest.fixture
def tabi_upstream_factory() -> Iterator[Callable[[], Upstream]]:
    """Make running upstreams, see `tabi.testing.Upstream`. They are closed after the test."""
    from tabi.testing.upstream import Upstream

    with ExitStack() as stack:
        yield lambda: stack.enter_context(Upstream())


@pytest.fixture
def tabi_upstream(tabi_upstream_factory: Callable[[], Upstream]) -> Upstream:
    """A proxy that fails as it is told: ``tabi_upstream.refuse(5)``. At first it accepts."""
    return tabi_upstream_factory()


@pytest.fixture
def tabi_origin_factory() -> Iterator[Callable[..., Origin]]:
    """Make running origins: ``tabi_origin_factory(answer=…)``, see `tabi.testing.Origin`. They are closed after the
    test."""
    from tabi.testing.origin import Origin

    def make(*given: Any, **options: Any) -> Origin:
        return stack.enter_context(Origin(*given, **options))

    with ExitStack() as stack:
        yield make


@pytest.fixture
def tabi_origin(tabi_origin_factory: Callable[..., Origin]) -> Origin:
    """A destination that answers HTTP and sends everything else back: ``tabi_origin.url``, ``tabi_origin.address``."""
    return tabi_origin_factory()
