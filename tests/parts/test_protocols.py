"""The protocols: each with its users, alone, on one port, inside TLS and behind a PROXY header."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import tabi
from authorities import client_context
from conftest import Run
from doubles import until
from origin import make_certificates
from support import client, request, target
from tabi import ConfigError, Login, Session, User
from tabi.config import Listen
from tabi.config import Tls as TlsFiles
from tabi.ingress.conversation import MachineConversation
from tabi.parts import (
    Bind,
    Connect,
    Http,
    Listener,
    Mixed,
    Piece,
    ProxyHeader,
    Refused,
    Socks4,
    Socks5,
    Tls,
    UdpAssociate,
    login_refused,
)
from tabi.parts.protocols import proxy_of, walk
from tabi.wire.socks5 import MethodMessage

TOKEN = b"open sesame"


class Token:
    """Method 0x80: a token of 11 octets, and one octet that says whether it was right."""

    method = 0x80

    async def authenticate(self, conversation: MachineConversation) -> Refused | None:
        conversation.machine.negotiate(lambda octets: len(TOKEN))
        conversation.send(MethodMessage(b"?"))
        said = await conversation.next_message()
        if not hmac.compare_digest(said.octets, TOKEN):
            return Refused(MethodMessage(b"!"), login_refused("a wrong token"))
        conversation.machine.negotiated()
        conversation.session.user = "bearer"
        return None


def wrong(name: str, password: str = "x") -> Callable[[], object]:
    return lambda: Socks5(users={name: password})


WRONG: list[tuple[Callable[[], object], type[Exception], str]] = [
    (lambda: Socks5(Connect), TypeError, r"Socks5: the class Connect itself, expected Connect\(\)"),  # type: ignore[arg-type]
    (lambda: Socks5(Http()), TypeError, "Socks5: Http, expected a command"),  # type: ignore[arg-type]
    (lambda: Socks5(Connect(), Connect()), ConfigError, "Socks5: the same command twice"),
    (lambda: Socks4(UdpAssociate()), ConfigError, "UdpAssociate is not a command of this protocol"),
    (lambda: Http(Bind()), ConfigError, "Bind is not a command of this protocol"),  # type: ignore[arg-type]
    (wrong(""), ConfigError, r"Socks5\.users: a user name has 1 to 255 octets"),
    (wrong("alice", "p" * 256), ConfigError, r"Socks5\.users: a password has 1 to 255 octets"),
    (lambda: Http(users={"alice": 7}), ConfigError, r"Http\.users: expected passwords by user name"),  # type: ignore[dict-item]
    (lambda: Http(authenticate=7), ConfigError, "authenticate: 7, expected a function"),  # type: ignore[arg-type]
    (lambda: Http(users={}, authenticate=print), ConfigError, "expected one of users and authenticate"),
    (lambda: Socks5(methods=[7]), TypeError, r"Socks5\.methods: int, expected method, a number"),  # type: ignore[list-item]
    (lambda: Mixed(), ConfigError, "Mixed: expected one protocol or more"),
    (lambda: Mixed(Http(), Http()), ConfigError, "Mixed: two of them speak http"),
    (lambda: Mixed(Connect()), TypeError, "Mixed: Connect, expected a piece"),  # type: ignore[arg-type]
    (lambda: Tls(Tls(Http(), "c", "k"), "c", "k"), ConfigError, "Tls: TLS inside TLS"),
    (lambda: ProxyHeader(Http(), []), ConfigError, r"ProxyHeader\.proxies: .*expected a list of networks"),
    (lambda: ProxyHeader(Http(), ["10.0.0.1/8"]), ConfigError, r"ProxyHeader\.proxies: .*host bits set"),
]


@pytest.mark.parametrize(("make", "error", "text"), WRONG)
def test_what_is_wrong_is_told_when_the_piece_is_made(
    make: Callable[[], object], error: type[Exception], text: str
) -> None:
    """With the class and the key; no loop is needed for that."""
    with pytest.raises(error, match=text):
        make()


async def outcome(url: str, port: int, context: Any = None) -> str:
    """What comes of an echo through a proxy."""
    try:
        async with tabi.Proxy(url, ssl=context).connect("127.0.0.1", port) as stream:
            await stream.send_all(b"echo")
            return (await stream.receive_exactly(4)).decode()
    except tabi.TabiError as exc:
        return type(exc).__name__


def test_each_protocol_of_a_port_has_users_of_its_own(run: Run) -> None:
    """A user of one protocol is nobody in the other, and nobody comes without a user."""
    ended: list[Session] = []

    async def authenticate(login: Login) -> User | None:
        return User(login.username, groups=["staff"]) if login.password == "hunter2" else None

    async def main() -> None:
        proxy = Mixed(Socks5(users={"alice": "secret"}), Http(authenticate=authenticate))
        async with target() as port, Listener("127.0.0.1:0", proxy, on_close=ended.append) as front:
            where = front.address
            assert await outcome(f"socks5://alice:secret@{where}", port) == "echo"
            assert await outcome(f"http://bob:hunter2@{where}", port) == "echo"
            assert await outcome(f"socks5://bob:hunter2@{where}", port) == "AuthError"
            assert await outcome(f"http://alice:secret@{where}", port) == "AuthError"
            assert await outcome(f"socks5://{where}", port) == "AuthError"
            assert await outcome(f"http://{where}", port) == "AuthError"
            assert await outcome(f"socks4://{where}", port) != "echo"
            await until(lambda: len(ended) == 7)
        assert [(one.protocol, one.user) for one in ended if one.error is None] == [
            ("socks5", "alice"),
            ("http", "bob"),
        ]
        assert next(one for one in ended if one.user == "bob").groups == {"staff"}

    run(main)


def test_requests_that_are_forwarded_take_the_egress_of_connect(run: Run) -> None:
    """One egress for all of HTTP, and for its tunnels the carrier."""
    ended: list[Session] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        await writer.drain()

    async def main() -> None:
        async with (
            target(answer) as port,
            tabi.Server("socks5://127.0.0.1:0", on_close=ended.append) as behind,
            Listener("127.0.0.1:0", Http(Connect(behind.url))) as front,
            client(front.address) as (reader, writer),
        ):
            writer.write(b"GET http://127.0.0.1:%d/ HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n\r\n" % (port, port))
            assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 200 ")
            await until(lambda: ended)
            assert ended[0].destination is not None
            assert ended[0].destination.port == port

    run(main)


def test_users_may_be_optional(run: Run) -> None:
    """With ``required=False`` a client may come without a user, but not with a wrong password."""

    async def main() -> None:
        proxy = Mixed(Socks5(users={"alice": "secret"}, required=False), Socks4(), Http(required=True))
        async with target() as port, Listener("127.0.0.1:0", proxy) as front:
            assert await outcome(f"socks5://{front.address}", port) == "echo"
            assert await outcome(f"socks4://{front.address}", port) == "echo"
            assert await outcome(f"socks5://alice:wrong@{front.address}", port) == "AuthError"
            assert await outcome(f"http://{front.address}", port) == "AuthError"

    run(main)


@pytest.mark.parametrize(("token", "answer"), [(TOKEN, b"\x05\x00\x00"), (b"open barley", b"!")])
def test_an_authentication_method_of_a_program(run: Run, token: bytes, answer: bytes) -> None:
    """It goes before user name and password, speaks with the client in its own way, and says who that is."""
    ended: list[Session] = []

    async def main() -> None:
        proxy = Socks5(methods=[Token()], users={"alice": "secret"})
        async with target() as port, Listener("127.0.0.1:0", proxy, on_close=ended.append) as front:
            assert await outcome(f"socks5://alice:secret@{front.address}", port) == "echo"
            async with client(front.address) as (reader, writer):
                writer.write(b"\x05\x02\x02\x80")
                assert await reader.readexactly(3) == b"\x05\x80?"
                writer.write(token + request("127.0.0.1", port))
                assert (await reader.read(3))[:3] == answer
            await until(lambda: len(ended) == 2)
        assert ended[1].user == ("bearer" if token == TOKEN else None)

    run(main)


def test_tls_around_some_of_it(run: Run, tmp_path: Path) -> None:
    """Clients with TLS and without on one port, a certificate as the user, and names of their own in the log."""
    files = make_certificates(tmp_path)
    ended: list[Session] = []
    with_certificate = client_context()
    with_certificate.load_verify_locations(files.authority)
    with_certificate.load_cert_chain(files.client_chain, files.client_key)
    without = client_context()
    without.load_verify_locations(files.authority)
    inside = Mixed(Socks5(), Http())
    proxy = Mixed(Tls(inside, str(files.chain), str(files.key), client_ca=str(files.authority)), Socks5())
    assert not proxy.requires_user()
    assert proxy.protocols[0].requires_user()

    async def main() -> None:
        async with target() as port, Listener("127.0.0.1:0", proxy, on_close=ended.append) as front:
            where = f"localhost:{front.address.port}"
            assert await outcome(f"https://{where}", port, with_certificate) == "echo"
            assert await outcome(f"socks5+tls://{where}", port, with_certificate) == "echo"
            assert await outcome(f"socks5://{where}", port) == "echo"
            assert await outcome(f"https://{where}", port, without) != "echo"
            await until(lambda: len(ended) == 4)
        assert [(one.protocol, one.user) for one in ended][:3] == [
            ("https", "alice"),
            ("socks5+tls", "alice"),
            ("socks5", None),
        ]

    run(main)


def test_files_of_tls_are_read_when_the_listener_is_made(tmp_path: Path) -> None:
    """A certificate that is not there is told before anything runs."""
    with pytest.raises(ConfigError, match=r"Tls\.certificate: .*No such file"):
        Listener("127.0.0.1:0", Tls(Http(), str(tmp_path / "none.pem"), "key.pem"))


def test_a_proxy_header_names_the_client(run: Run) -> None:
    """Who is trusted must send it, and rules and the log see the client that it names."""
    ended: list[Session] = []

    async def main() -> None:
        proxy = ProxyHeader(Mixed(Socks5(users={"alice": "secret"}), Http()), ["127.0.0.0/8"])
        async with Listener("127.0.0.1:0", proxy, on_close=ended.append, open=True) as front:
            async with client(front.address) as (reader, writer):
                writer.write(b"PROXY TCP4 192.0.2.7 192.0.2.1 4000 1080\r\n\x05\x01\x00")
                assert await reader.read(2) == b"\x05\xff"
            await until(lambda: ended)
        assert str(ended[0].client) == "192.0.2.7:4000"

    run(main)


ALL = "Mixed(Socks5(Connect()), Socks4(Connect()), Http(Connect()))"
OVER_TLS = f"Tls(inner={ALL}, certificate='c', key='k', client_ca='a')"

LISTENERS: Sequence[tuple[Listen, str]] = [
    (Listen("mixed://127.0.0.1:1"), ALL),
    (Listen("socks4://127.0.0.1:1"), "Socks4(Connect())"),
    (Listen("https://127.0.0.1:1", tls=TlsFiles("c", "k")), "Tls(inner=Http(Connect()), certificate='c', key='k')"),
    (
        Listen("mixed://127.0.0.1:1", tls=TlsFiles("c", "k", "a"), proxy_protocol=["unix"]),
        f"ProxyHeader(inner=Mixed({OVER_TLS}, {ALL[6:]}, proxies=('unix',))",
    ),
    (
        Listen("mixed+tls://127.0.0.1:1", tls=TlsFiles("c", "k")),
        f"Tls(inner={ALL}, certificate='c', key='k')",
    ),
]


@pytest.mark.parametrize(("listen", "expected"), LISTENERS)
def test_a_listener_of_a_configuration_is_made_of_the_same_pieces(listen: Listen, expected: str) -> None:
    """What a `Server` speaks is composed of these pieces: no second composition."""
    piece = proxy_of(listen, [Connect(), UdpAssociate()], None, False)
    shown = repr(piece).replace(", required=False", "").replace(", UdpAssociate()", "")
    assert shown == expected
    assert all(isinstance(one, Piece) for one in walk(piece))
    assert not piece.requires_user()
    assert proxy_of(listen, [Connect()], None, True).requires_user()


def test_whether_a_user_is_required_follows_what_is_inside() -> None:
    """All protocols of a port have to; where a certificate makes a user, SOCKS4 may too."""
    users = {"alice": "secret"}
    assert Mixed(Socks5(users=users), Http(users=users)).requires_user()
    assert not Mixed(Socks5(users=users), Http()).requires_user()
    assert not Socks5(users=users, required=False).requires_user()
    assert Tls(Mixed(Socks5(), Socks4()), "c", "k", client_ca="a").requires_user()
    assert not Tls(Mixed(Socks5(), Socks4(required=False)), "c", "k", client_ca="a").requires_user()
    assert Tls(Socks5(), "c", "k", client_ca="a").asks_everyone
    assert not Tls(Socks5(users=users), "c", "k", client_ca="a").asks_everyone
    assert ProxyHeader(Socks5(methods=[Token()]), ["unix"]).requires_user()
