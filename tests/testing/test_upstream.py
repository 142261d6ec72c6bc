"""Upstream: fails as it is told, in each protocol and at each stage."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator

import pytest

import tabi
from tabi.testing import Origin, ProxyServer, Upstream

SCHEMES = ("socks5", "socks4", "http")


@pytest.fixture
def origin() -> Iterator[Origin]:
    """A destination."""
    with Origin() as origin:
        yield origin


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    """A new one."""
    with Upstream() as upstream:
        yield upstream


def outcome(url: str, origin: Origin, timeout: float = 10) -> str:
    """What comes of an echo through a proxy: the text, or the name of an error with its code."""
    try:
        with tabi.create_connection(origin.address, via=url, timeout=timeout) as sock:
            sock.sendall(b"echo")
            return sock.recv(9).decode()
    except (tabi.TabiError, OSError) as exc:
        return f"refused {exc.reply_code}" if type(exc) is tabi.ProxyError else type(exc).__name__


def raw(upstream: Upstream, *sent: bytes) -> bytes:
    """What the upstream says to these octets until it ends; ``b"reset"`` behind it where that was a reset."""
    data = b""
    try:
        with socket.create_connection(upstream.address, 10) as sock:
            for octets in sent:
                sock.sendall(octets)
                data += sock.recv(2)
            while more := sock.recv(100):
                data += more
    except ConnectionResetError:
        data += b"reset"
    return data


GREETING, REQUEST = b"\x05\x01\x00", b"\x05\x01\x00\x01\x7f\x00\x00\x01\x00\x01"


@pytest.mark.parametrize("scheme", SCHEMES)
def test_it_accepts_and_refuses_as_it_is_told(upstream: Upstream, origin: Origin, scheme: str) -> None:
    """The next client meets what was said last, and what it wanted is written down."""
    url = upstream.url_for(scheme)
    assert outcome(url, origin) == "echo"
    upstream.refuse(5)
    assert outcome(url, origin) != "echo"
    upstream.accept()
    assert outcome(url, origin) == "echo"
    ended = sorted(upstream.wait_for_sessions(3), key=lambda one: one.number)
    assert [one.destination is not None and one.destination.port for one in ended] == [origin.port] * 3
    assert [one.error for one in ended] == [None, "as it was told", None]
    assert sorted(upstream.sessions, key=lambda one: one.number) == ended


@pytest.mark.parametrize("code", range(1, 9))
def test_every_reply_code(upstream: Upstream, origin: Origin, code: int) -> None:
    """Of SOCKS5, and HTTP has a status of its own."""
    upstream.refuse(code)
    assert outcome(upstream.url, origin) == f"refused {code}"
    assert (
        raw(upstream, b"GET http://127.0.0.1:1/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")[:9] == b"HTTP/1.1 "
    )


def test_bind_and_datagrams_are_refused_too(upstream: Upstream) -> None:
    """By the same reply, before anything is opened."""

    async def main() -> None:
        proxy = tabi.Proxy(upstream.url)
        async with proxy.associate(), proxy.bind():
            pass
        upstream.refuse(4)
        for opening in (proxy.associate(), proxy.bind(), proxy.bind("127.0.0.1")):
            with pytest.raises(tabi.ProxyError) as caught:
                await opening
            assert caught.value.reply_code == 4

    asyncio.run(main())


def test_a_password_is_wanted(upstream: Upstream, origin: Origin) -> None:
    """In SOCKS5 and HTTP; its URLs have it, and any other is refused."""
    upstream.password("alice", "secret")
    for scheme in ("socks5", "http"):
        assert outcome(upstream.url_for(scheme), origin) == "echo"
        assert outcome(f"{scheme}://{upstream.address}", origin) == "AuthError"
        assert outcome(f"{scheme}://alice:wrong@{upstream.address}", origin) == "AuthError"
    assert outcome(upstream.url_for("socks4"), origin) != "echo"
    assert [one.user for one in upstream.wait_for_sessions(7) if one.error is None] == ["alice", "alice"]
    upstream.no_password()
    assert outcome(f"socks5://{upstream.address}", origin) == "echo"


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("stage", ["greeting", "request", "reply"])
def test_it_hangs(upstream: Upstream, origin: Origin, scheme: str, stage: str) -> None:
    """A client runs into its own deadline, and the upstream goes on."""
    upstream.hang(stage)  # type: ignore[arg-type]
    assert outcome(upstream.url_for(scheme), origin, timeout=0.05) in ("ProxyTimeout", "ConnectTimeout", "TimeoutError")
    upstream.wait_for_sessions(1)
    upstream.accept()
    assert outcome(upstream.url_for(scheme), origin) == "echo"


@pytest.mark.parametrize(
    ("stage", "sent", "said"),
    [
        ("greeting", [GREETING], b""),
        ("request", [GREETING, REQUEST], b"\x05\x00"),
        ("reply", [GREETING, REQUEST], b"\x05\x00\x05\x00"),
    ],
)
def test_it_resets_and_ends_in_the_handshake(upstream: Upstream, stage: str, sent: list[bytes], said: bytes) -> None:
    """In order or by a reset, before a word, in place of the reply, or behind half of it."""
    upstream.reset(stage)  # type: ignore[arg-type]
    assert raw(upstream, *sent) == said + b"reset"
    upstream.close_at(stage)  # type: ignore[arg-type]
    assert raw(upstream, *sent) in (said, said + b"reset")  # where octets were not read
    for scheme in SCHEMES:
        with pytest.raises((tabi.TabiError, OSError)):
            tabi.create_connection(("127.0.0.1", 1), via=upstream.url_for(scheme), timeout=10)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_it_fails_in_the_tunnel(upstream: Upstream, origin: Origin, scheme: str) -> None:
    """So many octets of the destination pass, and then it ends, resets, or says nothing more."""
    for told, end in ((upstream.close_at, "end"), (upstream.reset, "reset"), (upstream.hang, "hang")):
        told("tunnel", 3)
        with tabi.create_connection(origin.address, via=upstream.url_for(scheme), timeout=10) as sock:
            sock.sendall(b"echo")
            data = b""
            while len(data) < 3:
                data += sock.recv(9)
            assert data == b"ech"
            sock.settimeout(0.05 if end == "hang" else 10)
            try:
                found = "end" if sock.recv(1) == b"" else "more"
            except ConnectionResetError:
                found = "reset"
            except TimeoutError:
                found = "hang"
        assert found == end
    assert len(upstream.wait_for_sessions(3)) == 3


def test_a_server_says_what_its_upstream_did(upstream: Upstream, origin: Origin) -> None:
    """What it is for: the program under test meets a failure that no real proxy has on demand."""
    upstream.refuse(6)
    config = tabi.config.parse_config(
        f'[log]\naccess = "none"\n[[listen]]\nurl = "socks5://127.0.0.1:0"\n'
        f'[[rule]]\nvia = "far"\n[egress.far]\nurl = "{upstream.url}"\n'
    )
    with ProxyServer(config=config) as proxy:
        assert outcome(proxy.url, origin) == "refused 6"
        upstream.accept()
        assert outcome(proxy.url, origin) == "echo"


def test_what_cannot_be_told(upstream: Upstream) -> None:
    """Unknown stages and reply codes are errors at once, and nothing changes."""
    for code in (0, 9, True, "5"):
        with pytest.raises(ValueError, match="expected a reply code from 1 to 8"):
            upstream.refuse(code)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'later', expected one of greeting, request, reply, tunnel"):
        upstream.hang("later")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="octets=-1"):
        upstream.reset("tunnel", -1)
    with pytest.raises(TypeError, match="both of them text"):
        upstream.password("alice", None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'ssh', expected socks5, socks4 or http"):
        upstream.url_for("ssh")
    with pytest.raises(RuntimeError, match="does not run"):
        assert Upstream().url
    assert upstream.behaviour.does == "accept"
