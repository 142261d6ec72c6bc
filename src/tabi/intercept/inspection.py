"""Inspection: what is done with the flows of one session, or of one client of plain HTTP.

It makes flows, asks the hooks, and hands a record of each flow to the recorder when that has ended.
"""

from __future__ import annotations

import itertools
import logging
import os
import re
from collections.abc import Awaitable, Callable
from time import monotonic, time
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Protocol

from tabi.intercept.events import Sent, TlsInfo
from tabi.intercept.flow import Fetched, Flow, FlowRequest, FlowResponse, Reroute
from tabi.intercept.headers import Headers
from tabi.intercept.hooks import Hooks
from tabi.intercept.record import Record, WebSocketMessage
from tabi.net.stream import Stream
from tabi.policy.intercepts import InterceptRule
from tabi.policy.limits import UP
from tabi.session import Session
from tabi.wire.address import Address, Host
from tabi.wire.http_fields import Field
from tabi.wire.http_target import parse_authority

log = logging.getLogger("tabi")

if TYPE_CHECKING:
    from tabi.intercept.fingerprints import HttpFingerprint

HTTP_PORT, HTTPS_PORT = 80, 443

NOT_SENT = Sent()


MISDIRECTED = "a request for another host than the connection's"


class Recorder(Protocol):
    """Takes the records of flows that have ended."""

    def record(self, record: Record, rule: InterceptRule) -> None:
        """Keep, write or print it. Never waits, never raises."""


Fetch = Callable[["Inspection", Stream, Reroute, str, list[Field], bytes], Awaitable[Fetched]]
"""Asks for: who asks, the client, whom it asks, method, fields, content. Raises TabiError and OSError."""


class Numbers:
    """Makes names of flows that no other process of the server has."""

    def __init__(self) -> None:
        self.begin()
        os.register_at_fork(after_in_child=self.begin)

    def begin(self) -> None:
        """Begin with a new prefix."""
        self.prefix = os.urandom(3).hex()
        self.count = itertools.count(1)

    def next(self) -> str:
        """The next name."""
        return f"{self.prefix}-{next(self.count):x}"


numbers = Numbers()


MOST_KEPT = 256 << 20
"""Octets of content that are kept of all flows under way in this process together; of more nothing is kept."""


