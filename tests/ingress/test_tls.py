"""TLS for clients: what is inside, who they are by certificate, and certificates that change while the server runs."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import ssl
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from authorities import (
    LONG_AGO,
    VERSIONS,
    TlsPeer,
    authority,
    client_certificate,
    client_context,
    stranger,
    tls_client,
    write_server,
)
from conftest import Run
from datagrams import destination, udp_socket, unwrap
from doubles import Clock, Serving, caller, config, end_of
from processes import failure, need, run_tabi
from support import GREETING, client, credentials, request, target, tunnel
from tabi import Server, Session
from tabi.config import Listen, Tls
from tabi.errors import ConfigError
from tabi.ingress.tls import LOOK_EVERY, Certificates, user_of
from tabi.wire.address import decode_address

MIB = 1 << 20
REQUEST4 = b"\x04\x01%b\x7f\x00\x00\x01\x00"

both_versions = pytest.mark.parametrize("version", VERSIONS, ids=["1.2", "1.3"])


class Scene(Serving):
    """A server with TLS, and the sessions that have ended."""

    def __init__(
        self, tls: Tls | None, scheme: str = "mixed", users: Any = None, password: bool = False, **seconds: Any
    ):
        self.ended: asyncio.Queue[Session] = asyncio.Queue()
        settings = config(Listen(f"{scheme}://127.0.0.1:0", users=users, tls=tls), **seconds)
        given = {"bob": "secret"} if password else None
        self.server = Server(config=settings, users=given, on_close=self.ended.put_nowait)

    async def refusal(self, context: ssl.SSLContext | None = None) -> str:
        """A client that is refused in the handshake, or right behind it; gives the error of its session."""
        with contextlib.suppress(OSError, EOFError):
            async with tls_client(self.address, context) as peer:
                await peer.send(GREETING)
                assert await peer.read(1) == b""
        session = await self.ended.get()
        assert session.user is None
        return session.error or ""


async def open_tunnel(peer: TlsPeer, port: int) -> None:
    """A CONNECT of a client that needs no user."""
    await peer.send(GREETING)
    assert await peer.read(2) == b"\x05\x00"
    await peer.send(request("127.0.0.1", port))
    assert (await peer.read(10))[:2] == b"\x05\x00"


async def use(peer: TlsPeer, port: int) -> None:
    """A tunnel to an echo, from its beginning to its end."""
    await open_tunnel(peer, port)
    await peer.send(b"ping")
    assert await peer.read(4) == b"ping"
    await peer.end()
    assert await peer.read_all() == b""
    assert peer.notified


# --- what is inside ---


@both_versions
@pytest.mark.parametrize("scheme", ["mixed", "mixed+tls", "socks5+tls"])
def test_socks5_inside_tls(run: Run, tmp_path: Path, scheme: str, version: ssl.TLSVersion) -> None:
    """The whole life of a tunnel, with half-close; the log's protocol says that it was inside TLS."""

    async def main() -> None:
        async with Scene(write_server(tmp_path), scheme) as scene, target() as port:
            async with tls_client(scene.address, client_context(version)) as peer:
                await use(peer, port)
            session = await scene.ended.get()
            assert (session.protocol, session.user, session.error) == ("socks5+tls", None, None)
            assert (session.up, session.down, session.close) == (4, 4, "client")

    run(main)


@pytest.mark.parametrize("scheme", ["mixed", "mixed+tls", "socks4+tls"])
def test_socks4_inside_tls(run: Run, tmp_path: Path, scheme: str) -> None:
    """A mixed listener tells protocols apart inside TLS too."""

    async def main() -> None:
        async with Scene(write_server(tmp_path), scheme) as scene, target() as port:
            async with tls_client(scene.address) as peer:
                await peer.send(REQUEST4 % port.to_bytes(2, "big") + b"early")
                assert (await peer.read(8))[:2] == b"\x00\x5a"
                assert await peer.read(5) == b"early"
            assert (await scene.ended.get()).protocol == "socks4+tls"

    run(main)


