"""The egress to a proxy at a unix socket."""

from __future__ import annotations

import errno
import socket
from pathlib import Path

import pytest

from conftest import Run
from tabi import Proxy, Server
from tabi.egress.at_path import AtPath
from tabi.errors import DialError
from tabi.policy.guard import allow_any_address
from tabi.wire.address import UNSPECIFIED


def test_a_proxy_at_a_path_is_reached(run: Run, tmp_path: Path) -> None:
    """Whatever the address is that it is asked for."""

    async def main() -> str:
        async with Server(f"unix://{tmp_path}/proxy.sock?protocol=socks5"):
            proxy = Proxy("socks5://localhost:1")
            proxy.path = str(tmp_path / "proxy.sock")
            return await proxy.ping()

    assert run(main) == "no authentication"


def test_a_path_without_a_proxy_is_an_error(run_once: Run, tmp_path: Path) -> None:
    """The error names the path, and what the system says."""

    async def main() -> None:
        with pytest.raises(DialError, match=r"/nothing: no such file or directory$") as caught:
            await AtPath(str(tmp_path / "nothing")).open(UNSPECIFIED, allow_any_address)
        assert caught.value.errno == errno.ENOENT

    run_once(main)


def test_a_listener_with_no_room_is_an_error(run_once: Run, tmp_path: Path) -> None:
    """connect(2) would wait for room: it fails at once, and is not taken for a connection that is on its way."""

    async def main() -> None:
        path = str(tmp_path / "full.sock")
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
            listener.listen(0)
            async with await AtPath(path).open(UNSPECIFIED, allow_any_address):
                with pytest.raises(DialError, match="its queue of connections is full"):
                    await AtPath(path).open(UNSPECIFIED, allow_any_address)

    run_once(main)
