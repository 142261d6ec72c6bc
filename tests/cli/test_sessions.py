"""`tabi sessions`, as somebody uses it beside a server that runs."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from operating import Operator, operated
from processes import failure, paused, run_here, run_tabi, tunnels, wait_for
from tabi.cli.sessions import FILTERS, destination, table
from tabi.server import reports


@pytest.fixture(scope="module")
def operator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operator]:
    """A server with two workers."""
    with operated(tmp_path_factory.mktemp("sessions"), arguments=("--workers", "2")) as found:
        wait_for(lambda: found.call("GET", "/readyz", token=None).status == 200, "both workers")
        yield found


def sessions(operator: Operator, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    """Run it."""
    return run_here("sessions", *arguments, "--socket", operator.socket)


def test_a_line_for_each(operator: Operator) -> None:
    """With what it has moved; chosen by what it is; as JSON with the keys of the access log."""
    done = run_tabi("sessions", "--socket", operator.socket)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"no sessions\n", b"")
    with tunnels(operator.proxy.address, 3) as found:
        for tunnel in found:
            tunnel.check()
        done = sessions(operator)
        assert (done.returncode, done.stderr) == (0, b"")
        head, *lines = done.stdout.decode().splitlines()
        assert head.split() == ["id", "user", "client", "protocol", "destination", "egress", "up", "down", "time"]
        assert len(lines) == 3
        port = found[0].server.getsockname()[1]
        for line in lines:
            assert line.split()[3:10] == ["socks5", f"127.0.0.1:{port}", "direct", "4", "B", "4", "B"]
        rows = json.loads(sessions(operator, "--json", "--sort", "seconds").stdout)
        assert [row["up"] for row in rows] == [4, 4, 4]
        assert rows[0]["seconds"] >= rows[2]["seconds"]
        one = sessions(operator, "--id", rows[0]["id"], "--client", "127.0.0.1").stdout.decode()
        assert len(one.splitlines()) == 2
        assert sessions(operator, "--user", "nobody").stdout == b"no sessions\n"
        done = sessions(operator, "--limit", "1")
        assert done.stderr == b"tabi: 2 more are left out, see --limit\n"
    assert {row["id"] for row in rows} == {ended["id"] for ended in operator.proxy.sessions(3)}


def test_a_worker_that_hangs_is_named(operator: Operator) -> None:
    """What the others have is shown."""
    held = operator.proxy.workers()[0]
    with paused(held):
        done = sessions(operator)
        assert (done.returncode, done.stdout) == (1, b"no sessions\n")
        assert done.stderr.decode() == f"tabi: worker {held} has not answered in time\n"
    wait_for(lambda: not sessions(operator).returncode, "its answer")


WRONG = [
    (("--sort", "name"), "--sort"),
    (("--limit", "-1"), "--limit"),
    (("--limit", "10001"), "--limit"),
    (("--name", "x"), "No such option '--name'"),
    (("--user", "x" * 2000), "--user: 2,000 letters, expected at most 1,024"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG, ids=[message[:10] for _, message in WRONG])
def test_a_mistake_is_one_line(operator: Operator, arguments: tuple[str, ...], message: str) -> None:
    """With the option that is wrong."""
    assert message in failure(sessions(operator, *arguments), 2)


def test_without_a_server(tmp_path: Path) -> None:
    """It says where it has looked."""
    assert "No such file" in failure(run_here("sessions", "--socket", tmp_path / "none"), 1)


def test_filters_are_those_of_the_server() -> None:
    """But for the search."""
    assert set(FILTERS) == set(reports.FILTERS)


def row(**more: Any) -> dict[str, Any]:
    """A session."""
    found = {"id": "a-1", "user": None, "client": "192.0.2.1:5", "protocol": "socks5", "command": "connect"}
    return {**found, "host": "c.test", "port": 5, "via": "p", "member": None, "up": 0, "down": 0, "seconds": 1, **more}


def test_hostile_names_do_not_control_the_terminal() -> None:
    """Whoever chose them: users, destinations, members of pools."""
    evil = '\x1b[2J\r\n\x07\u202e\x9b"\udcff'
    lines = list(table([row(user=evil, host=evil, via=evil, member=evil)], None))
    assert len(lines) == 2
    assert all(line.isprintable() for line in lines)
    lines = list(table([row(user=evil * 100)], 80))
    assert max(map(len, lines)) == 80


def test_where_a_session_goes() -> None:
    """Its destination, or its command where it has none."""
    assert destination(row()) == "c.test:5"
    assert destination(row(host="::1")) == "[::1]:5"
    assert destination(row(host=None, command="associate")) == "associate"
    assert destination(row(host=None, command=None)) == "-"
    (_, line) = table([row(member="m")], None)
    assert " p/m " in line