def test_mixed_with_a_certificate_takes_clients_without_tls_too(run: Run, tmp_path: Path) -> None:
    """One port for both."""

    async def main() -> None:
        async with Scene(write_server(tmp_path)) as scene, target() as port:
            async with tunnel(scene.address, port) as (reader, writer):
                writer.write(b"ping")
                assert await reader.readexactly(4) == b"ping"
            assert (await scene.ended.get()).protocol == "socks5"

    run(main)


@pytest.mark.parametrize("scheme", ["mixed+tls", "socks5+tls"])
def test_plaintext_to_a_port_with_tls_only(run: Run, tmp_path: Path, scheme: str) -> None:
    """It is refused at once, and the log says what it was."""

    async def main() -> None:
        async with Scene(write_server(tmp_path), scheme) as scene:
            async with client(scene.address) as (reader, writer):
                writer.write(GREETING)
                assert await end_of(reader) == "end"
            session = await scene.ended.get()
            assert (session.protocol, session.close) == ("tls", "error")
            assert session.error == r"begins with b'\x05\x01\x00', expected TLS"

    run(main)


def test_tls_to_a_port_without(run: Run) -> None:
    """The log says that there is no certificate."""

    async def main() -> None:
        async with Scene(None) as scene:
            assert "no certificate" in await scene.refusal()

    run(main)


def test_tls_inside_tls_is_refused(run: Run, tmp_path: Path) -> None:
    """Once is enough."""

    async def main() -> None:
        async with Scene(write_server(tmp_path)) as scene:
            async with tls_client(scene.address) as peer:
                await peer.send(b"\x16\x03\x01\x00\x05hello")
                assert await peer.read_all() == b""
            assert "TLS is inside TLS" in ((await scene.ended.get()).error or "")

    run(main)


@pytest.mark.parametrize("sent", [0, 5], ids=["nothing", "some"])
def test_a_handshake_that_stalls_ends_with_the_deadline(run: Run, tmp_path: Path, sent: int) -> None:
    """TLS and what is inside have one deadline together."""

    async def main() -> None:
        async with Scene(write_server(tmp_path), handshake=0.1) as scene:
            async with client(scene.address) as (reader, writer):
                writer.write(b"\x16\x03\x01\x02\x00"[:sent])
                assert await end_of(reader) == "end"
            assert (await scene.ended.get()).error == "handshake: not done within 0.1 s"
            async with tls_client(scene.address) as peer:
                assert await peer.read(1) == b""  # nothing was asked for
            assert (await scene.ended.get()).error == "handshake: not done within 0.1 s"

    run(main)


def test_a_client_that_does_not_trust_us_is_named_in_the_log(run: Run, tmp_path: Path) -> None:
    """Its alert is in the session's error."""

    async def main() -> None:
        async with Scene(write_server(tmp_path, issuer=stranger())) as scene:
            with socket.create_connection(("127.0.0.1", scene.address.port)) as sock:
                sock.setblocking(False)
                peer = TlsPeer(sock, client_context())
                with pytest.raises(ssl.SSLCertVerificationError):
                    await peer.handshake()
                await peer.push()
            assert (await scene.ended.get()).error == "TLS: the client says: unknown ca"

    run(main)


def test_a_refusal_can_be_read(run: Run, tmp_path: Path) -> None:
    """A reply that is the last comes with its close_notify, though the client sends on."""

    async def main() -> None:
        async with Scene(write_server(tmp_path)) as scene, tls_client(scene.address) as peer:
            await peer.send(GREETING)
            assert await peer.read(2) == b"\x05\x00"
            await peer.send(request("127.0.0.1", 1, 9) + bytes(10_000))
            assert (await peer.read_all())[:2] == b"\x05\x07"
            assert peer.notified

    run(main)


