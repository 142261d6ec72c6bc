"""WebSockets as programs have them: through SOCKS5 and HTTP, plain and inside TLS, with hooks and with records."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import ssl
import weakref
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.client import ClientProtocol
from websockets.exceptions import ConnectionClosedError
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory
from websockets.frames import Frame
from websockets.http11 import Response
from websockets.uri import parse_uri

from authorities import authority, server_context
from conftest import Run
from destinations import write_authority
from doubles import until
from support import target
from tabi import Config, Flow, Server, Session, Tunnel
from tabi.client import Proxy
from tabi.config import InterceptConfig, Log, Seconds, Timeouts
from tabi.intercept import websocket
from tabi.intercept.events import WebSocketMessage
from tabi.intercept.record import WebSocketMessage as Recorded
from tabi.intercept.websocket import WebSocketStage, WebSocketStages, ended_soon, open_websocket
from tabi.intercept.websocket_halves import UNRECORDED, UNSEEN, HookedHalf, RecordedHalf
from websocket_frames import Ends, Heard, Sender, make_flow, make_inspection, read

DEFLATE = "permessage-deflate"
LISTEN = "mixed://127.0.0.1:0"


class Watch:
    """A hook that changes messages, and counts flows that have ended."""

    def __init__(self) -> None:
        self.ended: list[tuple[str, str | None, set[str]]] = []

    def websocket_message(self, flow: Flow, message: WebSocketMessage) -> None:
        if message.is_text:
            message.text = message.text.replace("secret", "public")
            if message.text == "drop me":
                message.drop()

    def flow_end(self, flow: Flow) -> None:
        self.ended.append((flow.request.path, flow.error, flow.tags))


class WatchAndWait(Watch):
    """One that waits."""

    async def websocket_message(self, flow: Flow, message: WebSocketMessage) -> None:  # type: ignore[override]
        await asyncio.sleep(0)
        super().websocket_message(flow, message)

    async def flow_end(self, flow: Flow) -> None:  # type: ignore[override]
        await asyncio.sleep(0)
        super().flow_end(flow)


class OnlyEnds:
    """A hook that wants no messages."""

    def __init__(self) -> None:
        self.ended: list[tuple[str, str | None, set[str]]] = []

    def flow_end(self, flow: Flow) -> None:
        self.ended.append((flow.request.path, flow.error, flow.tags))


@pytest.fixture(autouse=True)
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An authority of the user's; and a file with that of origins."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    write_authority(tmp_path / "tabi")
    path = tmp_path / "origins.pem"
    path.write_bytes(authority().cert_pem.bytes())
    return path


@contextlib.asynccontextmanager
async def proxy(made: Path, hooks: list[Any], har: Path | None = None, **rule: Any) -> AsyncIterator[Server]:
    """A server that looks into everything."""
    entry = InterceptConfig(hosts=["*"], trust=str(made), har=None if har is None else str(har), **rule)
    config = Config(log=Log(access="none"), timeouts=Timeouts(idle=Seconds(20)))
    async with Server(LISTEN, config=config, intercept=[entry], hooks=hooks) as server:
        yield server


async def echo(connection: ServerConnection) -> None:
    """Send every message back."""
    async for message in connection:
        await connection.send(message)


@contextlib.asynccontextmanager
async def echoing(tls: bool = False, compression: str | None = None) -> AsyncIterator[int]:
    """A server of WebSocket; gives its port."""
    async with serve(echo, "127.0.0.1", 0, ssl=server_context() if tls else None, compression=compression) as server:
        yield next(iter(server.sockets)).getsockname()[1]


def connecting(server: Server, scheme: str, port: int, tls: bool = False, compression: str | None = None) -> connect:
    """A client of WebSocket, through a proxy."""
    context = None
    if tls:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    url = f"{'wss' if tls else 'ws'}://localhost:{port}/socket"
    return connect(url, ssl=context, proxy=server.url.replace("mixed", scheme), compression=compression)


async def talk(client: ClientConnection, changed: bool) -> list[str | bytes]:
    """Send messages of all sorts, and receive what comes back; returns what was said of them in the middle."""
    sent: list[Any] = [
        "hello",
        "secret " * 200,
        "drop me",
        b"\0" * 1000,
        "x" * 100_000,
        ["in ", "sec", "ret parts"],
        "",
    ]
    for message in sent:
        await client.send(message)
    texts = ["".join(message) if isinstance(message, list) else message for message in sent]
    if changed:
        texts = [text.replace("secret", "public") if isinstance(text, str) else text for text in texts]
        texts.remove("drop me")
    assert [await client.recv() for _ in texts] == texts
    await (await client.ping())
    return texts


def recorded(har: Path) -> list[dict[str, Any]]:
    """The entries of a HAR."""
    entries: list[dict[str, Any]] = json.loads(har.read_text())["log"]["entries"]
    return entries


@pytest.mark.parametrize("hook", [OnlyEnds, Watch, WatchAndWait])
@pytest.mark.parametrize("compression", [None, "deflate"])
@pytest.mark.parametrize(("tls", "scheme"), [(True, "socks5h"), (False, "socks5h"), (True, "http")])
def test_programs_talk_through_it(
    run: Run, made: Path, tmp_path: Path, tls: bool, scheme: str, compression: str | None, hook: type[Any]
) -> None:
    """Messages arrive, changed or not; one record has them all, as they went on; the flow ends once."""
    har = tmp_path / "flows.har"

    async def main() -> list[str | bytes]:
        watch = hook()
        async with echoing(tls, compression) as port, proxy(made, [watch], har) as server:
            async with connecting(server, scheme, port, tls, compression) as client:
                texts = await talk(client, hook is not OnlyEnds)
                assert watch.ended == []
            await until(lambda: watch.ended)
            assert watch.ended == [("/socket", None, set())]
        assert len(watch.ended) == 1
        return texts

    texts = run(main)
    (entry,) = recorded(har)
    assert entry["response"]["status"] == 101
    for way in ("send", "receive"):
        messages = [message for message in entry["_webSocketMessages"] if message["type"] == way]
        assert [message["opcode"] for message in messages] == [2 if isinstance(text, bytes) else 1 for text in texts]
        assert [message["data"] for message in messages if message["opcode"] == 1] == [
            text for text in texts if isinstance(text, str)
        ]


class Forwarded:
    """A client that asks the proxy for ``ws://`` without CONNECT."""

    def __init__(self, port: int, compression: bool = False) -> None:
        extensions = [ClientPerMessageDeflateFactory()] if compression else None
        self.port = port
        self.protocol = ClientProtocol(parse_uri(f"ws://localhost:{port}/socket"), extensions=extensions)

    async def open(self, server: Server, forwarded: bool = True) -> None:
        """Shake hands; by SOCKS5 if it is not forwarded."""
        self.protocol.send_request(self.protocol.connect())
        octets = b"".join(self.protocol.data_to_send())
        if forwarded:
            port = int(server.url.rpartition(":")[2])
            self.reader, self.writer = await asyncio.open_connection("127.0.0.1", port)
            octets = octets.replace(b"GET /", b"GET http://localhost:%d/" % self.port)
        else:
            self.reader, self.writer = await tabi_client(server, self.port)
        self.writer.write(octets)
        await self.take(Response)

    async def take(self, kind: type[Any]) -> Any:
        """What comes next, pongs and the like apart."""
        while True:
            for event in self.protocol.events_received():
                if isinstance(event, kind):
                    return event
            octets = await self.reader.read(65536)
            assert octets
            self.protocol.receive_data(octets)

    async def talk(self, text: str) -> str:
        """Send a message, and receive one."""
        self.protocol.send_text(text.encode())
        self.writer.write(b"".join(self.protocol.data_to_send()))
        frame = await self.take(Frame)
        return bytes(frame.data).decode()


