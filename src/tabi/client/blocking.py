"""The client for programs without asyncio: a connected socket, as `socket.create_connection` gives it."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

from tabi.client.proxy import TIMEOUT, Proxy
from tabi.net.reactor import make_loop
from tabi.wire.address import Host

T = TypeVar("T")


def create_connection(
    address: tuple[Host, int],
    *,
    via: str | Sequence[str] | Proxy | None = None,
    timeout: float | None = TIMEOUT,
) -> socket.socket:
    """Open a TCP connection through a proxy, and wait for it. The counterpart of `Proxy.open_socket`::

        with tabi.create_connection(("example.com", 80), via="socks5://127.0.0.1:1080") as sock:
            sock.sendall(b"GET / HTTP/1.0\\r\\nHost: example.com\\r\\n\\r\\n")

    Args:
        address: host and port. The last proxy resolves a name.
        via: the URL of a proxy, several of them as a chain, or a `Proxy`. Default: what the environment says
            (`Proxy.from_environment`), which may mean no proxy.
        timeout: seconds for reaching each proxy and for its answer, unless ``via`` is a `Proxy`, which has its own. It
            is also the timeout of the socket. None: the socket has none, and each proxy has 30 seconds.

    Returns:
        A blocking socket, which the caller closes. Through TLS or SSH it is one end of a local pair that a thread of
        this process serves.

    Raises:
        RuntimeError: an event loop runs in this thread: use ``await proxy.open_socket(…)`` there.
        As `Proxy.connect`.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        pass
    else:
        raise RuntimeError("an event loop runs in this thread: await tabi.Proxy.open_socket in place of this")
    proxy = make_proxy(via, TIMEOUT if timeout is None else timeout)
    opening = proxy.open_socket(*address)
    if proxy.needs_loop:
        sock = background().run(opening)
    else:
        with asyncio.Runner(loop_factory=make_loop) as runner:
            sock = runner.run(opening)
    sock.settimeout(timeout)
    return sock


def make_proxy(via: str | Sequence[str] | Proxy | None, timeout: float) -> Proxy:
    """The proxy that an argument means."""
    if isinstance(via, Proxy):
        return via
    if via is None:
        return Proxy.from_environment(timeout=timeout)
    return Proxy(*((via,) if isinstance(via, str) else via), timeout=timeout)


class Background:
    """A loop in a thread of its own, for sockets that must be served as long as they live."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.loop = make_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, name="tabi-client", daemon=True)
        self.thread.start()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine there and wait for it; if the wait is interrupted, it is cancelled."""
        future = asyncio.run_coroutine_threadsafe(coroutine, self.loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def close(self) -> None:
        """Stop it; sockets that it serves get no more."""
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()


running: Background | None = None
starting = threading.Lock()


def background() -> Background:
    """The background loop of this process; a forked process starts its own."""
    global running
    with starting:
        if running is None or running.pid != os.getpid():
            running = Background()
        return running
