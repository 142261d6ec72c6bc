"""Replay: which recorded answer a request gets, and what is left of it."""

from __future__ import annotations

import asyncio
import gzip
import os
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flows import make_record
from tabi.errors import TabiError, TooLarge
from tabi.intercept import replay as module
from tabi.intercept.flow import Answer, Drop, Flow, FlowRequest
from tabi.intercept.har import encode_entry
from tabi.intercept.har_file import HarFile
from tabi.intercept.headers import Headers
from tabi.intercept.masking import prepare
from tabi.intercept.record import Record
from tabi.intercept.replay import PARTS, Replay, normal_url

FORM = [(b"Content-Type", b"application/x-www-form-urlencoded")]


class Content:
    """A request's content, as it came."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    async def read_all(self, limit: int) -> bytes:
        """See `flow.Reader`."""
        if len(self.data) > limit:
            raise TooLarge("too large")
        return self.data


def make_flow(url: str, method: str = "GET", body: bytes = b"", fields: list[tuple[str, str]] | None = None) -> Flow:
    """A flow as interception makes it."""
    scheme, _, rest = url.partition("://")
    host, slash, path = rest.partition("/")
    request = FlowRequest(method, scheme, host, slash + path or "/", "HTTP/1.1", Headers(fields or []))
    request._reader = Content(body)
    return Flow("1", ("127.0.0.1", 1), None, "", host, 443, None, request)


class Player:
    """Replays a file of records."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "a.har"
        self.made: list[Replay] = []

    def load(self, *records: Record, limit: int = 1_000_000, secrets: bool = False, **options: Any) -> Replay:
        """A replay of records."""
        file = HarFile(str(self.path))
        for record in records:
            file.append(encode_entry(prepare(record, limit, secrets)))
        file.close()
        self.made.append(Replay(str(self.path), **options))
        return self.made[-1]


@pytest.fixture
def player(tmp_path: Path) -> Iterator[Player]:
    """Closes what it has made."""
    made = Player(tmp_path)
    yield made
    for one in made.made:
        one.close()


def ask(replay: Replay, *asked: Any, **more: Any) -> Answer:
    """The answer that a request gets."""
    flow = make_flow(*asked, **more)
    asyncio.run(replay.request(flow))
    assert isinstance(flow.instead, Answer)
    return flow.instead


def test_answers_come_in_their_order_and_the_last_one_stays(player: Player) -> None:
    """For each request by itself."""
    replay = player.load(
        make_record("https://h/a", b"1"), make_record("https://h/b", b"x"), make_record("https://h/a", b"2")
    )
    assert [ask(replay, "https://h/a").body for _ in range(4)] == [b"1", b"2", b"2", b"2"]
    assert ask(replay, "https://h/b").body == b"x"
    assert (replay.count, replay.has_tls) == (3, True)


def test_what_was_not_recorded_is_said_or_passed_on(player: Player) -> None:
    """Without its secrets."""
    answer = ask(player.load(make_record("https://h/a")), "https://h/a?token=S3cret")
    assert (answer.status, answer.body) == (502, b"not recorded: GET https://h/a?token=***\n")
    assert answer.headers.get("Content-Type") == "text/plain; charset=utf-8"
    flow = make_flow("https://h/other")
    asyncio.run(player.load(passes=True).request(flow))
    assert flow.instead is None


@pytest.mark.parametrize(
    ("match", "found"),
    [
        (PARTS, [True, False, False, False]),
        (("url", "body"), [True, True, False, False]),
        (("method", "body"), [True, False, True, False]),
        (("method", "url"), [True, False, False, True]),
        (("url",), [True, True, False, True]),
    ],
)
def test_what_counts(player: Player, match: tuple[str, ...], found: list[bool]) -> None:
    """The same request, another method, another URL, another body."""
    record = make_record("https://h/a", method="POST", request_body=b"x", request_size=1)
    replay = player.load(record, match=match)
    asked = [
        ("https://h/a", "POST", b"x"),
        ("https://h/a", "PUT", b"x"),
        ("https://h/b", "POST", b"x"),
        ("https://h/a", "POST", b"y"),
    ]
    assert [ask(replay, *one).status == 200 for one in asked] == found


