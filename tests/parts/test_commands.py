"""Commands and egresses as values: what is wrong with one is told when it is made."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any

import pytest

import tabi
from conftest import Run
from doubles import FakeResolver, unanswering, until
from support import datagram_target, target
from tabi import ConfigError, Datagram, Session
from tabi.config import CheckConfig, MemberConfig, Timeouts, Udp
from tabi.config.schema import Seconds
from tabi.parts import (
    Bind,
    Connect,
    Direct,
    Http,
    Listener,
    Mixed,
    Pool,
    Resolve,
    ResolvePtr,
    Socks5,
    Through,
    UdpAssociate,
)


class Unix(tabi.Egress):
    """Leads everything to one end of a pair of unix sockets."""

    def __init__(self) -> None:
        self.far: list[socket.socket] = []

    async def open(self, destination: Any, address_filter: Any, session: Session | None = None) -> tabi.Stream:
        near, far = socket.socketpair()
        self.far.append(far)
        return tabi.Stream.from_socket(near)


class Shout(tabi.DatagramInspector):
    """Changes the payload of each datagram."""

    def inspect(self, datagram: Datagram, emit: Any) -> None:
        emit(bytes(datagram.payload).upper())


class Closed:
    """No egress: it has no `open`."""


WRONG: list[tuple[Callable[[], object], type[Exception], str]] = [
    (lambda: Connect(Closed()), TypeError, r"Connect\.egress: Closed, expected an object with async open"),
    (lambda: Connect(Direct), TypeError, r"Connect\.egress: the class Direct itself"),
    (lambda: Connect(tabi.Egress()), TypeError, "Egress does not override open"),
    (lambda: Connect("direct"), ConfigError, r"Through\[0\]: expected the URL of a proxy"),
    (lambda: Connect(carrier=print), TypeError, "carrier: expected `async def carry"),
    (lambda: Bind(timeout=0), ConfigError, r"Bind\.timeout: 0, expected seconds"),
    (lambda: Bind(udp={}), TypeError, r"Bind\.udp: dict, expected a tabi\.config\.Udp"),  # type: ignore[arg-type]
    (lambda: UdpAssociate(udp=Udp(ports="9-1")), ConfigError, r"UdpAssociate\.udp: .*lower port first"),
    (lambda: UdpAssociate(inspector=Shout), TypeError, "Shout is a class"),  # type: ignore[arg-type]
    (lambda: Direct(timeout=-1), ConfigError, r"Direct\.timeout"),
    (lambda: Direct(source="127.0.0.1"), TypeError, r"Direct\.source: str"),
    (lambda: Direct(name="socks5://a"), ConfigError, r"Direct\.name"),
    (lambda: Through(), ConfigError, "Through: expected the URL of a proxy, or several"),
    (lambda: Through("gopher://a:1"), ConfigError, r"Through\[0\]: "),
    (lambda: Through(7), TypeError, "Through: int"),  # type: ignore[arg-type]
    (lambda: Pool("socks5://a:1", "b:1"), ConfigError, r"Pool\[1\]: expected the URL"),
]


@pytest.mark.parametrize(("make", "error", "text"), WRONG)
def test_what_is_wrong_is_told_when_the_piece_is_made(
    make: Callable[[], object], error: type[Exception], text: str
) -> None:
    """With the class and the key; no loop is needed for that."""
    with pytest.raises(error, match=text):
        make()


def test_passwords_are_not_shown() -> None:
    """URLs of proxies are shown without user and password, wherever they stand."""
    url = "socks5://alice:secret@10.0.0.1:1080"
    shown = repr([Connect(url), Through(url, url), Pool(url, MemberConfig(url)), Mixed(Socks5(Connect(Through(url))))])
    assert "secret" not in shown
    assert "10.0.0.1:1080" in shown


def test_settings_are_checked_by_the_listener() -> None:
    """What tabi.toml would refuse a listener refuses, at once."""
    with pytest.raises(ConfigError, match=r"direct#2\.mark: 0, expected 1 to"):
        Listener("127.0.0.1:0", Socks5(Connect(Direct(mark=0))))
    with pytest.raises(ConfigError, match=r"pool\.check"):
        Listener("127.0.0.1:0", Socks5(Connect(Pool("socks5://127.0.0.1:1", check=CheckConfig()))))


def test_each_command_connects_within_its_own_time(run: Run) -> None:
    """A direct egress, and one through proxies, have the deadline of their piece and not that of the listener."""
    ended: list[Session] = []

    async def main() -> None:
        with unanswering() as port:
            proxy = Mixed(Socks5(Connect(Direct(timeout=0.05))), Http(Connect(Through("socks5://10.1.1.1:1"))))
            async with Listener("127.0.0.1:0", proxy, on_close=ended.append) as front:
                with pytest.raises(tabi.ProxyError) as caught:
                    await tabi.Proxy(f"socks5://{front.address}", timeout=15).connect("127.0.0.1", port)
                assert caught.value.reply_code == 4
        assert ended[0].error is not None
        assert "0.05 s" in ended[0].error

    run(main)


def test_a_name_is_looked_up_within_the_time_of_the_command(run: Run) -> None:
    """Resolving counts too, longer than the listener would wait as well as shorter."""
    resolver = FakeResolver({"slow.test": ["127.0.0.1"]})
    resolver.answering.clear()

    async def main() -> None:
        async with (
            target() as port,
            Listener(
                "127.0.0.1:0",
                Socks5(Connect(Direct(timeout=10))),
                timeouts=Timeouts(connect=Seconds(0.01)),
                resolver=resolver,
            ) as front,
        ):
            opening = asyncio.get_running_loop().create_task(
                tabi.Proxy(f"socks5://{front.address}").open_connection("slow.test", port)
            )
            await until(lambda: resolver.asked)
            await asyncio.sleep(0.05)  # longer than the listener's own deadline
            resolver.answering.set()
            reader, writer = await opening
            writer.write(b"echo")
            assert await reader.readexactly(4) == b"echo"
            writer.close()
            await writer.wait_closed()

    run(main)


def test_an_egress_of_a_program_may_bring_a_raw_socket(run: Run) -> None:
    """Even one without an address: the client's reply says 0.0.0.0, and octets flow."""
    egress = Unix()
    ended: list[Session] = []

    async def main() -> None:
        proxy = Mixed(Socks5(Connect(egress)), Http(Connect(egress)))
        async with Listener("127.0.0.1:0", proxy, on_close=ended.append) as front:
            for scheme in ("socks5", "http"):
                async with tabi.Proxy(f"{scheme}://{front.address}").connect("192.0.2.1", 80) as stream:
                    await stream.send_all(b"in")
                    loop, far = asyncio.get_running_loop(), egress.far.pop()
                    far.setblocking(False)
                    assert await loop.sock_recv(far, 9) == b"in"
                    await loop.sock_sendall(far, b"out")
                    assert await stream.receive() == b"out"
                    far.close()
            await until(lambda: len(ended) == 2)
        assert [(one.via, str(one.address)) for one in ended] == [("Unix", "0.0.0.0:0")] * 2

    run(main)


