"""Dante, a server of others, with our client: associations, alone and through two of them."""

from __future__ import annotations

import contextlib
import os
import pwd
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import Run
from processes import PATIENCE, children, environment, is_running, need, refuses, wait_for
from support import closed_port, datagram_target
from tabi import Proxy, Server
from tabi.wire.address import parse_address

pytestmark = pytest.mark.interop

CONFIGURATION = """\
logoutput: {folder}/danted.log
internal: 127.0.0.1 port = {port}
external: lo
clientmethod: none
socksmethod: none
user.privileged: {user}
user.unprivileged: {user}
client pass {{ from: 0.0.0.0/0 to: 0.0.0.0/0 }}
socks pass {{ from: 0.0.0.0/0 to: 0.0.0.0/0 }}
"""


@contextlib.contextmanager
def dante(folder: Path) -> Iterator[str]:
    """A running Dante; gives its URL."""
    folder.mkdir()
    program = need("danted")
    with closed_port() as port:
        pass  # free again
    text = CONFIGURATION.format(folder=folder, port=port, user=pwd.getpwuid(os.geteuid()).pw_name)
    (folder / "danted.conf").write_text(text)
    command: list[str | Path] = [program, "-f", folder / "danted.conf", "-p", folder / "danted.pid"]
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: not refuses(parse_address(f"127.0.0.1:{port}")), "danted to listen")
        yield f"socks5://127.0.0.1:{port}"
    finally:
        others = children(process.pid)
        process.terminate()
        process.wait(PATIENCE)
        for pid in others:  # those that still serve somebody stay otherwise
            if is_running(pid) and "danted" in Path(f"/proc/{pid}/comm").read_text():
                os.kill(pid, signal.SIGTERM)
        wait_for(lambda: not any(map(is_running, others)), "danted's processes to end")


def test_datagrams_of_every_size(run: Run, tmp_path: Path) -> None:
    """Dante gives a relay that our client reaches; datagrams come back whole, from the destination's address."""

    async def main() -> None:
        async with datagram_target() as port, Proxy(url).associate() as association:
            for size in (0, 1, 1472, 9000, 60000):
                await association.send(b"x" * size, ("127.0.0.1", port))
                assert await association.receive() == (b"x" * size, parse_address(f"127.0.0.1:{port}"))
            assert association.dropped == 0

    with dante(tmp_path / "dante") as url:
        run(main)


def test_several_destinations_and_a_name(run_once: Run, tmp_path: Path) -> None:
    """Each answer comes with its own source, where a name was given too."""

    async def main() -> None:
        async with datagram_target() as one, datagram_target() as two, Proxy(url).associate() as association:
            for host, port in (("127.0.0.1", one), ("127.0.0.1", two), ("localhost", one)):
                await association.send(b"hello", (host, port))
                assert await association.receive() == (b"hello", parse_address(f"127.0.0.1:{port}"))

    with dante(tmp_path / "dante") as url:
        run_once(main)


def test_through_dante_and_tabi_in_a_chain(run_once: Run, tmp_path: Path) -> None:
    """An association within an association, whichever server comes first."""

    async def main() -> None:
        async with datagram_target() as port, Server("socks5://127.0.0.1:0") as server:
            for urls in ((url, server.url), (server.url, url)):
                async with Proxy(*urls).associate() as association:
                    await association.send(b"hello", ("127.0.0.1", port))
                    assert await association.receive() == (b"hello", parse_address(f"127.0.0.1:{port}"))

    with dante(tmp_path / "dante") as url:
        run_once(main)


def test_its_end_ends_the_association(run_once: Run, tmp_path: Path) -> None:
    """Who waits is told when the server goes away."""

    async def main() -> None:
        with dante(tmp_path / "dante") as url:
            association = await Proxy(url).associate()
        with contextlib.closing(association), pytest.raises(ConnectionResetError, match="the proxy has ended"):
            await association.receive()

    run_once(main)
