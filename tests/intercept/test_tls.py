"""TLS of intercepted sessions, from outside: what clients see of good and bad destinations, and how each side fails."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trustme

from authorities import LONG_AGO, authority, client_context, stranger, write_leaf
from conftest import Run
from doubles import end_of, reset
from interceptions import GET, OK, Intercepting, exactly, intercepting, origin, refused, talk
from support import echo, target
from tabi.intercept.tls import alert_of
from tabi.wire.tls_alert import NAMES, decode_alert

YEAR = datetime.timedelta(days=365)


def context_of(leaf: trustme.LeafCert, chain: bool = True) -> ssl.SSLContext:
    """The context of a destination with this certificate; without its chain where that is to be missing."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    if chain:
        leaf.configure_cert(context)
    else:
        with leaf.private_key_pem.tempfile() as key, leaf.cert_chain_pems[0].tempfile() as certificate:
            context.load_cert_chain(certificate, key)
    return context


BAD: dict[str, Callable[[], ssl.SSLContext]] = {
    "expired": lambda: context_of(authority().issue_cert("localhost", not_before=LONG_AGO, not_after=LONG_AGO + YEAR)),
    "not yet valid": lambda: context_of(
        authority().issue_cert("localhost", not_before=LONG_AGO + 99 * YEAR, not_after=LONG_AGO + 100 * YEAR)
    ),
    "wrong name": lambda: context_of(authority().issue_cert("elsewhere.test")),
    "unknown issuer": lambda: context_of(stranger().issue_cert("localhost")),
    "missing intermediate": lambda: context_of(authority().create_child_ca().issue_cert("localhost"), False),
    "expired and wrong name": lambda: context_of(
        authority().issue_cert("elsewhere.test", not_before=LONG_AGO, not_after=LONG_AGO + YEAR)
    ),
}

VERIFY_CODES = {
    "expired": (10,),
    "not yet valid": (9,),
    "wrong name": (62,),
    "unknown issuer": (19, 20),
    "missing intermediate": (19, 20),
    "expired and wrong name": (10, 62),
}

ALERTS = {
    "expired": "certificate_expired",
    "not yet valid": "certificate_expired",
    "wrong name": "bad_certificate",
    "unknown issuer": "unknown_ca",
    "missing intermediate": "unknown_ca",
    "expired and wrong name": "bad_certificate",
}


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_certificate_is_as_bad_for_the_client(run: Run, tmp_path: Path, bad: str) -> None:
    """A client that verifies refuses it for the same reason; one that does not gets the page, as it would without us.
    That is no pinning."""

    async def main() -> None:
        async with intercepting(tmp_path, on_pinning="refuse") as proxy, origin(OK, context=BAD[bad]()) as there:
            sock = await proxy.socket(there.port)
            with sock, pytest.raises(ssl.SSLCertVerificationError) as caught:
                await asyncio.open_connection(sock=sock, ssl=proxy.context(), server_hostname="localhost")
            assert caught.value.verify_code in VERIFY_CODES[bad]
            refused = await proxy.ended.get()
            assert "client" in str(refused.error)
            careless = proxy.context(check_hostname=False, verify_mode=ssl.CERT_NONE)
            async with proxy.tls(there.port, context=careless) as streams:
                await talk(streams, GET, OK)
            assert (await proxy.ended.get()).error is None

    run(main)


@pytest.mark.parametrize("bad", BAD)
def test_an_alert_for_a_bad_certificate(run: Run, tmp_path: Path, bad: str) -> None:
    """With on_invalid = "alert" no client gets further, and it hears why."""

    async def main() -> None:
        async with intercepting(tmp_path, on_invalid="alert") as proxy, origin(OK, context=BAD[bad]()) as there:
            assert await alert_from(proxy, there.port) == ALERTS[bad]
            session = await proxy.ended.get()
            assert session.close == "error"
            assert "certificate of the server" in str(session.error)

    run(main)


