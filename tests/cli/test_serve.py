"""`tabi serve` from outside: what it says, what it refuses, how it ends, and its access log."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest

import tabi
from conftest import Run
from processes import (
    PATIENCE,
    Serve,
    accept,
    environment,
    failure,
    is_running,
    listening,
    receive_all,
    receive_exactly,
    refuses,
    run_here,
    run_passed,
    run_tabi,
    serve,
    tunnels,
    wait_for,
)
from support import GREETING, free_port, request, target
from tabi.cli.serve import curl_line, merge, print_ready
from tabi.config import Config, Listen, UserConfig, parse_config
from tabi.errors import ConfigError
from tabi.wire.address import Address, parse_address

# --- what it says, and what is asked for ---


def test_it_says_where_it_listens_and_what_to_try(tmp_path: Path) -> None:
    """The messages are on stderr, the port is the real one, and stdout is left to the access log."""
    with serve(tmp_path) as proxy:
        assert proxy.address.port > 0
        place = f"127.0.0.1:{proxy.address.port}"
        ready = f"listening on socks5://{place}\ntry: curl -x socks5h://{place} https://example.com/\n"
        assert proxy.messages.startswith(ready)
        wait_for(lambda: " INFO datagrams: " in proxy.messages, "the line about datagrams")
        assert proxy.stdout.read_bytes() == b""
        with tunnels(proxy.address) as (tunnel,):
            tunnel.check()


def test_without_options_it_listens_on_loopback_1080() -> None:
    """The default is the one of tabi.toml: every protocol on 127.0.0.1:1080, without users."""
    config = merge(Config(), None, None, None, None).config
    assert [listen.url for listen in config.listen] == ["mixed://127.0.0.1:1080"]
    assert config.users == {}


@pytest.mark.parametrize(
    ("url", "proxy"),
    [
        ("socks5://0.0.0.0:1080", "socks5h://USER:PASSWORD@127.0.0.1:1080"),
        ("socks5://[::]:1080", "socks5h://USER:PASSWORD@[::1]:1080"),
        ("socks5://[::1]:1080", "socks5h://USER:PASSWORD@[::1]:1080"),
        ("socks5://10.0.0.0:1080", "socks5h://USER:PASSWORD@10.0.0.0:1080"),
        ("mixed://0.0.0.0:1080", "socks5h://USER:PASSWORD@127.0.0.1:1080"),
        ("http://127.0.0.1:1080", "http://USER:PASSWORD@127.0.0.1:1080"),
        ("unix:///run/a%20b.sock?protocol=mixed", "socks5h://USER:PASSWORD@localhost/run/a%20b.sock"),
    ],
)
def test_the_line_to_try_is_one_that_works(url: str, proxy: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A wildcard is no place to connect to: the line names loopback then. curl takes a path for SOCKS."""
    print_ready([url], True, sys.stderr.write)
    text = capsys.readouterr().err
    assert text == f"listening on {url}\ntry: curl -x {proxy} https://example.com/\n"


@pytest.mark.parametrize(
    ("url", "users", "words"),
    [
        ("mixed://127.0.0.1:1", False, "-x socks5h://127.0.0.1:1"),
        ("socks4://127.0.0.1:1", False, "-x socks4a://127.0.0.1:1"),
        ("socks4a://127.0.0.1:1", False, "-x socks4a://127.0.0.1:1"),
        ("socks4://127.0.0.1:1", True, None),
        ("https://127.0.0.1:1", True, "--proxy-cacert CA.pem -x https://USER:PASSWORD@127.0.0.1:1"),
        ("mixed+tls://127.0.0.1:1", False, "--proxy-cacert CA.pem -x https://127.0.0.1:1"),
        ("socks5+tls://127.0.0.1:1", False, None),
        ("unix:///run/tabi.sock?protocol=socks4", False, "-x socks4a://localhost/run/tabi.sock"),
        ("unix:///run/tabi.sock?protocol=http", False, None),
        ("unix:///run/tabi.sock?protocol=mixed+tls", False, None),
    ],
)
def test_a_line_to_try_for_each_protocol(url: str, users: bool, words: str | None) -> None:
    """None where curl has no way: SOCKS inside TLS, HTTP at a path, and SOCKS4 where clients must be users."""
    assert curl_line(url, users) == (words and f"curl {words} https://example.com/")


