"""A configuration, compiled once: what is refused, and what is known of it afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from authorities import write_server
from tabi.config import Config, Listen, make_config
from tabi.errors import ConfigError
from tabi.server.compiled import Compiled, compile_config
from tabi.server.server import Server


@pytest.mark.parametrize(
    ("parts", "with_quotas"),
    [
        ({}, False),
        ({"limits": {"connections": 1}}, False),
        ({"limits": {"quota": "1 GB/day"}}, True),
        ({"groups": {"g": {"limits": {"quota": "1 GB/day"}}}}, True),
        ({"clients": [{"networks": ["10.0.0.0/8"], "limits": {"quota": "1 GB/day"}}]}, True),
        ({"users": {"a": {"password": "x", "plain": True, "limits": {"quota": "1 GB/day"}}}}, True),
    ],
)
def test_whether_anybody_has_a_quota(parts: dict[str, Any], with_quotas: bool) -> None:
    """Wherever it stands: only then a file is kept."""
    assert compile_config(make_config(parts)).with_quotas == with_quotas


def test_a_file_of_users_that_is_empty_opens_nothing(tmp_path: Path) -> None:
    """Clients must be users while there is a file for them, also where nobody is in it."""
    path = tmp_path / "users.jsonl"
    path.touch()
    compiled = compile_config(
        make_config({"auth": {"users_file": str(path)}, "listen": [{"url": "mixed://0.0.0.0:0"}]})
    )
    (listen,) = compiled.config.listen
    assert compiled.required(listen)
    assert compiled.users.secrets() is None
    assert repr(compiled) == "Compiled(rules=0, users=0)"


def test_all_is_checked_that_a_start_would_refuse(tmp_path: Path) -> None:
    """Open proxies, listeners that nobody could use, files that are not there, a program that cannot be asked."""
    for parts, message in (
        ({"listen": [{"url": "mixed://0.0.0.0:0"}]}, r"listen\[0\]\.url: .* would be an open proxy"),
        (
            {"listen": [{"url": "socks4://127.0.0.1:0"}], "users": {"a": {"password": "x", "plain": True}}},
            r"listen\[0\]\.url: .* could not be used by any client",
        ),
        (
            {
                "listen": [
                    {"url": "https://127.0.0.1:0", "tls": {"certificate": f"{tmp_path}/c", "key": f"{tmp_path}/k"}}
                ]
            },
            r"listen\[0\]\.tls\.certificate: ",
        ),
        ({"decide": "python:tabi.errors:nothing"}, "decide: "),
        ({"resolver": {"servers": ["tls://192.0.2.1"], "ca": f"{tmp_path}/ca"}}, r"resolver\.ca: "),
    ):
        with pytest.raises(ConfigError, match=f"^{message}"):
            compile_config(make_config(parts))
    assert compile_config(make_config({"listen": [{"url": "mixed://0.0.0.0:0"}]}), open_proxy=True).open_proxy


def test_a_certificate_that_is_in_use_is_not_read_again(tmp_path: Path) -> None:
    """A reload goes on with it as long as the configuration says the same of it; it is looked at soon."""
    tls = write_server(tmp_path)

    def compiled(users: str) -> Compiled:
        return compile_config(Config(listen=[Listen("mixed://127.0.0.1:0", users, tls=tls)]))  # type: ignore[arg-type]

    first, other = compiled("none"), compiled("optional")
    found = other.certificates_of(0, first)
    assert found is first.certificates[0]
    assert found is not None
    assert found.next_look == 0
    assert other.certificates_of(0) is not found
    assert compile_config(Config()).certificates_of(0, first) is None


def test_a_server_serves_by_what_was_compiled() -> None:
    """It compiles nothing itself."""
    compiled = compile_config(Config(listen=[Listen("socks5://127.0.0.1:0")]))
    assert Server(compiled=compiled).compiled is compiled
