"""What all pieces have in common: values, own ones, and the gate that leads to another egress."""

from __future__ import annotations

import socket
from collections.abc import Sequence

import pytest

import tabi
from conftest import Run
from doubles import until
from support import datagram_target, target
from tabi import ConfigError, Decision, Session, Stream
from tabi.config import RuleConfig
from tabi.ingress.conversation import Ingress
from tabi.parts import (
    Bind,
    Connect,
    Direct,
    Http,
    Listener,
    Mixed,
    Piece,
    Policy,
    Relay,
    Running,
    Socks5,
    Tls,
    UdpAssociate,
)
from tabi.parts.base import as_piece
from tabi.wire.sniff import Protocol


class Only(Piece):
    """Refuses clients from elsewhere before they say anything."""

    speaks = (Protocol.SOCKS5,)

    def __init__(self, inner: Piece, host: str) -> None:
        self.inner = inner
        self.host = host

    def inside(self) -> Sequence[Piece]:
        return (self.inner,)

    def build(self, running: Running) -> Ingress:
        return OnlyIngress(self.inner.build(running), self.host)


class OnlyIngress:
    """The running part."""

    protocol = "only"

    def __init__(self, inner: Ingress, host: str) -> None:
        self.inner = inner
        self.host = host

    async def serve(self, client: Stream, session: Session) -> None:
        if str(session.client.host) != self.host:
            session.error = "not from there"
            return
        await self.inner.serve(client, session)


class Greeter:
    """An ingress that is no piece: it says hello, whatever the client wants."""

    protocol = "greeter"

    async def serve(self, client: Stream, session: Session) -> None:
        session.protocol = self.protocol
        await client.send_all(b"hello")


async def end_of(stream: Stream) -> bool:
    """Wait until the other side has ended, in order or by a reset."""
    try:
        return not await stream.receive()
    except ConnectionResetError:
        return True


def test_pieces_are_values() -> None:
    """Two with the same contents are equal, and what is shown of one has no secrets and no defaults."""
    one, other = (Mixed(Socks5(users={"alice": "secret"}), Http(Connect(carrier=Relay(idle=9)))) for _ in range(2))
    assert one == other
    assert one != Mixed(Socks5(users={"alice": "other"}), Http(Connect(carrier=Relay(idle=9))))
    assert repr(one) == (
        "Mixed(Socks5(Connect(), Bind(), UdpAssociate(), users=…), Http(Connect(carrier=Relay(idle=9))))"
    )
    assert Connect() == Connect(None)
    assert hash(Connect()) == hash(Connect())


@pytest.mark.parametrize("seconds", [0, -1, "1", True, float("inf")])
def test_a_duration_is_checked(seconds: float) -> None:
    """What is no number of seconds above 0 is told at once, with the name of the key."""
    with pytest.raises(ConfigError, match=r"Relay\.half_closed: .*expected seconds"):
        Relay(half_closed=seconds)


def test_what_is_no_piece_is_told_at_once() -> None:
    """The class itself, and anything without `serve`."""
    with pytest.raises(TypeError, match=r"Mixed: the class Socks5 itself, expected an object: Socks5\("):
        Mixed(Socks5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"Tls: str, expected a piece such as Socks5"):
        Tls("socks5", "certificate", "key")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="Mixed: Greeter does not say what it speaks"):
        Mixed(Greeter())  # type: ignore[arg-type]
    assert as_piece(Greeter(), "").requires_user() is False


def test_a_piece_of_a_program_stands_among_the_others(run: Run) -> None:
    """It wraps another one, within Mixed too, and has its users."""
    piece = Only(Socks5(users={"alice": "secret"}), "127.0.0.2")
    assert Mixed(piece).requires_user()
    ended: list[Session] = []

    async def main() -> None:
        async with target() as port, Listener("127.0.0.1:0", Mixed(piece, Http()), on_close=ended.append) as listener:
            with pytest.raises(tabi.TabiError):
                await tabi.Proxy(f"socks5://alice:secret@{listener.address}").connect("127.0.0.1", port)
            async with tabi.Proxy(f"http://{listener.address}").connect("127.0.0.1", port) as stream:
                await stream.send_all(b"echo")
                assert await stream.receive() == b"echo"
            await until(lambda: len(ended) == 2)
        assert [one.error for one in ended] == ["not from there", None]

    run(main)


def test_an_ingress_of_a_program_is_a_whole_proxy(run: Run) -> None:
    """An object with `protocol` and `serve` gets every client."""
    ended: list[Session] = []

    async def main() -> None:
        async with Listener("127.0.0.1:0", Greeter(), on_close=ended.append) as listener:
            with pytest.raises(tabi.RemoteProtocolError):
                await tabi.Proxy(f"socks5://{listener.address}").connect("127.0.0.1", 1)
            await until(lambda: ended)
        assert ended[0].protocol == "greeter"

    run(main)


