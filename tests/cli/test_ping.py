"""`tabi ping`: is a proxy alive, and does it let us in?"""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from authorities import write_server
from conftest import Run
from processes import PATIENCE, TABI, Serve, environment, failure, in_thread, run_here, run_program, run_tabi, serve
from support import closed_port, datagram_target, silent, target
from tabi import Server
from tabi.cli.ping import QUESTION
from tabi.config import Config, Listen


def test_a_proxy_that_answers(proxy: Serve) -> None:
    """One line with the URL, the time and what was answered; exit code 0."""
    done = run_tabi("ping", proxy.url)
    assert done.returncode == 0, done.stderr
    line = done.stdout.decode()
    assert line.startswith(f"{proxy.url}: answered in ")
    assert line.endswith(" ms (no authentication)\n")
    assert done.stderr == b""


def test_a_proxy_that_is_not_there() -> None:
    """One line on standard error; exit code 1."""
    with closed_port() as port:
        url = f"socks5://127.0.0.1:{port}"
        assert failure(run_tabi("ping", url), 1) == f"tabi: {url}: connection refused\n"


def test_a_user_is_proved_and_no_password_is_shown(tmp_path: Path) -> None:
    """Right, wrong and none at all: who is not let in finds the proxy not well."""
    with serve(tmp_path, "-u", "alice:swordfish") as proxy:
        place = proxy.url.removeprefix("socks5://")
        done = run_here("ping", f"socks5://alice:swordfish@{place}")
        assert done.returncode == 0
        assert done.stdout.endswith(b" ms (user name and password)\n")
        assert b"alice" not in done.stdout
        wrong = failure(run_here("ping", f"socks5://alice:herring@{place}"), 1)
        none = failure(run_here("ping", f"socks5://{place}"), 1)
    assert "did not accept the user name and password" in wrong
    assert "herring" not in wrong
    assert "it wants a user name and a password" in none


