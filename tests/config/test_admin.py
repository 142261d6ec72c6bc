"""``[admin]``: each mistake has its place, and no message says a token."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tabi.config import parse_config
from tabi.config.admin import Admin, need_packages, read_token, tokens_of
from tabi.errors import ConfigError

TOKEN = "correct-horse-battery"

WRONG = [
    ('listen = "127.0.0.1"', "admin.listen: '127.0.0.1' is not host:port"),
    ('listen = "admin.example:80"', "admin.listen: admin.example: expected an address, or localhost"),
    ('listen = "0.0.0.0:9180"', "admin.tls: missing: the network can reach it, and without TLS it can read the token"),
    ('listen = "[::]:9180"', "admin.tls: missing"),
    ('listen = "192.0.2.1:9180"', "admin.tls: missing"),
    ('token = "short"', "admin.token: 5 letters, expected 16 or more"),
    ('read_token = "short"', "admin.read_token: 5 letters, expected 16 or more"),
    (f'token = "{TOKEN} x"', "admin.token: expected letters, digits and signs of ASCII without spaces"),
    (f'token = "{TOKEN}é"', "admin.token: expected letters"),
    (f'token = "{TOKEN}"\ntoken_file = "/x"', "admin.token_file: it contradicts token: expected one of both"),
    (f'read_token = "{TOKEN}"\nread_token_file = "/x"', "admin.read_token_file: it contradicts read_token"),
    (f'token = "{TOKEN}"\nread_token = "{TOKEN}"', "admin.read_token: the same as token"),
    ('hosts = ["a b"]', "admin.hosts[0]: 'a b' holds white space"),
    ('hosts = ["a.example", "b.example:80"]', "admin.hosts[1]: 'b.example:80'"),
    ('hosts = ["https://a.example"]', "admin.hosts[0]: "),
    ('hosts = ["192.0.2.1"]', "admin.hosts[0]: '192.0.2.1', expected a name without a port"),
    ('hosts = ["*.example"]', "admin.hosts[0]: '*.example', expected a name"),
    ('host = "a"', "admin.host: unknown key"),
    ('tls = {certificate = "a"}', "admin.tls"),
]


@pytest.mark.parametrize(("text", "message"), WRONG)
def test_a_mistake_has_its_place(text: str, message: str) -> None:
    """One line that names the key, and never the token."""
    with pytest.raises(ConfigError) as found:
        parse_config(f"[admin]\n{text}\n")
    assert message in str(found.value)
    assert TOKEN not in str(found.value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        'listen = "127.0.0.1:0"',
        'listen = "[::1]:9180"',
        'listen = "localhost:9180"',
        'listen = "0.0.0.0:9180"\ntls = {certificate = "a", key = "b"}',
        f'listen = "127.0.0.1:1"\ntoken = "{TOKEN}"\nread_token = "{TOKEN}-2"\nhosts = ["tabi.example"]',
    ],
)
def test_what_is_right(text: str) -> None:
    """Loopback without TLS, anything else with it."""
    parse_config(f"[admin]\n{text}\n")


def test_tokens_are_not_shown() -> None:
    """Not in a repr of the whole configuration either."""
    config = parse_config(f'[admin]\nlisten = "127.0.0.1:1"\ntoken = "{TOKEN}"\n')
    assert TOKEN not in repr(config)
    assert config.admin.token == TOKEN
    assert parse_config("").admin.address is None


def test_a_token_is_read_from_its_file(tmp_path: Path) -> None:
    """White space around it does not count."""
    path = tmp_path / "token"
    path.write_text(f"{TOKEN}\n")
    path.chmod(0o640)
    assert tokens_of(Admin(token_file=str(path))) == (TOKEN, None)
    assert tokens_of(Admin(read_token_file=str(path), token="other-" + TOKEN)) == ("other-" + TOKEN, TOKEN)
    with pytest.raises(ConfigError, match=r"admin\.read_token_file: the same as token"):
        tokens_of(Admin(token=TOKEN, read_token_file=str(path)))


@pytest.mark.parametrize("mode", [0o644, 0o602, 0o777])
def test_others_must_not_read_it(tmp_path: Path, mode: int) -> None:
    """Whoever reads it may do everything, and whoever writes it, too."""
    path = tmp_path / "token"
    path.write_text(TOKEN)
    path.chmod(mode)
    with pytest.raises(ConfigError, match=re.escape(f"admin.token_file: {path}: others can read it")):
        read_token(str(path), "admin.token_file")


def test_what_is_no_file_of_a_token(tmp_path: Path) -> None:
    """It does not wait for a pipe, nor read without an end."""
    pipe, short, large = tmp_path / "pipe", tmp_path / "short", tmp_path / "large"
    os.mkfifo(pipe, 0o600)
    for path, data in ((short, b"x"), (large, b"\xff" * 10_000)):
        path.write_bytes(data)
        path.chmod(0o600)
    for path, text in (
        (tmp_path, "not a file"),
        (pipe, "not a file"),
        (tmp_path / "none", "no such file or directory"),
        (short, "1 letters, expected 16 or more"),
        (large, "expected letters, digits and signs of ASCII without spaces"),
    ):
        with pytest.raises(ConfigError, match=re.escape(f"k: {path}: {text}")):
            read_token(str(path), "k")


def test_packages_that_are_missing_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the command that brings them; where both are there nothing is said."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    need_packages()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "uvicorn" else object())
    with pytest.raises(ConfigError, match=re.escape("it needs uvicorn: pip install 'tabi[admin]'")):
        need_packages()