class Recording:
    """What is kept of one flow for its record: content up to a limit, and when what happened."""

    __slots__ = ("bodies", "kept", "limit", "messages", "moments", "sizes", "started")

    of_all: ClassVar[int] = 0
    """Octets that all of them keep."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.started = time()
        self.moments: list[float | None] = [monotonic(), None, None, None]  # begun, sent, answered, ended
        self.bodies = (bytearray(), bytearray())
        self.sizes = [0, 0]
        self.kept = 0
        self.messages: list[WebSocketMessage] = []

    def __del__(self) -> None:
        Recording.of_all -= self.kept

    def take(self, wanted: int) -> int:
        """How many of so many octets may be kept."""
        taken = min(wanted, MOST_KEPT - Recording.of_all)
        self.kept += taken
        Recording.of_all += taken
        return taken

    def note(self, direction: int, carried: bytes) -> None:
        """So much content went in a direction, UP or DOWN."""
        at = direction - UP
        self.sizes[at] += len(carried)
        kept = self.bodies[at]
        room = self.limit - len(kept)
        if room > 0:
            kept += carried[: self.take(min(room, len(carried)))]

    def mark(self, moment: int) -> None:
        """The request was sent (1), the answer has begun (2), the flow has ended (3)."""
        self.moments[moment] = monotonic()

    def between(self, one: int, other: int) -> float | None:
        """Seconds from one moment to another, None if either did not come."""
        begin, end = self.moments[one], self.moments[other]
        return None if begin is None or end is None else end - begin


class Origin(NamedTuple):
    """The server that is asked."""

    scheme: str
    host: Host
    port: int

    @property
    def authority(self) -> str:
        """Host, and port where it is not the usual one."""
        usual = HTTPS_PORT if self.scheme == "https" else HTTP_PORT
        return str(Address(self.host, self.port)).removesuffix(f":{usual}")


def plain_name(name: str) -> str:
    """A name as names are compared."""
    return name.lower().removesuffix(".")


class Inspection:
    """What is done with the flows of one session.

    Args:
        session: of the client.
        rule: the ``[[intercept]]`` that has chosen it.
        hooks: are shown the flows.
        recorder: gets them when they have ended; None where nobody wants records.
        origin: the server that the client asks.
        tls: what is known of TLS; None for plain HTTP.
        fetch: asks other servers, for `Flow.reroute`.
        http: what the destination is to see of HTTP; None: what the client sends.
    """

    __slots__ = (
        "authority",
        "client",
        "connection",
        "fetch",
        "hooks",
        "http",
        "origin",
        "recorded",
        "recorder",
        "right_host",
        "rule",
        "sent_http2",
        "session",
        "tls",
        "tls_seconds",
        "warned",
    )

    def __init__(
        self,
        session: Session,
        rule: InterceptRule,
        hooks: Hooks,
        recorder: Recorder | None,
        origin: Origin,
        tls: TlsInfo | None,
        fetch: Fetch,
        tls_seconds: float | None = None,
        http: HttpFingerprint | None = None,
    ) -> None:
        self.session = session
        self.rule = rule
        self.hooks = hooks
        self.recorder = recorder
        self.origin = origin
        self.tls = tls
        self.fetch = fetch
        self.tls_seconds = tls_seconds
        self.http = http
        self.sent_http2: str | None = None  # how HTTP/2 with the destination has begun
        self.recorded = False
        self.connection = f"{session.number:x}"
        self.warned = False
        self.authority = origin.authority
        self.client = str(session.client.host), session.client.port
        self.right_host: bytes | None = None  # the last that was right: most requests of a connection name the same

    @property
    def sees(self) -> bool:
        """Whether anybody wants to see flows."""
        return self.recorder is not None or self.hooks.of_flows

    def make_flow(self, method: str, target: str, version: str, headers: Headers) -> Flow:
        """The flow of a request that has just come."""
        session, origin = self.session, self.origin
        request = FlowRequest(method, origin.scheme, self.authority, target, version, headers)
        name = numbers.next()
        host = str(origin.host)
        flow = Flow(name, self.client, session.user, session.listener, host, origin.port, self.tls, request)
        flow._session = session
        return flow

    def is_misdirected(self, host: bytes | None, target: str = "/") -> bool:
        """Whether a request names another host than the connection; it is logged once for a connection.

        Without a name of the connection, anything is right.

        Args:
            host: of the field Host or of :authority.
            target: of the request line; a URI names a host too.
        """
        if host == self.right_host and target.startswith("/"):
            return False
        own = self.origin.host
        if not isinstance(own, str):
            return False
        scheme, found, rest = target.partition("://")
        named = [] if host is None else [host]
        if found and "/" not in scheme:
            named.append(re.split("[/?]", rest, maxsplit=1)[0].encode("utf-8", "surrogateescape"))
        for text in named:
            try:
                other = parse_authority(text, self.origin.port)[0].host
            except ValueError:
                if self.rule.mismatch == "deny":  # it may be another one to whoever reads it
                    return True
                continue  # the server will say so
            if not isinstance(other, str) or plain_name(other) != plain_name(own):
                if not self.warned:
                    self.warned = True
                    log.warning("%s: a request for %s on a connection to %s", self.connection, other, own)
                return True
        self.right_host = host
        return False

    def began_http2(self, text: str) -> None:
        """HTTP/2 with the destination has begun, with this fingerprint; see `intercept.sent`."""
        self.sent_http2 = text

    @property
    def mends(self) -> bool:
        """Whether `mend_response` does anything."""
        return self.rule.strip_alt_svc

    def mend_response(self, message: FlowResponse) -> None:
        """Take out what the rule has taken out of every answer."""
        if self.rule.strip_alt_svc:
            message.headers.remove("Alt-Svc")

    async def ended(self, flow: Flow, recording: Recording | None) -> None:
        """A flow has ended: tell hooks and the recorder."""
        hooks = self.hooks
        if flow.error is not None and hooks.error:
            await hooks.tell(hooks.error, flow)
        if hooks.flow_end:
            await hooks.tell(hooks.flow_end, flow)
        if recording is not None and self.recorder is not None:
            recording.mark(3)
            self.recorder.record(self.make_record(flow, recording), self.rule)

    def ended_now(self, flow: Flow, recording: Recording | None) -> None:
        """As `ended`, where no hook waits."""
        hooks = self.hooks
        if flow.error is not None and hooks.error:
            hooks.tell_now(hooks.error, flow)
        if hooks.flow_end:
            hooks.tell_now(hooks.flow_end, flow)
        if recording is not None and self.recorder is not None:
            recording.mark(3)
            self.recorder.record(self.make_record(flow, recording), self.rule)

    def make_record(self, flow: Flow, recording: Recording) -> Record:
        """What is recorded of a flow."""
        session, request, response, tls = self.session, flow.request, flow.response, flow.tls
        connect, tls_seconds = (None, None) if self.recorded else (session.connect_seconds, self.tls_seconds)
        self.recorded = True  # later flows of the connection find it open
        sent = NOT_SENT if tls is None else tls.sent
        return Record(
            id=flow.id,
            started=recording.started,
            client=str(session.client),
            user=session.user,
            listener=session.listener,
            rule=self.rule.name,
            method=request.method,
            url=request.url,
            version=request.version,
            request_fields=[(name, value.strip(b" \t")) for name, value in request.headers.raw],
            request_body=bytes(recording.bodies[0]),
            request_size=recording.sizes[0],
            status=0 if response is None else response.status,
            reason="" if response is None else response.reason,
            response_version="" if response is None else response.version,
            response_fields=[] if response is None else [(n, v.strip(b" \t")) for n, v in response.headers.raw],
            response_body=bytes(recording.bodies[1]),
            response_size=recording.sizes[1],
            address=None if session.address is None else str(session.address.host),
            connection=self.connection,
            via=session.via,
            sni=None if tls is None else tls.sni,
            ja4=None if tls is None else tls.ja4,
            sent_ja3=sent.ja3,
            sent_ja4=sent.ja4,
            sent_http2=self.sent_http2,
            fingerprint=sent.fingerprint,
            fingerprint_differs=sent.differs,
            connect=connect,
            tls=tls_seconds,
            send=recording.between(0, 1),
            wait=recording.between(1, 2),
            receive=recording.between(2, 3),
            error=flow.error,
            tags=sorted(flow.tags),
            messages=list(recording.messages),
        )