def test_the_line_to_try_is_that_of_the_first_listener_that_has_one(capsys: pytest.CaptureFixture[str]) -> None:
    """One is enough, and none is no mistake."""
    urls = ["socks5+tls://127.0.0.1:1", "http://127.0.0.1:2", "socks5://127.0.0.1:3"]
    print_ready(urls, False, sys.stderr.write)
    text = capsys.readouterr().err
    assert text.endswith("listening on socks5://127.0.0.1:3\ntry: curl -x http://127.0.0.1:2 https://example.com/\n")
    print_ready(urls[:1], False, sys.stderr.write)
    assert capsys.readouterr().err == f"listening on {urls[0]}\n"


def test_several_listeners(tmp_path: Path) -> None:
    """Each -l is a listener, IPv6 too."""
    urls = ("socks5://127.0.0.1:0", "socks5://127.0.0.2:0", "socks5://[::1]:0")
    arguments = [argument for url in urls for argument in ("-l", url)]
    with serve(tmp_path, *arguments) as proxy:
        assert [url.rpartition(":")[0] + ":0" for url in proxy.urls] == list(urls)
        for url in proxy.urls:
            with tunnels(parse_address(url.removeprefix("socks5://"))) as (tunnel,):
                tunnel.check()
        assert {session["listener"] for session in proxy.sessions(3)} == set(urls)


def test_users_of_the_command_line(tmp_path: Path, run_once: Run) -> None:
    """-u lets in these users, with a colon in the password too, and nobody else; no password is shown anywhere."""

    async def main() -> None:
        async with target() as port:
            for login in ("alice:one%3Atwo@", "bob:three@"):
                async with tabi.Proxy(proxy.url.replace("//", f"//{login}")).connect("127.0.0.1", port) as stream:
                    await stream.send_all(b"x")
                    assert await stream.receive() == b"x"
            for login in ("", "alice:three@", "carol:three@"):
                with pytest.raises(tabi.AuthError):
                    await tabi.Proxy(proxy.url.replace("//", f"//{login}")).connect("127.0.0.1", port)

    with serve(tmp_path, "-u", "alice:one:two", "-u", "bob:three") as proxy:
        run_once(main)
        assert {session["user"] for session in proxy.sessions(5)} == {"alice", "bob", None}
        assert "USER:PASSWORD@" in proxy.messages
        for word in ("one", "two", "three"):
            assert word not in proxy.messages + proxy.stdout.read_text()


def test_a_file_and_options_together(tmp_path: Path) -> None:
    """What is on the command line stands in place of the file's; users are added to those of the file."""
    file = Config(workers=3, listen=[Listen("socks5://127.0.0.1:1")], users={"alice": UserConfig("a", plain=True)})
    config = merge(file, ["socks5://127.0.0.1:2"], ["bob:b"], 2, "none").config
    assert [listen.url for listen in config.listen] == ["socks5://127.0.0.1:2"]
    assert set(config.users) == {"alice", "bob"}
    assert (config.workers, config.log.access) == (2, "none")
    assert merge(file, None, None, None, None).config == file


