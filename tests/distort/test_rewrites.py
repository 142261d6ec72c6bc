"""Rewrites as destinations and clients see them: by HTTP/1.1 and HTTP/2, inside TLS, in a tunnel and forwarded."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from conftest import Run
from doubles import until
from h2_net import origin as h2_origin
from interceptions import OK, origin
from molding import ask, curl, molding
from tabi import Session
from tabi.distort.rewrites import change
from tabi.intercept.flow import Flow, FlowRequest
from tabi.intercept.headers import Headers
from tabi.policy.rewrites import FieldChanges
from tabi.server.interception import rules_of

HEADERS = {
    "remove": ["x-gone"],
    "set": {"User-Agent": "Mozilla/5.0", "X-New": "1"},
    "append": {"x-More": ["a", "b"]},
    "order": ["user-agent", "HOST"],
}
REQUEST = (
    b"GET %b HTTP/1.1\r\nHost: localhost:%d\r\nx-GONE: 1\r\nUser-agent: curl\r\n"
    b"aCCept: */*\r\nConnection: close\r\n\r\n"
)
TWICE = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\nGET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
REWRITTEN = b"user-agent: Mozilla/5.0\r\nHOST: localhost:%d\r\naCCept: */*\r\n"


def head_of(octets: bytes) -> bytes:
    """The fields of a head."""
    return octets.partition(b"\r\n")[2]


def test_fields_in_exact_case_and_order_in_a_tunnel(run: Run, tmp_path: Path) -> None:
    """The destination gets the very case and order that were asked for, and all else as it came."""

    async def main() -> None:
        async with origin(OK, plain=True, stays=False) as one, molding(tmp_path, {"headers": HEADERS}) as server:
            assert (await ask(server, REQUEST % (b"/", one.port), one.port)).endswith(b"hello")
            expected = REWRITTEN % one.port + b"Connection: close\r\nX-New: 1\r\nx-More: a\r\nx-More: b\r\n\r\n"
            assert head_of(one.heads[0]) == expected

    run(main)


def test_fields_of_a_forwarded_request(run: Run, tmp_path: Path) -> None:
    """The same of what the proxy sends, with its Via, which can be removed and replaced like any field."""

    async def main() -> None:
        async with origin(OK, OK, plain=True, stays=False) as one:
            url = b"http://localhost:%d/x" % one.port
            async with molding(tmp_path, {"headers": HEADERS}) as server:
                await ask(server, REQUEST % (url, one.port))
            tail = b"Via: 1.1 tabi\r\nX-New: 1\r\nx-More: a\r\nx-More: b\r\n\r\n"
            assert head_of(one.heads[0]) == REWRITTEN % one.port + tail
            one.answers.append(OK)
            mask = {"headers": {"set": {"Via": "1.1 other"}}, "response_headers": {"remove": ["via"]}}
            async with molding(tmp_path, mask) as server:
                answer = await ask(server, REQUEST % (url, one.port))
            assert b"\r\nVia: 1.1 other\r\n" in one.heads[1]
            assert b"tabi" not in one.heads[1]
            assert b"via" not in answer.lower()

    run(main)


@pytest.mark.parametrize("engine", ["passing", "task"])
def test_answers_are_changed_too(run_once: Run, tmp_path: Path, engine: str) -> None:
    """Status, fields and cookies of answers; two entries apply one after the other."""
    cookies = (
        b"HTTP/1.1 200 OK\r\nSet-Cookie: a=b\r\nServer: x\r\nX-A: 1\r\nContent-Length: 5\r\nSet-Cookie: c\r\n\r\nhello"
    )

    async def main() -> None:
        first: dict[str, Any] = {"strip_cookies": True, "response_headers": {"set": {"x-a": "2", "X-B": "1"}}}
        second: dict[str, Any] = {
            "status": 503,
            "response_headers": {"set": {"X-b": "2"}},
            "headers": {"remove": ["A"]},
        }
        if engine == "task":
            second["fault"] = {"answer_delay": 0.001}
        async with origin(cookies, plain=True, stays=False) as one, molding(tmp_path, first, second) as server:
            octets = (
                b"GET / HTTP/1.1\r\nHost: localhost\r\ncookie: a=b\r\nCookie: c\r\nA: b\r\nConnection: close\r\n\r\n"
            )
            answer = await ask(server, octets, one.port)
            assert one.heads == [b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"]
            assert answer.startswith(b"HTTP/1.1 503 Service Unavailable\r\nServer: x\r\nx-a: 2\r\n")
            assert b"X-b: 2\r\n" in answer
            assert b"cookie" not in answer.lower()
            assert answer.endswith(b"\r\n\r\nhello")

    run_once(main)


def test_http2_inside_tls(run_once: Run, tmp_path: Path) -> None:
    """curl by HTTP/2: names in small letters, in the order that was asked for."""

    async def main() -> None:
        entry = {"headers": {**HEADERS, "order": ["User-Agent"]}, "response_headers": {"set": {"X-Answer": "1"}}}
        async with (
            h2_origin() as port,
            molding(tmp_path, entry, intercept=[{"hosts": ["localhost"]}]) as server,
        ):
            url = f"https://localhost:{port}/"
            done = await curl(server, url, "--http2", "-H", "X-Gone: 1", "-H", "Cookie: a=b", folder=tmp_path)
            assert (done.code, done.said) == (0, "")
            head = done.head.decode()
            assert head.startswith("HTTP/2 200")
            assert "x-x-gone" not in head
            assert "x-answer: 1" in head
            assert "x-user-agent: Mozilla/5.0\r\n" in head
            assert "x-cookie: a=b" in head
            assert "x-x-more: a\r\nx-x-more: b" in head

    run_once(main)


def test_http1_inside_tls_and_what_is_not_looked_into(
    run_once: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """TLS is opened only where an [[intercept]] says so: elsewhere it passes, and one line says that once."""

    async def main() -> None:
        entry = {"name": "mask", "headers": {"set": {"User-Agent": "other"}}}
        async with origin(OK, OK, OK) as one:
            url = f"https://localhost:{one.port}/"
            async with molding(tmp_path, entry, intercept=[{"hosts": ["localhost"]}]) as server:
                done = await curl(server, url, folder=tmp_path)
                assert done.body == b"hello", done
            async with molding(tmp_path, entry) as server:
                for _ in range(2):
                    assert (await curl(server, url, "-k")).body == b"hello"
            assert [b"User-Agent: other\r\n" in head for head in one.heads] == [True, False, False]
            assert [b"User-Agent: curl" in head for head in one.heads] == [False, True, True]
        lines = [record.getMessage() for record in caplog.records if "no [[intercept]]" in record.getMessage()]
        assert lines == [f"mask does not act on localhost:{one.port}: no [[intercept]] opens its TLS"]

    run_once(main)


def test_an_exemption_holds_for_rewrites_too(run_once: Run, tmp_path: Path) -> None:
    """What an [[intercept]] leaves alone is left alone, in the clear too; other matchers are the entry's own."""

    async def main() -> None:
        entry = {"headers": {"set": {"User-Agent": "other"}}, "hosts": ["localhost", "other.test"]}
        exempt = [{"action": "pass", "hosts": ["other.test"]}]
        async with origin(OK, OK, OK, plain=True) as one, molding(tmp_path, entry, intercept=exempt) as server:
            for host in ("localhost", "other.test", "third.test"):
                assert (await curl(server, f"http://{host}:{one.port}/")).body == b"hello"
            assert [b"other\r\n" in head for head in one.heads] == [True, False, False]

    run_once(main)


