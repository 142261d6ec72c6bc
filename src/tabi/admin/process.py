"""The process of the admin API: uvicorn on a socket that the supervisor has opened."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import ssl
from asyncio import constants
from typing import Any

import msgspec
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from tabi.admin.access import Access
from tabi.admin.app import Admin
from tabi.config import Config
from tabi.net.reactor import make_loop
from tabi.server.asker import Asker
from tabi.server.channel import Channel, Message
from tabi.server.handover import read_source
from tabi.server.reload import load
from tabi.server.worker import RELOAD

log = logging.getLogger("tabi")

PATIENCE = 10.0
"""Seconds that a client may take for a step, and that its connection may be idle; up to twice that for slow ones."""

CLOSING = 0.3
"""Seconds that connections have when the process ends."""

MOST = 256
"""Connections at a time; of more, the oldest that waits for its client is closed, which may be the new one."""


class Protocol(H11Protocol):
    """HTTP/1.1 with deadlines for clients: for the head of each request, its body, and reading the answer.

    What a connection awaits from its client is looked at every `PATIENCE` seconds: it must not be the same twice.
    """

    def connection_made(self, transport: Any) -> None:
        """See `asyncio.Protocol`."""
        super().connection_made(transport)
        self.awaited: object = None
        self.began = self.loop.time()
        self.next_look = self.loop.call_later(PATIENCE, self.look)
        if len(self.connections) > MOST:
            waiting = [one for one in self.connections if isinstance(one, Protocol) and one.awaits() is not None]
            min(waiting, key=lambda one: one.began).transport.abort()

    def look(self) -> None:
        """Close a connection that still awaits what it has awaited before."""
        awaited = self.awaits()
        if awaited is not None and awaited == self.awaited:
            self.transport.abort()
            return
        self.awaited = awaited
        self.next_look = self.loop.call_later(PATIENCE, self.look)

    def awaits(self) -> object:
        """What the client has to do next; None: nothing."""
        cycle = self.cycle
        if cycle is None:
            return "head"
        if cycle.response_complete:  # the head of its next request, or reading the end of the answer
            return cycle, self.transport.get_write_buffer_size()
        if cycle.more_body:
            return cycle, "body"
        return (cycle, "read") if self.transport.get_write_buffer_size() else None

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self.next_look.cancel()
        super().connection_lost(exc)


class AdminProcess:
    """Serves the admin API.

    Args:
        config: the configuration that the server starts with.
        sock: listens.
        version: of the program.
        access: decides who may.
        tls: what it speaks TLS with; None without.
    """

    def __init__(
        self, config: Config, sock: socket.socket, version: str, access: Access, tls: ssl.SSLContext | None = None
    ) -> None:
        self.access = access
        self.tls = tls
        self.config = config
        self.sock = sock
        self.version = version

    def run(self, channel: Channel) -> None:
        """What the process does, until the supervisor closes the channel."""
        constants.SSL_HANDSHAKE_TIMEOUT = PATIENCE  # uvicorn has no way to say it, and this process nothing else
        with asyncio.Runner(loop_factory=make_loop) as runner:
            runner.run(self.serve(channel))

    async def serve(self, channel: Channel) -> None:
        """Serve until the channel ends."""
        asker, loop = Asker(channel, self.version), asyncio.get_running_loop()
        admin = Admin(asker, self.access, self.config, self.tls is not None)
        config = uvicorn.Config(
            admin.app,
            http=Protocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=int(PATIENCE),
            timeout_graceful_shutdown=1,
        )
        config.load()
        config.ssl = self.tls
        logging.getLogger("uvicorn").setLevel(logging.ERROR)  # what clients do wrong is no news
        server = Server(config)

        def over() -> None:
            server.should_exit = True
            admin.close()
            loop.call_later(CLOSING, hurry)

        def hurry() -> None:
            server.force_exit = True
            for connection in tuple(server.server_state.connections):
                connection.transport.abort()

        async def learn() -> None:
            while True:
                memory = await latest.get()
                try:
                    admin.config = await asyncio.to_thread(whole_config, memory)
                except Exception:
                    log.exception("the configuration that was read again is not known to the admin API")
                finally:
                    os.close(memory)

        def heard(message: Message) -> None:
            if message.body == RELOAD:
                latest.put_nowait(message.fds.pop())
            else:
                asker.heard(message)

        latest: asyncio.Queue[int] = asyncio.Queue()
        channel.watch(loop, heard, over)
        channel.send({"ready": True})
        tasks = [loop.create_task(admin.keep_history()), loop.create_task(learn())]
        try:
            await server.serve(sockets=[self.sock])
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def whole_config(memory: int) -> Config:
    """The configuration that was read again, with its users and rules."""
    users, rules = read_source(memory)
    return msgspec.structs.replace(load(memory).config, users=users, rule=rules)


class Server(uvicorn.Server):
    """A server that leaves signals alone: the supervisor says when it ends."""

    def install_signal_handlers(self) -> None:
        """See `uvicorn.Server`."""

    def capture_signals(self) -> Any:
        """See `uvicorn.Server`."""
        return contextlib.nullcontext()