async def alert_from(proxy: Intercepting, port: int, host: str = "localhost") -> str:
    """The alert that a client's hello is answered with; "reset" or "end" where there is none."""
    loop = asyncio.get_running_loop()
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = proxy.context().wrap_bio(incoming, outgoing, server_hostname=host)
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    with await proxy.socket(port, host) as sock:
        await loop.sock_sendall(sock, outgoing.read())
        data = b""
        try:
            while part := await loop.sock_recv(sock, 4096):
                data += part
        except ConnectionResetError:
            return "reset"
    if not data:
        return "end"
    alert = decode_alert(data)
    assert alert is not None
    assert alert.fatal
    return alert.description


@pytest.mark.parametrize("bad", ["expired", "unknown issuer", "wrong name"])
def test_no_verification(run: Run, tmp_path: Path, bad: str) -> None:
    """With verify = false every certificate is as good as another: the client sees a good one."""

    async def main() -> None:
        async with intercepting(tmp_path, verify=False) as proxy, origin(OK, context=BAD[bad]()) as there:
            context = proxy.context(check_hostname=bad != "wrong name")
            async with proxy.tls(there.port, context=context) as streams:
                await talk(streams, GET, OK)

    run(main)


def test_authorities_of_an_entry(run: Run, tmp_path: Path) -> None:
    """Without ``trust`` the same destination is one of an unknown issuer."""

    async def main() -> None:
        async with intercepting(tmp_path, trust=None, on_invalid="alert") as proxy, origin(OK) as there:
            assert await alert_from(proxy, there.port) == "unknown_ca"

    run(main)


# --- client certificates ---


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_client_certificate_is_wanted(run: Run, tmp_path: Path, version: ssl.TLSVersion) -> None:
    """The destination gets that of the entry; where there is none, its refusal reaches the client and the log."""

    async def main() -> None:
        context = context_of(authority().issue_cert("localhost"))
        authority().configure_trust(context)
        context.verify_mode = ssl.CERT_REQUIRED
        context.minimum_version = context.maximum_version = version
        certificate, key = write_leaf(tmp_path, authority().issue_cert("client@example.com"))
        with_one, without = tmp_path / "with", tmp_path / "without"
        with_one.mkdir()
        without.mkdir()
        async with (
            intercepting(with_one, certificate=certificate, key=key) as proxy,
            origin(OK, context=context) as there,
            proxy.tls(there.port) as streams,
        ):
            await talk(streams, GET, OK)
        async with intercepting(without) as proxy:
            with blocking_origin(context) as port:
                if version == ssl.TLSVersion.TLSv1_2:
                    assert await alert_from(proxy, port) == "handshake_failure"
                else:  # the destination says so behind the handshake
                    async with proxy.tls(port) as (reader, _):
                        assert await end_of(reader) == "reset"
                session = await proxy.ended.get()
                assert session.close in ("error", "reset")
                said = "handshake failure" if version == ssl.TLSVersion.TLSv1_2 else "certificate required"
                assert session.error == f"TLS: the server says: {said}"

    run(main)


# --- versions and protocols ---


def test_versions_and_protocols_are_those_of_the_destination(run: Run, tmp_path: Path) -> None:
    """TLS 1.2 alone on either side; the protocol that the destination has chosen, or none."""

    async def main() -> None:
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            for protocols in ([], ["http/1.1"], ["other"]):
                folder = tmp_path / f"{version}-{len(protocols and protocols[0])}"
                folder.mkdir()
                context = context_of(authority().issue_cert("localhost"))
                context.minimum_version = context.maximum_version = version
                context.set_alpn_protocols(protocols or ["none"])
                async with intercepting(folder) as proxy, origin(OK, OK, OK, context=context) as there:
                    for offered, chosen in (("http/1.1",), "http/1.1"), (("other", "else"), "other"), ((), None):
                        async with proxy.tls(there.port, alpn=offered) as streams:
                            found = streams[1].get_extra_info("ssl_object").selected_alpn_protocol()
                            assert found == (chosen if chosen in protocols else None)
                            await talk(streams, GET, OK)

    run(main)


