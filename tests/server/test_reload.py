"""Reload: another configuration for new sessions; those that run do not hear of it, a broken file changes nothing."""

from __future__ import annotations

import errno
import os
import signal
import socket
from pathlib import Path

import msgspec
import pytest

from conftest import Run
from processes import PATIENCE, Serve, listening, receive_exactly, serve, tunnels, wait_for
from support import GREETING, credentials, request, target
from tabi.client import Proxy
from tabi.config import Config, LimitsConfig, Listen, Log, RuleConfig, Seconds, Timeouts, UserConfig
from tabi.errors import AuthError, ConfigError, ProxyError
from tabi.server import reload as module
from tabi.server.compiled import compile_config
from tabi.server.reload import Reload
from tabi.server.server import Server
from tabi.wire.address import Address

LISTEN = '[[listen]]\nurl = "socks5://127.0.0.1:0"\n'


# --- an embedded server ---


async def attempt(url: str, port: int) -> None:
    """A tunnel that is closed at once. Raises what `Proxy.connect` does."""
    async with Proxy(url).connect("127.0.0.1", port):
        pass


def test_rules_users_and_listeners_of_an_embedded_server(run: Run) -> None:
    """What new sessions meet is the new configuration; an old tunnel goes on; what was counted stays counted."""

    async def main() -> None:
        limits = LimitsConfig(connections=2)
        config = Config(listen=[Listen("socks5://127.0.0.1:0", "none")], log=Log("none"), limits=limits)
        async with target() as port, Server(config=config) as server:
            url = server.url
            async with Proxy(url).connect("127.0.0.1", port) as old:
                rule = RuleConfig("deny", "closed", ports=[port])
                assert server.reload(msgspec.structs.replace(config, rule=[rule])) == []
                with pytest.raises(ProxyError, match="02"):
                    await attempt(url, port)
                await old.send_all(b"still")
                assert await old.receive() == b"still"

                users = {"alice": UserConfig("secret", plain=True)}
                closed = [Listen("socks5://127.0.0.1:0", "required")]
                server.reload(msgspec.structs.replace(config, users=users, listen=closed))
                with pytest.raises((AuthError, ProxyError)):
                    await attempt(url, port)
                named = url.replace("://", "://alice:secret@")
                async with Proxy(named).connect("127.0.0.1", port):
                    with pytest.raises(ProxyError, match="02"):  # the old one and this: two of two
                        await attempt(named, port)

                config = msgspec.structs.replace(config, limits=LimitsConfig())  # tunnels may still be ending
                server.reload(msgspec.structs.replace(config, users=users))
                with pytest.raises(ConfigError, match=r"^rule\[0\]\.via: there is no \[egress\.tor\]$"):
                    server.reload(msgspec.structs.replace(config, rule=[RuleConfig("allow", via="tor")]))
                async with Proxy(named).connect("127.0.0.1", port):
                    pass
                assert server.reload(msgspec.structs.replace(config, timeouts=Timeouts(idle=Seconds(1)))) == [
                    "timeouts"
                ]
                async with Proxy(url).connect("127.0.0.1", port):
                    pass
                await old.send_all(b"still")
                assert await old.receive() == b"still"

    run(main)


def test_an_embedded_server_keeps_what_it_was_made_with(run: Run) -> None:
    """Its users and its program of the last word are its own, not the configuration's; before its start it may too."""

    async def main() -> None:
        config = Config(log=Log("none"))
        server = Server("socks5://127.0.0.1:0", users={"alice": "secret"}, config=config)
        assert server.reload(msgspec.structs.replace(config, limits=LimitsConfig(connections=5))) == ["listen"]
        async with target() as port, server:
            server.reload(config)
            async with Proxy(server.url).connect("127.0.0.1", port):
                pass
            with pytest.raises(AuthError):
                await attempt(server.url.replace("secret", "wrong"), port)
        server.reload(config)

    run(main)


# --- tabi serve ---


def hup(proxy: Serve, said: str) -> None:
    """Send SIGHUP and wait for what the supervisor says; its workers have read it when the next one is served."""
    count = proxy.messages.count(said)
    proxy.signal(signal.SIGHUP)
    wait_for(lambda: proxy.messages.count(said) > count, said)


def reply_of(proxy: Address, port: int, user: bytes | None = None) -> int:
    """The reply that a request gets; -1 where the user is refused."""
    with socket.create_connection((str(proxy.host), proxy.port), PATIENCE) as sock:
        if user is None:
            sock.sendall(GREETING)
            assert receive_exactly(sock, 2) == b"\x05\x00"
        else:
            sock.sendall(b"\x05\x01\x02")
            assert receive_exactly(sock, 2) == b"\x05\x02"
            sock.sendall(credentials(user, b"x"))
            if receive_exactly(sock, 2) != b"\x01\x00":
                return -1
        sock.sendall(request("127.0.0.1", port))
        return receive_exactly(sock, 2)[1]


