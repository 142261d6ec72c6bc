"""Rewrites: a hook of the server's own, behind those of programs and scripts, that changes flows as entries say.

It answers at once. Where something has to be awaited, the flow gets a `Later`, so that flows of other sessions are
carried as if there were none.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from functools import lru_cache, partial
from typing import NamedTuple, TypeVar

from tabi.distort.by_hello import ByHello
from tabi.distort.draws import Drawn
from tabi.distort.http_faults import HttpFaults, Part, faults_of
from tabi.distort.local_files import BODILESS, FileAnswer, LocalFiles, Pieces, answer_with, reason_of
from tabi.intercept.flow import Fetched, Flow, FlowResponse, Given, Instead, Later, Reroute
from tabi.intercept.headers import Headers, to_octets
from tabi.policy.rewrites import FieldChanges, Rewrite
from tabi.session import UNIX
from tabi.wire.http_fields import REWRITTEN_OF_RESPONSE, Field

CLIENT = b"{client}"
"""What stands for the client's address in a value."""

CONDITIONS = ("If-None-Match", "If-Modified-Since", "If-Range", "Range")
"""Fields of requests for less than the whole content, which has no meaning for another content."""

OF_CONTENT = REWRITTEN_OF_RESPONSE | {b"content-encoding", b"content-range", b"trailer"}
"""Fields of answers that do not hold for another content."""

Value = TypeVar("Value")


class Molds(NamedTuple):
    """What is done to one flow."""

    rewrites: tuple[Rewrite, ...]
    faults: HttpFaults
    local: str | None
    remote: str | None
    status: int | None
    body: str | None

    @property
    def waits(self) -> bool:
        """Whether something has to be awaited for the answer."""
        return self.body is not None or bool(self.faults.late) or self.faults.part is not None


def molds_of(chosen: Sequence[Drawn], now: float) -> Molds | None:
    """What entries do to a flow; None if that is nothing. Of what there can be one of, the last one counts."""
    rewrites = tuple([one.entry.distort.rewrite for one in chosen if one.entry.distort.rewrite is not None])
    faults = faults_of(chosen, now)
    local = remote = None
    for rewrite in rewrites:
        if rewrite.map_local is not None or rewrite.map_remote is not None:
            local, remote = rewrite.map_local, rewrite.map_remote
    made = Molds(
        rewrites,
        faults,
        local,
        remote,
        last(rewrite.status for rewrite in rewrites),
        last(rewrite.body for rewrite in rewrites),
    )
    return None if made == NO_MOLDS else made


def last(values: Iterable[Value | None]) -> Value | None:
    """The last value that there is."""
    found = None
    for value in values:
        found = found if value is None else value
    return found


NO_MOLDS = Molds((), HttpFaults(), None, None, None, None)


