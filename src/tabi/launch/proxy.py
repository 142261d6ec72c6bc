"""The proxy of a run: a `Server` in a thread of its own, so that the main thread is there for the program's signals."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import threading

from tabi.net.reactor import make_loop
from tabi.server.server import Server
from tabi.wire.address import Address

log = logging.getLogger("tabi")

DRAIN = 2.0
"""Seconds that sessions have once the program has ended: of processes that it has left behind."""


class ProxyThread:
    """Serves from `start` to `stop`. The thread has the signal mask of the one that starts it."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.thread = threading.Thread(target=self.run, name="tabi-proxy", daemon=True)
        self.loop: asyncio.AbstractEventLoop | None = None
        self.told = asyncio.Event()
        self.at_once = asyncio.Event()
        self.ready = threading.Event()
        self.ended = False
        self.address: Address | None = None
        self.failure: BaseException | None = None

    def start(self) -> Address:
        """Serve, and return where. Raises what the server raises as it starts."""
        self.thread.start()
        self.ready.wait()
        if self.address is None:
            self.thread.join()
            raise self.failure or RuntimeError("the proxy has ended as it began")
        return self.address

    def runs(self) -> bool:
        """Whether it serves. As it ends, it sends SIGCHLD to the process, for who waits for a signal."""
        return not self.ended

    def stop(self, at_once: bool = False) -> None:
        """Have it accept no more, and end when its sessions have, after the time to drain, or at once."""
        with contextlib.suppress(RuntimeError):  # it has ended, and its loop is closed
            if self.loop is not None:
                self.loop.call_soon_threadsafe(self.tell, at_once)

    def tell(self, at_once: bool) -> None:
        """The same in the loop."""
        self.told.set()
        if at_once:
            self.at_once.set()

    def run(self) -> None:
        """The thread."""
        try:
            with asyncio.Runner(loop_factory=make_loop) as runner:
                self.loop = runner.get_loop()
                runner.run(self.serve())
        except BaseException as exc:
            self.failure = exc
            if self.ready.is_set():
                log.exception("the proxy has ended")
        finally:
            self.ended = True
            self.ready.set()
            os.kill(os.getpid(), signal.SIGCHLD)

    async def serve(self) -> None:
        """Serve until told."""
        loop = asyncio.get_running_loop()
        async with self.server as server:
            self.address = server.addresses[0]
            self.ready.set()
            await self.told.wait()
            drain, hurried = loop.create_task(server.drain(DRAIN)), loop.create_task(self.at_once.wait())
            await asyncio.wait((drain, hurried), return_when=asyncio.FIRST_COMPLETED)
            drain.cancel()
            hurried.cancel()