def test_faults_of_the_command_line(tmp_path: Path) -> None:
    """They are for all sessions, behind the entries of the file; a reload keeps them, and it says that they are on."""
    file = tmp_path / "tabi.toml"
    text = '[[listen]]\nurl = "socks5://127.0.0.1:0"\n[profile.slow]\nlatency = "30ms"\n'
    text += '[[distort]]\nfault = "3g"\nports = [1]\n'
    file.write_text(text)
    with serve(tmp_path, "-c", file, "--fault", "slow", "--fault", "lossy-wifi") as proxy:
        assert "with the faults slow, lossy-wifi\n" in proxy.messages
        for reloads in range(2):
            with tunnels(proxy.address) as (tunnel,):
                began = time.monotonic()
                tunnel.check()
                assert time.monotonic() - began >= 0.06
            if not reloads:
                proxy.signal(signal.SIGHUP)
                wait_for(lambda: "reloaded: rules: 0" in proxy.messages, "the reload")
    compiled = merge(parse_config(text), None, None, None, None, faults=["slow"])
    assert [one.label for one in compiled.distorts] == ["distort[0]", "--fault slow"]
    with pytest.raises(ConfigError, match=r"--fault: '5g', expected a profile: 3g, .*, slow, slow-3g"):
        merge(parse_config(text), None, None, None, None, faults=["5g"])


def test_a_file_is_used(tmp_path: Path) -> None:
    """-c takes a tabi.toml: two listeners, a log file of its own."""
    log, path = tmp_path / "access.log", tmp_path / "tabi.toml"
    listen = '[[listen]]\nurl = "socks5://127.0.0.1:0"\n[[listen]]\nurl = "socks5://[::1]:0"\n'
    path.write_text(f'{listen}[log]\naccess = "{log}"')
    with serve(tmp_path, "-c", path) as proxy:
        assert len(proxy.urls) == 2
        with tunnels(proxy.address) as (tunnel,):
            tunnel.check()
        (session,) = proxy.sessions(1, log)
        assert (session["up"], session["down"]) == (4, 4)


def test_workers(tmp_path: Path) -> None:
    """--workers 2 starts two processes on the same sockets."""
    with serve(tmp_path, "--workers", "2") as proxy:
        assert len(wait_for(proxy.workers, "workers")) == 2
        with tunnels(proxy.address, 8) as found:
            for tunnel in found:
                tunnel.check()
        assert len({session["id"] for session in proxy.sessions(8)}) == 8


# --- what it refuses ---


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--watch"], "--watch: there is nothing to watch: expected -c FILE"),
        (["-u", "alice"], "-u: expected NAME:PASSWORD"),
        (["-u", ":password"], "-u: expected NAME:PASSWORD"),
        (["-u", "alice:"], "-u: expected NAME:PASSWORD"),
        (["-u", "alice:hunter2", "-u", "bob:x", "-u", "alice:x"], "-u: the user alice is given twice"),
        (["-l", "socks5://127.0.0.1:0", "-l", "mixed://a..b:1123"], "listen[1].url: a label of the host name"),
        (["-l", "127.0.0.1:1080"], "listen[0].url: the protocol is missing"),
        (["-l", "ftp://127.0.0.1:0"], "listen[0].url: protocol 'ftp'"),
        (["-l", "https://127.0.0.1:0"], "listen[0].tls: missing"),
        (["-l", "fd://web"], "listen[0].url: fd://web: no socket was passed (LISTEN_FDS)"),
        (["-l", "unix:///proc/tabi.sock"], "listen[0].url: unix:///proc/tabi.sock: "),
        (["-l", "unix:///etc/hosts"], "listen[0].url: unix:///etc/hosts: there is a file that is not a socket"),
        (["-l", "unix:///tmp/t?owner=hunter3"], "there is no user hunter3"),
        (["-l", "socks5://127.0.0.1:0", "-l", "socks5://alice:hunter2@127.0.0.1:0"], "listen[1].url: "),
        (["--workers", "-1"], "workers: "),
        (["-c", "/nonexistent/tabi.toml"], "/nonexistent/tabi.toml: No such file"),
        (["--access-log", "/nonexistent/access.log"], "log.access: /nonexistent/access.log: No such file"),
        (["-l", "socks5://192.0.2.1:0", "-u", "alice:hunter2"], "listen[0].url: socks5://192.0.2.1:0: "),
    ],
)
def test_what_is_wrong_is_one_line_before_it_starts(arguments: list[str], words: str) -> None:
    """Exit code 2, the option or key and its value; never a password."""
    line = failure(run_here("serve", *arguments), 2)
    assert words in line
    assert "hunter2" not in line


