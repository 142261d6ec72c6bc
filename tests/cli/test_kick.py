"""`tabi kick`, as somebody uses it beside a server that runs."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from operating import operated
from processes import failure, run_here, run_tabi, tunnels


def test_sessions_end(tmp_path: Path) -> None:
    """Those that match, or all; the access log says why."""
    with operated(tmp_path) as operator, tunnels(operator.proxy.address, 3) as found:
        for tunnel in found:
            tunnel.check()
        (row, *_) = operator.get("/sessions?sort=seconds")["sessions"]
        done = run_tabi("kick", "--id", row["id"], "--socket", operator.socket)
        assert (done.returncode, done.stdout, done.stderr) == (0, b"1 ended\n", b"")
        with contextlib.suppress(ConnectionError):
            assert found[0].client.recv(1) == b""
        found[1].check()
        assert run_here("kick", "--user", "nobody", "--socket", operator.socket).stdout == b"0 ended\n"
        assert run_here("kick", "--all", "--socket", operator.socket).stdout == b"2 ended\n"
        assert [line["close"] for line in operator.proxy.sessions(3)] == ["kicked"] * 3
        found[0].client.close()


@pytest.mark.parametrize("arguments", [(), ("--all", "--user", "x")])
def test_it_never_ends_all_by_mistake(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    """That has to be said, and nothing else with it."""
    done = run_here("kick", *arguments, "--socket", tmp_path / "none")
    assert "expected which sessions, such as --user NAME, or --all" in failure(done, 2)