def test_nothing_is_registered_without_entries(run_once: Run, tmp_path: Path) -> None:
    """Entries that do not act on HTTP have nothing looked into, and no hook is called for flows."""

    async def main() -> None:
        async with molding(tmp_path, {"fault": {"latency": "1ms"}}) as server:
            assert server.parts.interception is None
        async with molding(tmp_path, {"fault": {"latency": "1ms"}}, intercept=[{"tls": False}]) as server:
            (interception,) = server.parts.interceptions
            assert not any(hooks.of_flows for hooks in rules_of(interception).made.values())
            assert (interception.fingerprints, interception.on_passing) == (None, None)
            assert server.parts.molding is not None
            assert server.parts.molding.rewrites is None

    run_once(main)


def test_sessions_that_no_entry_matches_are_relayed_at_once(run_once: Run, tmp_path: Path) -> None:
    """They wait for no first octets: the relay has them before anybody has said anything."""

    async def main() -> None:
        entry = {"headers": {"set": {"X-New": "1"}}, "hosts": ["other.test"]}
        async with origin(plain=True) as one, molding(tmp_path, entry) as server:
            address, parts = server.addresses[0], server.parts
            for host, relayed in ((b"localhost", True), (b"other.test", False)):
                reader, writer = await asyncio.open_connection(str(address.host), address.port)
                writer.write(b"CONNECT %b:%d HTTP/1.1\r\nHost: a\r\n\r\n" % (host, one.port))
                await reader.readuntil(b"\r\n\r\n")
                (session,) = parts.sessions.running
                assert (session in parts.relays.active) is relayed
                writer.close()
                await until(lambda: not parts.sessions.running)

    run_once(main)