def test_an_unknown_key_is_named_with_the_file(tmp_path: Path) -> None:
    """An error in the file is FILE: KEY: what is wrong."""
    path = tmp_path / "tabi.toml"
    path.write_text("[timeouts]\nconect = 3")
    assert failure(run_tabi("serve", "-c", path), 2).startswith(f"tabi: {path}: timeouts.conect: unknown key")


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (
            '[[rule]]\naction = "deny"\nlisteners = ["socks5://127.0.0.1:1"]',
            ["-l", "socks5://127.0.0.1:0"],
            "{path}: rule[0].listeners[0]: 'socks5://127.0.0.1:1', expected one of: socks5://127.0.0.1:0",
        ),
        (
            'udp = { ports = "shared" }',
            ["--workers", "2"],
            '{path}: listen[0].udp.ports: "shared" with workers = 2, expected workers = 1 or a range of ports',
        ),
        ("", ["-l", "http://h:1", "-l", "http://h:1"], "listen[1].url: the same address as listen[0].url"),
        ("", ["--workers", "-1"], "workers: -1, expected 0 to 1024"),
        (
            "",
            ["--access-log", ""],
            "log.access: expected stdout, stderr, syslog, syslog://host:port, journald, none or a path",
        ),
        ("", ["-u", f"{'a' * 256}:hunter2"], f"users.{'a' * 256}: a user name has 1 to 255 octets (RFC 1929)"),
        ("", ["--via", "nowhere"], "--via: there is no [egress.nowhere]"),
        ("", ["--via", "via"], "--via: leads to itself"),
    ],
)
def test_what_is_wrong_is_said_of_where_it_stands(tmp_path: Path, text: str, options: list[str], message: str) -> None:
    """What of the file does not go with an option is the file's, as all its errors; what the option says is not."""
    path = tmp_path / "tabi.toml"
    path.write_text(f'[[listen]]\nurl = "socks5://127.0.0.1:1"\n{text}')
    line = failure(run_here("serve", "-c", path, *options), 2)
    assert line == f"tabi: {message.format(path=path)}\n"


def test_an_egress_of_the_file_is_not_replaced(tmp_path: Path) -> None:
    """--via makes one of the same name, so that one of the file has to have another."""
    path = tmp_path / "tabi.toml"
    path.write_text("[egress.via]\nurl = 'socks5://127.0.0.1:1'")
    line = failure(run_here("serve", "-c", path, "--via", "socks5://alice:hunter2@127.0.0.1:2"), 2)
    assert line == "tabi: --via: the file has an [egress.via] already, expected another name there\n"


@pytest.mark.parametrize("host", ["0.0.0.0", "[::]", "192.0.2.1"])
def test_an_open_proxy_is_refused(host: str) -> None:
    """Beyond loopback without users it does not start, and says what would make it right."""
    line = failure(run_here("serve", "-l", f"socks5://{host}:0"), 2)
    assert "open proxy" in line
    assert "--open" in line
    assert "-u" in line


def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    """Which of the addresses it was, and why."""
    with listening() as (_, port):
        url = f"socks5://127.0.0.1:{port}"
        line = failure(run_here("serve", "-l", "socks5://127.0.0.1:0", "-l", url), 2)
    assert line == f"tabi: listen[1].url: {url}: Address already in use\n"


def test_the_wildcard_of_both_in_the_way_of_an_address_of_ipv4_is_named() -> None:
    """[::] takes 127.0.0.1 too, which shows only when a worker listens: the second is in its way."""
    port = free_port()
    line = failure(run_tabi("serve", "--open", "-l", f"socks5://[::]:{port}", "-l", f"socks5://127.0.0.1:{port}"), 2)
    assert line == f"tabi: listen[1].url: socks5://127.0.0.1:{port}: address already in use\n"