@pytest.mark.parametrize(
    ("url", "normal"),
    [
        ("HTTPS://H.Example:443", "https://h.example/"),
        ("http://h:80/a?b#c", "http://h/a?b"),
        ("https://u:p@h:444/A", "https://h:444/A"),
        ("wss://[::1]:443/", "https://[::1]/"),
        ("https://h./a?", "https://h/a"),
        ("http://[::1/", "http://[::1/"),
    ],
)
def test_urls_that_mean_the_same(url: str, normal: str) -> None:
    """Case, usual ports, user information and fragments do not count."""
    assert normal_url(url) == normal


def test_the_host_may_be_named_by_the_field(player: Player) -> None:
    """Where the client has asked the proxy for the host's address."""
    replay = player.load(make_record("http://example.com/a?b", b"found"))
    assert ask(replay, "http://192.0.2.1/a?b", fields=[("Host", "Example.com:80")]).body == b"found"
    assert ask(replay, "http://192.0.2.1/a?b", fields=[("Host", "example.org")]).status == 502


def test_secrets_that_were_masked_are_equal_to_any(player: Player) -> None:
    """In queries, forms and JSON; also under names that only the recording rule had."""
    fields = [(b"Content-Type", b"application/json")]
    records = [
        make_record("https://h/?token=abc&a=1", b"query"),
        make_record("https://h/f", b"form", method="POST", request_fields=FORM, request_body=b"a=1&password=xyz",
                    request_size=16),
        make_record("https://h/j", b"json", method="POST", request_fields=fields, request_body=b'{"sesame": "x"}',
                    request_size=15),
        make_record("https://h/?sesame=abc", b"own"),
    ]  # fmt: skip
    file = HarFile(str(player.path))
    for record in records:
        file.append(encode_entry(prepare(record, 1_000_000, more=("sesame",))))
    file.close()
    replay = player.load()
    assert "sesame" in replay.names
    assert replay.count == 4
    form = [("Content-Type", "application/x-www-form-urlencoded")]
    assert ask(replay, "https://h/?token=other&a=1").body == b"query"
    assert ask(replay, "https://h/?token=other&a=2").status == 502
    assert ask(replay, "https://h/f", "POST", b"a=1&password=q", form).body == b"form"
    assert ask(replay, "https://h/j", "POST", b'{"sesame": "other"}', [("Content-Type", "text/json")]).body == b"json"
    assert ask(replay, "https://h/?sesame=other").body == b"own"


def test_bodies_are_compared_without_their_coding(player: Player) -> None:
    """The boundary of a form with files is another one each time; what is not as its coding says is taken as it is."""
    parts = b'--%b\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n--%b--\r\n'
    kind = "multipart/form-data; boundary="
    replay = player.load(
        make_record("https://h/", b"coded", method="POST", request_body=b"hello", request_size=5),
        make_record("https://h/", b"parts", method="POST", request_body=parts % (b"xyz", b"xyz"), request_size=99,
                    request_fields=[(b"Content-Type", kind.encode() + b"xyz")]),
    )  # fmt: skip
    coded = [("Content-Encoding", "gzip")]
    assert ask(replay, "https://h/", "POST", gzip.compress(b"hello"), coded).body == b"coded"
    assert ask(replay, "https://h/", "POST", b"hello", coded).body == b"coded"
    assert (
        ask(replay, "https://h/", "POST", parts % (b"123", b"123"), [("Content-Type", f"{kind}123")]).body == b"parts"
    )


def test_a_body_that_was_not_recorded_whole_is_compared_as_far_as_it_was(player: Player) -> None:
    """Two that begin in the same way are the same."""
    body = b"a" * 50
    replay = player.load(make_record("https://h/", method="POST", request_body=body, request_size=50), limit=10)
    assert ask(replay, "https://h/", "POST", body).status == 200
    assert ask(replay, "https://h/", "POST", b"a" * 11).status == 200
    assert ask(replay, "https://h/", "POST", b"a" * 9).status == 502
    assert ask(replay, "https://h/", "POST", b"b" * 50).status == 502


