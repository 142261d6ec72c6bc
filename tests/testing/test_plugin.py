"""The plugin for pytest, as a project of others has it: in a pytest of its own, with every warning an error."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from importlib.metadata import entry_points
from pathlib import Path

from processes import environment

PROJECT = Path(__file__).resolve().parents[2]

PLAIN = """
import requests
import tabi


def test_through_the_proxy(tabi_proxy, tabi_origin):
    answer = requests.get(tabi_origin.url, proxies={"http": tabi_proxy.url_for("http")}, timeout=10)
    assert answer.text == "hello from /"
    assert tabi_proxy.wait_for_sessions()[0].destination.port == tabi_origin.port


def test_with_options(tabi_proxy_factory, tabi_origin_factory):
    first = tabi_proxy_factory(users={"alice": "secret"})
    second = tabi_proxy_factory("socks5://127.0.0.1:0")
    origin = tabi_origin_factory(answer=lambda request: (503, b"later"))
    assert first.address != second.address
    with tabi.create_connection(origin.address, via=[second.url, first.url], timeout=10):
        pass
    assert first.wait_for_sessions()[0].user == "alice"
    assert requests.get(origin.url, timeout=10).status_code == 503


def test_an_upstream_that_refuses(tabi_upstream, tabi_upstream_factory):
    tabi_upstream.refuse(5)
    assert tabi_upstream_factory().address != tabi_upstream.address
    try:
        tabi.create_connection(("127.0.0.1", 1), via=tabi_upstream.url, timeout=10)
    except tabi.ProxyError as exc:
        assert exc.reply_code == 5
"""

OF_ANYIO = """
import anyio
import pytest
import tabi


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.mark.anyio
async def test_in_a_loop_of_others(tabi_proxy, tabi_origin):
    async with anyio.create_task_group():
        async with tabi.Proxy(tabi_proxy.url).connect(*tabi_origin.address) as stream:
            await stream.send_all(b"echo")
            assert await stream.receive() == b"echo"
"""

BAD_NETWORK = """
import time
import pytest
import requests
import tabi


def seconds(proxy, origin):
    began = time.monotonic()
    answer = requests.get(origin.url, proxies={"http": proxy.url_for("http")}, timeout=10)
    assert answer.text == "hello from /"
    return time.monotonic() - began


def test_a_slow_network(tabi_proxy, tabi_origin):
    with tabi_proxy.fault(hosts=["127.0.0.1"], latency="100ms") as fault:
        assert seconds(tabi_proxy, tabi_origin) >= 0.2
        assert fault.chosen == 1
        fault.change(latency="150ms")
        assert seconds(tabi_proxy, tabi_origin) >= 0.3
    seconds(tabi_proxy, tabi_origin)


def test_no_network(tabi_proxy_factory, tabi_origin):
    proxy = tabi_proxy_factory(users={"alice": "secret"})
    with proxy.fault("offline"), pytest.raises(requests.ConnectionError):
        requests.get(tabi_origin.url, proxies={"http": proxy.url}, timeout=10)
    assert seconds(proxy, tabi_origin)


def test_a_mistake(tabi_proxy):
    with pytest.raises(tabi.ConfigError, match="latency: "):
        tabi_proxy.fault(latency=-1)


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_in_a_coroutine(tabi_proxy, tabi_origin):
    async with tabi.Proxy(tabi_proxy.url).connect(*tabi_origin.address) as stream:
        async with tabi_proxy.fault(latency="50ms"):
            began = time.monotonic()
            await stream.send_all(b"echo")
            assert await stream.receive() == b"echo"
            assert time.monotonic() - began >= 0.1
"""

OF_NONE = """
import sys


def test_nothing_was_imported():
    loaded = [name for name in sys.modules if name.split(".")[0] == "tabi"]
    assert set(loaded) <= {"tabi", "tabi.testing", "tabi.testing.plugin"}, loaded
    assert "msgspec" not in sys.modules
"""


def pytest_of(folder: Path, tests: str, *options: str) -> str:
    """Run tests in a project with nothing else in it; returns what pytest says."""
    (folder / "test_it.py").write_text(tests)
    (folder / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n")
    command = [sys.executable, "-m", "pytest", "-p", "tabi.testing.plugin", *options, "-q", "--no-header"]
    done = subprocess.run(
        [*command, "-p", "no:cacheprovider"],
        cwd=folder,
        env=environment() | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        timeout=25,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_plain_tests(tmp_path: Path) -> None:
    """Blocking clients, the factories, and an upstream."""
    assert "3 passed" in pytest_of(tmp_path, PLAIN)


def test_tests_of_anyio(tmp_path: Path) -> None:
    """A coroutine in a loop of another plugin; everything of ours is in threads of its own."""
    assert "1 passed" in pytest_of(tmp_path, OF_ANYIO, "-p", "anyio")


def test_tests_of_a_bad_network(tmp_path: Path) -> None:
    """Faults in plain tests and in coroutines: they act when the block begins, and are gone behind it."""
    assert "4 passed" in pytest_of(tmp_path, BAD_NETWORK, "-p", "anyio")


def test_tests_that_ask_for_nothing_pay_nothing(tmp_path: Path) -> None:
    """In a run without our fixtures no other module of the package is imported."""
    assert "1 passed" in pytest_of(tmp_path, OF_NONE)


def test_the_fixtures_are_listed(tmp_path: Path) -> None:
    """`pytest --fixtures` has each with its docstring, and asks nobody to mark anything."""
    shown = pytest_of(tmp_path, OF_NONE, "--fixtures")
    for name in ("tabi_proxy", "tabi_upstream", "tabi_origin"):
        assert f"{name} -- " in shown
        assert f"{name}_factory -- " in shown
    assert "A proxy on a free port of 127.0.0.1" in shown


def test_pytest_finds_it_by_itself() -> None:
    """The project says so, and an installation does where it was made since."""
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["pytest11"] == {"tabi": "tabi.testing.plugin"}
    assert not any("pytest" in text for text in project["dependencies"])
    for found in entry_points(group="pytest11", name="tabi"):
        assert found.value == "tabi.testing.plugin"
