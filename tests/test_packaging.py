"""What `pip install tabi` brings, and the units for systemd: they fit one another, and what they start serves."""

from __future__ import annotations

import re
import socket
import tomllib
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from processes import need, run_program, serve, tunnels
from tabi.config import load_config
from tabi.url import PassedSocket

PROJECT = Path(__file__).resolve().parent.parent
UNITS = PROJECT / "packaging" / "systemd"


def setting(unit: str, key: str) -> str:
    """The one value of a key of a unit."""
    (value,) = re.findall(rf"^{key}=(.*)$", (UNITS / unit).read_text(), re.MULTILINE)
    return str(value)


def test_an_installation_brings_few_packages() -> None:
    """`pip install tabi` brings two packages beside itself, which require nothing in turn."""
    texts = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["dependencies"]
    found = {canonicalize_name(Requirement(text).name) for text in texts}
    assert found == {"click", "msgspec"}
    for name in found:
        needed = [Requirement(text) for text in requires(name) or ()]
        assert not [one for one in needed if not one.marker or one.marker.evaluate({"extra": ""})], name


@pytest.mark.interop
def test_systemd_takes_the_units(tmp_path: Path) -> None:
    """`systemd-analyze verify` finds nothing to say, with a program in place of the one that is installed."""
    program = need("systemd-analyze")
    paths = [tmp_path / unit for unit in ("tabi.service", "tabi.socket")]
    for path in paths:
        path.write_text((UNITS / path.name).read_text().replace("/usr/bin/tabi", "/bin/true"))
    done = run_program([program, "verify", "--man=no", *paths])
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


@pytest.mark.interop
def test_the_service_is_hardened() -> None:
    """What systemd makes of it is the grade OK: 2 of 10, where 10 is a service that may do everything."""
    program = need("systemd-analyze")
    unit = UNITS / "tabi.service"
    done = run_program([program, "security", "--offline=yes", "--threshold=20", "--no-pager", unit])
    assert done.returncode == 0, done.stdout.decode()


def test_the_listener_takes_the_sockets_of_the_unit(tmp_path: Path) -> None:
    """The name is the same in both, and the file of the package serves on what systemd passes."""
    path = UNITS / "tabi.toml"
    name = setting("tabi.socket", "FileDescriptorName")
    assert [listen.parsed.place for listen in load_config(path).listen] == [PassedSocket(name)]
    with (
        socket.create_server(("127.0.0.1", 0)) as sock,
        serve(tmp_path, "-c", path, passed=[(sock, name)]) as proxy,
        tunnels(proxy.address) as (tunnel,),
    ):
        tunnel.check()


def test_systemd_waits_longer_than_the_drain_time() -> None:
    """Sessions may end by themselves, and only the supervisor is told: a worker that is told twice cuts them."""
    assert float(setting("tabi.service", "TimeoutStopSec")) > load_config(UNITS / "tabi.toml").timeouts.drain + 3
    assert setting("tabi.service", "KillMode") == "mixed"
    assert setting("tabi.service", "Type") == "notify"
