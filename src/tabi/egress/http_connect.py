"""The egress through an HTTP proxy, by CONNECT; inside TLS too (``https://``)."""

from __future__ import annotations

from http import HTTPStatus

from tabi.egress.base import Egress
from tabi.egress.upstream import Upstream, UpstreamTls, read_by_looking
from tabi.errors import AuthError, ProxyError
from tabi.net.stream import Stream
from tabi.net.timeouts import FixedTimeouts
from tabi.session import Session
from tabi.wire.address import Address
from tabi.wire.connect import ConnectAnswer, ConnectMachine, ConnectRequest, OptionsRequest
from tabi.wire.socks5 import Credentials, ReplyCode

UNAUTHORIZED = (407, 401)
"""RFC 9110 section 15.5.8; the other is an origin's, but what tinyproxy says to a wrong password."""

UNKNOWN_METHOD = (405, 501)
NOBODY = Address("tabi.invalid", 443)

REPLY_BY_STATUS: dict[int, int] = {
    403: ReplyCode.NOT_ALLOWED,
    405: ReplyCode.COMMAND_NOT_SUPPORTED,
    429: ReplyCode.NOT_ALLOWED,
    451: ReplyCode.NOT_ALLOWED,
    501: ReplyCode.COMMAND_NOT_SUPPORTED,
    502: ReplyCode.HOST_UNREACHABLE,
    503: ReplyCode.HOST_UNREACHABLE,  # squid's and tinyproxy's for all that they could not reach
    504: ReplyCode.HOST_UNREACHABLE,
}
"""The reply code of RFC 1928 for a status; any other status is a general failure."""

REPLY_BY_ERROR: dict[str, int] = {
    "connection_limit_reached": ReplyCode.NOT_ALLOWED,
    "connection_refused": ReplyCode.CONNECTION_REFUSED,
    "connection_terminated": ReplyCode.CONNECTION_REFUSED,
    "connection_timeout": ReplyCode.HOST_UNREACHABLE,
    "destination_ip_prohibited": ReplyCode.NOT_ALLOWED,
    "destination_ip_unroutable": ReplyCode.NETWORK_UNREACHABLE,
    "destination_not_found": ReplyCode.HOST_UNREACHABLE,
    "destination_unavailable": ReplyCode.HOST_UNREACHABLE,
    "dns_error": ReplyCode.HOST_UNREACHABLE,
    "dns_timeout": ReplyCode.HOST_UNREACHABLE,
    "http_request_denied": ReplyCode.NOT_ALLOWED,
    "proxy_internal_error": ReplyCode.GENERAL_FAILURE,
}
"""The reply code for an error of Proxy-Status (RFC 9209 section 2.3), which says more than the status."""


class HttpConnect(Upstream):
    """Connects to destinations through one HTTP proxy.

    Args:
        below: the egress that reaches the proxy itself.
        proxy: where it listens.
        credentials: sent with the request, as Basic.
        deadlines: for its part, from the open connection to the answer.
        tls: speaks TLS with it first.
    """

    protocol = "http"

    def __init__(
        self,
        below: Egress,
        proxy: Address,
        credentials: Credentials | None,
        deadlines: FixedTimeouts,
        tls: UpstreamTls | None = None,
    ) -> None:
        super().__init__(below, proxy, deadlines, tls)
        self.credentials = credentials

    async def connect(self, destination: Address, session: Session | None) -> Stream:
        """See `Upstream`."""
        machine = ConnectMachine()
        try:
            octets = machine.send(ConnectRequest(destination, self.credentials))
        except ValueError as exc:
            raise self.unsayable(exc) from exc

        async def ask(stream: Stream) -> None:
            await stream.send_all(octets)
            check_answer(await read_by_looking(stream, machine), destination, self.credentials is not None)
            stream.replied = None  # a proxy before this one may have set it

        stream, _ = await self.converse(ask, session)
        return stream

    async def ping(self) -> str:
        """See `Upstream`: any answer will do, but for those that are about who we are.

        A proxy that does not know OPTIONS may say so before it looks at the credentials, as squid does: it is asked for
        `NOBODY` then, whose name it will not find.
        """
        status = await self.ask_status(OptionsRequest(self.credentials))
        if status in UNKNOWN_METHOD:
            status = await self.ask_status(ConnectRequest(NOBODY, self.credentials))
        return phrase(status)

    async def ask_status(self, message: ConnectRequest | OptionsRequest) -> int:
        """Ask on a connection of its own. Raises AuthError, and as `Upstream.converse`."""
        machine = ConnectMachine()
        octets = machine.send(message)

        async def ask(stream: Stream) -> ConnectAnswer:
            await stream.send_all(octets)
            answer: ConnectAnswer = await read_by_looking(stream, machine)
            if answer.status in UNAUTHORIZED:
                check_answer(answer, self.proxy, self.credentials is not None)
            return answer

        stream, answer = await self.converse(ask, None)
        stream.close()
        return answer.status


def check_answer(answer: ConnectAnswer, destination: Address, known: bool) -> None:
    """Raise the error for a status that is not a success; ``known`` says whether credentials were sent."""
    status = answer.status
    if 200 <= status < 300:
        return
    if status in UNAUTHORIZED:
        raise AuthError(
            "the proxy did not accept the user name and password"
            if known
            else "the proxy refused: it wants a user name and a password"
        )
    if status < 400:
        text = f"{destination}: the proxy answers with {phrase(status)}, expected 200"
        raise ProxyError(text, ReplyCode.GENERAL_FAILURE)
    error, why = REPLY_BY_ERROR.get(answer.error or ""), ""
    if error is not None:
        why = f" ({answer.error})".replace("_", " ")
    reply_code = REPLY_BY_STATUS.get(status, ReplyCode.GENERAL_FAILURE) if error is None else error
    raise ProxyError(f"{destination}: the proxy says {phrase(status)}{why}", reply_code)


def phrase(status: int) -> str:
    """A status with its registered phrase: the text of the proxy may hold anything."""
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return f"{status}"
