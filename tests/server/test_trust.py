"""Whose files root acts by, who its processes become, and which secrets others can read."""

from __future__ import annotations

import json
import os
import pwd
import signal
import ssl
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from processes import (
    PATIENCE,
    Serve,
    children,
    failure,
    is_running,
    name_of,
    need,
    run_here,
    run_program,
    run_tabi,
    serve,
    tunnels,
    wait_for,
)
from tabi.config import Config, EgressConfig, Listen, Udp, parse_config
from tabi.errors import ConfigError
from tabi.server import trust as module
from tabi.server.control import ask_server
from tabi.server.trust import check_code, check_file, files_of_module, user_of, who_can_write
from tabi.wire.address import Address
from upgrading import upgrading

NOBODY = pwd.getpwnam("nobody")

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give root up")


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that every user reaches: pytest keeps its own to root."""
    with tempfile.TemporaryDirectory(prefix="tabi-") as path:
        os.chmod(path, 0o755)
        yield Path(path)


# --- who they become ---


def users(proxy: Serve) -> dict[str, int]:
    """The user of each process, by its name, the supervisor's as ``supervisor``."""
    pids = {name_of(pid): pid for pid in children(proxy.process.pid)}
    return {name: Path(f"/proc/{pid}").stat().st_uid for name, pid in pids.items()}


def owner_of(pid: int) -> list[int]:
    """The user ids of a process: real, effective, saved, of files."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(list(map(int, line.split()[1:])) for line in lines if line.startswith("Uid:"))


def test_all_but_the_supervisor_give_up_root(folder: Path) -> None:
    """Workers, also one that is started later, the log's writer and the control process, also after it was killed; it
    still serves, logs, reloads, keeps quotas and answers root."""
    path, state = folder / "tabi.toml", folder / "state"
    state.mkdir()
    os.chown(state, NOBODY.pw_uid, NOBODY.pw_gid)
    path.write_text(
        f'user = "nobody"\n[[listen]]\nurl = "socks5://127.0.0.1:0"\n[limits]\nquota = "1 GB/day"\n'
        f'[quotas]\npath = "{state}/quotas.sqlite"\n[log]\naccess = "{state}/access.log"\n'
    )
    with upgrading(folder, "-c", path) as server:
        proxy = server.proxy

        def all_gave_up(count: int = 3) -> bool:
            pids = children(server.pids[-1])
            return len(pids) == count and all(owner_of(pid) == [NOBODY.pw_uid] * 4 for pid in pids)

        wait_for(all_gave_up, "all to be somebody else")
        assert owner_of(server.pids[0]) == [0] * 4
        for pid in children(server.pids[0]):
            os.kill(pid, signal.SIGKILL)
        wait_for(all_gave_up, "others in their place")
        with tunnels(proxy.address) as (tunnel,):
            tunnel.check()
        proxy.signal(signal.SIGHUP)
        wait_for(lambda: "reloaded: " in proxy.messages, "the reload")
        wait_for(server.socket.exists, "the control socket")
        assert ask_server(server.socket, "status")["pid"] == server.pids[0]
        server.upgrade()
        wait_for(all_gave_up, "those of the new one")
        server.wait_gone(server.pids[0])
        with tunnels(proxy.address) as (tunnel,):
            tunnel.check()
        assert {one.stat().st_uid for one in (*state.iterdir(), *server.socket.parent.iterdir())} == {NOBODY.pw_uid}


def make_certificate(folder: Path) -> None:
    """A new certificate, with a key for root alone, in a folder for root alone."""
    kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    folder.mkdir(exist_ok=True)
    folder.chmod(0o700)
    files = ["-keyout", str(folder / "key.pem"), "-out", str(folder / "certificate.pem")]
    assert run_program([need("openssl"), "req", "-x509", *kind, *files]).returncode == 0


def certificate_of(address: Address) -> bytes:
    """What the server shows in a TLS handshake."""
    return ssl.PEM_cert_to_DER_cert(ssl.get_server_certificate((str(address.host), address.port), timeout=PATIENCE))


def test_keys_that_only_root_can_read_are_read(folder: Path) -> None:
    """At the start, for a worker that is started again, and at a reload: then for the workers that run, too."""
    keys, path = folder / "keys", folder / "tabi.toml"
    make_certificate(keys)
    path.write_text(
        'user = "nobody"\n[[listen]]\nurl = "https://127.0.0.1:0"\nusers = "none"\n'
        'tls = { certificate = "keys/certificate.pem", key = "keys/key.pem" }\n'
    )
    with serve(folder, "-c", path, environ={"XDG_RUNTIME_DIR": str(folder)}) as proxy:

        def shown() -> bool:
            return certificate_of(proxy.address) == ssl.PEM_cert_to_DER_cert((keys / "certificate.pem").read_text())

        def start_another_worker() -> None:
            (worker,) = wait_for(proxy.workers, "the worker")
            os.kill(worker, signal.SIGKILL)
            wait_for(lambda: not is_running(worker), "its end")

        assert shown()
        start_another_worker()
        assert shown()
        for count in (1, 2):
            make_certificate(keys)
            assert not shown()
            proxy.signal(signal.SIGHUP)
            wait_for(lambda count=count: proxy.messages.count("reloaded: ") == count, "the reload")  # type: ignore[misc]
            wait_for(shown, "the new certificate")
            start_another_worker()
            assert shown()
        assert "ERROR listen" not in proxy.messages


def test_the_option_takes_the_place_of_the_key(folder: Path) -> None:
    """`--run-as`; who is not there is said in one line."""
    with serve(folder, "--run-as", "nobody:nogroup", environ={"XDG_RUNTIME_DIR": str(folder)}) as proxy:
        (worker,) = proxy.workers()
        assert owner_of(worker) == [NOBODY.pw_uid] * 4
    text = failure(run_tabi("serve", "--run-as", "no-such-user"), 2)
    assert text == "tabi: user: there is no user 'no-such-user'\n"


def test_a_log_that_the_user_cannot_write(folder: Path) -> None:
    """It is said before anybody is served, and no file of root's is made."""
    log = folder / "access.log"
    text = failure(run_tabi("serve", "-l", "socks5://127.0.0.1:0", "--run-as", "nobody", "--access-log", log), 2)
    assert text == f"tabi: log.access: {log}: Permission denied\n"
    assert not log.exists()