@pytest.mark.parametrize("offered", [["http/1.1"], ["h2"], ["h2", "http/1.1"]])
def test_alpn(run_once: Run, tmp_path: Path, offered: list[str]) -> None:
    """A client that offers HTTP/1.1 gets it; one that offers something else only goes on without."""

    async def main() -> None:
        context = client_context()
        context.set_alpn_protocols(offered)
        async with Scene(write_server(tmp_path)) as scene, target() as port, tls_client(scene.address, context) as peer:
            assert peer.tls.selected_alpn_protocol() == ("http/1.1" if "http/1.1" in offered else None)
            await use(peer, port)

    run_once(main)


@pytest.mark.every_hosting
def test_an_association_inside_tls(run: Run, tmp_path: Path) -> None:
    """Its control connection has TLS, its datagrams do not; it ends with close_notify of the client."""

    async def main() -> None:
        async with Scene(write_server(tmp_path)) as scene, tls_client(scene.address) as peer:
            await peer.send(GREETING)
            assert await peer.read(2) == b"\x05\x00"
            await peer.send(request("0.0.0.0", 0, 3))
            found = decode_address((await peer.read(10)), 3)
            assert found is not None
            loop = asyncio.get_running_loop()
            with destination() as echo, udp_socket() as sock:
                sock.connect((str(found[0].host), found[0].port))
                await loop.sock_sendall(sock, echo.header + b"ping")
                assert unwrap(await loop.sock_recv(sock, 1000)) == (echo.address, b"ping")
            await peer.send(bytes(100_000))  # says nothing
            await peer.end()
            session = await scene.ended.get()
            assert (session.command, session.datagrams_up, session.close) == ("associate", 1, "client")
            assert await peer.read_all() == b""
            assert peer.notified

    run(main)


def test_a_bind_inside_tls(run: Run, tmp_path: Path) -> None:
    """Both replies, what the client sent early, and both directions."""

    async def main() -> None:
        async with Scene(write_server(tmp_path)) as scene, tls_client(scene.address) as peer:
            await peer.send(GREETING)
            assert await peer.read(2) == b"\x05\x00"
            await peer.send(request("127.0.0.1", 0, 2) + b"early")
            found = decode_address((await peer.read(10)), 3)
            assert found is not None
            async with caller(found[0]) as (reader, writer):
                assert (await peer.read(10))[:2] == b"\x05\x00"
                await peer.send(b" late")
                assert await reader.readexactly(10) == b"early late"
                writer.write(b"answer")
                writer.write_eof()
                assert await peer.read_all() == b"answer"
                assert peer.notified
                await peer.end()
            session = await scene.ended.get()
            assert (session.command, session.protocol, session.close) == ("bind", "socks5+tls", "server")

    run(main)


def test_a_client_that_leaves_its_bind(run: Run, tmp_path: Path) -> None:
    """It is seen as without TLS."""

    async def main() -> None:
        async with Scene(write_server(tmp_path)) as scene:
            async with tls_client(scene.address) as peer:
                await peer.send(GREETING)
                assert await peer.read(2) == b"\x05\x00"
                await peer.send(request("127.0.0.1", 0, 2))
                await peer.read(10)
                await peer.end()
            assert (await scene.ended.get()).error == "the client left before its peer had called"

    run(main)


def test_openssl_with_new_keys_in_the_middle(run_once: Run, tmp_path: Path) -> None:
    """openssl s_client goes through; a KeyUpdate that wants an answer gets one, and the tunnel goes on."""
    openssl = need("openssl")

    async def main() -> None:
        tls = write_server(tmp_path)
        async with Scene(tls) as scene, target() as port:
            arguments = ("s_client", "-connect", str(scene.address), "-CAfile", str(tmp_path / "server-ca.pem"))
            pipe = asyncio.subprocess.PIPE
            process = await asyncio.create_subprocess_exec(
                openssl, *arguments, "-verify_return_error", "-brief", stdin=pipe, stdout=pipe, stderr=pipe
            )
            to, out, err = process.stdin, process.stdout, process.stderr
            assert to is not None
            assert out is not None
            assert err is not None
            try:
                assert b"TLSv1.3" in await err.readuntil(b"Server Temp Key")
                to.write(GREETING)
                assert await out.readexactly(2) == b"\x05\x00"
                to.write(request("127.0.0.1", port))
                assert (await out.readexactly(10))[:2] == b"\x05\x00"
                for number in range(3):
                    to.write(b"K\n")
                    await err.readuntil(b"KEYUPDATE\n")
                    to.write(b"ping %d" % number)
                    assert await out.readexactly(6) == b"ping %d" % number
                to.write(b"Q\n")
                await process.wait()
            finally:
                if process.returncode is None:
                    process.kill()
                    await process.wait()
            session = await scene.ended.get()
            assert (session.up, session.down, session.close) == (18, 18, "client")

    run_once(main)


