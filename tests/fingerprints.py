"""For tests of fingerprints: a destination that keeps what it is sent, and a server that shows fingerprints."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import hpack
from hyperframe.frame import Frame, HeadersFrame, PriorityFrame, SettingsFrame, WindowUpdateFrame

import authorities
from doubles import until
from h2_ends import End
from interceptions import Intercepting, intercepting
from support import target
from tabi.config import DistortConfig
from tabi.intercept.record import Record
from tabi.wire.client_hello import ClientHello, decode_client_hello, hello_body
from tabi.wire.h2 import PREFACE

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Destination:
    """What a destination has got; it answers every request.

    Attributes:
        port: where it is.
        hellos: the records with the hello of each connection.
        inside: what came inside TLS, of each.
        body: what it answers in HTTP/2.
    """

    def __init__(self, context: ssl.SSLContext, body: bytes = b"ok") -> None:
        self.context = context
        self.body = body
        self.port = 0
        self.hellos: list[bytes] = []
        self.inside: list[bytearray] = []

    @property
    def hello(self) -> ClientHello:
        """The last hello."""
        found = decode_client_hello(self.hellos[-1])
        assert found is not None
        return found

    @property
    def head(self) -> list[str]:
        """The lines of the last request of HTTP/1."""
        return self.inside[-1].split(b"\r\n\r\n")[0].decode().split("\r\n")

    @property
    def http2(self) -> str:
        """The fingerprint of the last connection of HTTP/2, read by another implementation."""
        return http2_text(self.inside[-1])[0]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = self.context.wrap_bio(incoming, outgoing, server_side=True)
        raw, done, end = b"", False, None
        while data := await reader.read(65536):
            incoming.write(data)
            if not done:
                raw += data
                try:
                    tls.do_handshake()
                    done = True
                    end = self.begin(raw, tls)
                except ssl.SSLWantReadError:
                    pass
                except ssl.SSLError:
                    writer.write(outgoing.read())
                    self.hellos.append(raw)
                    return
            if done:
                self.take(tls, end)
            writer.write(outgoing.read())

    def begin(self, raw: bytes, tls: ssl.SSLObject) -> End | None:
        """TLS is there."""
        assert hello_body(raw)
        self.hellos.append(raw)
        self.inside.append(bytearray())
        if tls.selected_alpn_protocol() != "h2":
            return None
        end = End(client=False)
        end.connection.initiate_connection()
        tls.write(end.connection.data_to_send())
        return end

    def take(self, tls: ssl.SSLObject, end: End | None) -> None:
        """Take what has come, and answer."""
        inside = self.inside[-1]
        while True:
            try:
                data = tls.read(65536)
            except ssl.SSLWantReadError:
                break
            if not data:
                return
            inside += data
            if end is None:
                if inside.endswith(b"\r\n\r\n"):
                    tls.write(OK)
                continue
            end.receive(data)
            for id in sorted(end.ended):
                end.ended.discard(id)
                end.head(id, [(b":status", b"200")])
                end.body(id, self.body)
            end.send_what_fits()
            if octets := end.connection.data_to_send():
                tls.write(octets)


def http2_text(octets: bytes | bytearray) -> tuple[str, list[tuple[str, str]]]:
    """The fingerprint of HTTP/2 that octets begin with, and the fields of the first request."""
    assert octets.startswith(PREFACE)
    octets = bytes(octets)
    at, settings, window, priorities = len(PREFACE), "", "00", []
    while True:
        frame, length = Frame.parse_frame_header(memoryview(octets[at : at + 9]))
        frame.parse_body(memoryview(octets[at + 9 : at + 9 + length]))
        at += 9 + length
        if isinstance(frame, SettingsFrame) and not settings:
            settings = ";".join(f"{setting}:{value}" for setting, value in frame.settings.items())
        elif isinstance(frame, WindowUpdateFrame) and frame.stream_id == 0 and window == "00":
            window = str(frame.window_increment)
        elif isinstance(frame, PriorityFrame):
            priorities.append(str(frame.stream_id))
        elif isinstance(frame, HeadersFrame):
            fields = [(str(name), str(value)) for name, value in hpack.Decoder().decode(frame.data)]
            pseudo = ",".join(name[1] for name, _ in fields if name.startswith(":"))
            return f"{settings}|{window}|{','.join(priorities) or '0'}|{pseudo}", fields


@contextlib.asynccontextmanager
async def destination(
    context: ssl.SSLContext | None = None, *protocols: str, body: bytes = b"ok"
) -> AsyncIterator[Destination]:
    """A destination; ``protocols`` are those of its ALPN."""
    if context is None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authorities.authority().issue_cert("localhost", "127.0.0.1").configure_cert(context)
    if protocols:
        context.set_alpn_protocols(list(protocols))
    found = Destination(context, body)
    async with target(found.serve) as port:
        found.port = port
        yield found


@contextlib.asynccontextmanager
async def showing(folder: Path, *hooks: object, **more: Any) -> AsyncIterator[Intercepting]:
    """A server that records, and shows destinations fingerprints: ``tls`` and ``profile`` of a ``[[distort]]``."""
    keys = ("tls", "profile", "hosts", "probability", "seed", "fault")
    distort = DistortConfig(**{key: more.pop(key) for key in keys if key in more})
    async with intercepting(folder, *hooks, records=True, config={"distort": [distort]}, **more) as proxy:
        yield proxy


async def record_of(proxy: Intercepting, number: int = 0) -> Record:
    """A record, once there are so many."""
    records = proxy.records
    assert records is not None
    await until(lambda: len(records) > number)
    return records[number]