def test_scripts_see_what_came_and_rewrites_are_last(run_once: Run, tmp_path: Path) -> None:
    """A script sees the client's own request and the destination's own answer; what goes out is the entry's."""
    script = tmp_path / "hooks.py"
    script.write_text(
        "class Hook:\n"
        "    def request(self, flow):\n"
        "        flow.request.headers['X-Seen'] = flow.request.headers['User-Agent']\n"
        "        flow.request.headers['User-Agent'] = 'script'\n"
        "    def response(self, flow):\n"
        "        flow.response.headers['X-Status'] = str(flow.response.status)\n"
    )

    async def main() -> None:
        entry = {"headers": {"set": {"User-Agent": "entry"}}, "status": 404}
        intercept = [{"scripts": [str(script)]}]
        async with origin(OK, plain=True) as one, molding(tmp_path, entry, intercept=intercept) as server:
            done = await curl(server, f"http://localhost:{one.port}/", "-A", "client")
            assert b"User-Agent: entry\r\n" in one.heads[0]
            assert b"X-Seen: client\r\n" in one.heads[0]
            assert done.head.startswith(b"HTTP/1.1 404 Not Found")
            assert b"X-Status: 200" in done.head

    run_once(main)


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "h2"])
def test_map_remote(run_once: Run, tmp_path: Path, secure: bool) -> None:
    """Another server is asked, with the rewritten fields and without a Via of ours; its answer is rewritten too."""

    async def main() -> None:
        answer = b"HTTP/1.1 200 OK\r\nSet-Cookie: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nother\r\n0\r\n\r\n"
        async with origin(answer, plain=True, stays=False) as other, h2_origin() as port, origin(plain=True) as one:
            entry = {
                "hosts": ["localhost"],
                "map_remote": f"http://joe:s3cret@other.test:{other.port}/base/",
                "strip_cookies": True,
                "headers": {"remove": ["Via"], "set": {"X-Mapped": "1"}},
                "response_headers": {"set": {"X-From": "there"}},
            }
            async with molding(tmp_path, entry, intercept=[{"hosts": ["localhost"]}]) as server:
                url = f"https://localhost:{port}/a?b" if secure else f"http://localhost:{one.port}/a?b"
                done = await curl(server, url, "-d", "content", folder=tmp_path)
            assert (done.code, done.body) == (0, b"other"), done
            assert done.head.startswith(b"HTTP/2 200" if secure else b"HTTP/1.1 200")
            assert b"x-from: there" in done.head.lower()
            assert b"cookie" not in done.head.lower()
            assert other.heads[0].startswith(b"POST /base/a?b HTTP/1.1\r\nHost: other.test:%d\r\n" % other.port)
            assert b"mapped: 1" in other.heads[0].lower()
            assert b"Authorization: Basic am9lOnMzY3JldA==\r\n" in other.heads[0]
            assert b"via" not in other.heads[0].lower()
            assert other.bodies == [b"content"]
            assert one.connections == 0

    run_once(main)


