"""`tabi fault`, as somebody uses it beside a server that runs."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from time import monotonic

import pytest

from processes import (
    TABI,
    Serve,
    Tunnel,
    environment,
    failure,
    paused,
    receive_exactly,
    run_here,
    run_program,
    serve,
    tunnels,
    wait_for,
)
from tabi.cli.fault import table

FILE = """
[[listen]]
url = "socks5://127.0.0.1:0"
[profile.slow]
latency = "30ms"
[[distort]]
name = "filed"
ports = [1]
fault = "slow"
"""


class Operator:
    """Who runs `tabi fault` beside a server."""

    def __init__(self, proxy: Serve, runtime: Path) -> None:
        self.proxy = proxy
        self.environ = environment()
        self.socket = runtime / "tabi/control.sock"  # another server of this machine is none of the tests' business

    def run(self, *arguments: str) -> subprocess.CompletedProcess[bytes]:
        """Run it to its end."""
        return run_here("fault", *arguments, "--socket", self.socket, env=self.environ)

    def __call__(self, *arguments: str) -> str:
        """What it prints, if it succeeds."""
        done = self.run(*arguments)
        assert (done.returncode, done.stderr) == (0, b"")
        return done.stdout.decode()

    def fails(self, *arguments: str, code: int = 2) -> str:
        """Its one line of error."""
        return failure(self.run(*arguments), code)


@pytest.fixture(scope="module")
def operator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operator]:
    """A server with a file, for all tests that leave nothing set."""
    folder = tmp_path_factory.mktemp("fault")
    (folder / "tabi.toml").write_text(FILE)
    with serve(folder, "-c", folder / "tabi.toml", environ={"XDG_RUNTIME_DIR": str(folder)}) as proxy:
        yield Operator(proxy, folder)


def seconds_of(tunnel: Tunnel) -> float:
    """How long a round trip takes."""
    began = monotonic()
    tunnel.check()
    return monotonic() - began


def test_set_look_change_and_remove(operator: Operator) -> None:
    """On a session that runs, at once; the list has what is set, what the file has, and the counts."""
    with tunnels(operator.proxy.address) as (tunnel,):
        port = tunnel.server.getsockname()[1]
        assert operator("add", "--host", "127.0.0.1", "--latency", "50ms", "--jitter", "1ms", "--port", str(port)) == (
            "fault-1\n"
        )
        assert seconds_of(tunnel) >= 0.09
        assert [line.split() for line in operator("list").splitlines()] == [
            ["name", "sessions", "chosen", "fault", "which", "sessions"],
            ["fault-1", "1", "1", *f"latency 50ms, jitter 1ms hosts 127.0.0.1, ports {port}".split()],
            ["filed", "(file)", "0", "0", "slow", "ports", "1"],
        ]
        assert operator("change", "fault-1", "--latency", "90ms") == ""
        assert seconds_of(tunnel) >= 0.17
        (row, _) = json.loads(operator("list", "--json"))
        assert (row["name"], row["what"], row["sessions"]) == ("fault-1", "latency 90ms, jitter 1ms", 1)
        assert operator("add", "slow", "--name", "second", "--for", "1h") == "second\n"
        assert "slow (for 3" in operator("list")
        assert operator("remove", "fault-1", "second") == ""
        seconds_of(tunnel)
    operator("add", "--profile", "3g", "--up", "latency=1s", "--down", "limit=1MB", "--probability", "50%")
    assert "3g, up (latency 1s), down (limit 1MB)  probability 50%" in operator("list")
    assert operator("remove", "--all") == ""
    assert [one["name"] for one in json.loads(operator("list", "--json"))] == ["filed"]


WRONG = [
    (("add",), "it changes nothing: expected one of latency, "),
    (("add", "--latency", "-1"), "--latency: a duration is more than 0"),
    (("add", "--latency", "nan"), "--latency: 'nan' is not a duration"),
    (("add", "--latency", "0"), "--latency: a duration is more than 0"),
    (("add", "--burst", "nan", "--loss", "1%"), "--burst: expected float, got string"),
    (("add", "5g"), "--profile: '5g', expected a profile: 3g, "),
    (("add", "3g", "--profile", "edge"), "--profile: there is one already: 3g"),
    (("add", "--blackhole", "--bandwidth", "1 MB/s"), "--bandwidth: it contradicts blackhole"),
    (("add", "--latency", "1", "--port", "70000"), "--port: '70000', expected a port"),
    (("add", "--latency", "1", "--name", "filed"), "--name: there is one called 'filed' already"),
    (("add", "--latency", "1", "--for", "soon"), "--for: 'soon' is not a duration"),
    (("add", "--up", "frobnicate=1"), "--up: frobnicate: unknown key"),
    (("add", "--frobnicate", "1"), "No such option '--frobnicate'"),
    (("change", "filed", "--latency", "1"), "filed is of the configuration: change it there, and reload"),
    (("change", "nobody", "--latency", "1"), "there is no fault 'nobody': none is set"),
    (("remove", "filed"), "filed is of the configuration"),
    (("remove",), "expected names, or --all"),
    (("remove", "x", "--all"), "expected names, or --all"),
]


@pytest.mark.parametrize(
    ("arguments", "text"), WRONG, ids=lambda value: " ".join(value) if isinstance(value, tuple) else ""
)
def test_a_mistake_is_one_line(operator: Operator, arguments: tuple[str, ...], text: str) -> None:
    """With the option that is wrong, and the exit code 2. Nothing is set then."""
    assert text in operator.fails(*arguments)
    assert "fault-" not in operator("list")


def test_no_server(tmp_path: Path) -> None:
    """It says where it has looked."""
    environ = environment() | {"XDG_RUNTIME_DIR": str(tmp_path)}
    if not [*Path("/run/tabi").glob("control*.sock")]:  # of another server of this machine
        assert "no server runs that this user may ask" in failure(run_program((*TABI, "fault", "list"), env=environ), 1)
    done = run_program((*TABI, "fault", "list", "--socket", tmp_path / "none.sock"), env=environ)
    assert "No such file" in failure(done, 1)


def test_several_workers(tmp_path: Path) -> None:
    """A seed is refused; one that is held up is named, and the exit code is 1."""
    with serve(tmp_path, "--workers", "2", environ={"XDG_RUNTIME_DIR": str(tmp_path)}) as proxy:
        operator = Operator(proxy, tmp_path)
        wait_for(lambda: len(proxy.workers()) == 2, "both workers")
        assert "--seed: sessions are drawn by each worker" in operator.fails("add", "3g", "--seed", "7")
        held = proxy.workers()[0]
        operator("list")
        with paused(held):
            done = operator.run("add", "3g")
            assert (done.returncode, done.stdout) == (1, b"fault-1\n")
            later = "it acts on it as soon as it can"
            assert done.stderr.decode() == f"tabi: worker {held} has not answered in time; {later}\n"
        wait_for(lambda: not operator.run("list").returncode, "its answer")
        with tunnels(proxy.address, 4) as found:
            for one in found:
                one.client.sendall(b"x")
                assert receive_exactly(one.server, 1) == b"x"
            (row,) = json.loads(operator("list", "--json"))
            assert (row["sessions"], row["chosen"]) == (4, 4)


def test_the_table_fits_a_terminal() -> None:
    """Nothing in it controls one, and its lines are as long as it is wide at most."""
    row = {
        "name": "a\x1b[1m",
        "live": True,
        "what": "latency 1" * 30,
        "matchers": "",
        "sessions": 12345,
        "chosen": 5,
        "seconds_left": 2.5,
    }
    head, line = table([row], 60)
    assert head.startswith("name")
    assert line.startswith(r"a\x1b[1m    12,345       5  latency 1")
    assert len(line) == 60
    assert line.endswith("…")
    (*_, whole) = table([row], None)
    assert whole.endswith("latency 1 (for 2.5 s)  all")
    assert list(table([], 60)) == ["no faults"]