def test_an_egress_of_a_command_is_taken_where_nobody_names_another(run: Run) -> None:
    """A rule and decide go before it, and the log says which it was."""
    ended: list[Session] = []

    def decide(session: Session) -> Decision | None:
        return Decision(via="socks5://127.0.0.1:1") if session.protocol == "http" else None

    async def main() -> None:
        async with (
            target() as port,
            target() as other,
            tabi.Server("socks5://127.0.0.1:0") as behind,
            Listener(
                "127.0.0.1:0",
                Mixed(Socks5(Connect(behind.url)), Http(Connect(behind.url))),
                policy=Policy(rules=[RuleConfig(ports=[other], via="block")], decide=decide),
                on_close=ended.append,
            ) as front,
        ):
            async with tabi.Proxy(f"socks5://{front.address}").connect("127.0.0.1", port) as stream:
                await stream.send_all(b"echo")
                assert await stream.receive() == b"echo"
            for url, to in ((f"socks5://{front.address}", other), (f"http://{front.address}", port)):
                with pytest.raises(tabi.TabiError):
                    await tabi.Proxy(url).connect("127.0.0.1", to)
            await until(lambda: len(ended) == 3)
            vias = {one.via for one in ended}
            assert vias == {str(behind.addresses[0]), "block", "socks5://127.0.0.1:1"}

    run(main)


@pytest.mark.parametrize("rules", [[], [RuleConfig(ports=[1], action="deny")]])
def test_datagrams_take_the_egress_of_their_command(run: Run, rules: list[RuleConfig]) -> None:
    """None goes directly, whether or not there are rules that look at each destination."""
    ended: list[Session] = []

    async def main() -> None:
        async with (
            datagram_target() as port,
            tabi.Server("socks5://127.0.0.1:0", on_close=ended.append) as behind,
            Listener("127.0.0.1:0", Socks5(UdpAssociate(behind.url)), policy=Policy(rules=rules)) as front,
        ):
            async with tabi.Proxy(f"socks5://{front.address}").associate() as association:
                await association.send(b"echo", ("127.0.0.1", port))
                assert (await association.receive())[0] == b"echo"
                assert [one.via for one in front.sessions()] == [str(behind.addresses[0])]
            await until(lambda: ended)
            assert [(one.command, one.up) for one in ended] == [("associate", 4)]

    run(main)


def test_a_direct_egress_without_settings_is_the_direct_one(run: Run) -> None:
    """`Direct()` says no more than nothing does: connections and datagrams go as they would without it."""
    ended: list[Session] = []

    async def main() -> None:
        async with (
            target() as port,
            datagram_target() as udp_port,
            Listener("127.0.0.1:0", Socks5(Connect(Direct()), UdpAssociate(Direct())), on_close=ended.append) as front,
        ):
            proxy = tabi.Proxy(f"socks5://{front.address}")
            async with proxy.connect("127.0.0.1", port) as stream, proxy.associate() as association:
                await stream.send_all(b"echo")
                assert await stream.receive() == b"echo"
                await association.send(b"echo", ("127.0.0.1", udp_port))
                assert (await association.receive())[0] == b"echo"
            await until(lambda: len(ended) == 2)
        assert [one.via for one in ended] == ["direct", "direct"]

    run(main)


def test_a_call_is_taken_by_the_egress_of_its_command(run: Run) -> None:
    """BIND is the business of the proxy that the command leads through, for anyone and for one peer."""

    async def main() -> None:
        async with (
            tabi.Server("socks5://127.0.0.1:0") as behind,
            Listener("127.0.0.1:0", Socks5(Bind(behind.url))) as front,
        ):
            for host in (None, "127.0.0.1"):
                async with tabi.Proxy(f"socks5://{front.address}").bind(host) as listener:
                    assert [one.command for one in behind.sessions()] == ["bind"]
                    with socket.create_connection((str(listener.address.host), listener.address.port)) as peer:
                        stream = await listener.accept()
                        peer.sendall(b"call")
                        assert await stream.receive() == b"call"
                        stream.close()
                await until(lambda: not behind.sessions())

    run(main)


def test_a_relay_has_deadlines_of_its_own(run: Run) -> None:
    """A quiet tunnel of this command ends by them, and is seen, and can be ended, while it runs."""
    ended: list[Session] = []

    async def main() -> None:
        async with (
            target() as port,
            Listener(
                "127.0.0.1:0", Mixed(Socks5(Connect(carrier=Relay(idle=0.05))), Http()), on_close=ended.append
            ) as front,
        ):
            async with tabi.Proxy(f"socks5://{front.address}").connect("127.0.0.1", port) as stream:
                assert await end_of(stream)
            assert ended[0].close == "idle"
            async with tabi.Proxy(f"http://{front.address}").connect("127.0.0.1", port) as stream:
                front.sessions()[0].end()
                assert await end_of(stream)
            await until(lambda: len(ended) == 2)
            assert ended[1].close == "kicked"

    run(main)


def test_a_carrier_of_a_command_carries_its_sessions_alone(run: Run) -> None:
    """Its sessions are listed and can be ended; the other protocol has the relay."""
    carried: list[str] = []

    async def carry(tunnel: tabi.Tunnel) -> None:
        carried.append(str(tunnel.session.protocol))
        await tunnel.relay()

    async def main() -> None:
        proxy = Mixed(Socks5(Connect(carrier=carry)), Http())
        async with target() as port, Listener("127.0.0.1:0", proxy) as front:
            for scheme in ("socks5", "http"):
                async with tabi.Proxy(f"{scheme}://{front.address}").connect("127.0.0.1", port) as stream:
                    await stream.send_all(b"echo")
                    assert await stream.receive() == b"echo"
                    (info,) = front.sessions()
                    assert info.protocol == scheme
                    await until(lambda: front.sessions()[0].down == 4)
                    info.end()
                    assert await end_of(stream)
                await until(lambda: not front.sessions())
        assert carried == ["socks5"]

    run(main)