# --- who it is ---

DNS, MAIL = x509.DNSName, x509.RFC822Name
URI = x509.UniformResourceIdentifier


@both_versions
@pytest.mark.parametrize(
    ("kind", "names", "sans", "user"),
    [
        ("cn", ("alice",), (), "alice"),
        ("cn", ("Ålice Å",), (DNS("other.test"),), "Ålice Å"),
        ("dns", ("cn",), (DNS("alice.test"), MAIL("a@b.test")), "alice.test"),
        ("email", ("cn",), (DNS("alice.test"), MAIL("a@b.test")), "a@b.test"),
        ("uri", (), (URI("spiffe://test/alice"),), "spiffe://test/alice"),
    ],
)
def test_a_certificate_is_a_user(
    run: Run, tmp_path: Path, version: ssl.TLSVersion, kind: Any, names: tuple[str, ...], sans: Any, user: str
) -> None:
    """Its name is the session's user, of whatever kind the listener says; no password is asked for."""
    certificate = client_certificate(*names, sans=sans)
    tls = with_clients(tmp_path, kind)

    async def main() -> None:
        async with Scene(tls) as scene, target() as port:
            async with tls_client(scene.address, client_context(version, certificate)) as peer:
                await use(peer, port)
            session = await scene.ended.get()
            assert (session.user, session.error) == (user, None)

    run(main)


def with_clients(folder: Path, kind: Any = "cn") -> Tls:
    """A server's certificate, and the authority of its clients."""
    tls = write_server(folder)
    return Tls(tls.certificate, tls.key, str(folder / "server-ca.pem"), kind)


@both_versions
def test_certificates_that_are_not_accepted(run: Run, tmp_path: Path, version: ssl.TLSVersion) -> None:
    """Expired, of another authority, or none at all: refused in the handshake, and the log says why."""
    tls = with_clients(tmp_path)
    expired = client_certificate("alice", not_after=LONG_AGO)
    other = stranger().issue_cert("alice@test", common_name="alice")

    async def main() -> None:
        async with Scene(tls) as scene:
            for certificate, text in (
                (expired, "TLS: the certificate of the client has expired"),
                (other, "TLS: the certificate of the client: unable to get local issuer certificate"),
                (None, "TLS: peer did not return a certificate"),
            ):
                assert await scene.refusal(client_context(version, certificate)) == text
                assert scene.server.parts.sessions.running == {}

    run(main)


@both_versions
def test_a_client_reads_why_its_certificate_was_refused(run: Run, tmp_path: Path, version: ssl.TLSVersion) -> None:
    """The alert arrives, though the client has sent more behind its handshake."""
    tls = with_clients(tmp_path)
    context = client_context(version, client_certificate("alice", not_after=LONG_AGO))

    async def main() -> None:
        async with Scene(tls) as scene:

            async def talk() -> None:
                async with tls_client(scene.address, context) as peer:
                    await peer.send(GREETING * 1000)
                    await peer.read(1)

            with pytest.raises(ssl.SSLError, match="ALERT_CERTIFICATE_EXPIRED"):
                await talk()

    run(main)


