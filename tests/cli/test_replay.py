"""`tabi replay`: a proxy that answers what was recorded, for http and https, without the network."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows import make_record
from origin import origin
from processes import PATIENCE, TABI, environment, failure, need, run_here, run_program, wait_for
from tabi.intercept.authority import Authority
from tabi.intercept.har import encode_entry
from tabi.intercept.har_file import HarFile
from tabi.intercept.masking import prepare
from tabi.intercept.record import Record


def write(path: Path, *records: Record) -> Path:
    """A HAR file."""
    file = HarFile(str(path))
    for record in records:
        file.append(encode_entry(prepare(record, 1_000_000)))
    file.close()
    return path


class Running:
    """A running `tabi replay`."""

    def __init__(self, process: subprocess.Popen[bytes], stderr: Path, stdout: Path, home: Path) -> None:
        self.process = process
        self.stderr = stderr
        self.stdout = stdout
        self.home = home

    @property
    def urls(self) -> list[str]:
        """Where it listens."""
        lines = self.stderr.read_text().splitlines()
        return [line.removeprefix("listening on ") for line in lines if line.startswith("listening on ")]

    def curl(self, url: str, *options: str) -> tuple[int, str]:
        """Ask by the first listener; the exit code and what came."""
        address = self.urls[0].partition("://")[2]
        command: list[str | Path] = [
            *(need("curl"), "-sS", "--noproxy", "none.invalid", "-x", f"socks5h://{address}", "-m", "15"),
            *("--cacert", str(self.home / "tabi" / "ca.crt"), "-w", "\n%{http_code} %{http_version}", url, *options),
        ]
        done = run_program(command)
        return done.returncode, done.stdout.decode()


@contextlib.contextmanager
def replay(folder: Path, *arguments: str | Path, authority: bool = True) -> Iterator[Running]:
    """Run one on a free port."""
    home = folder / "home"
    if authority:
        Authority.make(str(home / "tabi"))
    out, err = folder / "replay.stdout", folder / "replay.stderr"
    command = [*TABI, "replay", "-l", "mixed://127.0.0.1:0", *map(str, arguments)]
    with out.open("wb") as out_file, err.open("wb") as err_file:
        env = environment() | {"XDG_DATA_HOME": str(home)}
        process = subprocess.Popen(command, stdout=out_file, stderr=err_file, env=env)
    running = Running(process, err, out, home)
    try:
        wait_for(lambda: running.urls and "answers:" in err.read_text(), "the ready message")
        yield running
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
    finally:
        process.kill()
        process.wait(PATIENCE)


@pytest.mark.interop
def test_what_was_recorded_is_answered(tmp_path: Path) -> None:
    """By http and https, of hosts that do not exist; a line says each, without secrets."""
    form = [(b"Content-Type", b"application/x-www-form-urlencoded")]
    har = write(
        tmp_path / "a.har",
        make_record("https://recorded.invalid/a?token=abc", b"one"),
        make_record("https://recorded.invalid/a?token=abc", b"two"),
        make_record("http://recorded.invalid/", b"plain", status=404),
        make_record("https://10.1.2.3:8443/f", b"form", method="POST", request_fields=form,
                    request_body=b"password=x", request_size=10),
    )  # fmt: skip
    with replay(tmp_path, har) as running:
        found = [running.curl("https://recorded.invalid/a?token=other")[1] for _ in range(3)]
        assert found == ["one\n200 1.1", "two\n200 1.1", "two\n200 1.1"]
        assert running.curl("http://recorded.invalid/")[1] == "plain\n404 1.1"
        assert running.curl("https://10.1.2.3:8443/f", "-d", "password=y")[1] == "form\n200 1.1"
        assert running.curl("https://recorded.invalid/")[1] == "not recorded: GET https://recorded.invalid/\n\n502 1.1"
        lines = running.stdout.read_text().splitlines()
        wait_for(lambda: len(running.stdout.read_text().splitlines()) >= 6, "the lines")
    lines = running.stdout.read_text().splitlines()
    assert lines[0].startswith("GET https://recorded.invalid/a?token=*** 200 3 B ")
    assert "POST https://10.1.2.3:8443/f 200 4 B " in lines[4]


@pytest.mark.interop
def test_what_was_not_recorded_is_passed_on(tmp_path: Path) -> None:
    """With --miss pass; what was recorded is still answered from the file."""
    with origin({"/live": b"live", "/old": b"new"}) as server:
        har = write(tmp_path / "a.har", make_record(server.url("/old"), b"old"))
        with replay(tmp_path, har, "--miss", "pass", authority=False) as running:
            address = running.urls[0].partition("://")[2]
            options = ["-sS", "--noproxy", "none.invalid", "-x", f"http://{address}"]
            assert run_program([need("curl"), *options, server.url("/old")]).stdout == b"old"
            assert run_program([need("curl"), *options, server.url("/live")]).stdout == b"live"
        assert [asked.path for asked in server.asked] == ["/live"]


@pytest.mark.interop
def test_a_recording_of_serve_is_replayed(tmp_path: Path) -> None:
    """Record by `tabi serve --har`, replay when the origin is gone."""
    from processes import serve

    har = tmp_path / "a.har"
    with origin({"/a": b"hello" * 1000}) as server:
        options = ("--har", har, "--access-log", "none", "-l", "http://127.0.0.1:0")
        with serve(tmp_path, *options) as running:
            proxy = f"http://{running.address}"
            command = [need("curl"), "-sS", "--noproxy", "none.invalid", "-x", proxy]
            assert run_program([*command, server.url("/a")]).stdout == b"hello" * 1000
            assert run_program([*command, "-d", "b=1", server.url("/b")]).stdout == b"b=1"
        url = server.url
    assert len(json.loads(har.read_bytes())["log"]["entries"]) == 2
    with replay(tmp_path, har) as playing:
        assert playing.curl(url("/a"))[1] == "hello" * 1000 + "\n200 1.1"
        assert playing.curl(url("/b"), "-d", "b=1")[1] == "b=1\n200 1.1"
        assert playing.curl(url("/b"), "-d", "b=2")[1].endswith("502 1.1")


def test_what_is_wrong_is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file, the options, and https without an authority."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    har = write(tmp_path / "a.har", make_record("https://h/"))
    assert "none.har" in failure(run_here("replay", tmp_path / "none.har"), 1)
    (tmp_path / "b.har").write_bytes(b"hello")
    assert "b.har: not a HAR file" in failure(run_here("replay", tmp_path / "b.har"), 1)
    assert "--match: 'method,uri', expected some of: method,url,body" in failure(
        run_here("replay", har, "--match", "method,uri"), 2
    )
    failure(run_here("replay", har, "--miss", "404"), 2)
    assert "tabi ca init" in failure(run_here("replay", har, "-l", "mixed://127.0.0.1:0"), 2)
    Authority.make(str(tmp_path / "tabi"))
    assert "listen" in failure(run_here("replay", har, "-l", "ftp://127.0.0.1:0"), 2)