@pytest.mark.parametrize("workers", [1, 2])
def test_sighup_takes_rules_for_new_sessions_in_all_workers(tmp_path: Path, workers: int) -> None:
    """Every worker decides by the new file; a tunnel that runs goes on; what is broken is said and changes nothing; and
    a worker that is started again afterwards knows the new file too."""
    path = tmp_path / "tabi.toml"
    path.write_text(LISTEN)
    with (
        serve(tmp_path, "-c", path, "--workers", str(workers)) as proxy,
        tunnels(proxy.address) as (tunnel,),
        listening() as (_, port),
    ):
        assert [reply_of(proxy.address, port) for _ in range(8)] == [0] * 8
        path.write_text(f"{LISTEN}[[rule]]\nname = 'closed'\nports = [{port}]\naction = 'deny'")
        hup(proxy, "reloaded: rules: 1, users: 0")
        wait_for(lambda: [reply_of(proxy.address, port) for _ in range(8)] == [2] * 8, "all workers to know")
        tunnel.check()

        path.write_text(f"{LISTEN}[[rule]]\nports = [{port}]\naction = 'dney'")
        hup(proxy, f"not reloaded, the old configuration stays: {path}: rule[0].action: invalid enum value 'dney'")
        assert reply_of(proxy.address, port) == 2

        for worker in proxy.workers():
            os.kill(worker, signal.SIGKILL)
        wait_for(lambda: len(proxy.workers()) == workers, "the workers to be back")
        assert [reply_of(proxy.address, port) for _ in range(8)] == [2] * 8
        assert proxy.sessions(1, port=port)[-1]["rule"] in (None, "closed")


def test_sighup_takes_how_long_a_rule_lets_rest(tmp_path: Path) -> None:
    """Also for sessions that run, and although the rules come compiled from another process."""
    path = tmp_path / "tabi.toml"
    text = LISTEN + "[timeouts]\nhalf_closed = 1\n[[rule]]\naction = 'allow'\nidle = {}\n"
    path.write_text(text.format("'1 h'"))
    with serve(tmp_path, "-c", path) as proxy, tunnels(proxy.address):
        path.write_text(text.format("0.1"))
        hup(proxy, "reloaded: rules: 1, users: 0")
        assert proxy.sessions(1)[0]["close"] == "idle"


def test_sighup_takes_users_and_limits(tmp_path: Path) -> None:
    """A user that is new may come in, one that is gone may not, and a new limit counts the tunnels that are there."""
    path = tmp_path / "tabi.toml"
    user = "[users.{}]\npassword = 'x'\nplain = true\nlimits = {{ connections = {} }}\n"
    path.write_text(LISTEN + user.format("alice", 5) + user.format("bob", 5))
    with serve(tmp_path, "-c", path) as proxy, listening() as (_, port):
        held = hold(proxy.address, port, b"alice")
        assert reply_of(proxy.address, port, b"bob") == 0
        path.write_text(LISTEN + user.format("alice", 1) + user.format("carol", 5))
        hup(proxy, "reloaded: rules: 0, users: 2")
        wait_for(lambda: reply_of(proxy.address, port, b"carol") == 0, "carol")
        assert reply_of(proxy.address, port, b"bob") == -1
        assert reply_of(proxy.address, port, b"alice") == 2
        held.close()
        wait_for(lambda: reply_of(proxy.address, port, b"alice") == 0, "room for alice")


def hold(proxy: Address, port: int, user: bytes) -> socket.socket:
    """A tunnel of a user, kept open."""
    sock = socket.create_connection((str(proxy.host), proxy.port), PATIENCE)
    sock.sendall(b"\x05\x01\x02" + credentials(user, b"x") + request("127.0.0.1", port))
    assert receive_exactly(sock, 6) == b"\x05\x02\x01\x00\x05\x00"
    return sock


USER = '{{"name": "{}", "password": "x", "plain": true, "limits": {{"connections": 1}}}}\n'


@pytest.mark.parametrize("workers", [1, 2])
def test_sighup_reads_the_file_of_users_again(tmp_path: Path, workers: int) -> None:
    """Users come and go with it, and what they have under way stays counted. A broken line is named by its
    number; the old users stay then."""
    path, users = tmp_path / "tabi.toml", tmp_path / "users.jsonl"
    path.write_text(f'{LISTEN}[auth]\nusers_file = "users.jsonl"')
    users.write_text(USER.format("alice") + USER.format("bob"))
    with serve(tmp_path, "-c", path, "--workers", str(workers)) as proxy, listening() as (_, port):
        held = hold(proxy.address, port, b"alice")
        assert reply_of(proxy.address, port, b"alice") == 2
        users.write_text(USER.format("alice") + USER.format("carol"))
        hup(proxy, "reloaded: rules: 0, users: 2")
        wait_for(lambda: [reply_of(proxy.address, port, b"bob") for _ in range(4)] == [-1] * 4, "bob to be gone")
        assert reply_of(proxy.address, port, b"alice") == 2
        wait_for(lambda: reply_of(proxy.address, port, b"carol") == 0, "carol")

        users.write_text(USER.format("dave") + '{"name": "erin", "pasword": "x"}\n' + USER.format("frank"))
        hup(
            proxy,
            f"not reloaded, the old configuration stays: {path}: auth.users_file: {users}, line 2: pasword: unknown",
        )
        assert reply_of(proxy.address, port, b"dave") == -1
        assert reply_of(proxy.address, port, b"alice") == 2
        held.close()
        wait_for(lambda: reply_of(proxy.address, port, b"alice") == 0, "room for alice")

        users.write_text("")
        hup(proxy, "reloaded: rules: 0, users: 0")
        wait_for(lambda: [reply_of(proxy.address, port, b"alice") for _ in range(4)] == [-1] * 4, "nobody to be let in")


