"""Associations whose client wraps its datagrams: what comes is unwrapped, what goes is wrapped, all else is dropped."""

from __future__ import annotations

import pytest

from authentication import Turned
from conftest import Run
from datagrams import Inspector, Place, association, destination, unwrap
from doubles import hear_opens
from sockets import until
from tabi.config import make_config
from tabi.policy.limits import DOWN
from tabi.relay.datagram_inspector import Datagram, Direction, Emit
from tabi.relay.protected_association import LimitedProtectedAssociation, ProtectedAssociation
from tabi.session import Session
from tabi.wire.address import Address
from tabi.wire.datagram import MAX_DATAGRAM, encode_header

TURNED = Turned()


def protect(session: Session) -> None:
    """What a method does once the client has proven who it is."""
    session.protection = TURNED


def test_datagrams_are_unwrapped_and_wrapped(run: Run) -> None:
    """One after another and many in a row; the counts are those of the payload."""

    async def main() -> None:
        async with Place() as place:
            hear_opens(place.server, protect)
            async with association(place.address) as client:
                assert type(place.one) is ProtectedAssociation
                with destination() as echo:
                    for payload in (b"", b"x", bytes(1400)):
                        client.send(TURNED.wrap(echo.header + payload))
                        data = await client.receive()
                        assert data.startswith(TURNED.mark)
                        assert unwrap(TURNED.unwrap(data)) == (echo.address, payload)
                    for number in range(20):
                        client.send(TURNED.wrap(echo.header + b"%d" % number))
                    found = {unwrap(TURNED.unwrap(await client.receive()))[1] for _ in range(20)}
                    assert found == {b"%d" % number for number in range(20)}
                session = await place.end(client)
                assert (session.datagrams_up, session.datagrams_down) == (23, 23)
                assert session.up == session.down == 1401 + 10 + 20

    run(main)


def test_what_is_not_wrapped_as_agreed_is_dropped(run_once: Run) -> None:
    """Plain datagrams, and wrapped ones that are none inside; those behind them pass."""

    async def main() -> None:
        async with Place() as place:
            hear_opens(place.server, protect)
            async with association(place.address) as client:
                with destination() as echo:
                    client.send(echo.header + b"plain")
                    client.send(TURNED.wrap(b"\x00\x00\x00\x09"))
                    client.send(TURNED.wrap(echo.header + b"right"))
                    assert unwrap(TURNED.unwrap(await client.receive()))[1] == b"right"
                assert place.drops == {"malformed": 2}

    run_once(main)


def test_an_inspector_sees_what_is_inside(run_once: Run) -> None:
    """Both seams hold together: it is shown the payload, and what it emits is wrapped."""
    seen: list[bytes] = []

    def look(datagram: Datagram, emit: Emit) -> None:
        seen.append(datagram.payload)
        emit(datagram.payload.upper())

    async def main() -> None:
        async with Place() as place:
            hear_opens(place.server, protect)
            place.server.parts.associations.inspector = Inspector(look)
            async with association(place.address) as client:
                with destination() as echo:
                    client.send(TURNED.wrap(echo.header + b"hello"))
                    assert unwrap(TURNED.unwrap(await client.receive()))[1] == b"HELLO"
        assert seen == [b"hello", b"HELLO"]

    run_once(main)


def test_what_cannot_be_sent_is_counted(run_once: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A datagram that is too long once it is wrapped, and one that the system refuses."""

    async def main() -> None:
        async with Place() as place:
            hear_opens(place.server, protect)
            async with association(place.address) as client:
                with destination() as echo:
                    client.send(TURNED.wrap(echo.header + b"x"))
                    await client.receive()
                    found, header = place.one, encode_header(echo.address)
                    found.send_down(header, bytes(MAX_DATAGRAM - len(header)))
                    await until(lambda: place.drops == {"too_large": 1})

                    class Refuses:
                        def sendmsg(self, *given: object) -> int:
                            raise OSError(1, "no")

                    refusing = Refuses()
                    monkeypatch.setattr(found, "port", type("Port", (), {"sock": refusing, "close_if_unused": None})())
                    found.send_down(header, b"y")
                    assert place.drops == {"too_large": 1, "unsent": 1}
                    monkeypatch.undo()

    run_once(main)


def test_limits_and_faults_hold_for_what_is_inside(run_once: Run) -> None:
    """A protected association stays one when faults come and go, and pays for its payload: what wrapping has
    added is given back at the end."""

    async def main() -> None:
        limits = make_config({"limits": {"quota": "1 GB/day"}}).limits
        async with Place(limits=limits) as place:
            hear_opens(place.server, protect)
            async with association(place.address) as client:
                one = place.one
                assert isinstance(one, LimitedProtectedAssociation)
                lost: list[bytes] = []

                class Losing:
                    def carry(self, direction: Direction, address: Address, payload: bytes) -> None:
                        lost.append(payload)

                    def found(self, destination: Address) -> None: ...

                with destination() as echo:
                    one.look_into(None, Losing())
                    client.send(TURNED.wrap(echo.header + b"lost"))
                    await until(lambda: lost == [b"lost"])
                    one.look_into(None)
                    answer = await client.ask(TURNED.wrap(echo.header + b"found"))
                    assert unwrap(TURNED.unwrap(answer)) == (echo.address, b"found")
                    assert (one.inspection and one.inspection.taken, one.meter.charged[DOWN]) == (9, 5)

    run_once(main)