def test_a_client_of_tls_1_2(run: Run, tmp_path: Path) -> None:
    """The destination is asked for no more than the client can."""

    async def main() -> None:
        async with intercepting(tmp_path) as proxy, origin(OK) as there:
            context = proxy.context(maximum_version=ssl.TLSVersion.TLSv1_2)
            async with proxy.tls(there.port, context=context) as streams:
                assert streams[1].get_extra_info("ssl_object").version() == "TLSv1.2"
                await talk(streams, GET, OK)

    run(main)


def server_of_versions(*versions: ssl.TLSVersion) -> ssl.SSLContext:
    """A destination with versions of TLS that are not used any more."""
    context = context_of(authority().issue_cert("localhost"))
    context.minimum_version, context.maximum_version = versions[0], versions[-1]
    context.set_ciphers("ALL:@SECLEVEL=0")
    return context


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion")
def test_a_destination_of_tls_1_0(run: Run, tmp_path: Path) -> None:
    """The client hears that the version is wrong."""

    async def main() -> None:
        context = server_of_versions(ssl.TLSVersion.TLSv1)
        async with intercepting(tmp_path) as proxy:
            with blocking_origin(context) as port:
                assert await alert_from(proxy, port) == "protocol_version"
            session = await proxy.ended.get()
            assert (session.close, "protocol" in str(session.error)) == ("error", True)

    run(main)


def test_no_protocol_in_common(run: Run, tmp_path: Path) -> None:
    """A destination that refuses what the client offers: the client hears the same."""

    async def main() -> None:
        async with intercepting(tmp_path) as proxy:

            async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                await reader.read(10)
                writer.write(bytes((21, 3, 3, 0, 2, 2, number)))
                await reader.read()

            for number in (40, 47, 70, 80, 112, 120):
                async with target(refuse) as port:
                    assert await alert_from(proxy, port) == NAMES[number]
                    assert NAMES[number].replace("_", " ")[:8] in str((await proxy.ended.get()).error)

    run(main)


# --- names ---


def test_names(run: Run, tmp_path: Path) -> None:
    """The name of the hello decides, and where there is none that of the request, which may be an address."""

    async def main() -> None:
        both = context_of(authority().issue_cert("localhost", "other.test", "127.0.0.1"))
        asked: list[str | None] = []
        both.sni_callback = lambda tls, name, context: asked.append(name)
        async with intercepting(tmp_path) as proxy, origin(OK, OK, OK, context=both) as there:
            async with proxy.tls(there.port, "127.0.0.1") as streams:  # no SNI for an address
                await talk(streams, GET, OK)
            async with proxy.tls(there.port, "localhost", sni="other.test") as streams:
                await talk(streams, GET, OK)
            async with proxy.tls(there.port, "127.0.0.1", sni="localhost") as streams:
                await talk(streams, GET, OK)
            assert asked == [None, "other.test", "localhost"]

    run(main)


@pytest.mark.parametrize("name", [b"a b", b"\xff\xfe", b"127.0.0.1", b"a" * 300, b".", b"a..b", b"-", b"\0", b"xn--a"])
def test_odd_names(run: Run, tmp_path: Path, name: bytes) -> None:
    """A hello with a name that is none: it fails in an orderly way, or is relayed."""

    async def main() -> None:
        async with intercepting(tmp_path) as proxy, origin(OK) as there:
            with await proxy.socket(there.port) as sock:
                await asyncio.get_running_loop().sock_sendall(sock, hello_of(name))
                sock.shutdown(socket.SHUT_WR)
                try:
                    while await asyncio.get_running_loop().sock_recv(sock, 4096):
                        pass
                except ConnectionResetError:
                    pass
            await proxy.ended.get()

    run(main)


