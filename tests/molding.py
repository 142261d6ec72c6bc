"""A server with `[[distort]]` entries, destinations that keep what they got octet for octet, and curl."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from authorities import authority
from doubles import FakeResolver
from interceptions import NAMES
from processes import need
from tabi import Config, Server, Session
from tabi.config import Listen, Log
from tabi.config.files import PATHS, changed
from tabi.config.load import make_config
from tabi.intercept.authority import Authority

LISTEN = "mixed://127.0.0.1:0"


def config_of(folder: Path, tables: dict[str, Any]) -> Config:
    """A configuration from tables as TOML has them; paths are below a folder."""
    for key in PATHS:
        tables = changed(tables, key.split("."), lambda path: str(folder / path))
    return make_config({"log": {"access": "none"}, **tables})


@contextlib.asynccontextmanager
async def molding(
    folder: Path, *distorts: dict[str, Any], over: list[Session] | None = None, **tables: Any
) -> AsyncIterator[Server]:
    """A server with these entries, that trusts the destinations of tests in its `[[intercept]]` entries; sessions that
    have ended are put into ``over``."""
    trust = folder / "trust.pem"
    trust.write_bytes(authority().cert_pem.bytes())
    if not (folder / "ca").exists():
        Authority.make(str(folder / "ca"))
    for entry in tables.get("intercept", ()):
        if entry.get("action") != "pass":
            entry.setdefault("trust", str(trust))
    tables.setdefault("ca", {"certificate": "ca/ca.crt", "key": "ca/ca.key"})
    config = config_of(folder, {"distort": list(distorts), **tables})
    config = msgspec.structs.replace(config, listen=[Listen(LISTEN)], log=Log(access="none"))
    done = None if over is None else over.append
    async with Server(config=config, resolver=FakeResolver(NAMES), on_close=done) as server:
        yield server


class Done(NamedTuple):
    """What curl said."""

    code: int
    head: bytes
    body: bytes
    said: str


async def curl(server: Server, url: str, *options: str, folder: Path | None = None) -> Done:
    """Ask by curl, through the server; ``folder`` has its authority."""
    address = server.addresses[0]
    trust = [] if folder is None else ["--cacert", str(folder / "ca" / "ca.crt")]
    proxy = ["--proxy", f"http://{address.host}:{address.port}"]
    command = [need("curl"), "-sS", "-i", "-m", "20", *proxy, "--suppress-connect-headers", *trust, *options, url]
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=pipe)
    out, err = await process.communicate()
    head, _, body = out.partition(b"\r\n\r\n")
    assert process.returncode is not None
    return Done(process.returncode, head, body, err.decode())


async def ask(server: Server, octets: bytes, tunnel: int | None = None) -> bytes:
    """Say octets to the server as a client of HTTP, behind a CONNECT to this port where one is named; everything that
    comes back until the end."""
    address = server.addresses[0]
    reader, writer = await asyncio.open_connection(str(address.host), address.port)
    try:
        if tunnel is not None:
            writer.write(b"CONNECT localhost:%d HTTP/1.1\r\nHost: localhost:%d\r\n\r\n" % (tunnel, tunnel))
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
        writer.write(octets)
        writer.write_eof()
        return await reader.read()
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
