"""`tabi ca`: an authority is made once, shown and handed out."""

from __future__ import annotations

import os
import pty
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from processes import TABI, environment, failure, run_here, run_program
from tabi.intercept.authority import Authority


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's data directory."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    return tmp_path / "data" / "tabi"


def test_init_makes_an_authority_in_the_data_directory(data: Path) -> None:
    """The folder and the key are for the user alone. What is printed says where it is, and not the key."""
    done = run_here("ca", "init")
    assert done.returncode == 0
    assert [stat.S_IMODE((data / name).stat().st_mode) for name in ("", "ca.key")] == [0o700, 0o600]
    Authority.load(str(data / "ca.crt"), str(data / "ca.key"))
    text = done.stdout.decode()
    assert f"Certificate:  {data / 'ca.crt'}\n" in text
    assert "tabi ca show" in text
    assert "PRIVATE" not in text


@pytest.mark.parametrize("options", [(), ("--dir", "elsewhere")])
def test_init_never_overwrites(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    """Clients trust the one that is there: exit code 2, and it stays."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "elsewhere" if options else data
    assert run_here("ca", "init", *options).returncode == 0
    before = [(folder / name).read_bytes() for name in ("ca.crt", "ca.key")]
    words = failure(run_here("ca", "init", *options), 2)
    assert words == f"tabi: {folder / 'ca.crt'}: exists already; it is not overwritten\n"
    assert [(folder / name).read_bytes() for name in ("ca.crt", "ca.key")] == before
    assert data.exists() is not bool(options)


def test_show_says_what_it_is_and_how_to_trust_it(data: Path) -> None:
    """Fingerprint, validity, path, and a command for each system and program."""
    run_here("ca", "init")
    done = run_here("ca", "show")
    text = done.stdout.decode()
    assert done.returncode == 0
    command = ["openssl", "x509", "-in", str(data / "ca.crt"), "-noout", "-fingerprint", "-sha256"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert f"SHA-256:      {shown.strip().partition('=')[2]}\n" in text
    assert str(data / "ca.crt") in text
    for who in ("Debian", "Fedora", "macOS", "Windows", "Firefox", "Android", "Java", "Python", "Node"):
        assert who in text


def test_show_path_is_for_scripts(data: Path) -> None:
    """Only the path; where there is no authority, none, so that no script goes on with it."""
    assert failure(run_here("ca", "show", "--path"), 2).endswith("`tabi ca init` makes one\n")
    run_here("ca", "init")
    assert run_here("ca", "show", "--path").stdout.decode() == f"{data / 'ca.crt'}\n"


def test_show_says_what_is_wrong_with_the_key(data: Path) -> None:
    """`tabi serve` would refuse it. A machine that has only the certificate is fine."""
    run_here("ca", "init")
    (data / "ca.key").chmod(0o644)
    done = run_here("ca", "show")
    assert done.returncode == 2
    assert b"others can read it (mode 644)" in done.stderr
    assert b"NODE_EXTRA_CA_CERTS" in done.stdout
    (data / "ca.key").unlink()
    assert run_here("ca", "show").returncode == 0


def test_export_writes_the_certificate_alone(data: Path) -> None:
    """PEM as it is, DER, and PKCS #12 for Java; the key is not needed for it."""
    run_here("ca", "init")
    (data / "ca.key").unlink()
    pem, der, p12 = (run_program((*TABI, "ca", "export", "--format", form)).stdout for form in ("pem", "der", "p12"))
    assert pem == (data / "ca.crt").read_bytes() == run_program((*TABI, "ca", "export")).stdout
    assert (der[:1], p12[:1]) == (b"\x30", b"\x30")


@pytest.mark.parametrize("form", ["der", "p12"])
def test_octets_do_not_go_to_a_terminal(form: str) -> None:
    """It is said how to send them to a file."""
    run_here("ca", "init")
    ours, theirs = pty.openpty()
    try:
        command = [*TABI, "ca", "export", "--format", form]
        done = subprocess.run(command, stdout=theirs, stderr=subprocess.PIPE, env=environment())
    finally:
        os.close(theirs)
        os.close(ours)
    assert done.returncode == 2
    assert done.stderr.decode().endswith(f"`tabi ca export --format {form} > ca.{form}`\n")


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        (lambda folder: None, "no such file or directory: `tabi ca init` makes one"),
        (lambda folder: (folder / "ca.crt").write_text("garbage"), "no certificate in PEM"),
        (lambda folder: (folder / "ca.crt").mkdir(), "is not a regular file"),
    ],
)
@pytest.mark.parametrize("command", ["show", "export"])
def test_errors_are_one_line(tmp_path: Path, command: str, prepare: Callable[[Path], object], words: str) -> None:
    """Exit code 2, the file and what is wrong with it."""
    prepare(tmp_path)
    done = run_here("ca", command, "--dir", str(tmp_path))
    assert failure(done, 2) == f"tabi: {tmp_path / 'ca.crt'}: {words}\n"


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    """It is the system's word, in one line."""
    (tmp_path / "file").touch()
    words = failure(run_here("ca", "init", "--dir", str(tmp_path / "file")), 1)
    assert str(tmp_path / "file") in words


def test_without_the_packages_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """The help is there without them."""
    monkeypatch.setitem(sys.modules, "cryptography", None)
    assert failure(run_here("ca", "init"), 2) == "tabi: tabi ca needs cryptography: pip install 'tabi[intercept]'\n"
    assert run_here("ca", "-h").returncode == 0