def test_map_remote_passes_the_rules(run_once: Run, tmp_path: Path) -> None:
    """A server that a rule denies is not reached by a rewrite either."""

    async def main() -> None:
        async with origin(plain=True) as one:
            entry = {"hosts": ["localhost"], "map_remote": f"http://other.test:{one.port}"}
            rule = [{"hosts": ["other.test"], "action": "deny"}]
            async with molding(tmp_path, entry, rule=rule) as server:
                done = await curl(server, f"http://localhost:{one.port}/")
            assert done.head.startswith(b"HTTP/1.1 502 ")
            assert one.connections == 0

    run_once(main)


def test_clients_are_not_told_of_another_server(run_once: Run, tmp_path: Path) -> None:
    """Why it was not reached, and where, is for the access log, as with any destination."""

    async def main() -> None:
        over: list[Session] = []
        entry = {"hosts": ["localhost"], "map_remote": "http://127.0.0.2:1/secret"}
        for guard in ({"deny": ["127.0.0.2"], "exempt": ["unix"]}, {}):
            async with origin(plain=True) as one, molding(tmp_path, entry, over=over, guard=guard) as server:
                for port, url in ((one.port, "/"), (None, f"http://localhost:{one.port}/")):
                    head = f"GET {url} HTTP/1.1\r\nHost: localhost:{one.port}\r\nConnection: close\r\n\r\n"
                    answer = await ask(server, head.encode(), port)
                    assert answer.startswith(b"HTTP/1.1 502 "), answer
                    assert b"error=destination_unavailable" in answer
                    assert not [word for word in (b"127.", b"secret", b"guard", b"refused") if word in answer], answer
        assert len(over) == 4
        assert all(any(word in str(session.error) for word in ("guard", "refused")) for session in over)

    run_once(main)


def test_content_for_another_server_has_a_bound(run_once: Run, tmp_path: Path) -> None:
    """It is read whole: beyond `body_limit` the request fails, and the other server is not asked."""
    (tmp_path / "large").write_bytes(b"x" * 200_000)

    async def main() -> None:
        async with origin(plain=True) as one, origin(OK, plain=True) as other, h2_origin() as port:
            entry = {"hosts": ["localhost"], "map_remote": f"http://other.test:{other.port}"}
            intercept = [{"hosts": ["localhost"], "body_limit": 100_000}]
            async with molding(tmp_path, entry, intercept=intercept) as server:
                for options in ((), ("--proxytunnel",)):
                    url, content = f"http://localhost:{one.port}/", f"@{tmp_path}/large"
                    done = await curl(server, url, *options, "-H", "Expect:", "--data-binary", content)
                    assert done.head.startswith(b"HTTP/1.1 413 "), done
                done = await curl(server, f"https://localhost:{port}/", "--data-binary", content, folder=tmp_path)
                assert done.code == 92 or done.head.startswith(b"HTTP/2 502"), done
            assert (other.connections, one.heads) == (0, [])

    run_once(main)


def test_websockets_are_not_mapped(run_once: Run, tmp_path: Path) -> None:
    """They go to their destination, with other fields as any request."""
    (tmp_path / "page").write_text("local")
    upgrade = "Connection: Upgrade\r\nUpgrade: WebSocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAA\r\n"

    async def main() -> None:
        for entry in ({"map_local": "page"}, {"map_remote": "http://other.test:1"}):
            more = {**entry, "headers": {"set": {"X-New": "1"}}}
            async with origin(OK, plain=True, stays=False) as one, molding(tmp_path, more) as server:
                octets = f"GET / HTTP/1.1\r\nHost: localhost\r\n{upgrade}\r\n".encode()
                assert (await ask(server, octets, one.port)).endswith(b"hello")
                assert b"X-New: 1\r\n" in one.heads[0]

    run_once(main)


