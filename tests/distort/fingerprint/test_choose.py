"""Which fingerprint a session has, and what bounds the kinds of hello that clients may have mirrored."""

from __future__ import annotations

import logging
from pathlib import Path

import msgspec
import pytest

from conftest import Run
from fingerprints import OK, destination, record_of, showing
from hellos import client_hello, extension, hello
from interceptions import GET, talk
from tabi.config import Config, DistortConfig, FaultConfig, Seconds
from tabi.config.compile import make_distorts
from tabi.distort.fingerprint.choose import KINDS, MIRROR_HTTP, NEW_KINDS, WITHIN, Chooser, preset_for
from tabi.distort.fingerprint.difference import read_hello
from tabi.distort.fingerprint.http2 import ProfileHttp
from tabi.distort.fingerprint.mirror import Mirror, Preset, Unmirrored
from tabi.errors import ConfigError
from tabi.policy.distorts import Distort
from tabi.session import Session
from tabi.wire.address import Address
from tabi.wire.client_hello import decode_client_hello

OCTETS = client_hello("a.example", ("h2", "http/1.1"))
HELLO = decode_client_hello(OCTETS)


def session() -> Session:
    """A session that asks for a host."""
    found = Session(1, "socks5://127.0.0.1:1080", Address("192.0.2.1", 1000), 0.0)
    found.command, found.destination = "connect", Address("a.example", 443)
    return found


SESSION = session()


def entries(*configs: DistortConfig) -> list[Distort]:
    """Entries of a configuration."""
    return list(make_distorts(Config(distort=list(configs))))


def chooser(*configs: DistortConfig) -> Chooser:
    """One whose sessions are chosen by all of these entries."""
    found = entries(*configs)
    return Chooser(lambda session, sni: found)


def test_nothing_is_chosen_without_tls_and_profile() -> None:
    """Other entries are not about fingerprints."""
    assert chooser().choose(SESSION, HELLO, OCTETS) is None
    assert chooser(DistortConfig(strip_cookies=True)).choose(SESSION, HELLO, OCTETS) is None


def test_the_last_entry_counts() -> None:
    """For each of both alone."""
    found = chooser(
        DistortConfig(tls="chrome:142", profile="chrome:142"),
        DistortConfig(tls="mirror"),
        DistortConfig(profile="chrome:152", strip_cookies=True),
    ).choose(SESSION, HELLO, OCTETS)
    assert found is not None
    assert isinstance(found.tls, Mirror)
    assert isinstance(found.http, ProfileHttp)
    found = chooser(DistortConfig(tls="mirror"), DistortConfig(tls="chrome:142")).choose(SESSION, HELLO, OCTETS)
    assert found == (Preset("chrome:142", ("h2", "http/1.1")), MIRROR_HTTP)


def test_without_tls_there_is_only_http() -> None:
    """A plain request has no hello."""
    assert chooser(DistortConfig(tls="mirror")).choose(SESSION) == (None, MIRROR_HTTP)


@pytest.mark.parametrize(
    ("offered", "protocols"),
    [
        (("h2", "http/1.1"), ("h2", "http/1.1")),
        (("http/1.1", "h2", "x"), ("h2", "http/1.1")),
        (("http/1.1",), ("http/1.1",)),
        (("x", "y"), ("x", "y")),
        ((), ("http/1.1",)),
    ],
)
def test_a_preset_offers_what_the_client_speaks(offered: tuple[str, ...], protocols: tuple[str, ...]) -> None:
    """In the preset's order."""
    found = decode_client_hello(client_hello("a.example", offered))
    assert found is not None
    assert preset_for("chrome:152", found) == Preset("chrome:152", protocols)


def kind(number: int) -> bytes:
    """A hello of another kind than all others."""
    return hello(extension(0x1234 + number, b""))