@pytest.mark.parametrize("hook", [OnlyEnds, Watch, WatchAndWait])
@pytest.mark.parametrize("compression", [False, True])
def test_a_plain_request_to_the_proxy(run: Run, made: Path, tmp_path: Path, compression: bool, hook: type[Any]) -> None:
    """``ws://`` without CONNECT is looked into as well."""
    har = tmp_path / "flows.har"

    async def main() -> None:
        watch = hook()
        async with echoing(compression="deflate" if compression else None) as port, proxy(made, [watch], har) as server:
            client = Forwarded(port, compression)
            await client.open(server)
            expected = "a secret" if hook is OnlyEnds else "a public"
            for _ in range(3):
                assert await client.talk("a secret") == expected
            assert watch.ended == []
            client.writer.close()
            await until(lambda: watch.ended)
            assert [path for path, _, _ in watch.ended] == ["/socket"]

    run(main)
    (entry,) = recorded(har)
    assert len(entry["_webSocketMessages"]) == 6


@pytest.mark.parametrize("how", ["client", "shutdown", "server"])
@pytest.mark.parametrize("forwarded", [False, True])
def test_a_flow_ends_once_whatever_its_end(run: Run, made: Path, tmp_path: Path, how: str, forwarded: bool) -> None:
    """A reset by the client, an end of the destination in the middle, an end of tabi."""
    har = tmp_path / "flows.har"
    watch = Watch()

    async def main() -> None:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(
                b"HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n\x81\x02hi\x81\x05h"
            )
            if how == "server":
                await reader.readexactly(6)
                writer.transport.abort()
            await reader.read()

        async with target(answer) as port, proxy(made, [watch], har) as server:
            if forwarded:
                reader, writer = await asyncio.open_connection("127.0.0.1", int(server.url.rpartition(":")[2]))
                begin = b"GET http://localhost:%d/socket HTTP/1.1\r\nHost: localhost:%d\r\n" % (port, port)
            else:
                reader, writer = await tabi_client(server, port)
                begin = b"GET /socket HTTP/1.1\r\nHost: localhost:%d\r\n" % port
            writer.write(begin + b"Connection: upgrade\r\nUpgrade: websocket\r\n\r\n")
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 101 ")
            assert await reader.readexactly(4) == b"\x81\x02hi"
            assert watch.ended == []
            if how == "client":
                writer.transport.abort()
            elif how == "server":
                writer.write(Sender(True).message(b""))
                assert await reader.read() == b""
                writer.close()
            if how != "shutdown":
                await until(lambda: watch.ended)
        writer.close()
        assert [path for path, _, _ in watch.ended] == ["/socket"]

    run(main)
    (entry,) = recorded(har)
    assert ("receive", "hi") in [(message["type"], message["data"]) for message in entry["_webSocketMessages"]]