@pytest.mark.parametrize(
    ("kind", "names", "sans"),
    [
        ("cn", ("alice", "bob"), ()),
        ("cn", (), (DNS("alice.test"),)),
        ("dns", ("alice",), ()),
        ("dns", (), (DNS("alice.test"), DNS("bob.test"))),
        ("email", ("alice",), (DNS("alice.test"),)),
    ],
)
def test_a_name_that_is_none_or_several_is_nobody(
    run: Run, tmp_path: Path, kind: Any, names: tuple[str, ...], sans: Any
) -> None:
    """Which of several names a user has is not guessed."""
    context = client_context(certificate=client_certificate(*names, sans=sans))
    tls = with_clients(tmp_path, kind)

    async def main() -> None:
        async with Scene(tls) as scene:
            error = await scene.refusal(context)
            assert error.startswith("TLS: the certificate of the client has [")
            assert error.endswith(f"as {kind}, expected one name")

    run(main)


def test_a_refused_name_is_a_denied_session(run_once: Run, tmp_path: Path) -> None:
    """The access log says denied, as for a wrong password."""
    context = client_context(certificate=client_certificate("alice", "bob"))
    tls = with_clients(tmp_path)

    async def main() -> None:
        async with Scene(tls) as scene:
            async with tls_client(scene.address, context) as peer:
                assert await peer.read_all() == b""
                assert peer.notified
            assert (await scene.ended.get()).close == "denied"

    run_once(main)


NOW = datetime(2026, 1, 1, tzinfo=UTC).timestamp()


def subject(*names: str, until: str = "Jan  2 00:00:00 2026 GMT") -> dict[str, Any]:
    """A certificate as ssl gives it."""
    return {"subject": tuple((("commonName", name),) for name in names), "notAfter": until}


@pytest.mark.parametrize("name", ["", "a\nb", "a\0b", "a\x1b[2J"])
def test_a_name_that_cannot_be_printed_is_nobody(name: str) -> None:
    """It would be in logs, and is nobody's name."""
    with pytest.raises(ValueError, match="expected characters that can be seen" if name else "expected"):
        user_of(subject(name), "cn", NOW)


def test_what_is_no_file_is_not_read(tmp_path: Path) -> None:
    """Nobody writes to a FIFO: to open it would hold up everybody."""
    tls = write_server(tmp_path)
    Path(tls.key).unlink()
    os.mkfifo(tls.key)
    with pytest.raises(ConfigError, match=r"^listen\[0\]\.tls\.key: .*: is not a regular file$"):
        Certificates(tls, "listen[0].tls", False)


def test_a_resumed_session_ends_with_the_certificate() -> None:
    """OpenSSL does not look at the time again when a session is resumed."""
    assert user_of(subject("alice"), "cn", NOW) == "alice"
    with pytest.raises(ValueError, match="has expired"):
        user_of(subject("alice", until="Dec 31 23:59:59 2025 GMT"), "cn", NOW)


def test_a_certificate_or_a_password(run: Run, tmp_path: Path) -> None:
    """With users there are two ways to be one; with neither a client is refused."""
    tls = with_clients(tmp_path)

    async def main() -> None:
        async with Scene(tls, password=True) as scene, target() as port:
            async with tls_client(scene.address, client_context(certificate=client_certificate("alice"))) as peer:
                await use(peer, port)
            assert (await scene.ended.get()).user == "alice"
            async with tls_client(scene.address) as peer:
                await peer.send(b"\x05\x01\x02")
                assert await peer.read(2) == b"\x05\x02"
                await peer.send(credentials(b"bob", b"secret"))
                assert await peer.read(2) == b"\x01\x00"
                await peer.send(request("127.0.0.1", port))
                assert (await peer.read(10))[:2] == b"\x05\x00"
            assert (await scene.ended.get()).user == "bob"
            async with tls_client(scene.address) as peer:
                await peer.send(GREETING)
                assert await peer.read_all() == b"\x05\xff"

    run(main)


def test_an_authority_of_clients_makes_users_required(run: Run, tmp_path: Path) -> None:
    """Outside TLS nothing proves a user then; `users = "none"` takes anybody, and still knows who has a certificate."""
    tls = with_clients(tmp_path)

    async def main() -> None:
        async with Scene(tls) as scene, client(scene.address) as (reader, writer):
            writer.write(GREETING)
            assert await reader.readexactly(2) == b"\x05\xff"
        async with Scene(tls, users="none") as scene, target() as port:
            async with tls_client(scene.address) as peer:
                await use(peer, port)
            assert (await scene.ended.get()).user is None
            async with tls_client(scene.address, client_context(certificate=client_certificate("alice"))) as peer:
                await use(peer, port)
            assert (await scene.ended.get()).user == "alice"

    run(main)


