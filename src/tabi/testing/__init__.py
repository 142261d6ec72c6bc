"""Tools for the tests of a program that uses proxies: a proxy, one that fails as told, and an origin.

Each of them runs in a thread with a loop of its own, so that plain tests and those of any asyncio plugin can use it::

    with ProxyServer() as proxy, Origin() as origin:
        requests.get(origin.url, proxies={"http": proxy.url_for("http")})

`tabi.testing.plugin` has them as fixtures for pytest, which need not be imported here.
"""

TYPE_CHECKING = False  # not from typing: pytest loads this in every run, of others too
if TYPE_CHECKING:
    from tabi.testing.fault import ProxyFault
    from tabi.testing.origin import Origin, OriginRequest
    from tabi.testing.proxy import ProxyServer
    from tabi.testing.service import Service
    from tabi.testing.upstream import Upstream

__all__ = [
    "Origin",
    "OriginRequest",
    "ProxyFault",
    "ProxyServer",
    "Service",
    "Upstream",
]

_HOMES = {
    "Origin": "origin",
    "OriginRequest": "origin",
    "ProxyFault": "fault",
    "ProxyServer": "proxy",
    "Service": "service",
    "Upstream": "upstream",
}
"""The module of each name. It is imported when the name is first used."""


if not TYPE_CHECKING:  # so that type checkers know a wrong name

    def __getattr__(name: str) -> object:
        import importlib

        if name not in _HOMES:
            raise AttributeError(f"module 'tabi.testing' has no attribute {name!r}")
        value = globals()[name] = getattr(importlib.import_module(f"tabi.testing.{_HOMES[name]}"), name)
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
