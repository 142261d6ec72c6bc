"""What a login tells the function that knows the users, and what such a function is."""

from __future__ import annotations

import functools
from typing import Any

import pytest
from rich.pretty import pretty_repr

from conftest import Run
from doubles import LOOPBACK, greet
from support import client, credentials
from tabi import ConfigError, Login, Server, User
from tabi.config import LimitsConfig
from tabi.ingress.login import check_authenticate


def test_a_login_tells_how_it_came(run: Run) -> None:
    """The function gets the client, the protocol and the listener; the repr hides the password. It need not await."""
    seen: list[Login] = []

    def answer(login: Login) -> None:
        seen.append(login)

    async def main() -> None:
        async with Server("mixed://127.0.0.1:0", authenticate=answer) as server:
            async with client(server.addresses[0]) as (reader, writer):
                assert await greet((reader, writer), b"\x02") == 2
                writer.write(credentials(b"\xff", b"hunter2"))
                assert await reader.readexactly(2) == b"\x01\x01"
            async with client(server.addresses[0]) as (reader, writer):
                writer.write(
                    b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\nProxy-Authorization: Basic YWxpY2U6aHVudGVyMg==\r\n\r\n"
                )
                assert (await reader.readline()).startswith(b"HTTP/1.1 407 ")
            first, second = seen
            assert (first.username, first.password, first.protocol) == ("\udcff", "hunter2", "socks5")
            assert (second.username, second.password, second.protocol) == ("alice", "hunter2", "http")
            assert (str(first.client.host), first.tls_identity) == ("127.0.0.1", None)
            assert first.listener == "mixed://127.0.0.1:0"
            assert "hunter2" not in repr(first) + pretty_repr(first)

    run(main)


@pytest.mark.parametrize("function", [7, "alice", lambda: "alice", lambda username, password, client: username])
def test_an_authenticate_that_cannot_be_asked(function: Any) -> None:
    """What is not a function of one argument is refused when the server is made, also the form of earlier versions."""
    with pytest.raises(ConfigError, match=r"^authenticate: .*expected a function of one argument, a tabi.Login"):
        Server(LOOPBACK, authenticate=function)


class Asked:
    """An object that can be asked, and whose methods can."""

    def __call__(self, login: Login) -> str:
        return login.username

    async def with_async(self, login: Login, cache: int = 0) -> str:
        return login.username


def test_an_authenticate_that_can_be_asked() -> None:
    """Functions and methods, with async or without, objects, more arguments by default, and no known signature."""
    asked = Asked()
    for function in (lambda login: None, asked, asked.with_async, lambda *logins: None, max, functools.partial(asked)):
        check_authenticate(function)


def test_what_needs_more_than_a_login_cannot_be_asked() -> None:
    """Nothing would give it the rest."""
    for function in (Asked.with_async, lambda login, *, cache: None, lambda: None):
        with pytest.raises(ConfigError, match=r"^authenticate: expected a function of one argument"):
            check_authenticate(function)


def test_a_user_says_what_tabi_toml_would_say() -> None:
    """A name is enough; groups and limits are added where a program knows them."""
    assert (User("alice").groups, User("alice").limits) == ((), None)
    assert User("alice", ["ops"], LimitsConfig(connections=1)) == User("alice", ["ops"], LimitsConfig(connections=1))
    with pytest.raises(AttributeError, match="immutable"):
        User("alice").name = "bob"  # type: ignore[misc]