def test_an_authority_of_clients_makes_no_open_proxy(tmp_path: Path) -> None:
    """Beyond loopback a certificate is as good as a password; without either it is refused."""
    place = "mixed://0.0.0.0:0"
    Server(config=config(Listen(place, tls=with_clients(tmp_path))))
    with pytest.raises(ConfigError, match="open proxy"):
        Server(config=config(Listen(place, tls=write_server(tmp_path))))


# --- files ---


def serial_of(context: ssl.SSLContext) -> str:
    """Which certificate a context shows, by a handshake in memory."""
    (a, b), (c, d) = ((ssl.MemoryBIO(), ssl.MemoryBIO()) for _ in range(2))
    server = context.wrap_bio(a, b, server_side=True)
    peer = client_context().wrap_bio(c, d, server_hostname="localhost")
    for _ in range(3):
        for tls, out, there in ((peer, d, a), (server, b, c)):
            with contextlib.suppress(ssl.SSLWantReadError):
                tls.do_handshake()
            there.write(out.read())
    certificate = peer.getpeercert()
    assert certificate is not None
    return str(certificate["serialNumber"])


def test_new_files_are_seen_within_a_second(tmp_path: Path) -> None:
    """The files are looked at once a second at most; what has changed is loaded, what has not is not."""
    clock = Clock()
    certificates = Certificates(write_server(tmp_path), "listen[0].tls", False, clock)
    first = certificates.current()
    write_server(tmp_path)
    clock.now += LOOK_EVERY / 2
    assert certificates.current() is first
    clock.now += LOOK_EVERY / 2
    second = certificates.current()
    assert serial_of(second) != serial_of(first)
    clock.now += 10 * LOOK_EVERY
    assert certificates.current() is second


def test_files_that_cannot_be_used_leave_the_ones_before(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A pair that is half written, broken or gone is tried again, and logged once for each state of the files."""
    clock = Clock()
    tls = write_server(tmp_path)
    certificates = Certificates(tls, "listen[0].tls", False, clock)
    context = certificates.current()
    other = write_server(tmp_path, "other")
    states: tuple[Callable[[], object], ...] = (
        lambda: Path(tls.certificate).write_bytes(Path(other.certificate).read_bytes()),  # its key comes later
        lambda: Path(tls.key).write_text("no key"),
        lambda: Path(tls.key).unlink(),
        lambda: Path(tls.certificate).unlink(),
    )
    for number, change in enumerate(states, 1):
        change()
        for _ in range(3):
            clock.now += LOOK_EVERY
            assert certificates.current() is context
        assert len(caplog.records) == number
        assert "the certificate before stays" in caplog.text
    write_server(tmp_path)
    clock.now += LOOK_EVERY
    with caplog.at_level(logging.INFO):
        assert serial_of(certificates.current()) != serial_of(context)
    assert "new certificate" in caplog.text


@pytest.mark.every_hosting
def test_certificates_change_under_load(run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Connections before, during and after a change, with broken files in between: none is lost."""
    clock = Clock()
    tls = write_server(tmp_path)

    async def main() -> None:
        async with Scene(tls) as scene, target() as port, tls_client(scene.address) as before:
            await open_tunnel(before, port)
            (certificates,) = scene.server.compiled.certificates
            assert certificates is not None
            certificates.time, certificates.next_look = clock, 0.0
            serials = []

            async def connect() -> None:
                async with tls_client(scene.address) as peer:
                    found = peer.tls.getpeercert()
                    assert found is not None
                    serials.append(found["serialNumber"])
                    await use(peer, port)

            for step in ("same", "broken", "new"):
                if step == "broken":
                    Path(tls.key).write_text("half")
                elif step == "new":
                    write_server(tmp_path)
                clock.now += LOOK_EVERY
                async with asyncio.TaskGroup() as group:
                    for _ in range(5):
                        group.create_task(connect())
            await before.send(b"still here")
            assert await before.read(10) == b"still here"
            assert len(set(serials[:10])) == 1
            assert len(set(serials[10:])) == 1
            assert serials[0] != serials[-1]
            for _ in serials:
                assert (await scene.ended.get()).error is None

    run(main)


# --- errors at the start ---


def encrypted(pem: bytes) -> bytes:
    """A key with a passphrase."""
    key: Any = serialization.load_pem_private_key(pem, None)
    how = serialization.BestAvailableEncryption(b"passphrase")
    return bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, how))