def hello_of(name: bytes) -> bytes:
    """A ClientHello with this SNI."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    tls = context.wrap_bio(incoming, outgoing, server_hostname="placeholder.test")
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    octets = outgoing.read()
    at = octets.index(b"placeholder.test")
    old, new = 16, len(name)
    grown = bytearray(octets[:at] + name + octets[at + old :])
    for where, size in ((at - 2, 2), (at - 5, 2), (at - 7, 2)):
        value = int.from_bytes(grown[where : where + size]) + new - old
        grown[where : where + size] = value.to_bytes(size)
    session = 5 + 4 + 2 + 32
    extensions = session + 1 + grown[session]
    extensions += 2 + int.from_bytes(grown[extensions : extensions + 2])
    extensions += 1 + grown[extensions]
    for where, size in ((extensions, 2), (6, 3), (3, 2)):
        value = int.from_bytes(grown[where : where + size]) + new - old
        grown[where : where + size] = value.to_bytes(size)
    return bytes(grown)


# --- pinning ---


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_client_that_refuses_our_certificate(run: Run, tmp_path: Path, version: ssl.TLSVersion) -> None:
    """With on_pinning = "pass" it is left alone the next time, for this host only; else it never gets through."""

    async def main() -> None:
        pinned = client_context(version)
        both = context_of(authority().issue_cert("localhost", "other.test"))
        for on_pinning in ("pass", "refuse"):
            folder = tmp_path / on_pinning
            folder.mkdir()
            async with intercepting(folder, on_pinning=on_pinning) as proxy:  # noqa: SIM117
                async with origin(*[OK] * 5, context=both) as there:
                    assert await refused(proxy, there.port, "localhost", pinned)
                    session = await proxy.ended.get()
                    assert (session.pinned, session.intercepted) == (True, "intercept[0]")
                    assert session.error == "TLS: the client says: unknown ca"
                    if on_pinning == "refuse":
                        assert await refused(proxy, there.port, "localhost", pinned)
                        assert (await proxy.ended.get()).pinned
                        continue
                    async with proxy.tls(there.port, context=pinned) as streams:
                        await talk(streams, GET, OK)
                    session = await proxy.ended.get()
                    assert (session.pinned, session.intercepted, session.error) == (True, None, None)
                    assert await refused(proxy, there.port, "other.test", pinned)
                    assert (await proxy.ended.get()).intercepted

    run(main)


@contextlib.contextmanager
def blocking_origin(context: ssl.SSLContext) -> Iterator[int]:
    """A destination that answers one client, by blocking sockets: those of asyncio send no alert of a handshake."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(20)

        def serve() -> None:
            sock, _ = listener.accept()
            sock.settimeout(20)
            with contextlib.suppress(OSError), sock, context.wrap_socket(sock, server_side=True) as inside:
                inside.recv(4096)
                inside.sendall(OK)

        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1]
        thread.join()


def test_an_alert_of_a_client_that_is_no_refusal(run: Run, tmp_path: Path) -> None:
    """A client that does not like something else, or that just goes, is intercepted the next time too."""

    async def main() -> None:
        async with intercepting(tmp_path, on_pinning="pass") as proxy, origin(OK) as there:
            for octets in (bytes((21, 3, 3, 0, 2, 2, 40)), b""):
                incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
                tls = proxy.context().wrap_bio(incoming, outgoing, server_hostname="localhost")
                with pytest.raises(ssl.SSLWantReadError):
                    tls.do_handshake()
                with await proxy.socket(there.port) as sock:
                    await asyncio.get_running_loop().sock_sendall(sock, outgoing.read())
                    await exactly(sock, 5)
                    await asyncio.get_running_loop().sock_sendall(sock, octets)
                assert not (await proxy.ended.get()).pinned
            async with proxy.tls(there.port) as streams:
                await talk(streams, GET, OK)

    run(main)


# --- what goes wrong ---


def test_garbage_behind_a_good_hello(run: Run, tmp_path: Path) -> None:
    """The client gets an alert, and no other session is harmed."""

    async def main() -> None:
        async with intercepting(tmp_path) as proxy, origin(OK) as there:
            with await proxy.socket(there.port) as sock:
                await asyncio.get_running_loop().sock_sendall(
                    sock, hello_of(b"localhost") + b"\x17\x03\x03garbage" * 50
                )
                data = b""
                try:
                    while part := await asyncio.get_running_loop().sock_recv(sock, 4096):
                        data += part
                except ConnectionResetError:
                    pass
            session = await proxy.ended.get()
            assert session.close in ("error", "reset")
            assert "TLS" in str(session.error)
            async with proxy.tls(there.port) as streams:
                await talk(streams, GET, OK)

    run(main)