def test_what_the_user_could_not_do() -> None:
    """A mark, and a shared UDP port that only root may bind, are refused at the start, not with each session."""
    marked = Config(user="nobody", egress={"direct": EgressConfig(mark=7)})
    with pytest.raises(ConfigError, match=r"egress.direct.mark: it takes CAP_NET_ADMIN, which nobody has not \(user\)"):
        user_of(marked)
    low = Config(user="nobody", listen=[Listen("socks5://127.0.0.1:80", udp=Udp(ports="shared"))])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "unprivileged_port", lambda: 1024)
        with pytest.raises(ConfigError, match=r'listen\[0\].udp.ports: "shared" at port 80, which nobody may not bind'):
            user_of(low)
        patch.setattr(module, "unprivileged_port", lambda: 0)
        assert user_of(low) is not None
    assert user_of(Config()) is None


# --- whose files root acts by ---


def test_who_can_write(folder: Path) -> None:
    """The file, its folders, and what a link leads to; what root alone can write is fine, and a sticky folder."""
    path = folder / "deep" / "tabi.toml"
    path.parent.mkdir()
    path.write_text("")
    assert who_can_write(path) is None
    path.chmod(0o666)
    assert who_can_write(path) == "everybody can write it"
    path.chmod(0o660)
    assert who_can_write(path) is None
    os.chown(path, 0, NOBODY.pw_gid)
    assert who_can_write(path) == f"group {NOBODY.pw_gid} can write it"
    os.chown(path, NOBODY.pw_uid, 0)
    assert who_can_write(path) == f"user {NOBODY.pw_uid} owns it"
    os.chown(path, 0, 0)
    link = folder / "link"
    link.symlink_to(path)
    folder.chmod(0o777)
    assert who_can_write(path) == f"everybody can write {folder}"
    folder.chmod(0o1777)
    assert who_can_write(path) is None
    os.chown(path.parent, NOBODY.pw_uid, 0)
    assert who_can_write(link) == f"user {NOBODY.pw_uid} owns {path.parent}"
    assert who_can_write(folder / "none") is None


