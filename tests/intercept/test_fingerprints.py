"""The seam for fingerprints: what is chosen is what destinations see, and nobody is asked without one."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from conftest import Run
from fingerprints import OK, destination, record_of
from h2_ends import Pass
from interceptions import GET, Intercepting, intercepting, talk
from tabi.intercept.fingerprints import Fingerprint, HttpFingerprint, TlsFingerprint
from tabi.intercept.hooks import Hooks
from tabi.intercept.http2_stream import Inspector
from tabi.intercept.sent import WatchedRelay
from tabi.session import Session
from tabi.wire.client_hello import ClientHello, decode_client_hello


class Twelve:
    """A hello of TLS 1.2 alone."""

    name = "twelve"

    def make(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        return context

    def differs(self, sent: bytes) -> str:
        hello = decode_client_hello(sent)
        assert hello is not None
        return f"{len(hello.versions)} versions"


class Arranged:
    """HTTP with a hook of its own."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def around(self, hooks: Hooks) -> Hooks:
        asked = self.asked

        class Asks:
            def request(self, flow: object) -> None:
                asked.append("request")

        return Hooks([Asks()])

    def make_relay(self, inspector: Inspector, strip_alt_svc: bool) -> WatchedRelay:
        return WatchedRelay(inspector, strip_alt_svc)


class Chooses:
    """One fingerprint for all. ``asked`` is what it was asked about."""

    def __init__(self, tls: TlsFingerprint | None, http: HttpFingerprint | None) -> None:
        self.found = Fingerprint(tls, http)
        self.asked: list[tuple[str | None, int]] = []

    def choose(self, session: Session, hello: ClientHello | None = None, octets: bytes = b"") -> Fingerprint | None:
        self.asked.append((None if hello is None else hello.sni, len(octets)))
        return self.found


def choosing(proxy: Intercepting, chooses: Chooses) -> None:
    """Have a server show what is chosen."""
    interception = proxy.server.parts.interception
    assert interception is not None
    assert interception.fingerprints is None
    interception.fingerprints = chooses


@pytest.mark.parametrize("records", [True, False])
def test_what_is_chosen_is_sent(run_once: Run, tmp_path: Path, records: bool) -> None:
    """TLS and HTTP; the record has what was sent, and what is not as it was to be."""

    async def main() -> None:
        chooses, arranged = Chooses(Twelve(), Arranged()), Arranged()
        chooses.found = Fingerprint(Twelve(), arranged)
        async with intercepting(tmp_path, records=records) as proxy, destination(None, "http/1.1") as there:
            choosing(proxy, chooses)
            for _ in range(2):
                async with proxy.tls(there.port) as streams:
                    await talk(streams, GET, OK)
            assert there.hello.versions == ()
            assert arranged.asked == ["request"] * 2
            assert [name for name, _ in chooses.asked] == ["localhost"] * 2
            assert chooses.asked[0][1] > 100
            if records:
                record = await record_of(proxy)
                assert (record.fingerprint, record.fingerprint_differs) == ("twelve", "0 versions")
                assert (record.sent_ja3, record.sent_ja4) == (there.hello.ja3, there.hello.ja4)

    run_once(main)


def test_without_one_a_record_has_our_own_hello(run_once: Run, tmp_path: Path) -> None:
    """By HTTP/2 its beginning too."""

    async def main() -> None:
        async with intercepting(tmp_path, records=True) as proxy, destination(None, "http/1.1") as there:
            async with proxy.tls(there.port) as streams:
                await talk(streams, GET, OK)
            record = await record_of(proxy)
            assert (record.fingerprint, record.fingerprint_differs, record.sent_http2) == (None, None, None)
            assert (record.sent_ja3, record.sent_ja4) == (there.hello.ja3, there.hello.ja4)

    run_once(main)


def test_none_is_what_is_ours() -> None:
    """Both may be missing."""
    assert Fingerprint() == (None, None)
    assert Arranged().make_relay(Pass(), True).strip_alt_svc
