"""`tabi connect`."""

from __future__ import annotations

import asyncio
import os
import select
import socket
import threading

import click

from tabi.cli.help import Command
from tabi.cli.options import make_proxy, option_ca, option_timeout, option_via
from tabi.cli.runner import make_runner
from tabi.client import Proxy
from tabi.egress.detach import take_socket
from tabi.errors import ConfigError
from tabi.wire.address import Address, parse_address

CHUNK = 1 << 16


@click.command(cls=Command)
@click.argument("destination", metavar="HOST:PORT", help="Where to; the proxy resolves names.")
@option_via("socks5://[user:password@]host:port, or socks4, http, https, socks5+tls, ssh")
@option_timeout
@option_ca
def connect(destination: str, via: tuple[str, ...], timeout: float, ca: str | None) -> None:
    """Join standard input and output with a connection through a proxy.

    Without --via the variable ALL_PROXY says which proxy, and NO_PROXY what is connected to directly.

    As an ssh ProxyCommand:

    \b
    ssh -o ProxyCommand='tabi connect --via socks5://127.0.0.1:1080 %h:%p' HOST
    """
    try:
        address = parse_address(destination)
        proxy = make_proxy(via, timeout, ca)
    except ValueError as exc:
        raise ConfigError(str(exc)) from exc
    with make_runner() as runner:
        sock = runner.run(open_socket(proxy, address))
        join_beside(runner.get_loop(), sock, any(url.protocol == "ssh" for url in proxy.urls))


def join_beside(loop: asyncio.AbstractEventLoop, sock: socket.socket, carried: bool = False) -> None:
    """Join standard input and output with a socket that `take_socket` gave, and close it.

    ``carried`` says that the loop carries its octets, which is always true for TLS.
    """
    with sock:
        sock.setblocking(True)
        if not carried and sock.family != socket.AF_UNIX:
            join(sock)
            return
        bridge = threading.Thread(target=loop.run_forever, name="tabi-bridge")  # which carries it
        bridge.start()
        try:
            join(sock)
        finally:
            loop.call_soon_threadsafe(loop.stop)
            bridge.join()


UPLOAD_PATIENCE = 0.5
"""Seconds in which a running upload may find that the connection broke, after what looks like its end."""


async def open_socket(proxy: Proxy, address: Address) -> socket.socket:
    """The socket of a connection through the proxy."""
    return take_socket(await proxy.open(address))


def join(sock: socket.socket) -> None:
    """Copy until the other side ends; the end of standard input is passed on. Raises OSError where it broke."""
    sending = threading.Event()
    broken: list[OSError] = []

    def upload() -> None:
        try:
            while data := read(0):
                sending.set()
                sock.sendall(data)
                sending.clear()
            sock.shutdown(socket.SHUT_WR)
            wait_for_hangup(1)
            sock.shutdown(socket.SHUT_RDWR)  # there is no reader for what comes
        except OSError as exc:
            if isinstance(exc, ConnectionResetError):  # reported once: the other thread sees an orderly end
                broken.append(exc)
            # else the other side is gone, which the main thread finds out too

    uploading = threading.Thread(target=upload, daemon=True)
    uploading.start()
    while data := sock.recv(CHUNK):
        write(1, data)
    if sending.is_set():
        uploading.join(UPLOAD_PATIENCE)
    if broken:
        raise broken[0]


def read(fd: int) -> bytes:
    """Wait for octets, or the end, even if another process that shares the descriptor has made it non-blocking."""
    while True:
        try:
            return os.read(fd, CHUNK)
        except BlockingIOError:
            select.select((fd,), (), ())


def wait_for_hangup(fd: int) -> None:
    """Wait until a pipe, a socket or a terminal has no reader any more. For a file this waits for ever."""
    poll = select.poll()
    poll.register(fd, 0)  # POLLERR and POLLHUP come unasked
    poll.poll()


def write(fd: int, data: bytes) -> None:
    """Write everything, and wait for room even if the descriptor is non-blocking."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            select.select((), (fd,), ())