def test_a_configuration_of_somebody_else_is_refused(folder: Path) -> None:
    """By `tabi serve` and `tabi check`, in one line; a reload that finds one changes nothing."""
    path = folder / "tabi.toml"
    path.write_text('[[listen]]\nurl = "socks5://127.0.0.1:0"\n')
    with serve(folder, "-c", path) as proxy:
        path.chmod(0o622)
        proxy.signal(signal.SIGHUP)
        wait_for(lambda: "not reloaded, the old configuration stays: " in proxy.messages, "the refusal")
    for command in ("serve", "check"):
        text = failure(run_here(command, *(["-c"] if command == "serve" else []), path), 2)
        assert text == (
            f"tabi: {path}: everybody can write it, so that root would do what they say: change that, or run tabi as "
            "another user\n"
        )


def test_an_included_file_of_somebody_else_is_refused(folder: Path) -> None:
    """It is as much of the configuration as the file that includes it."""
    path, other = folder / "tabi.toml", folder / "other.toml"
    path.write_text('include = ["other.toml"]\n')
    other.write_text("")
    assert run_here("check", path).returncode == 0
    other.chmod(0o666)
    assert f"tabi: {other}: everybody can write it" in failure(run_here("check", path), 2)


def test_code_of_somebody_else_is_not_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scripts, and the module of ``decide`` with its packages: none is executed before it was looked at."""
    package = folder / "package_of_theirs"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('it was run')")
    (package / "part.py").write_text("")
    monkeypatch.syspath_prepend(folder)
    config = parse_config('decide = "python:package_of_theirs.part:f"')
    assert next(files_of_module("package_of_theirs.part")) == package / "__init__.py"
    check_code(config)
    os.chown(package / "__init__.py", NOBODY.pw_uid, 0)
    with pytest.raises(ConfigError, match=f"decide: {package}/__init__.py: user {NOBODY.pw_uid} owns it"):
        check_code(config)
    (package / "__init__.py").unlink()
    (package / "__init__.py").write_text("")
    (package / "part.py").chmod(0o666)
    with pytest.raises(ConfigError, match=f"decide: {package}/part.py: everybody can write it"):
        check_code(config)
    check_code(parse_config('decide = "python:no_such_module:f"'))
    check_code(parse_config('decide = "python:sys:f"'))
    script = folder / "hooks.py"
    script.write_text("")
    script.chmod(0o777)
    config = parse_config(f'[[intercept]]\nscripts = ["{script}"]')
    with pytest.raises(ConfigError, match=r"intercept\[0\].scripts\[0\]: .*hooks.py: everybody can write it"):
        check_code(config)
    sys.modules.pop("package_of_theirs", None)


def test_others_act_by_whatever_they_want(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only root is asked for more than it can do anyway."""
    path = folder / "tabi.toml"
    path.write_text("")
    path.chmod(0o666)
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    check_file(path)
    check_code(parse_config('decide = "python:package_of_theirs.part:f"'))


# --- secrets ---


def test_check_warns_of_secrets_that_everybody_can_read(folder: Path) -> None:
    """The configuration with passwords, keys, users_file; not where a folder keeps others out."""
    path, users_file = folder / "tabi.toml", folder / "users.jsonl"
    users_file.write_text("")
    text = '[[listen]]\nurl = "socks5://127.0.0.1:0"\n[auth]\nusers_file = "users.jsonl"\n'
    path.write_text(f'{text}[egress.far]\nurl = "socks5://alice:secret@192.0.2.1:1"\n')
    for one in (path, users_file):
        one.chmod(0o644)
    expected = [
        f"{path}: it has secrets, and can be read by every user of this machine: chmod o-r {path}",
        f"{path}: auth.users_file: {users_file} can be read by every user of this machine: chmod o-r {users_file}",
    ]
    assert run_here("check", path).stderr.decode().splitlines() == expected
    users_file.chmod(0o640)
    assert run_here("check", path).stderr.decode().splitlines() == expected[:1]
    folder.chmod(0o700)
    assert run_here("check", path).stderr == b""
    folder.chmod(0o755)
    path.write_text(text)
    assert run_here("check", path).stderr == b""


def test_check_knows_the_user(folder: Path) -> None:
    """It is shown, and who is not there is an error."""
    path = folder / "tabi.toml"
    path.write_text('user = "nobody"\n')
    assert json.loads(run_here("check", "--json", path).stdout)["user"] == "nobody"
    path.write_text('user = "no-such-user"\n')
    assert failure(run_here("check", path), 2) == f"tabi: {path}: user: there is no user 'no-such-user'\n"
