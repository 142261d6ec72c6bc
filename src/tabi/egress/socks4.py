"""The egress through a SOCKS4 or SOCKS4a proxy: IPv4 addresses, and names, which the proxy resolves (4a)."""

from __future__ import annotations

import contextlib
from ipaddress import IPv4Address, IPv6Address

from tabi.egress.base import Egress
from tabi.egress.upstream import Upstream, UpstreamTls, read_exactly
from tabi.errors import AuthError, DialError, ProxyError
from tabi.net.stream import Stream
from tabi.net.timeouts import FixedTimeouts
from tabi.session import Session
from tabi.wire.address import Address
from tabi.wire.socks4 import ClientMachine4, ReplyCode4, Request4
from tabi.wire.socks5 import Command, ReplyCode

REPLY4_TEXTS: dict[int, str] = {
    ReplyCode4.REJECTED: "rejected or failed",
    ReplyCode4.NO_IDENTD: "it cannot reach an identd here",
    ReplyCode4.USERID_MISMATCH: "identd here names another user",
}


NOBODY = Address(IPv4Address("127.0.0.1"), 9)
"""What a proxy is asked for that shall only show that it answers: no name is looked up, no packet leaves its machine,
and whoever listens there throws away what comes (discard, RFC 863)."""


class Socks4(Upstream):
    """Connects to destinations through one SOCKS4 proxy.

    Args:
        below: the egress that reaches the proxy itself.
        proxy: where it listens.
        userid: who we claim to be; SOCKS4 has no passwords.
        deadlines: for its part, from the open connection to the reply.
        tls: speaks TLS with it first.
    """

    protocol = "socks4"

    def __init__(
        self, below: Egress, proxy: Address, userid: bytes, deadlines: FixedTimeouts, tls: UpstreamTls | None = None
    ) -> None:
        super().__init__(below, proxy, deadlines, tls)
        self.userid = userid

    async def connect(self, destination: Address, session: Session | None) -> Stream:
        """See `Upstream`. Raises DialError (reply 08) for an IPv6 address, which SOCKS4 cannot carry."""
        if isinstance(destination.host, IPv6Address):
            text = f"{destination}: SOCKS4 carries no IPv6 address, and {self.proxy} speaks nothing else"
            raise DialError(text, ReplyCode.ADDRESS_TYPE_NOT_SUPPORTED)
        machine = ClientMachine4()
        try:
            octets = machine.send(Request4(Command.CONNECT, destination, self.userid))
        except ValueError as exc:
            raise self.unsayable(exc) from exc

        async def ask(stream: Stream) -> None:
            await stream.send_all(octets)
            reply = await read_exactly(stream, machine)
            check_reply4(reply.code, destination)
            stream.replied = reply.bound

        stream, _ = await self.converse(ask, session)
        return stream

    async def ping(self) -> str:
        """See `Upstream`: SOCKS4 has nothing but requests, so the proxy is asked for `NOBODY`; its refusal is an
        answer."""
        machine = ClientMachine4()
        octets = machine.send(Request4(Command.CONNECT, NOBODY, self.userid))

        async def ask(stream: Stream) -> int:
            await stream.send_all(octets)
            code: int = (await read_exactly(stream, machine)).code
            with contextlib.suppress(ProxyError):
                check_reply4(code, NOBODY)
            return code

        stream, code = await self.converse(ask, None)
        stream.close()
        return f"reply {code}"


def check_reply4(code: int, destination: Address) -> None:
    """Raise the error for a CD other than granted: AuthError if it is about our user ID, else ProxyError."""
    if code == ReplyCode4.GRANTED:
        return
    text = f"the proxy says {REPLY4_TEXTS.get(code, 'not a code of SOCKS4')} (reply {code})"
    if code in (ReplyCode4.NO_IDENTD, ReplyCode4.USERID_MISMATCH):
        raise AuthError(f"{destination}: {text}")
    raise ProxyError(f"{destination}: {text}", ReplyCode.GENERAL_FAILURE)