def test_kinds_have_a_bound(caplog: pytest.LogCaptureFixture) -> None:
    """Those that were mirrored still are, new ones are not until some time has passed; the log says so once."""
    now = 100.0
    one = Chooser(lambda session, sni: [], lambda: now)
    for number in range(NEW_KINDS):
        assert type(one.mirror(kind(number))) is Mirror
    with caplog.at_level(logging.WARNING, "tabi"):
        for number in range(NEW_KINDS, NEW_KINDS + 5):
            assert type(one.mirror(kind(number))) is Unmirrored
    assert caplog.messages == [f"mirror: more than {NEW_KINDS} new kinds of hello in 60 s are not mirrored"]
    assert type(one.mirror(kind(0))) is Mirror
    now += WITHIN
    assert type(one.mirror(kind(NEW_KINDS))) is Mirror


def test_few_kinds_are_remembered() -> None:
    """Those asked for last."""
    now = 0.0
    one = Chooser(lambda session, sni: [], lambda: now)
    for number in range(KINDS + 10):
        now += WITHIN
        one.mirror(kind(number))
    assert len(one.kinds) == KINDS


def test_names_choose(run_once: Run, tmp_path: Path) -> None:
    """A host of the hello chooses, as that of the request does; others have tabi's own hello."""

    async def main() -> None:
        shows = showing(tmp_path, tls="chrome:142", hosts=["localhost"])
        async with shows as proxy, destination(None, "http/1.1") as there:
            for host, sni in (("localhost", None), ("127.0.0.1", "localhost")):
                async with proxy.tls(there.port, host, sni=sni) as streams:
                    await talk(streams, GET, OK)
                assert there.hello.ja4.startswith("t13d1515h1_8daaf6152771_")
            context = proxy.context()
            async with proxy.tls(there.port, "127.0.0.1", context=context) as streams:
                await talk(streams, GET, OK)
            assert "8daaf6152771" not in there.hello.ja4
            other = await record_of(proxy, 2)
            assert (other.fingerprint, other.sent_ja4) == (None, there.hello.ja4)

    run_once(main)


@pytest.mark.parametrize(("probability", "chosen"), [(0.0, False), (1.0, True)])
def test_a_probability(run_once: Run, tmp_path: Path, probability: float, chosen: bool) -> None:
    """Of 0 nobody is chosen."""

    async def main() -> None:
        shows = showing(tmp_path, tls="chrome:142", probability=probability)
        async with shows as proxy, destination(None, "http/1.1") as there:
            async with proxy.tls(there.port) as streams:
                await talk(streams, GET, OK)
            assert (await record_of(proxy)).fingerprint == ("chrome:142" if chosen else None)

    run_once(main)


def test_a_reload_changes_it(run_once: Run, tmp_path: Path) -> None:
    """For new sessions; an unknown name changes nothing."""

    async def main() -> None:
        shows = showing(tmp_path, tls="chrome:142")
        async with shows as proxy, destination(None, "http/1.1") as there:
            for name in ("chrome:152", "chrome:1", None):
                config = proxy.server.config
                distort = [] if name is None else [DistortConfig(tls=name)]
                config = msgspec.structs.replace(config, distort=distort)
                if name == "chrome:1":
                    with pytest.raises(ConfigError, match="chrome:1"):
                        proxy.server.reload(config)
                else:
                    proxy.server.reload(config)
                async with proxy.tls(there.port) as streams:
                    await talk(streams, GET, OK)
            before, kept, after = (read_hello(octets).hello.ja4 for octets in there.hellos)
            assert before == kept != after
            interception = proxy.server.parts.interception
            assert interception is not None
            assert interception.fingerprints is None

    run_once(main)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_an_entry_is_drawn_once_for_all_that_it_does(run_once: Run, tmp_path: Path, seed: int) -> None:
    """A session that has its fault has its fingerprint, and no other has."""

    async def main() -> None:
        fault = FaultConfig(latency=Seconds(0.001))
        shows = showing(tmp_path, tls="chrome:142", probability=0.5, seed=seed, fault=fault)
        async with shows as proxy, destination(None, "http/1.1") as there:
            found = []
            for number in range(8):
                async with proxy.tls(there.port) as streams:
                    await talk(streams, GET, OK)
                record, session = await record_of(proxy, number), await proxy.ended.get()
                assert (record.fingerprint is not None) == bool(session.distorted)
                found.append(record.fingerprint is not None)
            assert len(set(found)) == 2

    run_once(main)
