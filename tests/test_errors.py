"""The exceptions of the public interface: who catches one catches what is below it, and what each one carries."""

from __future__ import annotations

import asyncio
import pickle

import pytest

import tabi
from conftest import Run
from sockets import silent_port
from support import closed_port
from tabi import errors
from tabi.errors import (
    AuthError,
    ConfigError,
    ConnectTimeout,
    DialError,
    HttpError,
    LimitExceeded,
    LocalProtocolError,
    PolicyDenied,
    ProtocolError,
    ProxyError,
    ProxyTimeout,
    RemoteProtocolError,
    TabiError,
)


def test_one_base_catches_all_of_them() -> None:
    """`except tabi.TabiError` is enough for whoever wants no difference."""
    found = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    assert len(found) >= 11
    assert [kind for kind in found if not issubclass(kind, TabiError)] == []


def test_mistakes_of_the_peer_are_told_from_our_own() -> None:
    """Both are errors of the protocol; what an HTTP client does wrong is the peer's."""
    assert issubclass(HttpError, RemoteProtocolError)
    assert issubclass(RemoteProtocolError, ProtocolError)
    assert issubclass(LocalProtocolError, ProtocolError)
    assert not issubclass(LocalProtocolError, RemoteProtocolError)


@pytest.mark.parametrize(
    ("error", "reply_code"),
    [
        (RemoteProtocolError("x"), None),
        (RemoteProtocolError("x", 7), 7),
        (LocalProtocolError("x"), None),
        (HttpError("x"), None),
        (DialError("x", 5, 111), 5),
        (ProxyError("x"), None),
        (ProxyError("x", 3), 3),
        (AuthError("x"), None),
        (PolicyDenied("x"), 2),
        (LimitExceeded("x", "connections"), 2),
        (ConfigError("x"), None),
    ],
)
def test_each_knows_its_reply(error: TabiError, reply_code: int | None) -> None:
    """The REP octet that says the same on the wire (RFC 1928 section 6), and the message as it was given."""
    assert (error.reply_code, str(error)) == (reply_code, "x")


def test_what_else_they_carry() -> None:
    """The system's error, the answer of HTTP, how a client is told, and which limit it was and for how long."""
    assert (DialError("x", 5, 111).errno, DialError("x", 4).errno) == (111, None)
    assert (HttpError("x").status, HttpError("x", 501).status) == (400, 501)
    assert (PolicyDenied("x").action, PolicyDenied("x", "drop").action) == ("deny", "drop")
    waits = LimitExceeded("x", "rate", 0.5)
    assert (waits.limit, waits.seconds, LimitExceeded("x", "quota").seconds) == ("rate", 0.5, None)


def test_a_mistake_in_the_configuration_is_one_line_that_names_its_place() -> None:
    """Whatever the configuration has: a line's end or an escape sequence would forge a log, or move a cursor."""
    error = ConfigError("'a\n\x1b[31mb\x00\u2028c' is no name", "users.a\tb")
    assert str(error) == r"users.a\tb: 'a\n\x1b[31mb\x00\u2028c' is no name"
    assert (error.path, error.message) == ("users.a\tb", "'a\n\x1b[31mb\x00\u2028c' is no name")
    assert str(ConfigError("größer")) == "größer"


@pytest.mark.parametrize("kind", [TabiError, AuthError])
def test_plain_ones_can_be_sent_between_processes(kind: type[TabiError]) -> None:
    """As exceptions of the standard library can."""
    again = pickle.loads(pickle.dumps(kind("x")))
    assert (type(again), str(again)) == (kind, "x")


@pytest.mark.parametrize(
    ("error", "caught"),
    [
        (DialError("a:1: refused", 5, 111), OSError),
        (ConnectTimeout("a:1: no answer", 4, 110), TimeoutError),
        (ProxyError("a:1: the proxy says no", 2), OSError),
        (ProxyTimeout("a:1: the proxy did not answer"), TimeoutError),
    ],
)
def test_an_error_of_a_connection_is_an_oserror(error: DialError | ProxyError, caught: type[Exception]) -> None:
    """Its text and its numbers are what they were given; what ran out of time is a TimeoutError."""
    with pytest.raises(caught):
        raise error
    assert str(error).startswith("a:1: ")
    assert (error.strerror, error.filename) == (None, None)
    assert (error.reply_code, error.errno) == {
        DialError: (5, 111),
        ConnectTimeout: (4, 110),
        ProxyError: (2, None),
        ProxyTimeout: (None, None),
    }[type(error)]


def test_code_for_sockets_keeps_catching(run_once: Run) -> None:
    """``except OSError`` and ``except TimeoutError``, as around `asyncio.open_connection`, see what a proxy does."""

    async def main() -> None:
        async with tabi.Server("socks5://127.0.0.1:0") as server:
            with closed_port() as port, pytest.raises(OSError, match="connection refused"):
                await tabi.Proxy(server.url).open_connection("127.0.0.1", port)
        with closed_port() as port, pytest.raises(OSError, match="connection refused"):
            await tabi.Proxy(f"socks5://127.0.0.1:{port}").open_connection("127.0.0.1", 1)
        with silent_port() as port, pytest.raises(TimeoutError, match="no answer within"):
            await tabi.Proxy(f"socks5://127.0.0.1:{port}", timeout=0.1).open_connection("127.0.0.1", 1)

    run_once(main)


def test_a_silent_proxy_is_a_time_out(run_once: Run) -> None:
    """A proxy that accepts and says nothing ran out of its time."""

    async def main() -> None:
        async def be_silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read()
            writer.close()

        silent = await asyncio.start_server(be_silent, "127.0.0.1", 0)
        async with silent:
            port = silent.sockets[0].getsockname()[1]
            with pytest.raises(TimeoutError, match=r"did not answer within 0.1 s"):
                await tabi.Proxy(f"socks5://127.0.0.1:{port}", timeout=0.1).connect("127.0.0.1", 1)
            while len(asyncio.all_tasks()) > 1:
                await asyncio.sleep(0)

    run_once(main)