class Rewrites:
    """Changes the flows of sessions that entries were drawn for.

    Args:
        by_hello: chooses the entries.
    """

    def __init__(self, by_hello: ByHello) -> None:
        self.by_hello = by_hello
        self.files = LocalFiles()

    def request(self, flow: Flow) -> None:
        """See `hooks`: a request is about to go out."""
        chosen = self.by_hello.chosen(flow._session, flow.host)
        if not chosen:
            return
        molds = molds_of(chosen, self.by_hello.distortion.loop.time())
        if molds is None:
            return
        flow._molded = molds
        request, faults = flow.request, molds.faults
        for rewrite in molds.rewrites:
            change(request.headers, rewrite.request, flow, "Cookie" if rewrite.strip_cookies else None)
        if request.method == "CONNECT":
            return
        if "websocket" in (request.headers.get("Upgrade") or "").lower():
            molds = molds._replace(local=None, remote=None)
        if molds.body is not None:
            for name in CONDITIONS:
                request.headers.remove(name)
        if faults.status is not None and not faults.late:
            flow.instead = faults.answer()
        elif molds.waits or molds.local is not None:
            flow.instead = Later(partial(self.decide, molds))
        elif molds.remote is not None:
            flow.instead = self.elsewhere(flow, molds, molds.remote)

    async def decide(self, molds: Molds, flow: Flow) -> Instead | None:
        """What comes in place of a request; None: it goes on."""
        if molds.faults.status is not None:
            await molds.faults.wait()
            return molds.faults.answer()
        if molds.local is not None:
            file = await self.files.open(molds.local, flow.request.path)
            if file is not None:
                return Given(await self.mold(molds, flow, answer_with(file, flow.request, molds.status)))
        return None if molds.remote is None else self.elsewhere(flow, molds, molds.remote)

    def elsewhere(self, flow: Flow, molds: Molds, url: str) -> Reroute:
        """Have another server asked."""
        path = flow.request.path
        return Reroute(url.rstrip("/") + (path if path.startswith("/") else ""), None, True, partial(self.mold, molds))

    def response(self, flow: Flow) -> None:
        """See `hooks`: a destination has answered."""
        molds: Molds | None = flow._molded
        message = flow.response
        if molds is None or message is None or message.status == 101:
            return
        if flow.request.method != "CONNECT" and molds.waits:
            flow.instead = Later(partial(self.finish, molds))
        else:
            self.change_response(flow, message, molds)

    async def finish(self, molds: Molds, flow: Flow) -> Instead | None:
        """What becomes of an answer of the destination."""
        message = flow.response
        assert message is not None
        await molds.faults.wait()
        answer = await self.with_body(molds, flow, message.status, message.headers.raw)
        if answer is not None:
            return Given(self.molded(flow, molds, answer))
        self.change_response(flow, message, molds)
        return molds.faults.part

    def change_response(self, flow: Flow, message: FlowResponse, molds: Molds) -> None:
        """Change status and fields of an answer."""
        if molds.status is not None and flow.request.method != "CONNECT":
            message.status = molds.status
        for rewrite in molds.rewrites:
            change(message.headers, rewrite.response, flow, "Set-Cookie" if rewrite.strip_cookies else None)

    async def mold(self, molds: Molds, flow: Flow, answer: Fetched) -> Fetched:
        """An answer that does not come from the destination, as it is sent."""
        try:
            await molds.faults.wait()
            own = await self.with_body(molds, flow, answer.status, answer.fields)
            if own is not None:
                await answer.aclose()
            return self.molded(flow, molds, own or answer)
        except BaseException:
            await answer.aclose()
            raise

    async def with_body(self, molds: Molds, flow: Flow, status: int, fields: Iterable[Field]) -> FileAnswer | None:
        """An answer with this status and these fields, but with the content of a file; None if it keeps its own."""
        if molds.body is None or (molds.status or status) in BODILESS:
            return None
        file = await self.files.open(molds.body)
        if file is None:
            return None
        kept = [field for field in fields if field[0].lower() not in OF_CONTENT]
        return FileAnswer(file, molds.status or status, kept, flow.request.method)

    def molded(self, flow: Flow, molds: Molds, answer: Fetched) -> Fetched:
        """As `mold`, where nothing is awaited."""
        headers = Headers(answer.fields)
        for rewrite in molds.rewrites:
            change(headers, rewrite.response, flow, "Set-Cookie" if rewrite.strip_cookies else None)
        return Molded(answer, molds, headers)


class Molded:
    """An answer from somewhere else, with other status, fields, or less content; see `Fetched`."""

    def __init__(self, answer: Fetched, molds: Molds, headers: Headers) -> None:
        self.answer = answer
        self.molds = molds
        self.status, self.reason = answer.status, answer.reason
        if molds.status is not None:
            self.status, self.reason = molds.status, reason_of(molds.status)
        if self.status in BODILESS and answer.status not in BODILESS:
            headers.remove("Content-Length")
        self.fields = headers.raw

    def content(self) -> AsyncIterator[bytes]:
        """See `Fetched`."""
        if self.status in BODILESS:
            return Pieces(None)
        content, part = self.answer.content(), self.molds.faults.part
        return content if part is None else Part(content, part)

    async def aclose(self) -> None:
        """See `Fetched`."""
        await self.answer.aclose()