async def tabi_client(server: Server, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection through SOCKS5."""
    return await Proxy(server.url_for("socks5")).open_connection("localhost", port)


@pytest.mark.parametrize("protocol", ["h2c-like", "websocket"])
def test_what_nobody_can_read_is_relayed(run: Run, made: Path, protocol: str) -> None:
    """Another protocol, or an extension that is not known: octets pass, and the flow has ended before."""

    async def main() -> None:
        watch = Watch()

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(
                b"HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: %b\r\n"
                b"Sec-WebSocket-Extensions: private\r\n\r\nno frame" % protocol.encode()
            )
            writer.write(await reader.readexactly(8))

        async with target(answer) as port, proxy(made, [watch]) as server:
            reader, writer = await tabi_client(server, port)
            writer.write(b"GET / HTTP/1.1\r\nHost: localhost:%d\r\n" % port)
            writer.write(b"Connection: upgrade\r\nUpgrade: %b\r\n\r\n" % protocol.encode())
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"no more!")
            assert await reader.readexactly(16) == b"no frameno more!"
            assert len(watch.ended) == 1
            if protocol == "websocket":
                assert watch.ended[0][1:] == ("the WebSocket extension 'private' is not known", {UNSEEN})
            writer.close()

    run(main)


def test_a_client_that_sends_no_frames_is_told(run: Run, made: Path) -> None:
    """Both sides get 1002, and the access log has the reason."""
    ended: list[Session] = []

    async def main() -> None:
        watch = Watch()
        closed: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()

        async def handle(connection: ServerConnection) -> None:
            with contextlib.suppress(ConnectionClosedError):
                await connection.recv()
            closed.set_result(connection.close_code)

        async with (
            serve(handle, "127.0.0.1", 0) as origin,
            proxy(made, [watch]) as server,
        ):
            port = next(iter(origin.sockets)).getsockname()[1]
            async with connecting(server, "socks5h", port) as client:
                ended.extend(server.parts.interception.tunnels.active)  # type: ignore[union-attr]
                client.transport.write(b"\x83\x80\0\0\0\0")
                with pytest.raises(ConnectionClosedError):
                    await client.recv()
                assert client.close_code == 1002
            assert await closed == 1002
            await until(lambda: watch.ended)
            assert watch.ended == [("/socket", "a WebSocket frame with the unknown opcode 3", set())]
            (session,) = ended
            await until(lambda: session.close)
            assert (session.close, session.error) == ("error", "a WebSocket frame with the unknown opcode 3")

    run(main)


@pytest.mark.parametrize("hooked", [True, False])
def test_what_came_before_the_relay(run: Run, hooked: bool) -> None:
    """It goes first, in both directions, whether more comes or not."""

    async def main() -> None:
        up, down = Sender(True), Sender(False)
        heard = Heard()
        stages: list[WebSocketStage] = []
        ended: list[bool] = []

        async def carry(tunnel: Tunnel) -> None:
            inspection = make_inspection([heard] if hooked else [])
            flow = make_flow(inspection)
            socket = websocket.WebSocket(inspection, flow, None, tunnel.client.reactor.late)
            both = WebSocketStages(socket, up.message(b"1"), down.message(b"2"), lambda: ended.append(True))
            stages.append(both.up)
            await tunnel.relay([both.up], [both.down])

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            octets = await reader.readexactly(len(up.message(b"1")))
            assert read(octets, True) == [(1, b"1")]
            writer.write(down.message(b"3"))
            assert read(await reader.read(), True) == [(1, b"4")]
            writer.write_eof()

        async with target(answer) as port, Server(LISTEN, carrier=carry) as server:
            reader, writer = await tabi_client(server, port)
            size = len(down.message(b"2"))
            assert read(await reader.readexactly(2 * size), False) == [(1, b"2"), (1, b"3")]
            writer.write(up.message(b"4"))
            writer.write_eof()
            assert await reader.read() == b""
            writer.close()
            await until(lambda: ended)
            assert ended == [True]
            if hooked:
                assert sorted(content for _, _, content in heard.messages) == [b"1", b"2", b"3", b"4"]
            (stage,) = stages
            assert not stage.holds(0.0)
            stage.flush()
            stage.run(lambda: 1 / 0)
            stage.later(lambda: 1 / 0)
            stage.cut("nothing happens any more")

    run(main)


@pytest.mark.parametrize("hook", [OnlyEnds, Watch, WatchAndWait])
@pytest.mark.parametrize("forwarded", [False, True])
def test_nothing_is_left_to_the_garbage_collector(
    run_once: Run, made: Path, tmp_path: Path, forwarded: bool, hook: type[Any]
) -> None:
    """A WebSocket that is over, and all that it was made of, goes by itself."""

    async def main() -> None:
        watch = hook()
        async with echoing(compression="deflate") as port, proxy(made, [watch], tmp_path / "flows.har") as server:
            client = Forwarded(port, True)
            await client.open(server, forwarded)
            await client.talk("a secret")
            gc.collect()
            kinds = {websocket.WebSocket, WebSocketStages, HookedHalf, RecordedHalf}
            gone = [weakref.ref(one) for one in gc.get_objects() if type(one) in kinds]
            assert len(gone) == 4
            gc.disable()
            try:
                client.writer.close()
                await until(lambda: watch.ended)
                await until(lambda: not any(one() for one in gone))
            finally:
                gc.enable()

    run_once(main)


# --- what is recorded ---


def test_records_are_bounded() -> None:
    """By ``body_limit`` for both directions together; the last message is cut, and a tag says so."""
    for hooks in ([], [Heard()]):
        ends = Ends(hooks, body_limit=10)
        ends.feed(ends.socket.up, Sender(True).message(b"123456"))
        assert ends.flow.tags == set()
        ends.feed(ends.socket.down, Sender(False).message(b"abcdefg", 2))
        ends.feed(ends.socket.up, Sender(True).message(b"x"))
        ends.feed(ends.socket.down, Sender(False).message(b"x"))
        assert ends.recorded == [("send", 1, b"123456"), ("receive", 1, b"abcd")]
        assert ends.flow.tags == {UNRECORDED}
        assert len(ends.down.octets) == len(Sender(False).message(b"abcdefg", 2) + Sender(False).message(b"x"))


def test_nothing_is_recorded_without_room() -> None:
    """But that something was not."""
    ends = Ends(body_limit=0)
    ends.feed(ends.socket.up, Sender(True).message(b"") + Sender(True).message(b"1"))
    assert ends.recorded == [("send", 1, b"")]
    assert ends.flow.tags == {UNRECORDED}


def test_a_body_limit_beyond_measure() -> None:
    """Memory has a bound all the same, for hooks and for records."""
    ends = Ends([Heard()], body_limit=1 << 40)
    assert ends.socket.room == ends.socket.up.reader.limit == 8 << 20
    assert Ends(body_limit=1 << 40).socket.room == 8 << 20


def test_empty_messages_are_bounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """By their number."""
    monkeypatch.setattr(websocket, "MESSAGES", 3)
    ends = Ends()
    ends.feed(ends.socket.up, Sender(True).message(b"") * 5)
    assert ends.recorded == [("send", 1, b"")] * 3
    assert ends.flow.tags == {UNRECORDED}


def test_when_a_message_came() -> None:
    """In seconds since 1970."""
    ends = Ends()
    ends.feed(ends.socket.up, Sender(True).message(b"1"))
    (message,) = ends.recording.messages
    assert isinstance(message, Recorded)
    assert abs(message.time - ends.recording.started) < 60


def test_who_wants_nothing_has_no_websocket() -> None:
    """Then a relay has it alone."""
    inspection = make_inspection()
    flow = make_flow(inspection)
    assert open_websocket(inspection, flow, None, bool) is None
    assert open_websocket(inspection, None, None, bool) is None
    heard = make_inspection([Heard()])
    assert open_websocket(heard, flow, None, bool) is not None
    answer = flow.response
    assert answer is not None
    answer.headers["Upgrade"] = "WebSocket"
    assert open_websocket(heard, flow, None, bool) is not None
    answer.headers["Upgrade"] = "other"
    assert open_websocket(heard, flow, None, bool) is None


def test_an_end_is_told_to_hooks_that_wait(run: Run) -> None:
    """In a task of its own."""

    async def main() -> None:
        for watch in (Watch(), WatchAndWait()):
            inspection = make_inspection([watch])
            inspection.session.error = "the idle time"
            ended_soon(inspection, make_flow(inspection), None)
            await until(lambda: watch.ended)  # noqa: B023  it is waited for here
            assert watch.ended == [("/", "the idle time", set())]
        await until(lambda: not websocket.endings)

    run(main)
