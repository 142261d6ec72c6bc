"""ProxyServer: a `tabi.Server` in a thread, and the sessions that have ended at it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Unpack

from tabi.server.server import Server
from tabi.session import Session
from tabi.testing.fault import ProxyFault
from tabi.testing.service import PATIENCE, Seen, Service

if TYPE_CHECKING:
    from tabi.config.live_faults import FaultKeys

MIXED = "mixed://127.0.0.1:0"


class HostPort(NamedTuple):
    """An address as sockets take it."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


class ProxyServer(Service):
    """A proxy on a free port of this machine.

    Args:
        listen: URLs to listen on. Default: one port of 127.0.0.1 that takes SOCKS5, SOCKS4 and HTTP.
        options: those of `tabi.Server`, such as ``users={"alice": "secret"}``. Functions among them are called in the
            thread of the proxy.

    Raises:
        ConfigError: as `tabi.Server`.
    """

    def __init__(self, *listen: str, **options: Any) -> None:
        super().__init__()
        self.ended: Seen[Session] = Seen()
        on_close = options.pop("on_close", None)

        def ended(session: Session) -> None:
            self.ended.add(session)
            if on_close is not None:
                on_close(session)

        def make() -> Server:
            given = listen or (() if "config" in options else (MIXED,))
            return Server(*given, on_close=ended, **options)

        self.make = make
        self.server = make()  # so that what is wrong is told here

    async def open(self) -> None:
        """See `Service`."""
        if self.server.started:
            self.server = self.make()
        await self.server.start()

    async def shut(self) -> None:
        """See `Service`."""
        await self.server.close()

    @property
    def url(self) -> str:
        """As a client of SOCKS5 uses it, with the name and password of the first of ``users``; see `tabi.Server.url`.

        Raises:
            RuntimeError: it does not run.
        """
        return self.server.url

    def url_for(self, protocol: str) -> str:
        """The URL for ``socks5``, ``socks4``, ``http``, ``https``; see `tabi.Server.url_for`.

        Raises:
            ValueError: no listener takes it.
            RuntimeError: it does not run.
        """
        return self.server.url_for(protocol)

    @property
    def address(self) -> HostPort:
        """Where it listens, the first listener: ``host`` is text. Raises RuntimeError if it does not run."""
        host, port = self.server.addresses[0]
        return HostPort(str(host), port)

    @property
    def sessions(self) -> list[Session]:
        """The sessions that have ended so far, refused ones too."""
        return list(self.ended.things)

    def wait_for_sessions(self, count: int = 1, timeout: float = PATIENCE) -> list[Session]:
        """Wait until so many sessions have ended since the start or the last `forget`, and return all of them.

        It blocks, for ``timeout`` seconds at most. In a coroutine whose own loop has to go on meanwhile, call it by
        `asyncio.to_thread`.

        Raises:
            TimeoutError: there were fewer.
        """
        return self.ended.wait(count, timeout)

    def forget(self) -> None:
        """Forget the sessions that have ended."""
        self.ended.clear()

    def fault(self, profile: str | None = None, **keys: Unpack[FaultKeys]) -> ProxyFault:
        """A fault that acts between ``with`` and its end, on running sessions too::

            with proxy.fault(hosts=["*.example.com"], latency="200ms", jitter="50ms"):
                ...

        Args:
            profile, keys: those of `tabi.Server.fault`.

        Raises:
            ConfigError: something of it is wrong; it names the key.
        """
        return ProxyFault(self, self.server.fault(profile, **keys))