def test_a_command_has_its_own_inspector(run: Run) -> None:
    """The datagrams of its associations are looked at, and those of another listener's are not."""

    async def main() -> None:
        async with datagram_target() as port:
            for associate, expected in ((UdpAssociate(inspector=Shout()), b"QUIET"), (UdpAssociate(), b"quiet")):
                async with (
                    Listener("127.0.0.1:0", Socks5(associate)) as front,
                    tabi.Proxy(f"socks5://{front.address}").associate() as association,
                ):
                    await association.send(b"quiet", ("127.0.0.1", port))
                    assert (await association.receive())[0] == expected

    run(main)


def test_a_pool_gives_way(run: Run) -> None:
    """A member that does not answer is left out; the log has the other one."""
    ended: list[Session] = []

    async def main() -> None:
        async with target() as port, tabi.Server("socks5://127.0.0.1:0") as live:
            pool = Pool("socks5://127.0.0.1:1", live.url, balance="round-robin")
            async with Listener("127.0.0.1:0", Socks5(Connect(pool)), on_close=ended.append) as front:
                for _ in range(2):
                    async with tabi.Proxy(f"socks5://{front.address}").connect("127.0.0.1", port) as stream:
                        await stream.send_all(b"echo")
                        assert await stream.receive() == b"echo"
            assert {one.via for one in ended} == {"pool"}

    run(main)


def test_clients_may_ask_for_names(run: Run) -> None:
    """RESOLVE gives the preferred kind of address; a command that is not there is refused with reply 07."""
    resolver = FakeResolver({"both.test": ["127.0.0.1", "::1"]})

    async def main() -> None:
        async with Listener("127.0.0.1:0", Socks5(Resolve(), Bind(timeout=0.05)), resolver=resolver) as front:
            proxy = tabi.Proxy(f"socks5://{front.address}")
            assert str(await proxy.resolve("both.test")) == "127.0.0.1"
            for ask in (proxy.resolve_ptr("127.0.0.1"), proxy.connect("127.0.0.1", 1)):
                with pytest.raises(tabi.ProxyError) as caught:
                    await ask
                assert caught.value.reply_code == 7
            async with proxy.bind() as listener:
                with pytest.raises(tabi.TabiError):  # nobody calls in time
                    await listener.accept()
        async with Listener("127.0.0.1:0", Socks5(ResolvePtr()), resolver=resolver) as front:
            with pytest.raises(tabi.ProxyError) as caught:
                await tabi.Proxy(f"socks5://{front.address}").resolve_ptr("127.0.0.1")
            assert caught.value.reply_code != 2

    run(main)


def test_a_name_is_advertised_by_a_configuration_alone() -> None:
    """Nothing resolves it for pieces that a program composes."""
    with pytest.raises(ConfigError, match=r"^UdpAssociate.udp: 'proxy\.example', expected an IP address"):
        UdpAssociate(udp=Udp(advertise="proxy.example"))