def break_files(folder: Path, how: str) -> tuple[Tls, str, str]:
    """Files of which one cannot be used, and the key and the text of the error."""
    tls = with_clients(folder)
    certificate, key, authority_file = Path(tls.certificate), Path(tls.key), folder / "server-ca.pem"
    other = write_server(folder, "other")
    if how == "no certificate":
        certificate.unlink()
        return tls, "certificate", f"{certificate}: No such file or directory"
    if how == "no key":
        key.unlink()
        return tls, "key", f"{key}: No such file or directory"
    if how == "broken certificate":
        certificate.write_text("-----BEGIN CERTIFICATE-----\nxx\n-----END CERTIFICATE-----\n")
        return tls, "certificate", f"{certificate}: no certificates in PEM"
    if how == "broken key":
        key.write_text("secret")
        return tls, "key", f"{key}: no private key in PEM"
    if how == "another key":
        key.write_bytes(Path(other.key).read_bytes())
        return tls, "key", f"{key}: is not the key of {certificate}"
    if how == "another kind of key":
        weak(key)
        return tls, "key", f"{key}: is not the key of {certificate}"
    if how == "passphrase":
        key.write_bytes(encrypted(key.read_bytes()))
        return tls, "key", f"{key}: has a passphrase, expected a key without"
    if how == "folder":
        key.unlink()
        key.mkdir()
        return tls, "key", f"{key}: is not a regular file"
    if how == "weak certificate":
        certificate.write_bytes(weak(key))
        return tls, "certificate", f"{certificate}: ee key too small"
    assert how == "broken authority"
    authority_file.write_text("")
    return tls, "client_ca", f"{authority_file}: no certificates in PEM"


def weak(key_path: Path) -> bytes:
    """A certificate whose key OpenSSL finds too small; the key goes to a file."""
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import rsa

    key = rsa.generate_private_key(65537, 1024)
    name = x509.Name([x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, "weak")])
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, LONG_AGO, datetime(2038, 1, 1))
    key_path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


BROKEN = (
    "no certificate",
    "no key",
    "broken certificate",
    "broken key",
    "another key",
    "another kind of key",
    "passphrase",
    "folder",
    "weak certificate",
    "broken authority",
)


@pytest.mark.parametrize("how", BROKEN)
def test_a_file_that_cannot_be_used_is_named(tmp_path: Path, how: str) -> None:
    """The key of tabi.toml, the file and what is wrong, in one line, and nothing of what is in it."""
    tls, key, text = break_files(tmp_path, how)
    with pytest.raises(ConfigError) as caught:
        Server(config=config(Listen("socks5+tls://127.0.0.1:0", tls=tls)))
    assert str(caught.value) == f"listen[0].tls.{key}: {text}"
    assert caught.value.path == f"listen[0].tls.{key}"


def test_ciphers(tmp_path: Path) -> None:
    """TLS 1.2 has forward secrecy and AEAD only, on every build; others, never without a certificate, by the option."""
    tls = write_server(tmp_path)

    def found(ciphers: str | None) -> dict[str, Any]:
        context = Certificates(msgspec.structs.replace(tls, ciphers=ciphers), "listen[0].tls", required=False).context
        return {str(one["name"]): one for one in context.get_ciphers() if one["protocol"] != "TLSv1.3"}

    assert len(found(None)) == 6
    assert all(one["aead"] and one["kea"] == "kx-ecdhe" for one in found(None).values())
    assert list(found("AES128-SHA")) == ["AES128-SHA"]
    assert all(one["auth"] != "auth-null" for one in found("ALL:@SECLEVEL=0").values())