# --- unix sockets ---


def connect(path: str | Path) -> socket.socket:
    """A client of a unix socket."""
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(PATIENCE)
    sock.connect(str(path))
    return sock


def use(sock: socket.socket, target: socket.socket) -> None:
    """Open a tunnel on a connection to a proxy, and let octets through it in both directions."""
    sock.sendall(GREETING + request(*target.getsockname()[:2]))
    assert receive_exactly(sock, 4) == b"\x05\x00\x05\x00"
    receive_exactly(sock, 8)
    with accept(target) as there:
        for one, other in ((sock, there), (there, sock)):
            one.sendall(b"ping")
            assert receive_exactly(other, 4) == b"ping"


def test_unix_sockets_beside_others(tmp_path: Path) -> None:
    """Several places at once, two workers: the file has the rights that were asked for, and goes when serving ends."""
    path = tmp_path / "a b.sock"
    url = f"unix://{tmp_path}/a%20b.sock?protocol=socks5&mode=0640"
    with (
        listening() as (target, _),
        serve(tmp_path, "--workers", "2", "-l", "mixed://127.0.0.1:0", "-l", url, "-l", "socks5://[::1]:0") as proxy,
    ):
        assert proxy.urls[1] == f"unix://{tmp_path}/a%20b.sock?protocol=socks5"
        assert path.stat().st_mode & 0o777 == 0o640
        for _ in range(4):
            with connect(path) as client:
                use(client, target)
        with tunnels(proxy.address) as (tunnel,):
            tunnel.check()
        sessions = proxy.sessions(5)
        assert [one["client"] for one in sessions if one["listener"] == url] == [f"unix:{os.getuid()}"] * 4
        for pid in proxy.workers():
            os.kill(pid, signal.SIGKILL)
        with connect(path) as client:
            use(client, target)
        assert proxy.stop() == 0
        assert not path.exists()


def test_a_unix_socket_in_use_is_named_and_stays(tmp_path: Path) -> None:
    """Who comes second says so and takes nothing away; what a killed one has left is in nobody's way."""
    path = tmp_path / "tabi.sock"
    with listening() as (target, _):
        with serve(tmp_path, "-l", f"unix://{path}") as proxy:
            line = failure(run_here("serve", "-l", f"unix://{path}"), 2)
            assert line == f"tabi: listen[0].url: unix://{path}: Address already in use\n"
            with connect(path) as client:
                use(client, target)
            proxy.process.kill()
            proxy.process.wait()
            wait_for(lambda: not any(map(is_running, proxy.known)), "the workers to end")
            assert path.exists()
        with serve(tmp_path, "-l", f"unix://{path}"), connect(path) as client:
            use(client, target)


# --- sockets that were passed ---


def test_systemd_passes_sockets(tmp_path: Path) -> None:
    """Named, two of one name, unnamed and unix, for two workers; their file is not ours to remove."""
    path = tmp_path / "passed.sock"
    with contextlib.ExitStack() as stack:
        target, _ = stack.enter_context(listening())
        socks = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(4)]
        unix = stack.enter_context(socket.socket(socket.AF_UNIX))
        unix.bind(str(path))
        unix.listen()
        arguments = ("--workers", "2", "-l", "fd://web?protocol=socks5", "-l", "fd://", "-l", "fd://7")
        passed = [*zip(socks, ("web", "", "web", "other"), strict=True), (unix, "last")]
        proxy = stack.enter_context(serve(tmp_path, *arguments, passed=passed))
        ports = [sock.getsockname()[1] for sock in socks]
        assert proxy.urls == [
            f"socks5://127.0.0.1:{ports[0]}",
            f"socks5://127.0.0.1:{ports[2]}",
            f"mixed://127.0.0.1:{ports[1]}",
            f"mixed://127.0.0.1:{ports[3]}",
            f"unix://{path}?protocol=mixed",
        ]
        for port in ports:
            with tunnels(Address(ip_address("127.0.0.1"), port), 2) as found:
                for tunnel in found:
                    tunnel.check()
        with connect(path) as client:
            use(client, target)
        assert sorted(one["listener"] for one in proxy.sessions(9)) == [
            *["fd://"] * 4,
            "fd://7",
            *["fd://web?protocol=socks5"] * 4,
        ]
        assert proxy.stop() == 0
        assert path.exists()


