"""Tor's own tor-resolve asks `tabi serve`: names and addresses, found and not found."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path

import pytest

from conftest import Run
from name_servers import Zone, udp_server
from processes import PATIENCE, need, serve

pytestmark = pytest.mark.interop

CONFIG = """
[[listen]]
url = "socks5://127.0.0.1:0"
resolve_commands = {on}

[resolver]
servers = ["udp://127.0.0.1:{port}"]
"""
TABLE = {"name.test": ["93.184.216.34"], "six.test": ["2606:4700::1"]}
NAMES = {"93.184.216.34": ["host.test"]}


def tor_resolve(tmp_path: Path, port: int, on: str, arguments: list[str]) -> tuple[int, str, dict[str, object]]:
    """What it ends with and prints, and the line in the access log; ``port`` is a name server's."""
    path = tmp_path / "tabi.toml"
    path.write_text(CONFIG.format(on=on, port=port))
    with serve(tmp_path, "-c", path) as proxy:
        command = [need("tor-resolve"), "-5", *arguments, f"127.0.0.1:{proxy.address.port}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
        (line,) = proxy.sessions(1)
    return done.returncode, done.stdout.strip(), line


@pytest.mark.parametrize(
    ("arguments", "answer", "address"),
    [
        (["name.test"], "93.184.216.34", "93.184.216.34:0"),
        (["six.test"], "2606:4700::1", "[2606:4700::1]:0"),
        (["-x", "93.184.216.34"], "host.test", "host.test:0"),
    ],
)
def test_what_is_found(run_once: Run, tmp_path: Path, arguments: list[str], answer: str, address: str) -> None:
    """It prints the answer, and the log has it."""

    async def main() -> None:
        async with udp_server(Zone(TABLE, names=NAMES)) as port:
            returncode, printed, line = await asyncio.to_thread(tor_resolve, tmp_path, port, "true", arguments)
        assert (returncode, printed) == (0, answer)
        assert (line["reply"], line["address"], line["close"]) == (0, address, "server")

    run_once(main)


@pytest.mark.parametrize(
    ("on", "arguments", "reply"),
    [("true", ["other.test"], 4), ("true", ["-x", "192.0.2.9"], 4), ("false", ["name.test"], 7)],
)
def test_what_is_not_found(run_once: Run, tmp_path: Path, on: str, arguments: list[str], reply: int) -> None:
    """It fails where there is no answer, and where the server does not answer."""

    async def main() -> None:
        async with udp_server(Zone(TABLE, names=NAMES)) as port:
            returncode, printed, line = await asyncio.to_thread(tor_resolve, tmp_path, port, on, arguments)
        assert (returncode != 0, printed, line["reply"]) == (True, "", reply)

    run_once(main)
