"""The process of the admin API: uvicorn on a socket that the supervisor has opened."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from tabi.admin.access import Access
from tabi.admin.app import Admin
from tabi.config import Config
from tabi.config.admin import tls_context, tokens_of
from tabi.net.reactor import make_loop
from tabi.server.asker import Asker
from tabi.server.channel import Channel, Message
from tabi.server.reload import load
from tabi.server.worker import RELOAD

log = logging.getLogger("tabi")

PATIENCE = 10.0
"""Seconds that a connection may take for the head of a request, and that it may be idle."""

MOST = 256
"""Connections at a time; further ones get status 503."""


class Protocol(H11Protocol):
    """HTTP/1.1 with a deadline for the head of the first request, too."""

    def connection_made(self, transport: Any) -> None:
        """See `asyncio.Protocol`."""
        super().connection_made(transport)
        self.first = self.loop.call_later(PATIENCE, self.look)

    def look(self) -> None:
        """Close a connection that has not sent a request."""
        if self.cycle is None:
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self.first.cancel()
        super().connection_lost(exc)


class AdminProcess:
    """Serves the admin API.

    Args:
        config: the configuration that the server starts with.
        sock: listens.
        version: of the program.

    Raises:
        ConfigError: a token or the certificate cannot be used.
    """

    def __init__(self, config: Config, sock: socket.socket, version: str) -> None:
        self.access = Access(*tokens_of(config.admin), config.admin.hosts)
        self.tls = tls_context(config.admin)
        self.config = config
        self.sock = sock
        self.version = version

    def run(self, channel: Channel) -> None:
        """What the process does, until the supervisor closes the channel."""
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
            limit_concurrency=MOST,
            timeout_keep_alive=int(PATIENCE),
            timeout_graceful_shutdown=1,
        )
        config.load()
        config.ssl = self.tls
        logging.getLogger("uvicorn").setLevel(logging.WARNING)
        server = Server(config)

        def over() -> None:
            server.should_exit = True

        async def learn(memory: int) -> None:
            try:
                admin.config = (await asyncio.to_thread(load, memory)).config
            finally:
                os.close(memory)

        def heard(message: Message) -> None:
            if message.body == RELOAD:
                learning.append(loop.create_task(learn(message.fds.pop())))
                del learning[:-1]
            else:
                asker.heard(message)

        learning: list[asyncio.Task[None]] = []
        channel.watch(loop, heard, over)
        channel.send({"ready": True})
        history = loop.create_task(admin.keep_history())
        try:
            await server.serve(sockets=[self.sock])
        finally:
            history.cancel()
            await asyncio.gather(history, *learning, return_exceptions=True)


class Server(uvicorn.Server):
    """A server that leaves signals alone: the supervisor says when it ends."""

    def install_signal_handlers(self) -> None:
        """See `uvicorn.Server`."""

    def capture_signals(self) -> Any:
        """See `uvicorn.Server`."""
        return contextlib.nullcontext()
