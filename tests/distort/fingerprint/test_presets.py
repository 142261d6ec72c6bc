"""Presets: their names, and that destinations see what they say."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import utls

from conftest import Run
from fingerprints import OK, destination, record_of, showing
from interceptions import GET, talk
from tabi.distort.fingerprint.presets import CHROME, check_name, describe, find_profile, names
from tabi.errors import ConfigError


def test_the_names_are_those_of_utls() -> None:
    """All of them, and stable behind the numbers."""
    assert sorted(names()) == sorted(utls.presets())
    assert names()[-1] == "chrome:stable"


@pytest.mark.parametrize("name", names())
def test_a_destination_sees_what_a_preset_says(run_once: Run, tmp_path: Path, name: str) -> None:
    """JA4 and ALPN by HTTP/1, whatever the client's own hello is; the record has what was sent, and that all is so."""

    async def main() -> None:
        async with showing(tmp_path, tls=name) as proxy, destination(None, "http/1.1") as there:
            async with proxy.tls(there.port, alpn=("h2", "http/1.1")) as streams:
                await talk(streams, GET, OK)
            told = describe(name)
            assert there.hello.ja4 == told["ja4"]
            assert there.hello.alpn == (b"h2", b"http/1.1")
            record = await record_of(proxy)
            assert (record.fingerprint, record.fingerprint_differs, record.sent_ja4) == (name, None, told["ja4"])
            assert record.sent_ja3 == there.hello.ja3

    run_once(main)


@pytest.mark.parametrize(("offered", "sent"), [((), b"http/1.1"), (("http/1.1",), b"http/1.1"), (("x",), b"x")])
def test_a_client_gets_no_protocol_that_it_does_not_speak(
    run_once: Run, tmp_path: Path, offered: tuple[str, ...], sent: bytes
) -> None:
    """Only what both the client and the preset have is offered; that the hello is another one then stands in the
    record."""

    async def main() -> None:
        async with showing(tmp_path, tls="chrome:152") as proxy, destination(None, "h2", "http/1.1") as there:
            async with proxy.tls(there.port, alpn=offered) as streams:
                await talk(streams, GET, OK)
            assert there.hello.alpn == (sent,)
            differs = (await record_of(proxy)).fingerprint_differs
            assert differs is not None
            assert differs.endswith("ALPN") or "16" in differs

    run_once(main)


def test_a_profile_is_that_of_a_browser() -> None:
    """Its fields are those of the preset, in their order."""
    profile = find_profile("chrome:152")
    assert [name.decode() for name, _ in profile.fields] == list(
        utls.Fingerprint.from_preset("chrome:152").http_headers
    )
    assert profile.http2 is CHROME
    assert CHROME.text == "1:65536;2:0;4:6291456;6:262144|15663105|0|m,a,s,p"


@pytest.mark.parametrize("name", ["chrome:1", "firefox:144", "", "Chrome:stable"])
def test_an_unknown_name_is_refused(name: str) -> None:
    """With those that there are."""
    with pytest.raises(ConfigError) as caught:
        check_name(name, "distort[0].tls")
    assert str(caught.value).startswith(f"distort[0].tls: {name!r} is unknown, expected mirror, chrome:131, ")
    assert str(caught.value).endswith(" or chrome:stable")


def test_mirror_is_no_profile() -> None:
    """HTTP is the client's own without one."""
    check_name("mirror", "distort[0].tls")
    with pytest.raises(ConfigError, match=r"^profile: 'mirror' is unknown, expected chrome:131"):
        find_profile("mirror")


def test_without_utls_there_are_no_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says what to install."""
    monkeypatch.setitem(sys.modules, "utls", None)
    with pytest.raises(ConfigError, match=r"pip install 'tabi\[fingerprint\]'"):
        names()
    with pytest.raises(ConfigError, match=r"^distort\[0\].profile: profile needs utls"):
        check_name("chrome:stable", "distort[0].profile")
