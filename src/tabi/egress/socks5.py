"""The egress through a SOCKS5 proxy, and the client's side of the handshake on any stream."""

from __future__ import annotations

import asyncio
from typing import Any

from tabi.errors import AuthError, ProxyError, RemoteProtocolError
from tabi.net.stream import Stream
from tabi.wire.address import Address
from tabi.wire.machine import NEED_DATA
from tabi.wire.socks5 import (
    ClientMachine,
    Command,
    Credentials,
    Greeting,
    Method,
    Reply,
    ReplyCode,
    Request,
)

REPLY_TEXTS = {
    ReplyCode.GENERAL_FAILURE: "general failure",
    ReplyCode.NOT_ALLOWED: "not allowed by ruleset",
    ReplyCode.NETWORK_UNREACHABLE: "network unreachable",
    ReplyCode.HOST_UNREACHABLE: "host unreachable",
    ReplyCode.CONNECTION_REFUSED: "connection refused",
    ReplyCode.TTL_EXPIRED: "TTL expired",
    ReplyCode.COMMAND_NOT_SUPPORTED: "command not supported",
    ReplyCode.ADDRESS_TYPE_NOT_SUPPORTED: "address type not supported",
}


async def read_message(stream: Stream, machine: ClientMachine) -> Any:
    """Read the server's next message, and no octet more."""
    while (message := machine.next_event()) is NEED_DATA:
        machine.receive_data(await stream.receive(machine.missing))
    return message


async def request(
    stream: Stream, command: int, destination: Address, credentials: Credentials | None
) -> tuple[ClientMachine, Reply]:
    """Speak SOCKS5 as a client on a fresh stream, up to the first reply. Who waits sets the deadline.

    Returns:
        The machine, for BIND's second reply (`read_reply`), and the reply, which is a success.

    Raises:
        AuthError: the proxy takes none of our methods, or not these credentials.
        ProxyError: the proxy refused the request; ``reply_code`` is what it sent.
        RemoteProtocolError: it does not speak SOCKS5.
        OSError: as `Stream.receive`.
    """
    machine = ClientMachine()
    offered = bytes(
        (Method.NO_AUTHENTICATION,) if credentials is None else (Method.NO_AUTHENTICATION, Method.USERNAME_PASSWORD)
    )
    await stream.send_all(machine.send(Greeting(offered)))
    chosen = (await read_message(stream, machine)).method
    if chosen == Method.NO_ACCEPTABLE_METHODS:
        wanted = "it wants a user name and a password" if credentials is None else "none of the offered methods"
        raise AuthError(f"the proxy refused: {wanted}")
    if chosen == Method.USERNAME_PASSWORD and credentials is not None:
        await stream.send_all(machine.send(credentials))
        if (await read_message(stream, machine)).status:
            raise AuthError("the proxy did not accept the user name and password")
    await stream.send_all(machine.send(Request(command, destination)))
    return machine, await read_reply(stream, machine, destination)


async def read_reply(stream: Stream, machine: ClientMachine, destination: Address) -> Reply:
    """Read one reply. Raises ProxyError where it is a failure, and as `request`."""
    reply = await read_message(stream, machine)
    if not isinstance(reply, Reply):
        raise RemoteProtocolError("the proxy sent no reply")
    if reply.reply_code:
        text = REPLY_TEXTS.get(reply.reply_code, "no code of RFC 1928")  # type: ignore[call-overload]
        raise ProxyError(f"{destination}: the proxy says {text} (reply {reply.reply_code:02})", reply.reply_code)
    return reply


class Socks5:
    """Connects to destinations through one SOCKS5 proxy.

    Args:
        below: the egress that reaches the proxy itself.
        proxy: where it listens.
        credentials: offered where given; the proxy chooses.
        seconds: the deadline for its part, from the open connection to the reply.
    """

    name = "socks5"

    def __init__(self, below: Any, proxy: Address, credentials: Credentials | None, seconds: float) -> None:
        self.below = below
        self.proxy = proxy
        self.credentials = credentials
        self.seconds = seconds

    async def open(self, destination: Address, permit: Any) -> Stream:
        """Return a stream to ``destination`` that the caller closes. Errors as `ask`."""
        stream, _, _ = await self.ask(Command.CONNECT, destination, permit)
        return stream

    async def ask(self, command: int, destination: Address, permit: Any) -> tuple[Stream, ClientMachine, Reply]:
        """Reach the proxy and ask it for a command.

        Returns:
            The stream, which the caller closes, the machine behind its first reply, and that reply.

        Raises:
            As `request` and the egress below.
        """
        stream: Stream = await self.below.open(self.proxy, permit)
        try:
            async with asyncio.timeout(self.seconds):
                machine, reply = await request(stream, command, destination, self.credentials)
        except BaseException as exc:
            stream.close()
            if isinstance(exc, TimeoutError):
                raise ProxyError(f"{self.proxy}: the proxy did not answer within {self.seconds:g} s") from None
            raise
        return stream, machine, reply
