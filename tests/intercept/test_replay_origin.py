"""Where replayed sessions end: it shakes hands, and says nothing else."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import pytest

from conftest import Run
from tabi.intercept import replay_origin as module
from tabi.intercept.authority import Authority
from tabi.intercept.contexts import ServerContexts
from tabi.intercept.replay_origin import ReplayOrigin
from tabi.net.stream import Stream
from tabi.wire.address import Address

DESTINATION = Address("example.com", 443)


@pytest.fixture
def contexts(tmp_path: Path) -> ServerContexts:
    """Those of an authority of the test."""
    return ServerContexts(Authority.make(str(tmp_path / "ca")))


async def open_stream(origin: ReplayOrigin) -> Stream:
    """A session's stream."""
    return await origin.open(DESTINATION, lambda address: None)


def client_context() -> ssl.SSLContext:
    """Trusts anything."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2", "http/1.1"])
    return context


def test_it_shakes_hands(run: Run, contexts: ServerContexts) -> None:
    """With HTTP/1.1; what is sent then has no answer, and its end is one."""

    async def main() -> None:
        origin = ReplayOrigin(contexts)
        stream = await open_stream(origin)
        await stream.start_tls(client_context(), server_hostname="example.com")
        found = stream.get_extra_info("ssl_object")
        assert found is None or found.selected_alpn_protocol() == "http/1.1"
        await stream.send_all(b"GET / HTTP/1.1\r\n\r\n" * 1000)
        stream.send_eof()
        assert await stream.receive(100) == b""
        stream.close()
        while origin.open_ends:
            await asyncio.sleep(0)

    run(main)


def test_another_protocol_is_cut(run: Run, contexts: ServerContexts) -> None:
    """Nothing of it is recorded; the same where no TLS is opened."""

    async def main() -> None:
        for made, data in ((contexts, b"SSH-2.0-x\r\n"), (None, b"\x16\x03\x01"), (contexts, b"\x16garbage" * 10)):
            origin = ReplayOrigin(made)
            stream = await open_stream(origin)
            await stream.send_all(data)
            try:
                while await stream.receive(100):
                    pass
            except ConnectionResetError:
                pass
            stream.close()
            while origin.open_ends:
                await asyncio.sleep(0)

    run(main)


def test_a_client_that_waits_for_the_server_is_cut(
    run: Run, contexts: ServerContexts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a while; and all are at the end."""
    monkeypatch.setattr(module, "PATIENCE", 0.001)

    async def main() -> None:
        origin = ReplayOrigin(contexts)
        stream = await open_stream(origin)
        assert await stream.receive(100) == b""
        stream.close()
        module.PATIENCE = 10.0
        stream = await open_stream(origin)
        while not origin.open_ends:
            await asyncio.sleep(0)
        origin.close()
        assert await stream.receive(100) == b""
        stream.close()
        while origin.open_ends:
            await asyncio.sleep(0)

    run(main)