def test_a_passed_socket_that_nobody_takes_is_said(tmp_path: Path) -> None:
    """It serves all the same."""
    with (
        socket.create_server(("127.0.0.1", 0)) as web,
        socket.create_server(("127.0.0.1", 0)) as ssh,
        serve(tmp_path, "-l", "fd://web", passed=[(web, "web"), (ssh, "ssh")]) as proxy,
    ):
        assert "descriptor 4, ssh, was passed, but no listener takes it (fd://ssh)" in proxy.messages
        with tunnels(proxy.address) as (tunnel,):
            tunnel.check()


def test_a_name_that_was_not_passed_is_an_error(tmp_path: Path) -> None:
    """One line with the names that were, exit code 2."""
    with socket.create_server(("127.0.0.1", 0)) as web, socket.create_server(("127.0.0.1", 0)) as ssh:
        line = failure(run_passed([(web, "web"), (ssh, "ssh")], "-l", "fd://http"), 2)
    assert line == ("tabi: listen[0].url: fd://http: no socket of that name was passed, expected one of web, ssh\n")


def test_a_passed_socket_may_not_be_an_open_proxy(tmp_path: Path) -> None:
    """Where it is bound is known only now: beyond loopback it needs users, or --open."""
    with socket.create_server(("0.0.0.0", 0)) as sock:
        port = sock.getsockname()[1]
        line = failure(run_passed([(sock, "web")], "-l", "fd://web"), 2)
        assert line.startswith(f"tabi: listen[0].url: fd://web at 0.0.0.0:{port} would be an open proxy: ")
        with serve(tmp_path, "-l", "fd://web", "--open", passed=[(sock, "web")]) as proxy:
            assert proxy.url == f"mixed://0.0.0.0:{port}"
        with serve(tmp_path, "-l", "fd://web", "-u", "alice:secret", passed=[(sock, "web")]) as proxy:
            assert proxy.url == f"mixed://0.0.0.0:{port}"


def test_the_service_manager_hears_when_it_serves_and_when_it_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Type=notify: READY=1 once clients are accepted, STOPPING=1 when it begins to drain."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(PATIENCE)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        with serve(tmp_path) as proxy:
            assert manager.recv(100) == b"READY=1"
            proxy.signal(signal.SIGTERM)
            assert manager.recv(100) == b"STOPPING=1"
            assert proxy.wait() == 0


# --- how it ends ---


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_without_sessions_it_ends_at_once(tmp_path: Path, number: int) -> None:
    """Nothing to drain: exit code 0, well before the drain time of 30 s."""
    with serve(tmp_path) as proxy:
        proxy.signal(number)
        assert proxy.wait() == 0
        assert "Traceback" not in proxy.messages
        assert refuses(proxy.address)


