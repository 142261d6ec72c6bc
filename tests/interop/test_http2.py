"""HTTP/2 that is looked into, between foreign clients and servers: curl and Node.js (nghttp2), httpx, gRPC."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import subprocess
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from authorities import authority, write_server
from conftest import Run
from processes import need
from tabi import Config, Server
from tabi.config import InterceptConfig, Log
from tabi.errors import TooLarge
from tabi.intercept.authority import Authority
from tabi.intercept.flow import Flow

pytestmark = pytest.mark.interop

ORIGIN = """
const http2 = require("http2"), fs = require("fs");
const [cert, key] = process.argv.slice(1).map((name) => fs.readFileSync(name));
const server = http2.createSecureServer({cert, key});
server.on("stream", (stream, headers) => {
  stream.on("error", () => {});
  if (headers[":path"] === "/big") {
    stream.respond({":status": 200, "content-type": "text/plain"});
    stream.end("x".repeat(10000000));
    return;
  }
  stream.additionalHeaders({":status": 103, "link": "</style.css>"});
  const fields = {":status": 200, "x-mark": headers["x-mark"] || "", "set-cookie": ["a=1", "b=2"]};
  stream.respond(fields, {waitForTrailers: true});
  stream.on("wantTrailers", () => stream.sendTrailers({"x-trailer": "end"}));
  stream.pipe(stream);
});
server.listen(0, "127.0.0.1", () => console.log(server.address().port));
"""


class Hook:
    """Sees everything, and marks requests."""

    def __init__(self) -> None:
        self.flows: list[Flow] = []

    def request(self, flow: Flow) -> None:
        flow.request.headers["X-Mark"] = "1"
        if flow.request.path == "/ours":
            flow.respond(200, b"y" * 1_000_000)

    def response(self, flow: Flow) -> None:
        pass

    def flow_end(self, flow: Flow) -> None:
        self.flows.append(flow)


class Waiting(Hook):
    """The same, and reads what is sent."""

    async def request(self, flow: Flow) -> None:  # type: ignore[override]
        super().request(flow)
        with contextlib.suppress(TooLarge):
            await flow.request.read(limit=100_000)

    def response_body(self, flow: Flow, chunk: bytes) -> None:
        return None


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With our authority, and that of origins."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    Authority.make(str(tmp_path / "tabi"))
    (tmp_path / "origins.pem").write_bytes(authority().cert_pem.bytes())
    return tmp_path


@contextlib.contextmanager
def node(folder: Path) -> Iterator[int]:
    """An origin of Node.js; gives its port."""
    tls = write_server(folder)
    command = [need("node"), "-e", ORIGIN, str(tls.certificate), str(tls.key)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield int(process.stdout.readline())
        finally:
            process.terminate()


@contextlib.asynccontextmanager
async def proxy(folder: Path, *hooks: object) -> AsyncIterator[Server]:
    """A server that looks into everything."""
    entry = InterceptConfig(trust=str(folder / "origins.pem"), har=str(folder / "flows.har"))
    config = Config(log=Log(access="none"), intercept=[entry])
    async with Server("mixed://127.0.0.1:0", config=config, hooks=hooks) as server:
        yield server


async def curl(server: Server, folder: Path, *more: str) -> str:
    """Run curl through the proxy."""
    at = server.url_for("socks5").replace("socks5://", "")
    command = [
        need("curl"),
        "-sS",
        "--http2",
        "--socks5-hostname",
        at,
        "--cacert",
        str(folder / "tabi" / "ca.crt"),
        *more,
    ]
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    output, _ = await process.communicate()
    assert process.returncode == 0
    return output.decode()


@pytest.mark.parametrize("kind", [Hook, Waiting])
def test_curl_and_node(run_once: Run, folder: Path, kind: type[Hook]) -> None:
    """Interim responses, trailers, several fields of a name, large bodies both ways, answers of ours; in parallel."""

    async def main() -> None:
        hook = kind()
        (folder / "upload").write_bytes(b"u" * 3_000_000)
        with node(folder) as port:
            async with proxy(folder, hook) as server:
                url = f"https://localhost:{port}"
                seen = await curl(server, folder, "-v", "-i", "-d", "echo", url + "/echo")
                assert "HTTP/2 103" in seen
                assert "HTTP/2 200" in seen
                assert seen.count("set-cookie: ") == 2
                assert "x-mark: 1" in seen
                assert "x-trailer: end" in seen
                assert "echo" in seen
                sizes = await curl(
                    server,
                    folder,
                    *("--parallel", "-w", "%{size_download} %{http_version}\n", "--parallel-immediate"),
                    *(part for name in ("big", "ours", "big", "ours") for part in ("-o", "/dev/null", f"{url}/{name}")),
                )
                assert sorted(sizes.split("\n")) == ["", *["1000000 2"] * 2, *["10000000 2"] * 2]
                upload = ("--data-binary", f"@{folder}/upload", "-o", "/dev/null", "-w", "%{size_download}")
                assert await curl(server, folder, *upload, url + "/echo") == "3000000"
        assert len(hook.flows) == 6
        assert {flow.error for flow in hook.flows} == {None}
        assert {flow.request.version for flow in hook.flows} == {"HTTP/2"}

    run_once(main)


def test_httpx(run_once: Run, folder: Path) -> None:
    """Fifty requests at once on one connection."""

    async def main() -> None:
        hook = Hook()
        context = ssl.create_default_context(cafile=folder / "tabi" / "ca.crt")
        with node(folder) as port:
            async with (
                proxy(folder, hook) as server,
                httpx.AsyncClient(http2=True, proxy=server.url_for("socks5"), verify=context) as client,
            ):
                url = f"https://localhost:{port}/"
                await client.get(url)
                answers = await asyncio.gather(*[client.post(url, content=b"%d" % n * 10_000) for n in range(50)])
        assert [answer.content for answer in answers] == [b"%d" % number * 10_000 for number in range(50)]
        assert {answer.http_version for answer in answers} == {"HTTP/2"}
        assert len({flow.id for flow in hook.flows}) == 51

    run_once(main)


def same(data: bytes) -> bytes:
    return data


class Echo(grpc.GenericRpcHandler):  # type: ignore[misc]
    """A service with each kind of call."""

    def service(self, call: Any) -> Any:
        name = call.method.rpartition("/")[2]
        if name == "unary":
            return grpc.unary_unary_rpc_method_handler(lambda request, context: request, same, same)
        if name == "fails":

            def fails(request: bytes, context: Any) -> bytes:
                context.set_trailing_metadata([("x-why", "because")])
                context.abort(grpc.StatusCode.NOT_FOUND, "no such thing")
                return b""

            return grpc.unary_unary_rpc_method_handler(fails, same, same)
        if name == "upload":
            return grpc.stream_unary_rpc_method_handler(lambda requests, context: b"".join(requests), same, same)
        if name == "download":
            return grpc.unary_stream_rpc_method_handler(lambda request, context: iter([request] * 50), same, same)
        return grpc.stream_stream_rpc_method_handler(lambda requests, context: requests, same, same)


class Pieces(Hook):
    """The same, and sees content in pieces, as it comes."""

    def request_body(self, flow: Flow, chunk: bytes) -> bytes:
        return chunk

    async def response_body(self, flow: Flow, chunk: bytes) -> bytes:
        await asyncio.sleep(0)
        return chunk


class Patient(Hook):
    """The same, and waits; answers of unary calls are read and set again."""

    async def response(self, flow: Flow) -> None:  # type: ignore[override]
        await asyncio.sleep(0)
        assert flow.response is not None
        if flow.request.path.endswith("/unary"):
            flow.response.set_body(await flow.response.read())


@pytest.mark.parametrize("kind", [Hook, Pieces, Patient])
def test_grpc(run_once: Run, folder: Path, kind: type[Hook]) -> None:
    """Calls of all four kinds, status and trailers; a cancellation ends its stream alone."""

    async def main() -> None:
        hook = kind()
        tls = write_server(folder)
        server = grpc.server(futures.ThreadPoolExecutor(8), handlers=[Echo()])
        key, certificate = Path(tls.key).read_bytes(), Path(tls.certificate).read_bytes()
        port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(key, certificate)]))
        server.start()
        try:
            async with proxy(folder, hook) as through:
                await asyncio.to_thread(calls, through.url_for("http"), port, folder)
        finally:
            server.stop(None).wait()
        names = [flow.request.path.rpartition("/")[2] for flow in hook.flows]
        assert names.count("unary") == 21
        assert {"fails", "stream"} <= set(names)

    def calls(proxy: str, port: int, folder: Path) -> None:
        credentials = grpc.ssl_channel_credentials((folder / "tabi" / "ca.crt").read_bytes())
        options = [("grpc.http_proxy", proxy)]
        with grpc.secure_channel(f"localhost:{port}", credentials, options) as channel:
            unary = channel.unary_unary("/echo/unary", same, same)
            waiting = [unary.future(b"x" * 50_000, timeout=20) for _ in range(20)]
            assert {call.result() for call in waiting} == {b"x" * 50_000}
            with pytest.raises(grpc.RpcError) as caught:
                channel.unary_unary("/echo/fails", same, same)(b"", timeout=20)
            assert caught.value.code() is grpc.StatusCode.NOT_FOUND
            assert caught.value.trailing_metadata()[0] == ("x-why", "because")
            upload = channel.stream_unary("/echo/upload", same, same)
            assert upload(iter([b"3" * 30_000] * 10), timeout=20) == b"3" * 300_000
            download = channel.unary_stream("/echo/download", same, same)
            assert list(download(b"4" * 10_000, timeout=20)) == [b"4" * 10_000] * 50
            go = threading.Event()

            def requests() -> Iterator[bytes]:
                yield b"1"
                go.wait(20)
                yield b"2" * 200_000

            answers = channel.stream_stream("/echo/stream", same, same)(requests(), timeout=20)
            assert next(answers) == b"1"
            go.set()
            assert list(answers) == [b"2" * 200_000]
            cancelled = channel.stream_stream("/echo/stream", same, same)(iter([b"1"]), timeout=20)
            next(cancelled)
            cancelled.cancel()
            assert unary(b"still there", timeout=20) == b"still there"

    run_once(main)