def in_a_thread(
    run_once: Run, url: str, *listen: str, options: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[bytes]:
    """Ask a server that listens at some URLs; ``url`` has its port for PORT."""

    async def main() -> subprocess.CompletedProcess[bytes]:
        async with Server(*listen) as server:
            port = str(server.addresses[0].port) if server.addresses else ""
            return await in_thread([*TABI, "ping", *options, url.replace("PORT", port)])

    return run_once(main)


@pytest.mark.parametrize(
    ("url", "answer"),
    [
        ("mixed://127.0.0.1:PORT", b"no authentication"),
        ("socks5h://127.0.0.1:PORT", b"no authentication"),
        ("socks4a://127.0.0.1:PORT", b"reply 91"),
        ("http://localhost:PORT", b"200 OK"),
    ],
)
def test_every_protocol(run_once: Run, url: str, answer: bytes) -> None:
    """What `tabi serve` prints of a listener can be asked too: mixed is SOCKS5."""
    done = in_a_thread(run_once, url, "mixed://127.0.0.1:0")
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(b" ms (" + answer + b")\n")


@pytest.mark.parametrize(
    ("url", "answer"),
    [
        ("unix://{path}?protocol=mixed", b"no authentication"),
        ("unix://alice:a%2Fb@{path}", b"no authentication"),
        ("unix://alice:b@c@{path}", b"no authentication"),
        ("unix://{path}?protocol=socks4", b"reply 91"),
        ("unix://{path}?protocol=http", b"200 OK"),
    ],
)
def test_a_unix_socket(run_once: Run, tmp_path: Path, url: str, answer: bytes) -> None:
    """By the URL of a listener, which may have a user here."""
    path = f"{tmp_path}/proxy@x.sock"
    done = in_a_thread(run_once, url.format(path=path), f"unix://{path}?protocol=mixed")
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(b" ms (" + answer + b")\n")
    assert done.stdout.startswith(b"unix:///")


def test_a_unix_socket_that_is_not_there(tmp_path: Path) -> None:
    """The path is there once."""
    line = failure(run_here("ping", f"unix://{tmp_path}/nothing"), 1)
    assert line == f"tabi: unix://{tmp_path}/nothing?protocol=mixed: no such file or directory\n"


@pytest.mark.parametrize("scheme", ["socks5+tls", "https", "mixed+tls"])
def test_a_proxy_inside_tls(run_once: Run, tmp_path: Path, scheme: str) -> None:
    """Its certificate is looked at: with --ca it is well, without it is not."""
    tls = write_server(tmp_path)

    async def main() -> list[subprocess.CompletedProcess[bytes]]:
        listen = Listen(f"{scheme}://127.0.0.1:0", tls=tls)
        async with Server(config=Config(listen=[listen])) as server:
            url = f"{scheme}://127.0.0.1:{server.addresses[0].port}"
            return [
                await in_thread([*TABI, "ping", *more, url]) for more in (["--ca", f"{tmp_path}/server-ca.pem"], [])
            ]

    well, unknown = run_once(main)
    assert well.returncode == 0, well.stderr
    assert "certificate" in failure(unknown, 1)


def test_through_others(proxy: Serve, run_once: Run) -> None:
    """--via: the last one is asked, and what breaks on the way is named."""
    done = in_a_thread(run_once, "http://127.0.0.1:PORT", "http://127.0.0.1:0", options=("--via", proxy.url))
    assert done.stdout.endswith(b" ms (200 OK)\n")
    with closed_port() as port:
        line = failure(run_here("ping", "--via", proxy.url, f"http://127.0.0.1:{port}"), 1)
    assert line == f"tabi: http://127.0.0.1:{port}: the proxy says connection refused (reply 05)\n"


def test_the_proxy_of_the_environment(proxy: Serve) -> None:
    """Without a URL it is that of ALL_PROXY: so no password is in the list of processes."""
    done = run_program([*TABI, "ping"], env=environment() | {"ALL_PROXY": proxy.url})
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith(proxy.url.encode())


def test_a_target_is_reached_through_the_proxy_whatever_no_proxy_says(run_once: Run) -> None:
    """It is the proxy that is asked about, not the target."""

    async def main() -> subprocess.CompletedProcess[bytes]:
        async with target() as port:
            with closed_port() as nobody:
                env = environment() | {"ALL_PROXY": f"socks5://127.0.0.1:{nobody}", "NO_PROXY": "*"}
                return await in_thread([*TABI, "ping", "--target", f"127.0.0.1:{port}"], env=env)

    assert "connection refused" in failure(run_once(main), 1)


def test_a_reader_that_has_read_enough_ends_it(proxy: Serve) -> None:
    """As head(1) does: without a message."""
    command = [*TABI, "ping", "--count", "0", "--interval", "1ms", proxy.url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()) as process:
        assert process.stdout
        assert process.stderr
        assert b"answered" in process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(PATIENCE) == 1


def test_several_are_summed_up(proxy: Serve) -> None:
    """A line each, and one about all of them."""
    done = run_here("ping", "--count", "3", "--interval", "10ms", proxy.url)
    *lines, summary = done.stdout.decode().splitlines()
    assert done.returncode == 0
    assert len(lines) == 3
    assert summary.startswith("3 of 3 answered, in ")
    assert summary.endswith(" (least / mean / most)")


def test_one_that_fails_makes_the_whole_fail(run_once: Run) -> None:
    """The first is answered, the second is not: exit code 1."""
    seen: list[None] = []

    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(None)
        await reader.readexactly(3)
        writer.write(b"\x05\x00" if len(seen) == 1 else b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async def main() -> subprocess.CompletedProcess[bytes]:
        async with target(once) as port:
            command = [*TABI, "ping", "--count", "2", "--interval", "0.01", f"socks5://127.0.0.1:{port}"]
            return await in_thread(command)

    done = run_once(main)
    assert done.returncode == 1
    assert done.stderr.count(b"\n") == 1
    assert b"version 0x48, expected 0x05" in done.stderr
    assert b"1 of 2 answered" in done.stdout


def test_ctrl_c_sums_up(proxy: Serve) -> None:
    """--count 0 goes on until then; its exit code is that of the answers."""
    command = [*TABI, "ping", "--count", "0", "--interval", "10ms", proxy.url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()) as process:
        assert process.stdout
        for _ in range(3):
            assert b"answered" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=PATIENCE)
    assert (process.returncode, errors) == (0, b"")
    assert b" answered, in " in rest.splitlines()[-1]


def test_json_is_an_object_a_line(proxy: Serve) -> None:
    """Answers and failures alike, on standard output; no summary."""
    done = run_here("ping", "--json", "--count", "2", "--interval", "1ms", proxy.url)
    first, second = map(json.loads, done.stdout.splitlines())
    assert first.keys() == second.keys() == {"url", "ok", "ms", "answer"}
    assert (first["url"], first["ok"], first["answer"]) == (proxy.url, True, "no authentication")
    with closed_port() as port:
        done = run_here("ping", "--json", f"socks5://127.0.0.1:{port}")
    found = json.loads(done.stdout)
    assert (done.returncode, done.stderr) == (1, b"")
    assert (found["ok"], found["error"]) == (False, "connection refused")


def test_quiet_says_nothing(proxy: Serve) -> None:
    """Only the exit code."""
    with closed_port() as port:
        for url, code in ((proxy.url, 0), (f"socks5://127.0.0.1:{port}", 1)):
            done = run_here("ping", "-q", "--count", "2", "--interval", "1ms", url)
            assert (done.returncode, done.stdout, done.stderr) == (code, b"", b"")


def test_a_target_is_connected_to(proxy: Serve, run_once: Run) -> None:
    """--target: something behind the proxy has to be there as well."""

    async def main() -> subprocess.CompletedProcess[bytes]:
        async with target() as port:
            return await in_thread([*TABI, "ping", "--target", f"127.0.0.1:{port}", proxy.url])

    assert b" ms (connected to 127.0.0.1:" in run_once(main).stdout
    with closed_port() as port:
        line = failure(run_here("ping", "--target", f"127.0.0.1:{port}", proxy.url), 1)
    assert line == f"tabi: {proxy.url}: 127.0.0.1:{port}: the proxy says connection refused (reply 05)\n"


def test_a_target_through_a_unix_socket(run_once: Run, tmp_path: Path) -> None:
    """As through any other proxy."""

    async def main() -> subprocess.CompletedProcess[bytes]:
        url = f"unix://{tmp_path}/x?protocol=http"
        async with target() as port, Server(url):
            return await in_thread([*TABI, "ping", "--target", f"localhost:{port}", url])

    assert b" ms (connected to localhost:" in run_once(main).stdout


def test_a_datagram_comes_back(proxy: Serve, run_once: Run) -> None:
    """--udp: an echo service sends it back; where nothing does, that is a failure in time."""

    async def main() -> None:
        async with datagram_target() as port:
            done = await in_thread([*TABI, "ping", "--udp", f"127.0.0.1:{port}", proxy.url])
            assert f" ms (a datagram from 127.0.0.1:{port})\n" in done.stdout.decode()

    run_once(main)
    with closed_port() as port:
        line = failure(run_tabi("ping", "--timeout", "200ms", "--udp", f"127.0.0.1:{port}", proxy.url), 1)
    assert line == f"tabi: {proxy.url}: no answer within 0.2 s\n"


def test_what_is_sent_by_udp_is_a_question_of_dns() -> None:
    """A name server answers it: one question, NS of the root, recursion desired."""
    import dns.message

    (question,) = dns.message.from_wire(QUESTION).question
    assert str(question) == ". IN NS"


def test_a_proxy_that_is_silent_is_given_up(run_once: Run) -> None:
    """After --timeout, which is for all of one answer."""

    async def main() -> subprocess.CompletedProcess[bytes]:
        async with target(silent) as port:
            return await in_thread([*TABI, "ping", "--timeout", "50ms", f"socks5://127.0.0.1:{port}"])

    assert failure(run_once(main), 1).endswith(": no answer within 0.05 s\n")


STUCK = """
import socket, threading
socket.getaddrinfo = lambda *args, **more: threading.Event().wait()
from tabi.__main__ import main
main()
"""


def test_a_resolver_that_is_stuck_does_not_keep_it() -> None:
    """Nothing ends a lookup of the C library: the program ends without it, in time, with its line and its code."""
    began = time.monotonic()
    command = [sys.executable, "-c", STUCK, "ping", "--timeout", "50ms", "socks5://proxy.example:1080"]
    line = failure(run_program(command), 1)
    assert line == "tabi: socks5://proxy.example:1080: no answer within 0.05 s\n"
    assert time.monotonic() - began < PATIENCE / 2


@pytest.mark.parametrize(
    "arguments",
    [
        ("ftp://127.0.0.1:1",),
        ("127.0.0.1:1",),
        ("fd://tabi",),
        ("unix://hunter2:x@",),
        ("unix:///x?protocol=hunter2&x=",),
        ("socks4://alice:hunter2@127.0.0.1:1",),
        ("socks5://alice:hunter2@127.0.0.1:99999",),
        ("socks5://127.0.0.1:1", "--count", "-1"),
        ("socks5://127.0.0.1:1", "--interval", "soon"),
        ("socks5://127.0.0.1:1", "--target", "127.0.0.1"),
        ("socks5://127.0.0.1:1", "--udp", "127.0.0.1:0"),
        ("socks5://127.0.0.1:1", "--udp", "127.0.0.1:1", "--target", "127.0.0.1:1"),
        ("http://127.0.0.1:1", "--udp", "127.0.0.1:1"),
        ("unix:///x", "--via", "socks5://127.0.0.1:1"),
        ("unix:///x", "--udp", "127.0.0.1:1"),
    ],
    ids=" ".join,
)
def test_wrong_arguments_are_one_line(arguments: tuple[str, ...]) -> None:
    """Exit code 2, and no password in the message."""
    assert "hunter2" not in failure(run_here("ping", *arguments), 2)