@pytest.mark.parametrize(
    "entry",
    [{"body": "page"}, {"fault": {"answer_delay": 0.01}}, {"fault": {"truncate": 5}}],
    ids=["body", "late", "cut"],
)
@pytest.mark.parametrize("forwarded", [False, True], ids=["tunnel", "forwarded"])
def test_websockets_go_on_where_answers_wait(
    run_once: Run, tmp_path: Path, forwarded: bool, entry: dict[str, Any]
) -> None:
    """Content, a delay and an end are for answers of HTTP: behind a 101 messages pass, both ways."""
    (tmp_path / "page").write_text("local")

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        accept = "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        writer.write(f"HTTP/1.1 101 Over\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n{accept}\r\n\r\n".encode())
        writer.write(b"\x82\x04" + await reader.readexactly(10))
        writer.close()

    async def main() -> None:
        async with await asyncio.start_server(answer, "127.0.0.1", 0) as one, molding(tmp_path, entry) as server:
            port = one.sockets[0].getsockname()[1]
            url = f"http://localhost:{port}/" if forwarded else "/"
            fields = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            fields += "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
            head = f"GET {url} HTTP/1.1\r\nHost: localhost:{port}\r\n{fields}\r\n\r\n"
            said = await ask(server, head.encode() + b"\x82\x84\0\0\0\0ping", None if forwarded else port)
            got, _, rest = said.partition(b"\r\n\r\n")
            assert got.startswith(b"HTTP/1.1 101 ")
            assert rest == b"\x82\x04\x82\x84\0\0\0\0ping"

    run_once(main)


@pytest.mark.parametrize("elsewhere", [False, True], ids=["tunnel", "map_remote"])
def test_clients_cannot_have_set_fields_dropped(run_once: Run, tmp_path: Path, elsewhere: bool) -> None:
    """A field that is set or appended is no longer one of the connection, whatever the client says of it: whoever
    comes behind would leave it out."""

    async def main() -> None:
        async with origin(OK, plain=True, stays=False) as one, origin(OK, plain=True, stays=False) as other:
            entry: dict[str, Any] = {"headers": {"set": {"X-Who": "{client}"}, "append": {"X-More": "1"}}}
            if elsewhere:
                entry["map_remote"] = f"http://localhost:{other.port}"
            async with molding(tmp_path, {"ports": [one.port], **entry}) as server:
                fields = "Connection: x-who, X-MORE, close\r\nX-Who: liar\r\n"
                await ask(server, f"GET / HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n".encode(), one.port)
            head = (other if elsewhere else one).heads[0]
            assert b"\r\nConnection: close\r\n" in head
            assert b"\r\nX-Who: 127.0.0.1\r\n" in head
            assert b"\r\nX-More: 1\r\n" in head

    run_once(main)


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "h2"])
def test_body_from_a_file(run_once: Run, tmp_path: Path, secure: bool) -> None:
    """The file's content with its length, uncompressed, in place of the destination's; HEAD has none; conditions do not
    reach the destination, whose 304 would be for its own content."""
    content = b"x" * 700_000
    (tmp_path / "page.html").write_bytes(content)
    zipped = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Type: text/html\r\nContent-Length: 5\r\n\r\nhello"

    async def main() -> None:
        async with origin(zipped, zipped, plain=True) as one, h2_origin() as port:
            entry = {"body": "page.html", "status": 201, "response_headers": {"set": {"X-File": "1"}}}
            async with molding(tmp_path, entry, intercept=[{"hosts": ["localhost"]}]) as server:
                url = f"https://localhost:{port}/big" if secure else f"http://localhost:{one.port}/"
                done = await curl(server, url, "-H", "If-None-Match: a", "-H", "Range: bytes=0-1", folder=tmp_path)
                assert (done.code, done.body) == (0, content), (done.code, done.said)
                head = done.head.lower()
                assert b" 201" in head.partition(b"\r\n")[0]
                assert b"content-length: 700000" in head
                assert b"content-encoding" not in head
                assert b"x-file: 1" in head
                if not secure:
                    assert b"content-type: text/html" in head
                    assert b"If-None-Match" not in one.heads[0]
                    assert b"Range" not in one.heads[0]
                    one.answers[:] = [b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"]
                done = await curl(server, url, "-I", folder=tmp_path)
                assert (done.code, done.body) == (0, b"")
                assert b"content-length: 700000" in done.head.lower()

    run_once(main)


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "h2"])
@pytest.mark.parametrize(
    ("more", "status", "body"),
    [
        ({"body": "page"}, b"200", b"from a file"),
        ({"body": "page", "status": 503}, b"503", b"from a file"),
        ({"body": "page", "fault": {"truncate": 100}}, b"200", b"from a file"),
        ({"status": 204}, b"204", b""),
        ({"status": 299}, b"299", b"there"),
    ],
)
def test_answers_of_other_servers_are_changed_too(
    run_once: Run, tmp_path: Path, secure: bool, more: dict[str, Any], status: bytes, body: bytes
) -> None:
    """Status and content, as of the destination's own; fields that were for the content before are gone."""
    (tmp_path / "page").write_text("from a file")
    answer = b"HTTP/1.1 200 OK\r\nContent-Encoding: identity\r\nX-There: 1\r\nContent-Length: 5\r\n\r\nthere"

    async def main() -> None:
        async with origin(answer, plain=True) as other, h2_origin() as port, origin(plain=True) as one:
            entry = {"hosts": ["localhost"], "map_remote": f"http://other.test:{other.port}", **more}
            async with molding(tmp_path, entry, intercept=[{"hosts": ["localhost"]}]) as server:
                url = f"https://localhost:{port}/" if secure else f"http://localhost:{one.port}/"
                done = await curl(server, url, "-H", "Range: bytes=0-1", folder=tmp_path)
            assert (done.code, done.head.split()[1], done.body) == (0, status, body), done
            assert b"x-there: 1" in done.head.lower()
            assert (b"content-encoding" in done.head.lower()) is ("body" not in more)
            assert (b"range:" in other.heads[0].lower()) is ("body" not in more)

    run_once(main)


