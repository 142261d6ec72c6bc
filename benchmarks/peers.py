"""The servers that are measured. To add one: a function that makes it ready, one that says how it starts, and a line
in `PEERS`.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import pwd
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from process import Failure

ROOT = Path(__file__).resolve().parent.parent
PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
PYPI = ROOT / ".cache" / "benchmarks"
"""The virtual environment of the peers that come from PyPI: apart from ours, which they must not change."""


@dataclass(frozen=True, slots=True)
class Peer:
    """A server to measure."""

    name: str
    prepare: Callable[[], str]
    """Makes it ready to run and returns its version. Raises Failure with the reason where that cannot be."""
    command: Callable[[int, Path], list[str]]
    """How it is started: in the foreground, no authentication, on this port of 127.0.0.1, its files in this folder."""


def install_debian(program: str, package: str) -> str | None:
    """Find a program, install its package if need be and this is root. None: it is not there."""
    if shutil.which(program, path=PATH) is None and os.geteuid() == 0 and shutil.which("apt-get"):
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for words in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", package]):
            subprocess.run(["apt-get", *words], env=environment, capture_output=True)
    return shutil.which(program, path=PATH)


def debian(program: str, package: str) -> str:
    """Make a Debian package ready; its version."""
    if install_debian(program, package) is None:
        raise Failure(f"not installed (Debian package {package})")
    query = subprocess.run(["dpkg-query", "-W", "-f", "${Version}", package], capture_output=True, text=True)
    return query.stdout or "of unknown version"


def pypi(package: str, version: str) -> str:
    """Make one version of a PyPI package ready; the version."""
    python = PYPI / "bin" / "python"
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", f"{package}=={version}"]
    try:
        if not python.exists():
            subprocess.run([sys.executable, "-m", "venv", PYPI], check=True, capture_output=True, text=True)
        subprocess.run(pip, check=True, capture_output=True, text=True)
    except subprocess.CalledProcessError as exc:
        lines = [line for line in exc.stderr.splitlines() if not line.startswith("WARNING")]
        raise Failure(f"cannot be installed: {lines[-1] if lines else 'pip gives no reason'}") from None
    return version


def tabi_version() -> str:
    """Our own, with the commit where there is one."""
    if not (Path(sys.executable).parent / "tabi").exists():
        raise Failure(f"no command tabi beside {sys.executable}: `make bench` installs it")
    describe = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    try:
        commit = subprocess.run(describe, capture_output=True, text=True).stdout.strip()
    except OSError:
        commit = ""
    return importlib.metadata.version("tabi") + (f" ({commit})" if commit else "")


def tabi_command(port: int, folder: Path) -> list[str]:
    """As people run it: one worker, with the access log."""
    config = folder / "tabi.toml"
    config.write_text(f'workers = 1\n\n[log]\naccess = "{folder}/access.log"\n')
    return [f"{Path(sys.executable).parent}/tabi", "serve", "-c", str(config), "-l", f"socks5://127.0.0.1:{port}"]


def dante_command(port: int, folder: Path) -> list[str]:
    """One accepting process for each CPU; as many processes for the tunnels as it likes."""
    user = pwd.getpwuid(os.geteuid()).pw_name
    config = folder / "danted.conf"
    config.write_text(
        f"logoutput: {folder}/danted.log\n"
        f"internal: 127.0.0.1 port = {port}\n"
        "external: lo\n"
        "clientmethod: none\n"
        "socksmethod: none\n"
        f"user.privileged: {user}\n"
        f"user.unprivileged: {'nobody' if user == 'root' else user}\n"
        "client pass { from: 0.0.0.0/0 to: 0.0.0.0/0 }\n"
        "socks pass { from: 0.0.0.0/0 to: 0.0.0.0/0 }\n"
    )
    return [shutil.which("danted", path=PATH) or "danted", "-N", str(os.cpu_count() or 1), "-f", str(config)]


def custom(text: str) -> Peer:
    """A server from the command line, ``NAME=COMMAND`` with ``{port}`` in it, for argparse."""
    name, _, command = text.partition("=")
    if not name or "{port}" not in command:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=COMMAND with {{port}} in the command")
    return Peer(name, lambda: "as given", lambda port, _: shlex.split(command.replace("{port}", str(port))))


PEERS = [
    Peer("tabi", tabi_version, tabi_command),
    Peer(
        "microsocks",
        lambda: debian("microsocks", "microsocks"),
        lambda port, _: ["microsocks", "-i", "127.0.0.1", "-p", str(port)],
    ),
    Peer("dante", lambda: debian("danted", "dante-server"), dante_command),
    Peer(
        "asyncio-socks-server",
        lambda: pypi("asyncio-socks-server", "0.3.0"),
        lambda port, _: [f"{PYPI}/bin/asyncio_socks_server", "-H", "127.0.0.1", "-P", str(port)],
    ),
    Peer(
        "pproxy",
        lambda: pypi("pproxy", "2.7.9"),
        lambda port, _: [f"{PYPI}/bin/pproxy", "-l", f"socks5://127.0.0.1:{port}"],
    ),
]
