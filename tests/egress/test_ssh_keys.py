"""Keys for SSH servers: what is offered, what is known of a host, and what is wrong with a file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import asyncssh
import pytest

from tabi.client import Proxy
from tabi.config import make_config
from tabi.egress.ssh_keys import SshKeys, need_asyncssh
from tabi.errors import ConfigError
from tabi.server.server import Server
from tabi.wire.address import Address, parse_address


@pytest.mark.parametrize(
    ("keys", "password", "options", "words"),
    [
        (SshKeys(), None, {"client_keys": (), "agent_path": ()}, "the keys of the agent and those in ~/.ssh"),
        (SshKeys(agent=False), None, {"client_keys": (), "agent_path": None}, "the keys in ~/.ssh"),
        (SshKeys(), "p", {"client_keys": None, "agent_path": None, "password": "p"}, "the password"),
        (SshKeys(key="k"), None, {"client_keys": ["k"], "agent_path": None, "password": None}, "the key k"),
        (
            SshKeys(key="k"),
            "p",
            {"client_keys": ["k"], "agent_path": None, "password": "p"},
            "the password and the key k",
        ),
    ],
)
def test_what_is_offered(keys: SshKeys, password: str | None, options: dict[str, object], words: str) -> None:
    """A password alone is not joined by whatever keys there are: servers count vain tries."""
    assert keys.options(password) == options
    assert keys.describe(password) == words


def test_what_is_known_of_a_host(tmp_path: Path) -> None:
    """By its name and port, not by an address; without the port where there is nothing with it, as OpenSSH has it."""
    made = [asyncssh.generate_private_key("ssh-ed25519").convert_to_public() for _ in range(4)]
    one, two, three, authority = (key.export_public_key().decode().strip() for key in made)
    path = tmp_path / "known_hosts"
    path.write_text(
        f"# a comment\n\nserver.example,192.0.2.1 {one}\n[server.example]:2222 {two}\n@revoked server.example {three}\n"
        f"@cert-authority *.example.net {authority}\n"
    )
    keys = SshKeys(str(path))
    trusted, _, revoked, *_ = keys.find_host(Address("server.example", 22))
    assert (list(trusted), list(revoked)) == ([made[0]], [made[2]])
    assert list(keys.find_host(Address("server.example", 2222))[0]) == [made[1]]
    assert list(keys.find_host(Address("server.example", 2223))[0]) == [made[0]]
    assert list(keys.find_host(parse_address("192.0.2.1:22"))[0]) == [made[0]]
    assert list(keys.find_host(Address("a.example.net", 22))[1]) == [made[3]]
    assert not any(keys.find_host(Address("other.example", 22)))


def test_the_users_own_file_may_be_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then nobody is known; but one that is named must be there."""
    monkeypatch.setenv("HOME", str(tmp_path))
    SshKeys().check()
    assert not any(SshKeys().find_host(Address("server.example", 22)))
    (tmp_path / ".ssh").mkdir()
    key = asyncssh.generate_private_key("ssh-ed25519").export_public_key().decode()
    (tmp_path / ".ssh" / "known_hosts").write_text(f"server.example {key}")
    assert any(SshKeys().find_host(Address("server.example", 22)))


def test_what_is_wrong_with_a_file_names_its_key(tmp_path: Path) -> None:
    """At the start, and nothing of the file is in the message."""
    key = asyncssh.generate_private_key("ssh-ed25519")
    (tmp_path / "encrypted").write_bytes(key.export_private_key("pkcs8-pem", passphrase="hunter2"))
    (tmp_path / "rubbish").write_text("hunter2")
    (tmp_path / "good").write_bytes(key.export_private_key())
    (tmp_path / "known_hosts").write_text("")
    for settings, message in (
        ({"known_hosts": "none"}, "known_hosts: {}: No such file or directory"),
        ({"known_hosts": "rubbish"}, "known_hosts: {}: not a known_hosts file"),
        ({"key": "none"}, "key: {}: No such file or directory"),
        ({"key": "rubbish"}, "key: {}: no private key that can be used"),
        ({"key": "encrypted"}, "key: {}: encrypted, expected a plain one; the agent can have such a key"),
    ):
        files = {name: str(tmp_path / file) for name, file in ({"known_hosts": "known_hosts"} | settings).items()}
        config = make_config({"egress": {"a": {"members": ["direct", "ssh://u:hunter2@h"], "ssh": files}}})
        with pytest.raises(ConfigError) as caught:
            Server(config=config)
        assert str(caught.value) == f"egress.a.ssh.{message.format(files[message.partition(':')[0]])}"
    files = {"known_hosts": str(tmp_path / "known_hosts"), "key": str(tmp_path / "good")}
    Server(config=make_config({"egress": {"a": {"url": "ssh://u@h", "ssh": files}}}))


def test_without_asyncssh_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the start, and only where there is such a server."""
    monkeypatch.setitem(sys.modules, "asyncssh", None)
    words = r"ssh://h:22 needs asyncssh: pip install 'tabi\[ssh\]'$"
    with pytest.raises(ConfigError, match=f"^{words}"):
        Proxy("socks5://h", "ssh://u:p@h")
    config = make_config({"egress": {"a": {"chain": ["socks5://h", "ssh://u:p@h"]}}})
    with pytest.raises(ConfigError, match=rf"^egress\.a\.chain\[1\]: {words}"):
        Server(config=config)
    Proxy("socks5://h")
    Server(config=make_config({"egress": {"a": {"url": "socks5://h"}}}))


def test_it_is_not_loaded_where_nobody_needs_it() -> None:
    """It takes a fifth of a second."""
    program = "import sys, tabi; tabi.Server(); tabi.Proxy('socks5://h'); print('asyncssh' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert done.stdout == b"False\n"
    need_asyncssh("x")