def test_a_tunnel_within_is_not_answered(run_once: Run, tmp_path: Path) -> None:
    """The fields of a CONNECT to a proxy behind are changed; that is all, since a tunnel is no content."""
    (tmp_path / "page").write_text("from a file")
    octets = b"CONNECT a.test:443 HTTP/1.1\r\nHost: a.test:443\r\nUser-Agent: x\r\n\r\n"

    async def main() -> None:
        entry = {"map_local": "page", "status": 500, "fault": {"truncate": 1}, "headers": {"remove": ["User-Agent"]}}
        answer = b"HTTP/1.1 200 OK\r\n\r\ntunnel"
        async with origin(answer, plain=True, stays=False) as one, molding(tmp_path, entry) as server:
            assert await ask(server, octets, one.port) == answer
            assert b"User-Agent" not in one.heads[0]

    run_once(main)


@pytest.mark.parametrize("status", [204, 304])
def test_a_status_without_content(run_once: Run, tmp_path: Path, status: int) -> None:
    """The answer ends behind its head, and the connection goes on."""

    async def main() -> None:
        async with origin(OK, OK, plain=True) as one, molding(tmp_path, {"status": status}) as server:
            answer = await ask(server, TWICE, one.port)
            assert answer.count(b"HTTP/1.1 %d " % status) == 2
            assert b"hello" not in answer

    run_once(main)