def test_a_hello_in_pieces(run: Run, tmp_path: Path) -> None:
    """In records of one octet, each sent by itself."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with intercepting(tmp_path) as proxy, origin(OK) as there:
            incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            tls = proxy.context().wrap_bio(incoming, outgoing, server_hostname="localhost")
            with pytest.raises(ssl.SSLWantReadError):
                tls.do_handshake()
            hello = outgoing.read()
            with await proxy.socket(there.port) as sock:
                for octet in hello[5:]:
                    await loop.sock_sendall(sock, b"\x16\x03\x01\x00\x01" + bytes((octet,)))
                while True:
                    incoming.write(await loop.sock_recv(sock, 4096))
                    try:
                        tls.do_handshake()
                        break
                    except ssl.SSLWantReadError:
                        pass
                tls.write(GET)
                await loop.sock_sendall(sock, outgoing.read())
                got = b""
                while got != OK:
                    try:
                        got += tls.read(1000)
                    except ssl.SSLWantReadError:
                        incoming.write(await loop.sock_recv(sock, 4096))

    run(main)


@pytest.mark.parametrize(("size", "intercepted"), [(60_000, True), (200_000, False)])
def test_a_large_hello(run: Run, tmp_path: Path, size: int, intercepted: bool) -> None:
    """With 60 KB more it is answered; one that is larger than any that OpenSSL takes is no TLS to us."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with intercepting(tmp_path) as proxy, origin(OK) as there:
            message = bytearray(hello_of(b"localhost")[5:])
            at = 4 + 2 + 32
            at += 1 + message[at]
            at += 2 + int.from_bytes(message[at : at + 2])
            at += 1 + message[at]
            for left in range(size, 0, -60_000):
                count = min(left, 60_000)
                message += bytes((0xFE, left // 60_000)) + count.to_bytes(2) + bytes(count)
            message[at : at + 2] = min(len(message) - at - 2, 65535).to_bytes(2)
            message[1:4] = (len(message) - 4).to_bytes(3)
            octets = b"".join(
                b"\x16\x03\x01" + len(part).to_bytes(2) + part
                for start in range(0, len(message), 16384)
                for part in [message[start : start + 16384]]
            )
            with await proxy.socket(there.port) as sock:  # noqa: SIM117
                with contextlib.suppress(ConnectionError):
                    await loop.sock_sendall(sock, octets)
                    answer = await loop.sock_recv(sock, 1)
                    assert answer == (b"\x16" if intercepted else answer)
            session = await proxy.ended.get()
            assert session.intercepted == ("intercept[0]" if intercepted else session.intercepted)

    run(main)


def hello_twice() -> bytes:
    """A hello in which an extension comes twice that nobody knows: there are servers that do not mind."""
    message = bytearray(hello_of(b"localhost")[5:])
    at = 4 + 2 + 32
    at += 1 + message[at]
    at += 2 + int.from_bytes(message[at : at + 2])
    at += 1 + message[at]
    message += b"\xfe\x01\0\0" * 2
    message[at : at + 2] = (len(message) - at - 2).to_bytes(2)
    message[1:4] = (len(message) - 4).to_bytes(3)
    return b"\x16\x03\x01" + len(message).to_bytes(2) + bytes(message)


@pytest.mark.parametrize("way", ["twice", "late", "one octet"])
def test_a_hello_that_cannot_be_read(run: Run, tmp_path: Path, way: str) -> None:
    """Odd or not whole in time: where an alert is no way around inspection this is none either; else it is relayed."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        for on_pinning in ("refuse", "pass"):
            folder = tmp_path / on_pinning
            folder.mkdir()
            octets = hello_twice()
            async with intercepting(folder, on_pinning=on_pinning, handshake=0.3) as proxy:  # noqa: SIM117
                async with target(echo) as port:
                    with await proxy.socket(port) as sock:
                        if way == "late":
                            octets = octets[:-5]
                        elif way == "one octet":
                            octets = octets[:1]
                        await loop.sock_sendall(sock, octets)
                        if on_pinning == "pass":
                            assert await exactly(sock, len(octets)) == octets
                            continue
                        assert (await exactly(sock, 7))[5:] == b"\x02\x32"  # fatal, decode_error
                        assert await loop.sock_recv(sock, 1) == b""
                        session = await proxy.ended.get()
                        assert (session.close, session.error) == ("error", "TLS: the client's hello cannot be read")

    run(main)


def test_destinations_that_fail_in_the_handshake(run: Run, tmp_path: Path) -> None:
    """A reset becomes a reset, an end and a silence become alerts, and so does what is no TLS."""

    async def main() -> None:
        async def gone(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(10)
            reset(writer)

        async def end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(1000)

        async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read()

        async def other(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(10)
            writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            await reader.read()

        async with intercepting(tmp_path, connect=0.5) as proxy:
            for handler, expected, close, error in (
                (gone, "reset", "reset", "connection reset by peer"),
                (end, "handshake_failure", "error", "ended within the handshake"),
                (silent, "internal_error", "reset", "not done within 0.5 s"),
                (other, "handshake_failure", "error", "expected TLS"),
            ):
                async with target(handler) as port:
                    assert await alert_from(proxy, port) == expected
                    session = await proxy.ended.get()
                    assert error in str(session.error)
                    assert session.close in (close, "error")

    run(main)


def test_a_client_that_does_not_go_on(run: Run, tmp_path: Path) -> None:
    """Its handshake has a deadline."""

    async def main() -> None:
        async with intercepting(tmp_path, handshake=0.3) as proxy, origin(OK) as there:
            with await proxy.socket(there.port) as sock:
                await asyncio.get_running_loop().sock_sendall(sock, hello_of(b"localhost"))
                session = await proxy.ended.get()
                assert session.error == "TLS with the client: not done within 0.3 s"

    run(main)


def test_resumption(run: Run, tmp_path: Path) -> None:
    """A client that comes again resumes its session, in both versions."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with intercepting(tmp_path) as proxy, origin(*[OK] * 4) as there:
            for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
                context, known = proxy.context(minimum_version=version, maximum_version=version), None
                reused = []
                for _ in range(2):
                    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
                    tls = context.wrap_bio(incoming, outgoing, server_hostname="localhost", session=known)
                    with await proxy.socket(there.port) as sock:
                        got, done = b"", False
                        while got != OK:
                            try:
                                if not done:
                                    tls.do_handshake()
                                    tls.write(GET)
                                    done = True
                                await loop.sock_sendall(sock, outgoing.read())
                                got += tls.read(1000)
                            except ssl.SSLWantReadError:
                                await loop.sock_sendall(sock, outgoing.read())
                                incoming.write(await loop.sock_recv(sock, 4096))
                        reused.append(tls.session_reused)
                        known = tls.session
                assert reused == [False, True]

    run(main)


def test_the_words_of_openssl() -> None:
    """Its reasons name alerts in several ways."""
    for reason, name in (
        ("TLSV1_ALERT_UNKNOWN_CA", "unknown_ca"),
        ("SSLV3_ALERT_CERTIFICATE_UNKNOWN", "certificate_unknown"),
        ("SSLV3_ALERT_HANDSHAKE_FAILURE", "handshake_failure"),
        ("TLSV13_ALERT_CERTIFICATE_REQUIRED", "certificate_required"),
        ("TLSV1_UNRECOGNIZED_NAME", "unrecognized_name"),
        ("TLSV1_ALERT_NO_APPLICATION_PROTOCOL", "no_application_protocol"),
        ("UNSUPPORTED_PROTOCOL", "protocol_version"),
        ("WRONG_VERSION_NUMBER", None),
        ("CERTIFICATE_VERIFY_FAILED", None),
        ("LENGTH_MISMATCH", None),
    ):
        error = ssl.SSLError(1, "x")
        error.reason = reason
        assert alert_of(error) == name
    assert alert_of(None) is None
    assert alert_of(ssl.SSLError(1, "x")) is None