# --- fields ---


class Compiled(NamedTuple):
    """`FieldChanges`, ready to use: names are in small letters where they are looked up."""

    remove: frozenset[bytes]
    set: tuple[tuple[bytes, Field], ...]
    append: tuple[Field, ...]
    order: dict[bytes, tuple[int, bytes]]
    named: bool
    ours: frozenset[bytes]


@lru_cache(1024)
def compiled(changes: FieldChanges) -> Compiled:
    """Prepare changes of fields."""

    def field(name: str, value: str) -> Field:
        return to_octets(name), b" " + to_octets(value)

    return Compiled(
        frozenset(to_octets(name).lower() for name in changes.remove),
        tuple((to_octets(name).lower(), field(name, value)) for name, value in changes.set),
        tuple(field(name, value) for name, value in changes.append),
        {to_octets(name).lower(): (place, to_octets(name)) for place, name in enumerate(changes.order)},
        any(CLIENT.decode() in value for _, value in (*changes.set, *changes.append)),
        frozenset(to_octets(name).lower() for name, _ in (*changes.set, *changes.append)),
    )


def change(headers: Headers, changes: FieldChanges, flow: Flow, cookie: str | None) -> None:
    """Change the fields of a head.

    Args:
        headers: of the head.
        changes: of an entry.
        flow: whose head it is.
        cookie: the name of fields that are removed as well.
    """
    if cookie is not None:
        headers.remove(cookie)
    ready = compiled(changes)
    if ready == NOTHING:
        return
    own = partial(filled, client=flow.client[0]) if ready.named else kept
    fields = [field for field in headers.raw if field[0].lower() not in ready.remove]
    for lower, new in ready.set:
        others = [field for field in fields if field[0].lower() != lower]
        place = next((at for at, field in enumerate(fields) if field[0].lower() == lower), len(fields))
        others.insert(place, own(new))  # no other field with this name stands before it
        fields = others
    fields += map(own, ready.append)
    if ready.ours:
        fields = [field for one in fields if (field := spared(one, ready.ours)) is not None]
    if ready.order:
        first = [(*ready.order[lower], field[1]) for field in fields if (lower := field[0].lower()) in ready.order]
        first.sort(key=lambda found: found[0])
        rest = [field for field in fields if field[0].lower() not in ready.order]
        fields = [(name, value) for _, name, value in first] + rest
    if flow.request.version == "HTTP/2":
        fields = [(name.lower(), value) for name, value in fields]
    if fields != headers.raw:
        headers.raw = fields


NOTHING = compiled(FieldChanges())


def kept(field: Field) -> Field:
    """The field itself."""
    return field


def spared(field: Field, ours: frozenset[bytes]) -> Field | None:
    """A field of Connection without the names of our own fields, which the next proxy would drop else (RFC 9110
    section 7.6.1); None if it names nothing else. Any other field as it is."""
    name, value = field
    if name.lower() != b"connection":
        return field
    options = [option.strip(b" \t") for option in value.split(b",")]
    others = [option for option in options if option.lower() not in ours]
    if len(others) == len(options):
        return field
    return (name, b" " + b", ".join(others)) if others else None


def filled(field: Field, client: str) -> Field:
    """A field with the client's address in its value; in Forwarded it is written as RFC 7239 section 6 wants it."""
    name, value = field
    text = ("unknown" if client == UNIX else client).encode()
    if name.lower() != b"forwarded" or b":" not in text:
        return name, value.replace(CLIENT, text)
    parts = value.split(b'"')  # every other one is in quotes
    texts = (b'"[%b]"' % text, b"[%b]" % text)
    return name, b'"'.join(part.replace(CLIENT, texts[at % 2]) for at, part in enumerate(parts))