def test_sighup_reads_lists_of_hosts_again(tmp_path: Path) -> None:
    """Names come and go with the file. A broken line is named by its number; the old list stays then."""
    path, blocked, known = tmp_path / "tabi.toml", tmp_path / "blocked.txt", tmp_path / "known.txt"
    path.write_text(f'{LISTEN}[[rule]]\nhosts_file = "blocked.txt"\nnetworks_file = "known.txt"\naction = "deny"\n')
    blocked.write_text("*.test\n192.0.2.1\n")
    known.write_text("127.0.0.0/8\n")
    with serve(tmp_path, "-c", path, "--workers", "2") as proxy, listening() as (_, port):

        def replies() -> set[int]:
            return {reply_of(proxy.address, port) for _ in range(8)}

        assert replies() == {0}
        blocked.write_text("# this machine\n127.0.0.1\n")
        hup(proxy, "reloaded: rules: 1")
        wait_for(lambda: replies() == {2}, "the new list")

        blocked.write_text("*.test\ntwo words\n")
        where = f"{path}: rule[0].hosts_file: {blocked}, line 2"
        hup(proxy, f"not reloaded, the old configuration stays: {where}: 'two words', expected one host in each line")
        assert replies() == {2}

        blocked.write_text("")
        hup(proxy, "reloaded: rules: 1")
        wait_for(lambda: replies() == {0}, "the empty list")


def test_watch_reloads_what_has_changed(tmp_path: Path) -> None:
    """Without a signal: a file that is included, a list that it names. What is broken is said and changes nothing, and
    is tried again when it has been mended."""
    path, listed, more = tmp_path / "tabi.toml", tmp_path / "conf.d" / "listed", tmp_path / "conf.d" / "more.toml"
    path.write_text(f'include = ["conf.d/*.toml"]\n{LISTEN}')
    more.parent.mkdir()
    with serve(tmp_path, "-c", path, "--watch") as proxy, listening() as (_, port):
        assert reply_of(proxy.address, port) == 0
        listed.write_text("127.0.0.1\n")
        more.write_text('[[rule]]\naction = "deny"\nhosts_file = "listed"\n')
        wait_for(lambda: reply_of(proxy.address, port) == 2, "the rule")
        listed.write_text("two words\n")
        said = f"not reloaded, the old configuration stays: {more}: rule[0].hosts_file: {listed}, line 1: "
        wait_for(lambda: said in proxy.messages, said)
        assert reply_of(proxy.address, port) == 2
        listed.write_text("a.test\n")
        wait_for(lambda: reply_of(proxy.address, port) == 0, "the new list")
        assert f"changed: {listed}\n" in proxy.messages


def test_a_reload_that_is_under_way_ends_with_the_supervisor(tmp_path: Path) -> None:
    """SIGTERM while a child compiles: nobody waits for it, and it is gone."""
    path, fifo = tmp_path / "tabi.toml", tmp_path / "users.jsonl"
    path.write_text(LISTEN)
    with serve(tmp_path, "-c", path) as proxy:
        os.mkfifo(fifo)
        path.write_text(f'{LISTEN}[auth]\nusers_file = "users.jsonl"')
        before = set(proxy.workers())
        proxy.signal(signal.SIGHUP)
        wait_for(lambda: set(proxy.workers()) - before, "a child that compiles")
        (child,) = set(proxy.workers()) - before
        assert proxy.stop() == 0
        assert not Path(f"/proc/{child}").exists()


def test_no_room_for_a_process_leaves_nothing_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is an OSError, and no descriptor of the attempt stays: the next one may come soon."""

    def fork() -> int:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", fork)
    before = os.listdir("/proc/self/fd")
    with pytest.raises(BlockingIOError):
        Reload(lambda: compile_config(Config()), Config(), [])
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize("number", [0, 1])
def test_a_reload_without_memory_leaves_nothing_open(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Whichever of its two files there is no room for; each SIGHUP would leave one more."""
    opened: list[int] = []

    def open_memory(name: str) -> int:
        if len(opened) == number:
            raise OSError(errno.EMFILE, "Too many open files")
        opened.append(os.memfd_create(name))
        return opened[-1]

    monkeypatch.setattr(module, "open_memory", open_memory)
    with pytest.raises(OSError, match="Too many"):
        Reload(lambda: compile_config(Config()), Config(), [])
    for fd in opened:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)
