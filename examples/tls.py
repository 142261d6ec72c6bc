"""A proxy inside TLS whose users prove by a certificate who they are.

Run it: python examples/tls.py (it calls openssl to make two certificates)
"""

from __future__ import annotations

import asyncio
import ssl
import subprocess
import tempfile
from pathlib import Path

import tabi
from tabi.config import Listen, Log, Tls


def make_certificate(folder: Path, name: str) -> tuple[str, str]:
    """A certificate that is its own authority, good for a day; yours come from Let's Encrypt, or an authority of yours.

    Returns:
        The names of its file and of its key's.
    """
    certificate, key = str(folder / f"{name}.pem"), str(folder / f"{name}.key")
    kind = ("-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc", "-days", "1")
    subject = ("-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name},IP:127.0.0.1")
    command = ("openssl", "req", *kind, *subject, "-out", certificate, "-keyout", key)
    subprocess.run(command, check=True, capture_output=True)
    return certificate, key


async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """The destination of this example: a server that says hello and ends."""
    writer.write(b"hello from the destination\n")
    await writer.drain()
    writer.close()


async def visit(url: str, destination: int, context: ssl.SSLContext) -> str:
    """A client of the proxy: the certificate in its context says who it is, so it needs no password."""
    async with tabi.Proxy(url, ssl=context).connect("127.0.0.1", destination) as stream:
        return (await stream.receive()).decode().strip()


async def main(folder: Path) -> None:
    """Connect as alice, and as nobody."""
    certificate, key = make_certificate(folder, "localhost")
    alice = make_certificate(folder, "alice")
    tls = Tls(certificate, key, client_ca=alice[0])
    config = tabi.Config(listen=[Listen("socks5+tls://127.0.0.1:0", tls=tls)], log=Log(access="none"))
    sessions: list[tabi.Session] = []

    destination = await asyncio.start_server(greet, "127.0.0.1", 0)
    port = destination.sockets[0].getsockname()[1]
    async with destination, tabi.Server(config=config, on_close=sessions.append) as server:
        print("listening on", server.urls[0])
        context = ssl.create_default_context(cafile=certificate)
        try:
            await visit(server.url, port, context)
        except tabi.TabiError as exc:
            print("without a certificate:", exc)
        context.load_cert_chain(*alice)
        print("alice received:", await visit(server.url, port, context))
        await server.drain(5)
        for session in sessions:
            print(f"{session.protocol}, user {session.user}, error: {session.error}")


with tempfile.TemporaryDirectory() as name:
    asyncio.run(main(Path(name)))
