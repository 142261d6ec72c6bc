"""What the tests from outside rest on."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import processes
from debian import OTHERS, PROGRAMS
from processes import environment, need


def test_a_missing_program_is_a_skip_that_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a developer's machine the rest of the tests still runs, and the last lines say what is missing."""
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="no-such-program is not installed"):
        need("no-such-program")


def test_a_missing_program_fails_in_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    """There a skip would hide that nothing was tested."""
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="no-such-program is not installed"):
        need("no-such-program")


def test_what_debian_has_not_is_skipped_in_ci_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new machine has no way to install it."""
    monkeypatch.setenv("CI", "true")
    monkeypatch.setattr(processes, "SYSTEM_PATH", "/nowhere")
    with pytest.raises(pytest.skip.Exception, match="terraform is not installed"):
        need("terraform")


def test_whatever_tests_need_is_installed() -> None:
    """A new machine has it by tests/debian.py, or in every Debian."""
    tests = Path(__file__).parent
    needed = {name for path in tests.rglob("*.py") for name in re.findall(r'need\("([\w-]+)"\)', path.read_text())}
    everywhere = {"apt-get", "bash", "perl", "sh", "sleep", "ssh-add", "ssh-agent", "no-such-program"}
    assert needed <= {*PROGRAMS, *OTHERS, *everywhere}


def test_a_program_that_is_there_is_found() -> None:
    """By its whole path."""
    assert Path(need("sh")).is_absolute()


def test_the_environment_has_no_proxies_and_no_relative_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy of the developer's would be used in place of ours, and PYTHONPATH=src hold in one directory only."""
    monkeypatch.setenv("ALL_PROXY", "socks5://192.0.2.1:1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("PYTHONPATH", "src")
    env = environment()
    assert not {"ALL_PROXY", "no_proxy"} & set(env)
    assert env["PYTHONPATH"] == os.path.abspath("src")


SHOW = """
import conftest, subprocess
conftest.pytest_configure()
print(subprocess.run(["cat", "/proc/self/status"], capture_output=True, text=True, check=True).stdout)
"""


def test_what_tests_start_hears_every_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    """`nohup make test &` starts us with some ignored, and some programs start others with some blocked."""
    monkeypatch.setenv("PYTHONPATH", os.path.dirname(__file__))
    monkeypatch.delenv("TABI_COVERAGE", raising=False)
    numbers = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT)

    def ignore() -> None:
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])

    done = subprocess.run([sys.executable, "-c", SHOW], preexec_fn=ignore, capture_output=True, text=True, timeout=20)
    assert done.returncode == 0, done.stderr
    lines = (line.partition(":\t") for line in done.stdout.splitlines())
    masks = {name: int(value, 16) for name, _, value in lines if name in ("SigIgn", "SigBlk")}
    for number in numbers:
        assert not masks["SigIgn"] >> (number - 1) & 1, number
    assert masks["SigBlk"] == 0