def test_a_file_that_vanishes(run_once: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The flow goes on as it is, with one line until the file is there again; the next time another."""
    page, local = tmp_path / "page", tmp_path / "local"
    page.write_text("body")
    local.write_text("local")

    async def main() -> None:
        entries = {"ports": [1], "body": "page"}, {"hosts": ["other.test"], "map_local": "local"}
        async with origin(*[OK] * 20, plain=True) as one:
            entries[0]["ports"] = [one.port]
            async with molding(tmp_path, entries[0]) as server:
                for there in (True, False, False, True, False):
                    if there:
                        page.write_text("body")
                    else:
                        page.unlink(missing_ok=True)
                    done = await curl(server, f"http://localhost:{one.port}/")
                    assert done.body == (b"body" if there else b"hello")
            async with molding(tmp_path, entries[1]) as server:
                for there in (True, False, False):
                    if not there:
                        local.unlink(missing_ok=True)
                    done = await curl(server, f"http://other.test:{one.port}/x")
                    assert done.body == (b"local" if there else b"hello")
        said = [record.getMessage() for record in caplog.records if "goes on without it" in record.getMessage()]
        why = "no such file or directory: HTTP goes on without it"
        assert said == [f"{page}: {why}", f"{page}: {why}", f"{local}: {why}"]

    run_once(main)


def test_a_session_is_drawn_once(run_once: Run, tmp_path: Path) -> None:
    """With a seed the same sessions are chosen in each run, and all requests of a session share its lot."""

    async def main() -> None:
        entry = {"headers": {"set": {"X-Drawn": "1"}}, "probability": 0.5, "seed": 7}
        runs = []
        for _ in range(2):
            async with origin(*[OK] * 40, plain=True) as one, molding(tmp_path, entry) as server:
                for _ in range(16):
                    await ask(server, TWICE, one.port)
                runs.append([b"X-Drawn" in head for head in one.heads])
        assert runs[0] == runs[1]
        assert runs[0][::2] == runs[0][1::2]
        assert 0 < sum(runs[0]) < 32

    run_once(main)


CASES = [
    (FieldChanges(), [("A", "1")], [("A", "1")]),
    (FieldChanges(remove=("a",)), [("A", "1"), ("B", "2"), ("a", "3")], [("B", "2")]),
    (
        FieldChanges(set=(("a", "9"),)),
        [("B", "2"), ("A", "1"), ("C", "3"), ("a", "4")],
        [("B", "2"), ("a", "9"), ("C", "3")],
    ),
    (FieldChanges(set=(("X", "9"),)), [("B", "2")], [("B", "2"), ("X", "9")]),
    (
        FieldChanges(remove=("A",), set=(("a", "2"),), append=(("a", "3"),)),
        [("A", "1"), ("B", "")],
        [("B", ""), ("a", "2"), ("a", "3")],
    ),
    (
        FieldChanges(order=("c", "B", "x")),
        [("A", "1"), ("b", "2"), ("C", "3"), ("B", "4")],
        [("c", "3"), ("B", "2"), ("B", "4"), ("A", "1")],
    ),
    (FieldChanges(set=(("X-Forwarded-For", "{client}"),)), [], [("X-Forwarded-For", "2001:db8::1")]),
    (
        FieldChanges(append=(("Forwarded", "for={client};proto=http"),)),
        [],
        [("Forwarded", 'for="[2001:db8::1]";proto=http')],
    ),
    (
        FieldChanges(append=(("Forwarded", 'by="{client}";for={client};host="a {client}"'),)),
        [],
        [("Forwarded", 'by="[2001:db8::1]";for="[2001:db8::1]";host="a [2001:db8::1]"')],
    ),
    (FieldChanges(set=(("A", "{other} {client}"),)), [], [("A", "{other} 2001:db8::1")]),
    (
        FieldChanges(set=(("X-A", "1"),), append=(("X-B", "2"),), remove=("X-C",)),
        [("Connection", "x-a, close,X-B , X-C"), ("connection", "X-b")],
        [("Connection", "close, X-C"), ("X-A", "1"), ("X-B", "2")],
    ),
    (FieldChanges(set=(("X-A", "1"),)), [("Connection", "a ,b"), ("X-A", "1")], [("Connection", "a ,b"), ("X-A", "1")]),
]


def flow_of(client: str, version: str = "HTTP/1.1") -> Flow:
    """A flow of a client."""
    request = FlowRequest("GET", "http", "a.test", "/", version, Headers())
    return Flow("1", (client, 5), None, "", "a.test", 80, None, request)


@pytest.mark.parametrize(("changes", "fields", "expected"), CASES)
def test_changes_of_fields(
    changes: FieldChanges, fields: list[tuple[str, str]], expected: list[tuple[str, str]]
) -> None:
    """Removed, set, appended, ordered, with names in the very case that was given, and the client's address."""
    headers = Headers(fields)
    change(headers, changes, flow_of("2001:db8::1"), None)
    assert headers.items() == expected
    assert headers.changed is (fields != expected)


def test_the_address_of_other_clients() -> None:
    """IPv4 stands as it is; a client of a unix socket has no address."""
    for client, expected in (("192.0.2.1", "192.0.2.1"), ("unix", "unknown")):
        headers = Headers()
        change(headers, FieldChanges(set=(("Forwarded", "for={client}"),)), flow_of(client), None)
        assert headers["Forwarded"] == f"for={expected}"


def test_names_are_small_in_http2() -> None:
    """Whatever the entry says, and cookies go with everything else."""
    headers = Headers([("cookie", "a"), ("a", "b")])
    change(headers, FieldChanges(set=(("X-A", "1"),), order=("X-A", "A")), flow_of("::1", "HTTP/2"), "Cookie")
    assert headers.items() == [("x-a", "1"), ("a", "b")]
