"""`tabi passwd`: from a password to a line of tabi.toml that lets its user in."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import subprocess
import termios
import time
import tomllib
from pathlib import Path

import pytest

import tabi
from conftest import Run
from processes import PATIENCE, TABI, environment, failure, run_tabi, serve
from support import target
from tabi.policy.users import Users, parse_hash


def matches(text: str, password: bytes) -> bool:
    """Whether a hash is that of a password."""
    return Users({"alice": parse_hash(text.strip())}).verify(b"alice", password) == "alice"


class Terminal:
    """`tabi passwd` on a terminal of its own."""

    def __init__(self, *arguments: str) -> None:
        self.master, slave = pty.openpty()
        self.screen = b""

        def take_terminal() -> None:
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        try:
            self.process = subprocess.Popen(
                [*TABI, "passwd", *arguments],
                stdin=slave,
                stdout=subprocess.PIPE,
                stderr=slave,
                env=environment(),
                start_new_session=True,
                preexec_fn=take_terminal,  # getpass asks on /dev/tty
            )
        finally:
            os.close(slave)

    def read(self) -> bool:
        """Read a piece of the screen; False at its end."""
        ready, _, _ = select.select([self.master], [], [], PATIENCE)
        assert ready, f"nothing comes after {self.screen!r}"
        try:
            data = os.read(self.master, 1024)
        except OSError:  # EIO: nobody has the terminal open any more
            return False
        self.screen += data
        return bool(data)

    def expect(self, prompt: bytes) -> None:
        """Wait until the screen ends with a prompt; getpass has turned the echo off before it shows one."""
        deadline = time.monotonic() + PATIENCE
        while not self.screen.endswith(prompt):
            assert time.monotonic() < deadline
            assert self.read(), self.screen

    def answer(self, prompt: bytes, text: bytes) -> None:
        """Type a line when asked for it."""
        self.expect(prompt)
        os.write(self.master, text + b"\n")

    def finish(self) -> tuple[int, bytes]:
        """The exit code, and what was on standard output."""
        while self.read():
            pass
        output, _ = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, output

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *exc: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        with contextlib.suppress(ValueError):
            self.process.communicate(timeout=PATIENCE)
        os.close(self.master)


def test_on_a_terminal_it_asks_twice_and_shows_nothing() -> None:
    """Both prompts are on the terminal, the password is not; the hash is on standard output."""
    with Terminal() as terminal:
        terminal.answer(b"Password: ", b"correct horse")
        terminal.answer(b"Again: ", b"correct horse")
        code, output = terminal.finish()
    assert code == 0
    assert b"correct horse" not in terminal.screen
    assert matches(output.decode(), b"correct horse")


def test_two_that_differ_are_refused() -> None:
    """A slip of the finger is found: exit code 2, and no hash."""
    with Terminal("alice") as terminal:
        terminal.answer(b"Password: ", b"correct horse")
        terminal.answer(b"Again: ", b"correct house")
        code, output = terminal.finish()
    assert (code, output) == (2, b"")
    assert b"tabi: the two passwords are not the same" in terminal.screen


def test_ctrl_c_at_the_prompt_ends_it() -> None:
    """Ctrl-C ends with 130, as shells have it, and prints no traceback."""
    with Terminal() as terminal:
        terminal.expect(b"Password: ")
        os.write(terminal.master, b"\x03")
        code, output = terminal.finish()
    assert (code, output) == (130, b"")
    assert b"Traceback" not in terminal.screen


def test_from_standard_input_the_first_line_counts() -> None:
    """Without a terminal nothing is asked: one line is the password, its end is not part of it."""
    done = run_tabi("passwd", stdin="pässwörd\r\nsecond line\n".encode())
    assert (done.returncode, done.stderr) == (0, b"")
    assert matches(done.stdout.decode(), "pässwörd".encode())


def test_the_same_password_gives_another_hash_each_time() -> None:
    """The salt is random."""
    assert run_tabi("passwd", stdin=b"x\n").stdout != run_tabi("passwd", stdin=b"x\n").stdout


@pytest.mark.parametrize("name", ["alice", "a-b_c", "bob.b", "Jörg", 'qu"ote\\', "two words", "tab\tname"])
def test_with_a_name_it_prints_that_users_part_of_tabi_toml(name: str) -> None:
    """Whatever the name, the output is TOML that says it."""
    done = run_tabi("passwd", name, stdin=b"secret\n")
    data = tomllib.loads(done.stdout.decode())
    assert list(data["users"]) == [name]
    assert matches(data["users"][name]["password"], b"secret")


@pytest.mark.parametrize("password", [b"", b"\n", b"x" * 256 + b"\n", "ü".encode() * 128])
def test_a_password_that_socks5_cannot_carry_is_refused(password: bytes) -> None:
    """RFC 1929 has room for 1 to 255 octets."""
    assert "1 to 255 octets" in failure(run_tabi("passwd", stdin=password), 2)


def test_octets_that_are_no_text_are_a_password_too() -> None:
    """RFC 1929 carries octets: they are taken as they are."""
    done = run_tabi("passwd", stdin=b"\xff\x00\x80\n")
    assert matches(done.stdout.decode(), b"\xff\x00\x80")


def test_the_output_is_a_configuration_that_lets_the_user_in(tmp_path: Path, run_once: Run) -> None:
    """End to end: its hash in tabi.toml admits that user, with that password only."""
    path = tmp_path / "tabi.toml"
    printed = run_tabi("passwd", "alice", stdin=b"correct horse\n").stdout.decode()
    path.write_text(f'[[listen]]\nurl = "socks5://127.0.0.1:0"\n{printed}')

    async def main() -> None:
        async with target() as port:
            good = tabi.Proxy(proxy.url.replace("//", "//alice:correct%20horse@"))
            async with good.connect("127.0.0.1", port) as stream:
                await stream.send_all(b"hello")
                assert await stream.receive() == b"hello"
            with pytest.raises(tabi.AuthError):
                await tabi.Proxy(proxy.url.replace("//", "//alice:wrong@")).connect("127.0.0.1", port)

    with serve(tmp_path, "-c", path) as proxy:
        run_once(main)
        assert {session["user"] for session in proxy.sessions(2)} == {"alice", None}