def test_an_old_client_finds_no_cipher(run_once: Run, tmp_path: Path) -> None:
    """A client with static RSA or CBC alone is refused with an alert, and served where the operator says so."""

    async def main() -> None:
        for name, ciphers in (("ECDHE-ECDSA-AES128-SHA", None), ("ECDHE-ECDSA-AES128-SHA", "ECDHE-ECDSA-AES128-SHA")):
            tls = msgspec.structs.replace(write_server(tmp_path), ciphers=ciphers)
            context = client_context()
            context.maximum_version = ssl.TLSVersion.TLSv1_2
            context.set_ciphers(name)
            async with Server(config=config(Listen("socks5+tls://127.0.0.1:0", tls=tls))) as server:
                connecting = asyncio.open_connection(
                    "127.0.0.1", server.addresses[0].port, ssl=context, server_hostname="localhost"
                )
                if ciphers is None:
                    with pytest.raises(ssl.SSLError, match=r"(?i)handshake.failure"):
                        await connecting
                else:
                    _, writer = await connecting
                    assert writer.get_extra_info("cipher")[0] == name
                    writer.close()

    run_once(main)


def test_ciphers_that_are_none(tmp_path: Path) -> None:
    """Are told with the key of tabi.toml."""
    tls = msgspec.structs.replace(write_server(tmp_path), ciphers="NOTHING")
    with pytest.raises(
        ConfigError, match=r"listen\[0\].tls.ciphers: 'NOTHING': expected ciphers that this OpenSSL has"
    ):
        Server(config=config(Listen("socks5+tls://127.0.0.1:0", tls=tls)))


@pytest.mark.parametrize("clients", [False, True])
def test_an_expired_certificate_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture, clients: bool) -> None:
    """Said once however often it is loaded; it is no error, for a clock may be wrong, and a new one may come."""
    tls = with_clients(tmp_path) if clients else write_server(tmp_path)
    Certificates(tls, "listen[0].tls", required=clients)
    assert caplog.messages == []
    for name, words in (("server.pem", "has expired"), ("later.pem", "is not valid yet")):
        tls = msgspec.structs.replace(tls, certificate=str(tmp_path / name))
        first = LONG_AGO - timedelta(days=1) if name == "server.pem" else datetime(2500, 1, 1, tzinfo=UTC)
        made = authority().issue_cert("localhost", not_before=first, not_after=first + timedelta(days=1))
        Path(tls.certificate).write_bytes(made.cert_chain_pems[0].bytes())
        Path(tls.key).write_bytes(made.private_key_pem.bytes())
        for _ in range(2):
            Certificates(tls, "listen[0].tls", required=clients)
        assert caplog.messages == [f"listen[0].tls.certificate: {tls.certificate}: {words}, clients will not trust it"]
        caplog.clear()


TOML = """
[[listen]]
url = "mixed://127.0.0.1:0"
tls = { certificate = "server.pem", key = "server.key" }
"""


@pytest.mark.parametrize("command", [("check",), ("serve", "-c")], ids=["check", "serve"])
def test_tabi_says_so_and_ends(tmp_path: Path, command: tuple[str, ...]) -> None:
    """Exit code 2 and one line, before anything is listened on. Names are relative to the folder of the tabi.toml."""
    path = tmp_path / "tabi.toml"
    path.write_text(TOML)
    line = failure(run_tabi(*command, path), 2)
    assert f"listen[0].tls.certificate: {tmp_path / 'server.pem'}: No such file" in line
    if command == ("check",):
        write_server(tmp_path)
        done = run_tabi(*command, path)
        assert (done.returncode, done.stderr) == (0, b"")
        assert f'listen[0].tls.key = "{tmp_path / "server.key"}"' in done.stdout.decode()
