"""Certificates of destinations, good and bad, as clients of interception meet them."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import pytest
import trustme

from conftest import Run
from destinations import make_authority, trusting
from doubles import FakeResolver
from tabi import Proxy, RemoteProtocolError, Server
from tabi.config import make_config
from tabi.intercept.authority import Authority, Verdict, verdict_of

HOST = "www.origin.example"
LONG_AGO = datetime(2001, 1, 1)
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi"

Issue = Callable[[trustme.CA], trustme.LeafCert]
CERTIFICATES: dict[str, tuple[Issue, Verdict]] = {
    "good": (lambda ca: ca.issue_cert(HOST), Verdict.GOOD),
    "a wildcard": (lambda ca: ca.issue_cert("*.origin.example"), Verdict.GOOD),
    "expired": (lambda ca: ca.issue_cert(HOST, not_after=LONG_AGO), Verdict.EXPIRED),
    "not valid yet": (
        lambda ca: ca.issue_cert(HOST, not_before=datetime.now() + timedelta(90)),
        Verdict.NOT_YET_VALID,
    ),
    "another name": (lambda ca: ca.issue_cert("other.example"), Verdict.WRONG_NAME),
    "another name, expired": (lambda ca: ca.issue_cert("other.example", not_after=LONG_AGO), Verdict.WRONG_NAME),
    "a stranger": (lambda ca: trustme.CA().issue_cert(HOST), Verdict.UNKNOWN_ISSUER),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where our authority is."""
    return tmp_path_factory.mktemp("ca")


@pytest.fixture(scope="module")
def ours(folder: Path) -> Authority:
    """What clients trust."""
    return make_authority(folder)


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer one request."""
    try:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(ANSWER)
        await writer.drain()
    except (OSError, asyncio.IncompleteReadError):
        pass
    finally:
        writer.close()


def fetch(run_once: Run, folder: Path, ours: Authority, issue: Issue, **keys: object) -> bytes:
    """Fetch from a destination through tabi, as a client that trusts our authority alone. Raises ssl.SSLError."""
    theirs = trustme.CA()
    theirs.cert_pem.write_to_path(str(folder / "trust.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    issue(theirs).configure_cert(context)
    config = make_config(
        {
            "listen": [{"url": "socks5://127.0.0.1:0"}],
            "log": {"access": "none"},
            "ca": {"certificate": str(folder / "ca.crt"), "key": str(folder / "ca.key")},
            "intercept": [{"hosts": [HOST], "trust": str(folder / "trust.pem"), **keys}],
        }
    )

    async def main() -> bytes:
        async with (
            await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context) as origin,
            Server(config=config, resolver=FakeResolver({HOST: ["127.0.0.1"]})) as server,
            Proxy(server.url).connect(HOST, origin.sockets[0].getsockname()[1]) as stream,
        ):
            try:
                await stream.start_tls(trusting(ours), HOST)
            except RemoteProtocolError as exc:
                raise exc.__cause__ or exc from None
            await stream.send_all(b"GET / HTTP/1.1\r\nHost: www.origin.example\r\n\r\n")
            return b"".join([part async for part in stream])

    return run_once(main)


@pytest.mark.parametrize("what", CERTIFICATES)
def test_a_client_sees_one_that_is_as_good_or_as_bad(run_once: Run, folder: Path, ours: Authority, what: str) -> None:
    """OpenSSL in the client says what it would say without a proxy."""
    issue, verdict = CERTIFICATES[what]
    if verdict is Verdict.GOOD:
        assert fetch(run_once, folder, ours, issue).endswith(b"\r\n\r\nhi")
        return
    with pytest.raises(ssl.SSLCertVerificationError) as caught:
        fetch(run_once, folder, ours, issue)
    assert verdict_of(caught.value) is verdict


@pytest.mark.parametrize("what", CERTIFICATES)
def test_without_verification_a_client_sees_a_good_one(run_once: Run, folder: Path, ours: Authority, what: str) -> None:
    """``verify = false`` is for destinations with any certificate: a name that it does not have is added."""
    assert fetch(run_once, folder, ours, CERTIFICATES[what][0], verify=False).endswith(b"\r\n\r\nhi")


@pytest.mark.parametrize("what", [what for what, (_, verdict) in CERTIFICATES.items() if verdict is not Verdict.GOOD])
def test_a_client_may_get_an_alert(run_once: Run, folder: Path, ours: Authority, what: str) -> None:
    """``on_invalid = "alert"``: there is no certificate to look at."""
    with pytest.raises(ssl.SSLError, match=r"(?i)alert") as caught:
        fetch(run_once, folder, ours, CERTIFICATES[what][0], on_invalid="alert")
    assert not isinstance(caught.value, ssl.SSLCertVerificationError)
