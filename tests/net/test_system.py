"""SystemResolver with files and a name server of the test: what the system's files mean, and when they are read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

import pytest
from dns.rdatatype import RdataType

from conftest import Run
from doubles import until
from name_servers import StreamServer, Zone, stream_server, udp_server
from tabi.errors import DialError
from tabi.net.resolve import Answer
from tabi.net.system import (
    MAX_DOTS,
    MAX_SEARCH,
    MAX_SERVERS,
    TIMEOUT,
    Settings,
    SystemResolver,
    read_order,
    read_server,
    read_settings,
)
from tabi.wire.address import Address

FOUR, OTHER, SIX = map(ip_address, ("192.0.2.1", "192.0.2.2", "2001:db8::1"))
HERE = Address(IPv4Address("127.0.0.1"), 53)


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """That of the tests says nothing."""
    monkeypatch.delenv("LOCALDOMAIN", raising=False)
    monkeypatch.delenv("RES_OPTIONS", raising=False)


class Parts:
    """A resolver, its files and its clock."""

    def __init__(
        self, folder: Path, port: int, more: str = "", hosts: str = "", order: str = "", timeout: float = TIMEOUT
    ) -> None:
        self.folder = folder
        self.now = 1000.0
        self.write("resolv.conf", f"nameserver [127.0.0.1]:{port}\n{more}")
        self.write("hosts", hosts)
        if order:
            self.write("nsswitch.conf", order)
        self.resolver = SystemResolver(asyncio.get_running_loop(), timeout, folder=folder, clock=lambda: self.now)

    def write(self, name: str, text: str) -> None:
        """Replace a file, as programs that write them do it: the inode is another one."""
        new = self.folder / "new"
        new.write_text(text)
        new.rename(self.folder / name)


@asynccontextmanager
async def asking(folder: Path, zone: Zone, more: str = "", hosts: str = "", order: str = "") -> AsyncIterator[Parts]:
    """A name server, and the resolver of a system that asks it."""
    async with udp_server(zone) as port:
        parts = Parts(folder, port, more, hosts, order)
        try:
            yield parts
        finally:
            await parts.resolver.close()
            await asyncio.sleep(0)


def test_a_name_has_all_its_addresses(run: Run, tmp_path: Path) -> None:
    """From the name server of resolv.conf; what does not exist has its time to live too."""

    async def main() -> None:
        async with asking(tmp_path, Zone({"both.test": ["192.0.2.1", "2001:db8::1"]}), "search\n") as parts:
            found = await parts.resolver.answer("both.test")
            assert (set(found.addresses), found.ttl) == ({FOUR, SIX}, 60)
            assert await parts.resolver.answer("other.test") == Answer([], 60, "domain name not found")

    run(main)


def test_each_question_is_asked_anew(run_once: Run, tmp_path: Path) -> None:
    """Nothing is kept here: what is kept, and how long, is said by the configuration alone."""

    async def main() -> None:
        zone = Zone({"name.test": ["192.0.2.1"]}, ttl=3600)
        async with asking(tmp_path, zone) as parts:
            assert (await parts.resolver.answer("name.test")).addresses == [FOUR]
            zone.table["name.test"] = ["192.0.2.2"]
            assert (await parts.resolver.answer("name.test")).addresses == [OTHER]

    run_once(main)


def test_the_hosts_file_comes_first(run_once: Run, tmp_path: Path) -> None:
    """For names in any letters and addresses; unless nsswitch.conf has another order."""
    hosts = "192.0.2.2 Name.test alias\n2001:db8::1 name.test # and more\nnonsense name.test\n192.0.2.9\n"

    async def main() -> None:
        zone = Zone({"name.test": ["192.0.2.1"], "asked.test": ["192.0.2.1"]}, names={"192.0.2.7": ["seven.test"]})
        async with asking(tmp_path, zone, hosts=hosts) as parts:
            for name in ("name.test", "NAME.test."):
                found = await parts.resolver.answer(name)
                assert (set(found.addresses), found.ttl) == ({OTHER, SIX}, 0)
            assert (await parts.resolver.answer("alias")).addresses == [OTHER]
            assert (await parts.resolver.reverse(OTHER)).name == "Name.test"
            assert zone.asked == []
            assert (await parts.resolver.answer("asked.test")).addresses == [FOUR]
            assert (await parts.resolver.reverse(ip_address("192.0.2.7")))[:2] == ("seven.test", 60)
            assert (await parts.resolver.reverse(ip_address("192.0.2.8"))).name is None
        async with asking(tmp_path, zone, hosts=hosts, order="hosts: dns files\n") as parts:
            assert (await parts.resolver.answer("name.test")).addresses == [FOUR]
            assert (await parts.resolver.answer("alias")).addresses == [OTHER]
        async with asking(tmp_path, Zone(), hosts=hosts, order="hosts: files\n") as parts:
            assert (await parts.resolver.answer("asked.test")).addresses == []

    run_once(main)


@pytest.mark.parametrize(
    ("name", "more", "asked"),
    [
        ("host", "search a.test B.test.", ["host.a.test", "host.b.test", "host"]),
        ("host.", "search a.test", ["host"]),
        ("host.x", "search a.test", ["host.x", "host.x.a.test"]),
        ("host.x", "search a.test\noptions ndots:2", ["host.x.a.test", "host.x"]),
        ("host", "domain a.test", ["host.a.test", "host"]),
        ("host", "search .", ["host"]),
    ],
)
def test_search_domains(run_once: Run, tmp_path: Path, name: str, more: str, asked: list[str]) -> None:
    """As resolv.conf(5) has it: before the name itself if that has few dots, else after it."""

    async def main() -> None:
        zone = Zone()
        async with asking(tmp_path, zone, more) as parts:
            assert (await parts.resolver.answer(name)).addresses == []
            assert list(dict.fromkeys(asked for asked, _ in zone.asked)) == asked
            zone.table[asked[-1]] = ["192.0.2.1"]
            assert (await parts.resolver.answer(name)).addresses == [FOUR]

    run_once(main)


def failing(zone: Zone, *parts: bytes) -> None:
    """Have a zone answer SERVFAIL for names with these octets in them, and NXDOMAIN for others that it lacks."""
    honest = zone.reply

    async def reply(octets: bytes) -> bytes:
        answer = bytearray(await honest(octets))
        if any(part in octets for part in parts):
            answer[3] = answer[3] & 0xF0 | 2
        return bytes(answer)

    zone.reply = reply  # type: ignore[method-assign]


def test_a_failure_of_one_name_does_not_end_the_search(run_once: Run, tmp_path: Path) -> None:
    """As with the C library: a broken zone among the search domains hides neither the next one nor the name itself."""

    async def main() -> None:
        zone = Zone({"host.b.test": ["192.0.2.1"], "www.x": ["192.0.2.2"]})
        failing(zone, b"\1a\4test")
        async with asking(tmp_path, zone, "search a.test b.test\noptions ndots:5") as parts:
            assert (await parts.resolver.answer("host")).addresses == [FOUR]
            assert (await parts.resolver.answer("www.x")).addresses == [OTHER]
            with pytest.raises(DialError, match=r"none\.a\.test.*servfail"):  # perhaps it is there
                await parts.resolver.answer("none")

    run_once(main)


def test_a_failure_of_a_single_label_counts_if_nothing_else_was_answered(run_once: Run, tmp_path: Path) -> None:
    """Some name servers fail for names without a dot, which they do not forward. But failure is not "no such name"."""

    async def main() -> None:
        zone = Zone({"host.a.test": ["192.0.2.1"]})
        failing(zone, b"\4host\0", b"\4none\0")
        async with asking(tmp_path, zone, "search a.test\noptions ndots:0") as parts:
            assert (await parts.resolver.answer("host")).addresses == [FOUR]
            assert (await parts.resolver.answer("none")).text == "domain name not found"
            assert {name for name, _ in zone.asked} == {"host", "host.a.test", "none", "none.a.test"}
        failing(zone, b"\4none")
        async with asking(tmp_path, zone, "search .") as parts:
            with pytest.raises(DialError, match=r"none: .*servfail"):
                await parts.resolver.answer("none")

    run_once(main)


def test_silence_ends_the_search(run_once: Run, tmp_path: Path) -> None:
    """Each name more would cost its time again."""

    async def main() -> None:
        zone = Zone()
        zone.answering.clear()
        async with udp_server(zone) as port:
            parts = Parts(tmp_path, port, "search a.test b.test", timeout=0.05)
            parts.resolver.clock = asyncio.get_running_loop().time
            with pytest.raises(DialError, match=r"host\.a\.test: .*no answer"):
                await parts.resolver.answer("host")
            assert {name for name, _ in zone.asked} == {"host.a.test"}
            await parts.resolver.close()
            zone.answering.set()
            await asyncio.sleep(0)

    run_once(main)


def test_name_servers_that_fail_do_not_hide_the_hosts_file(run_once: Run, tmp_path: Path) -> None:
    """Where nsswitch.conf has it behind them; what it does not know has still failed. Names of addresses likewise."""

    async def main() -> None:
        zone = Zone()
        failing(zone, b"\4file", b"\4none", b"\3ip6")
        hosts = "192.0.2.1 file.test\n2001:DB8:0::1 six.test\n"
        async with asking(tmp_path, zone, "search .", hosts, "hosts: dns files\n") as parts:
            assert (await parts.resolver.answer("file.test")).addresses == [FOUR]
            assert (await parts.resolver.reverse(SIX)).name == "six.test"
            for failed in (parts.resolver.answer("none.test"), parts.resolver.reverse(ip_address("2001:db8::2"))):
                with pytest.raises(DialError, match="servfail"):
                    await failed

    run_once(main)


def test_localhost_and_onion_are_asked_of_nobody(run_once: Run, tmp_path: Path) -> None:
    """RFC 6761 and 7686, whatever a name server would say."""

    async def main() -> None:
        zone = Zone({"localhost": ["192.0.2.1"], "x.onion": ["192.0.2.1"]})
        both = {ip_address("127.0.0.1"), ip_address("::1")}
        async with asking(tmp_path, zone, hosts="127.0.0.1 localhost\n127.0.0.2 localhost\n") as parts:
            for name in ("localhost", "LOCALHOST."):
                found = await parts.resolver.answer(name)
                assert set(found.addresses) == {*both, ip_address("127.0.0.2")}
            assert set((await parts.resolver.answer("db.localhost")).addresses) == both
            assert (await parts.resolver.answer("x.onion")).addresses == []
            assert (await parts.resolver.reverse(IPv4Address("127.0.0.1"))).name == "localhost"
            assert zone.asked == []

    run_once(main)


def test_files_that_change_are_read_again(run_once: Run, tmp_path: Path) -> None:
    """Within a second, also another name server; a question under way comes to its end."""

    async def main() -> None:
        slow, quick = Zone({"name.test": ["192.0.2.1"]}), Zone({"name.test": ["192.0.2.2"]})
        slow.answering.clear()
        async with udp_server(quick) as port, asking(tmp_path, slow) as parts:
            waiting = asyncio.get_running_loop().create_task(parts.resolver.answer("name.test"))
            await until(lambda: slow.asked)
            parts.write("resolv.conf", f"nameserver [127.0.0.1]:{port}\n")
            parts.write("hosts", "192.0.2.9 new.test\n")
            parts.resolver.refresh()
            assert parts.resolver.hosts.find("new.test") == []
            parts.now += 1
            assert (await parts.resolver.answer("name.test")).addresses == [OTHER]
            assert (await parts.resolver.answer("new.test")).addresses == [ip_address("192.0.2.9")]
            slow.answering.set()
            assert (await waiting).addresses == [FOUR]

    run_once(main)


def test_a_silent_server_gives_way_to_the_next(run_once: Run, tmp_path: Path) -> None:
    """With ``rotate`` they take turns."""

    async def main() -> None:
        dead, alive = Zone(), Zone({"name.test": ["192.0.2.1"]})
        dead.answering.clear()
        async with udp_server(dead) as first, udp_server(alive) as second:
            more = f"nameserver [127.0.0.1]:{second}\n"
            parts = Parts(tmp_path, first, more, timeout=0.1)
            assert (await parts.resolver.answer("name.test")).addresses == [FOUR]
            parts.write(
                "resolv.conf", f"nameserver [127.0.0.1]:{second}\nnameserver [127.0.0.1]:{first}\noptions rotate\n"
            )
            parts.now += 1
            dead.answering.set()
            asked = len(dead.asked)
            for _ in range(2):
                await parts.resolver.answer("name.test")
            assert len(dead.asked) > asked
            await parts.resolver.close()
            await asyncio.sleep(0)

    run_once(main)


def test_by_tcp_if_the_options_say_so(run_once: Run, tmp_path: Path) -> None:
    """``use-vc`` of resolv.conf(5)."""

    async def main() -> None:
        zone = Zone({"name.test": ["192.0.2.1"]})
        async with stream_server(StreamServer(zone)) as port:
            parts = Parts(tmp_path, port, "options use-vc\n")
            assert (await parts.resolver.answer("name.test")).addresses == [FOUR]
            assert set(zone.asked) == {("name.test", RdataType.A), ("name.test", RdataType.AAAA)}
            await parts.resolver.close()
            await asyncio.sleep(0)

    run_once(main)


def test_the_real_files_can_be_read(run_once: Run) -> None:
    """Those of this machine, whatever they have."""

    async def main() -> None:
        resolver = SystemResolver(asyncio.get_running_loop())
        assert all(address.is_loopback for address in (await resolver.answer("localhost")).addresses)
        await resolver.close()

    run_once(main)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", Settings((HERE,))),
        ("# x\n; y\n\nnameserver\nnameserver x\nnameserver 192.0.2.1 # z\n", Settings((Address(FOUR, 53),))),
        ("nameserver ::1\nnameserver ::1", Settings((Address(IPv6Address("::1"), 53),))),
        ("search a.test b.test\nsearch c.test\n", Settings((HERE,), ("c.test",))),
        ("domain a.test b.test\n", Settings((HERE,), ("a.test",))),
        ("domain\nsortlist 1\n", Settings((HERE,))),
        ("options ndots:3 rotate\noptions use-vc timeout:1", Settings((HERE,), (), 3, True, True)),
        ("options ndots:99 ndots:x", Settings((HERE,), (), MAX_DOTS)),
    ],
)
def test_resolv_conf(text: str, expected: Settings) -> None:
    """resolv.conf(5); without a name server it is this machine, and what is not understood is ignored."""
    assert read_settings(text, {}, "machine") == expected


def test_what_resolv_conf_does_not_say() -> None:
    """The domain of the host, and the environment, which comes last; all of it has a bound."""
    assert read_settings("", {}, "machine.here.test").search == ("here.test",)
    words = {"LOCALDOMAIN": "x.test y.test", "RES_OPTIONS": "ndots:2"}
    assert read_settings("search a.test\noptions ndots:1", words, "m.here.test")[1:3] == (("x.test", "y.test"), 2)
    many = read_settings("\n".join(f"nameserver 192.0.2.{n}" for n in range(99)) + "\nsearch" + " a.test" * 99, {}, "m")
    assert (len(many.servers), len(many.search)) == (MAX_SERVERS, MAX_SEARCH)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("192.0.2.1", Address(FOUR, 53)),
        ("[192.0.2.1]:5353", Address(FOUR, 5353)),
        ("[2001:db8::1]", Address(SIX, 53)),
        ("fe80::1%eth0", Address(IPv6Address("fe80::1%eth0"), 53)),
        ("[192.0.2.1]:x", None),
        ("name.test", None),
    ],
)
def test_a_name_server_in_resolv_conf(text: str, expected: Address | None) -> None:
    """An address; for another port than 53 as in a URL."""
    assert read_server(text) == expected


@pytest.mark.parametrize(
    ("text", "order"),
    [
        ("", ("files", "dns")),
        ("hosts: files dns", ("files", "dns")),
        ("passwd: files\nhosts:\tdns [!UNAVAIL=return] files # x", ("dns", "files")),
        ("hosts: mymachines resolve [!UNAVAIL=return] files myhostname dns", ("dns", "files")),
        ("hosts: nis", ("files", "dns")),
    ],
)
def test_nsswitch_conf(text: str, order: tuple[str, ...]) -> None:
    """Which of the two comes first; services that only the C library has are left out."""
    assert read_order(text) == order


def test_a_large_hosts_file_holds_nobody_up(run_once: Run, tmp_path: Path) -> None:
    """It is read before the first question, and after a change in a thread: until then the old one is good."""

    async def main() -> None:
        large = "".join(f"0.0.0.0 ad{number}.test\n" for number in range(10_000))
        zone = Zone({"name.test": ["192.0.2.1"]})
        async with asking(tmp_path, zone, hosts=large) as parts:
            resolver = parts.resolver
            assert (await resolver.answer("ad9999.test")).addresses == [ip_address("0.0.0.0")]
            parts.write("hosts", large + "192.0.2.9 new.test\n")
            parts.now += 1
            resolver.refresh()
            assert resolver.hosts.find("new.test") == []
            assert (await resolver.answer("ad1.test")).addresses == [ip_address("0.0.0.0")]
            await until(lambda: resolver.hosts.find("new.test"))
            parts.write("hosts", large)
            parts.now += 1
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("tabi.net.system.Hosts", None)  # it fails: the old one stays
                resolver.refresh()
                await asyncio.get_running_loop().shutdown_default_executor()
                await asyncio.sleep(0)
            assert resolver.hosts.find("new.test")

    run_once(main)