def test_sigterm_lets_a_thousand_downloads_finish(tmp_path: Path) -> None:
    """In the middle of 1,000 downloads with slow readers it stops to listen, carries every octet, and ends with 0."""
    count, first, rest = 1000, b"a" * 4096, b"b" * 8192
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        with serve(tmp_path) as proxy, tunnels(proxy.address, count) as found:
            for tunnel in found:
                tunnel.server.sendall(first)
            for tunnel in found:
                assert receive_exactly(tunnel.client, 100) == first[:100]
            proxy.signal(signal.SIGTERM)
            wait_for(lambda: refuses(proxy.address), "the listener to close")
            for tunnel in found:
                tunnel.server.sendall(rest)
                tunnel.server.shutdown(socket.SHUT_WR)
            for tunnel in found:
                assert receive_all(tunnel.client, 1000) == first[100:] + rest
                tunnel.close()
            assert proxy.wait() == 0
            sessions = proxy.sessions(count)
            assert len(sessions) == count
            assert {session["down"] for session in sessions} == {len(first + rest)}
            assert {session["close"] for session in sessions} == {"server"}
            assert "cut" not in proxy.messages
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def interrupt(proxy: Serve) -> None:
    """What Ctrl-C does: SIGINT to the whole process group."""
    os.killpg(proxy.process.pid, signal.SIGINT)


def terminate(proxy: Serve) -> None:
    """What a service manager does."""
    proxy.signal(signal.SIGTERM)


@pytest.mark.parametrize("tell", [terminate, interrupt])
def test_a_second_signal_stops_at_once(tmp_path: Path, tell: Callable[[Serve], None]) -> None:
    """The first one drains, the second cuts: sessions end as "shutdown" in the access log, the exit code stays 0."""
    with serve(tmp_path, "--workers", "2", own_group=True) as proxy, tunnels(proxy.address, 4) as found:
        tell(proxy)
        wait_for(lambda: refuses(proxy.address), "the listener to close")
        for tunnel in found:
            tunnel.check()
        assert proxy.process.poll() is None
        began = time.monotonic()
        tell(proxy)
        assert proxy.wait() == 0
        assert time.monotonic() - began < 10  # of 30 s of drain time
        assert [session["close"] for session in proxy.sessions(4)] == ["shutdown"] * 4
        assert "Traceback" not in proxy.messages


def test_two_signals_in_a_row_stop_at_once_too(tmp_path: Path) -> None:
    """The second one is not lost while the first is still on its way to the workers."""
    with serve(tmp_path) as proxy, tunnels(proxy.address) as (tunnel,):
        tunnel.check()
        proxy.signal(signal.SIGTERM)
        proxy.signal(signal.SIGINT)
        assert proxy.wait() == 0
        assert [session["close"] for session in proxy.sessions(1)] == ["shutdown"]


def test_the_drain_time_is_the_limit(tmp_path: Path) -> None:
    """What still runs after timeouts.drain is cut, and counted in a message."""
    path = tmp_path / "tabi.toml"
    path.write_text('[[listen]]\nurl = "socks5://127.0.0.1:0"\n[timeouts]\ndrain = "100ms"')
    with serve(tmp_path, "-c", path) as proxy, tunnels(proxy.address, 3) as found:
        proxy.signal(signal.SIGTERM)
        assert proxy.wait() == 0
        for tunnel in found:
            assert tunnel.client.recv(1) == b""
        assert [session["close"] for session in proxy.sessions(3)] == ["shutdown"] * 3
        assert "sessions cut: 3" in proxy.messages


def test_sighup_kills_nobody(tmp_path: Path) -> None:
    """A terminal that goes away, or a reload that is not there yet: sessions and listeners stay."""
    with serve(tmp_path, own_group=True) as proxy, tunnels(proxy.address) as (tunnel,):
        workers = proxy.workers()
        os.killpg(proxy.process.pid, signal.SIGHUP)
        wait_for(lambda: "SIGHUP" in proxy.messages, "the message")
        tunnel.check()
        with tunnels(proxy.address) as (other,):
            other.check()
        assert proxy.workers() == workers


# --- the access log ---


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """Both ends of a pipe. A test that closes one takes care of that number itself."""
    reading, writing = os.pipe()
    yield reading, writing
    for fd in (reading, writing):
        try:
            os.close(fd)
        except OSError:
            pass


