"""ProxyFault: a fault of a `ProxyServer`, for plain tests and for coroutines."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Self, TypeVar, Unpack

if TYPE_CHECKING:
    from tabi.config.live_faults import FaultChanges
    from tabi.server.faults import LiveFault
    from tabi.testing.service import Service

T = TypeVar("T")


class ProxyFault:
    """A fault that acts between ``with`` and its end, see `tabi.testing.ProxyServer.fault`.

    Each method returns when it is done in the thread of the proxy, which takes no more than a moment, so that
    coroutines may call them too. ``async with`` is the same as ``with``.
    """

    def __init__(self, service: Service, fault: LiveFault) -> None:
        self.service = service
        self.inner = fault

    def __repr__(self) -> str:
        return repr(self.inner).replace("tabi.LiveFault", "tabi.testing.ProxyFault", 1)

    def ask(self, do: Callable[[], T]) -> T:
        """Do something in the loop of the proxy. Raises RuntimeError if it does not run."""

        async def doing() -> T:
            return do()

        return self.service.call(doing)

    @property
    def name(self) -> str:
        """The access log calls it so."""
        return self.inner.name

    @property
    def sessions(self) -> int:
        """How many sessions have it on their octets now."""
        return self.inner.sessions

    @property
    def chosen(self) -> int:
        """How many sessions it was drawn for so far; a change of which sessions it is for draws, and counts, again."""
        return self.inner.chosen

    def change(self, profile: str | None = None, **keys: Unpack[FaultChanges]) -> None:
        """See `tabi.LiveFault.change`."""
        self.ask(lambda: self.inner.change(profile, **keys))

    def remove(self) -> None:
        """Have it act no more. Harmless when done twice, and when the proxy is closed."""
        if self.service.loop is not None:
            self.ask(self.inner.remove)

    def __enter__(self) -> Self:
        self.ask(self.inner.set)
        return self

    def __exit__(self, *exc: object) -> None:
        self.remove()

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(self, *exc: object) -> None:
        self.remove()