def test_a_body_that_is_too_long_is_not_the_same(player: Player, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not held in memory."""
    monkeypatch.setattr(module, "MAX_BODY", 10)
    replay = player.load(make_record("https://h/", method="POST", request_body=b"a" * 11, request_size=11))
    assert ask(replay, "https://h/", "POST", b"a" * 11).status == 502


def test_an_answer_is_sent_as_it_was_but_for_what_is_not_true_any_more(player: Player) -> None:
    """Without a coding, and no field that could not be sent; the length is written by whoever sends it."""
    fields = [
        (b"Content-Encoding", b"gzip"),
        (b"Content-Length", b"99"),
        (b"Transfer-Encoding", b"chunked"),
        (b"Alt-Svc", b"h3"),
        (b"Set-Cookie", b"a=b"),
        (b"set-cookie", b"c=d"),
        (b"X-\xc3\xa9", b"bad name"),
        (b"X-Bad", b"a\r\nb"),
        (b"X-Name", b"\xc3\xa9"),
    ]
    replay = player.load(
        make_record("https://h/", gzip.compress(b"hello"), status=404, response_fields=fields), secrets=True
    )
    answer = ask(replay, "https://h/")
    assert (answer.status, answer.body) == (404, b"hello")
    assert [(name, value.strip()) for name, value in answer.headers.raw] == [
        (b"Set-Cookie", b"a=b"),
        (b"set-cookie", b"c=d"),
        (b"X-Name", b"\xc3\xa9"),
    ]
    replay = player.load(make_record("https://h/own", b"x", response_fields=[(b"Content-Encoding", b"own")]))
    assert ask(replay, "https://h/own").headers.get("Content-Encoding") == "own"


def test_a_recorded_failure_is_one_again(player: Player) -> None:
    """The client gets no answer."""
    replay = player.load(make_record("https://h/", status=0, error="reset", body=b""))
    flow = make_flow("https://h/")
    asyncio.run(replay.request(flow))
    assert isinstance(flow.instead, Drop)


def test_what_cannot_be_replayed_is_left_out(player: Player) -> None:
    """WebSockets, and what other tools write of the way to a proxy; a status that none has."""
    replay = player.load(
        make_record("https://h/ws", status=101),
        make_record("h:443", method="CONNECT"),
        make_record("https://h/odd", status=999),
    )
    assert replay.count == 1
    assert ask(replay, "https://h/ws").body.startswith(b"not recorded")
    assert ask(replay, "https://h/odd").status == 502


def test_a_file_that_is_changed_is_an_answer_of_its_own(player: Player) -> None:
    """Not a failure of the server."""
    replay = player.load(make_record("https://h/"))
    os.truncate(player.path, 100)
    answer = ask(replay, "https://h/")
    assert (answer.status, answer.body) == (502, b"the recorded answer cannot be read any more\n")


def test_what_is_not_a_har_file_is_an_error(tmp_path: Path, player: Player, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one line that names it; so is one with too many flows."""
    path = tmp_path / "b.har"
    with pytest.raises(FileNotFoundError):
        Replay(str(path))
    path.write_bytes(b"hello")
    with pytest.raises(TabiError, match=r"b\.har: not a HAR file"):
        Replay(str(path))
    monkeypatch.setattr(module, "MAX_ANSWERS", 2)
    with pytest.raises(TabiError, match=r"a\.har: more than 2 flows"):
        player.load(*[make_record()] * 3)


def test_memory_does_not_hold_the_file(player: Player) -> None:
    """Only where its answers are."""
    records = [make_record(f"https://h/{number}", bytes(100_000)) for number in range(200)]
    file = HarFile(str(player.path))
    for record in records:
        file.append(encode_entry(prepare(record, 1_000_000)))
    file.close()
    del records
    tracemalloc.start()
    replay = player.load()
    assert tracemalloc.get_traced_memory()[0] < 1_000_000
    tracemalloc.stop()
    assert ask(replay, "https://h/7").body == bytes(100_000)
    assert replay.truncated == 0