def test_the_log_on_stdout_has_a_line_for_each_session(tmp_path: Path) -> None:
    """The stable keys, in one JSON object a line."""
    with serve(tmp_path) as proxy:
        with tunnels(proxy.address) as (tunnel,):
            tunnel.check()
            client = "{}:{}".format(*tunnel.client.getsockname())
            port = tunnel.server.getsockname()[1]
        (session,) = proxy.sessions(1)
    assert session["client"] == client
    assert (session["protocol"], session["command"], session["reply"]) == ("socks5", "connect", 0)
    assert (session["host"], session["port"], session["address"]) == ("127.0.0.1", port, f"127.0.0.1:{port}")
    assert (session["up"], session["down"], session["error"]) == (4, 4, None)
    keys = ["time", "id", "listener", "user", "rule", "via", "seconds", "connect_ms", "close"]
    assert set(keys) < set(session)


def test_a_log_file_that_is_moved_away_is_opened_again(tmp_path: Path) -> None:
    """Rotation by mv loses nothing: lines up to then are in the old file, later ones in a new one."""
    log, old = tmp_path / "access.log", tmp_path / "access.log.1"
    with serve(tmp_path, "--access-log", str(log)) as proxy:
        with tunnels(proxy.address) as (tunnel,):
            tunnel.check()
        before = proxy.sessions(1, log)
        log.rename(old)
        with tunnels(proxy.address) as (tunnel,):
            tunnel.check()
        after = proxy.sessions(1, log)
        assert proxy.sessions(1, old) == before
        assert len(after) == 1
        assert after[0]["id"] != before[0]["id"]
        assert proxy.stdout.read_bytes() == b""


def test_a_closed_pipe_harms_nothing(tmp_path: Path, pipe: tuple[int, int]) -> None:
    """Whoever read the log is gone: sessions go on, one message says so, and it ends with 0."""
    reading, writing = pipe
    with serve(tmp_path, stdout=writing) as proxy:
        os.close(reading)
        with tunnels(proxy.address) as (tunnel,):
            tunnel.check()
        wait_for(lambda: "access log: " in proxy.messages, "the message")
        with tunnels(proxy.address) as (tunnel,):
            tunnel.check()
        assert proxy.stop() == 0
        assert "Traceback" not in proxy.messages


def fill(fd: int) -> None:
    """Write into a pipe until nothing more goes in."""
    os.set_blocking(fd, False)
    size = 65536
    while size:
        try:
            os.write(fd, b"\n" * size)
        except BlockingIOError:
            size //= 2
    os.set_blocking(fd, True)


def test_a_full_pipe_that_nobody_reads_holds_up_nobody(tmp_path: Path, pipe: tuple[int, int]) -> None:
    """Lines wait or are lost; sessions begin, carry and end, and so does the program."""
    fill(pipe[1])
    with serve(tmp_path, stdout=pipe[1]) as proxy:
        for _ in range(3):
            with tunnels(proxy.address, 20) as found:
                for tunnel in found:
                    tunnel.check()
        assert proxy.stop() == 0


def test_listeners_in_each_other_s_way_are_an_error() -> None:
    """Two names of one address: one line that names the listener, exit code 2, and nothing says that it listens."""
    port = free_port()
    done = run_tabi("serve", "-l", f"socks5://127.0.0.1:{port}", "-l", f"socks5://localhost:{port}")
    assert "in use" in failure(done, 2)
    assert f"localhost:{port}" in failure(done, 2)


def test_a_closed_stderr_is_no_reason_not_to_serve() -> None:
    """Who starts it without standard error gets a proxy; its descriptor becomes no socket's."""
    port = free_port()
    command = f"exec {sys.executable} -m tabi serve -l socks5://127.0.0.1:{port} 2>&- >/dev/null"
    process = subprocess.Popen(["/bin/sh", "-c", command], env=environment())
    try:
        wait_for(lambda: not refuses(Address(ip_address("127.0.0.1"), port)), "a proxy without stderr")
        process.terminate()
        assert process.wait(PATIENCE) == 0
    finally:
        process.kill()
        process.wait()
