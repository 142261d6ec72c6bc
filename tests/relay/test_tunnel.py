"""Tunnel: a program's own carrier gets every octet in order, and whatever it does, both streams and the session end."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import random
import socket
import ssl
from collections.abc import AsyncIterator
from time import monotonic
from typing import Any

import pytest

from authorities import TlsPeer, client_context, server_context
from conftest import Run
from sockets import Bench, Ends, fill, read, read_all, reset, send, send_and_end, tcp_pair, turns, until
from tabi.config import LimitsConfig
from tabi.errors import LimitExceeded
from tabi.net.stream import MSG_PEEK
from tabi.net.tls import accept_tls, get_tls_shared
from tabi.policy.ledger import Ledger
from tabi.policy.limits import Limits as Accounts
from tabi.policy.quantities import Bandwidth, Quota
from tabi.relay import tunnel as module
from tabi.relay.carrier import Carrier, Carry
from tabi.relay.stage import Stage
from tabi.relay.tunnel import HeadSock, Tunnel, Tunnels

MIB = 1 << 20


@contextlib.asynccontextmanager
async def tunnels(bench: Bench, carry: Carry) -> AsyncIterator[Tunnels]:
    """The carrier of a bench's relays, which closes at the end."""
    made = Tunnels(carry, bench.relays)
    try:
        yield made
    finally:
        await made.close("shutdown")


def start(carrier: Carrier, ends: Ends, head: bytes = b"", answer: bytes = b"") -> None:
    """Have a session carried."""
    carrier.start(ends.near_client, ends.near_server, ends.session, answer, head)
    assert ends.near_client.fd == ends.near_server.fd == -1


async def pump(tunnel: Tunnel) -> None:
    """Carry both directions as simply as one may write it."""

    async def one(source: Any, sink: Any) -> None:
        while data := await source.receive():
            await sink.send_all(data)
        sink.send_eof()

    async with asyncio.TaskGroup() as group:
        group.create_task(one(tunnel.client, tunnel.server))
        group.create_task(one(tunnel.server, tunnel.client))


async def wait_for_ever(tunnel: Tunnel) -> None:
    """Do nothing."""
    await asyncio.get_running_loop().create_future()


def test_octets_of_a_carrier_are_in_order_and_counted(run: Run) -> None:
    """The answer and the head come first; then both directions, up to their ends."""

    async def main() -> None:
        up, down = (random.Random(seed).randbytes(MIB) for seed in (1, 2))
        with Bench() as bench:
            async with tunnels(bench, pump) as carrier:
                ends = bench.ends()
                start(carrier, ends, b"head ", b"answer ")
                run_ = carrier.get(ends.session)
                assert run_ is not None
                async with asyncio.TaskGroup() as group:
                    group.create_task(send(ends.client, up))
                    group.create_task(send(ends.server, down))
                    there = group.create_task(read(ends.server, 5 + MIB))
                    back = group.create_task(read(ends.client, 7 + MIB))
                assert there.result() == b"head " + up
                assert back.result() == b"answer " + down
                await until(lambda: run_.counts == (5 + MIB, MIB))
                ends.client.shutdown(socket.SHUT_WR)
                assert await read_all(ends.server) == b""
                ends.server.shutdown(socket.SHUT_WR)
                assert await read_all(ends.client) == b""
                await ends.ended.wait()
                session = ends.session
                assert (session.up, session.down, session.close, session.error) == (5 + MIB, MIB, "client", None)
                assert carrier.get(session) is None
                assert run_.counts == (5 + MIB, MIB)
                run_.cut("too late")
                assert session.error is None

    run(main)


@pytest.mark.parametrize("how", ["relay", "hand_over"])
def test_the_kernel_carries_the_rest(run: Run, how: str) -> None:
    """A carrier may speak first, and have a relay do the rest: with what the client had sent already, in order."""
    order: list[str] = []

    async def carry(tunnel: Tunnel) -> None:
        assert await tunnel.client.receive(3) == b"hea"
        await tunnel.server.send_all(b"HEA")
        if how == "relay":
            await tunnel.relay()
            order.append("relayed")
        else:
            tunnel.hand_over()
            order.append("handed over")
        with pytest.raises(RuntimeError, match="relayed already"):
            tunnel.hand_over()

    async def main() -> None:
        data = random.Random(1).randbytes(MIB)
        for head in (b"head ", b"hea"):
            order.clear()
            with Bench() as bench:
                async with tunnels(bench, carry) as carrier:
                    ends = bench.ends()
                    start(carrier, ends, head, b"answer")
                    async with asyncio.TaskGroup() as group:
                        group.create_task(send(ends.client, data))
                        there = group.create_task(read(ends.server, len(head) + MIB))
                    assert there.result() == b"HEA" + head[3:] + data
                    assert (carrier.get(ends.session) is None) == (how == "hand_over")
                    found = carrier.get(ends.session) or bench.relays.get(ends.session)
                    assert found is not None
                    assert found.counts == (len(head) + MIB, 0)
                    ends.client.shutdown(socket.SHUT_WR)
                    await send_and_end(ends.server, b"down")
                    assert await read_all(ends.client) == b"answerdown"
                    await ends.ended.wait()
                    assert order == ["relayed" if how == "relay" else "handed over"]
                    session = ends.session
                    assert (session.up, session.down, session.close) == (len(head) + MIB, 4, "client")

    run(main)


class Shout(Stage):
    """Passes everything on in capitals, and says when it was put on."""

    def __init__(self, mark: bytes, fails: bool = False) -> None:
        super().__init__()
        self.mark = mark
        self.fails = fails

    def attached(self) -> None:
        """Fail, where it is made to."""
        if self.fails:
            raise ZeroDivisionError("of the stage")

    def receive(self, data: bytes) -> None:
        """See `Stage`."""
        self.emit(self.mark + data.upper())


@pytest.mark.parametrize("how", ["relay", "hand_over"])
def test_the_rest_may_pass_through_stages(run: Run, how: str) -> None:
    """Those of a direction are in the order from its source on, and the head of the client passes through them too."""

    async def carry(tunnel: Tunnel) -> None:
        up, down = [Shout(b"1"), Shout(b"2")], [Shout(b"3")]
        if how == "relay":
            await tunnel.relay(up, down)
        else:
            tunnel.hand_over(up, down)

    async def main() -> None:
        with Bench() as bench:
            async with tunnels(bench, carry) as carrier:
                ends = bench.ends()
                start(carrier, ends, b"head", b"answer ")
                assert await read(ends.server, 6) == b"21HEAD"
                await send_and_end(ends.client, b"up")
                assert await read_all(ends.server) == b"21UP"
                await send_and_end(ends.server, b"down")
                assert await read_all(ends.client) == b"answer 3DOWN"
                await ends.ended.wait()
                assert (ends.session.up, ends.session.down, ends.session.close) == (10, 5, "client")

    run(main)


@pytest.mark.parametrize("how", ["relay", "hand_over"])
@pytest.mark.parametrize("wrong", ["fails", "twice"])
def test_a_stage_that_cannot_be_put_on(run: Run, caplog: pytest.LogCaptureFixture, how: str, wrong: str) -> None:
    """It is a failure of the carrier: both ends get a reset, the session has its line, and no stage stays on."""
    one, other = Shout(b"1"), Shout(b"2", fails=wrong == "fails")

    async def carry(tunnel: Tunnel) -> None:
        up = [one, other if wrong == "fails" else one]
        if how == "relay":
            await tunnel.relay(up)
        else:
            tunnel.hand_over(up)

    async def main() -> None:
        with Bench() as bench:
            async with tunnels(bench, carry) as carrier:
                ends = bench.ends()
                start(carrier, ends)
                for sock in (ends.client, ends.server):
                    with pytest.raises(ConnectionResetError):
                        await read_all(sock)
                await ends.ended.wait()
                error = "ZeroDivisionError" if wrong == "fails" else "ValueError"
                assert (ends.session.close, ends.session.error) == ("error", f"internal error: {error}")
                assert one.flow is other.flow is None

    caplog.set_level(logging.ERROR, "tabi")
    run(main)
    assert [record.getMessage() for record in caplog.records] == ["the carrier of session 1 failed"]
    caplog.clear()


def test_what_was_not_closed_is_closed_at_the_end(run: Run) -> None:
    """A carrier that returns has ended the session, in order."""

    async def carry(tunnel: Tunnel) -> None:
        await tunnel.client.send_all(memoryview(b"bye"))
        await tunnel.client.send_all(b"")

    async def main() -> None:
        with Bench() as bench:
            async with tunnels(bench, carry) as carrier:
                ends = bench.ends()
                start(carrier, ends)
                assert await read_all(ends.client) == b"bye"
                assert await read_all(ends.server) == b""
                await ends.ended.wait()
                assert (ends.session.close, ends.session.down) == ("server", 3)

    run(main)


@pytest.mark.parametrize("when", ["at once", "later", "relayed", "handed over"])
def test_what_a_carrier_raises(run: Run, caplog: pytest.LogCaptureFixture, when: str) -> None:
    """Both ends get a reset, the line says what it was, and the log has the traceback, once."""
    go_on = asyncio.Event()

    async def carry(tunnel: Tunnel) -> None:
        if when == "later":
            await tunnel.client.receive()
        if when == "relayed":
            await tunnel.relay()
        if when == "handed over":
            tunnel.hand_over()
            await tunnel.server.reactor.loop.create_task(go_on.wait())
        raise ZeroDivisionError("of the carrier")

    async def main() -> None:
        with Bench() as bench:
            async with tunnels(bench, carry) as carrier:
                ends = bench.ends()
                start(carrier, ends)
                await send(ends.client, b"x")
                if when == "relayed":
                    ends.client.shutdown(socket.SHUT_WR)
                    ends.server.shutdown(socket.SHUT_WR)
                    await ends.ended.wait()
                else:
                    go_on.set()
                    for sock in (ends.client, ends.server):
                        with pytest.raises(ConnectionResetError):
                            await read_all(sock)
                    await ends.ended.wait()
                assert (ends.session.close, ends.session.error) == ("error", "internal error: ZeroDivisionError")

    caplog.set_level(logging.ERROR, "tabi")
    run(main)
    (record,) = caplog.records
    assert record.getMessage() == "the carrier of session 1 failed"
    assert record.exc_info is not None
    assert record.exc_info[0] is ZeroDivisionError
    go_on.clear()


def test_a_carrier_that_raises_when_its_relay_has_ended(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    """The session is over already, with its line: only the log has it."""
    raising = asyncio.Event()

    async def carry(tunnel: Tunnel) -> None:
        tunnel.hand_over()
        await raising.wait()
        raise ZeroDivisionError

    async def main() -> None:
        raising.clear()
        with Bench() as bench:
            async with tunnels(bench, carry) as carrier:
                ends = bench.ends()
                start(carrier, ends)
                await send_and_end(ends.client, b"up")
                await send_and_end(ends.server, b"down")
                await ends.ended.wait()
                raising.set()
                await until(lambda: not carrier.active)
                assert ends.session.close in ("client", "server")

    run(main)
    assert len(caplog.records) == 1


@pytest.mark.parametrize("side", ["client", "server"])
@pytest.mark.parametrize("sending", [False, True])
def test_a_reset_is_no_failure_of_the_carrier(
    run: Run, caplog: pytest.LogCaptureFixture, side: str, sending: bool
) -> None:
    """A peer that resets its connection, found by tasks of a group: the other gets a reset, the log nothing."""

    async def main() -> None:
        with Bench() as bench:
            async with tunnels(bench, pump) as carrier:
                ends = bench.ends()
                start(carrier, ends)
                gone, other = (ends.client, ends.server) if side == "client" else (ends.server, ends.client)
                if sending:
                    fill(other)
                    await turns(20)
                reset(gone)
                if not sending:
                    with pytest.raises(ConnectionResetError):
                        await read_all(other)
                await ends.ended.wait()
                assert ends.session.close == "reset"
                assert ends.session.error in ("connection reset by peer", "broken pipe")

    run(main)
    assert not caplog.records


def test_an_error_of_a_socket_that_is_no_reset(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    """It has its own way in the line."""

    class Unreachable(socket.socket):
        """A socket whose peer cannot be reached any more."""

        def recv(self, *arguments: Any) -> bytes:
            raise OSError(errno.EHOSTUNREACH, os.strerror(errno.EHOSTUNREACH))

    async def main() -> None:
        with Bench() as bench:
            async with tunnels(bench, pump) as carrier:
                far, near = tcp_pair()
                gone = Unreachable(fileno=near.detach())
                gone.setblocking(False)
                ends = bench.ends(server=(far, gone))
                start(carrier, ends)
                await send(ends.server, b"x")
                await ends.ended.wait()
                assert (ends.session.close, ends.session.error) == ("error", "no route to host")

    run(main)
    assert not caplog.records


def test_a_client_that_was_reset_before_the_answer(run: Run) -> None:
    """The answer finds it out: a reset for the server, whatever the carrier does."""

    async def main() -> None:
        with Bench() as bench:
            async with tunnels(bench, wait_for_ever) as carrier:
                ends = bench.ends()
                reset(ends.client)
                start(carrier, ends, b"", b"answer")
                await ends.ended.wait()
                assert ends.session.close == "reset"
                with pytest.raises(ConnectionResetError):
                    await read(ends.server, 1)

    run(main)


@pytest.mark.parametrize("how", ["cut", "lease"])
@pytest.mark.parametrize("carry", [pump, Tunnel.relay, wait_for_ever])
def test_it_can_be_ended_from_outside(run: Run, how: str, carry: Carry) -> None:
    """By whoever asks for the session, or by its limits; once is enough. What was sent arrives."""

    async def main() -> None:
        with Bench() as bench:
            async with tunnels(bench, carry) as carrier:
                ends = bench.ends()
                accounts = Accounts(Ledger(), server=LimitsConfig(quota=Quota.parse("1 GB/day")))
                ends.session.lease = lease = accounts.admit(None, ends.session.client.host, 0, 0)
                assert lease is not None
                start(carrier, ends)
                if carry is not wait_for_ever:
                    await send(ends.client, b"up")
                    assert await read(ends.server, 2) == b"up"
                await turns()
                run_ = carrier.get(ends.session)
                assert run_ is not None
                if how == "cut":
                    run_.cut("by an operator", "kicked")
                    run_.cut("by another", "limit")
                else:
                    lease.end(LimitExceeded("limit: too long", "max_session"))
                assert (await read_all(ends.client), await read_all(ends.server)) == (b"", b"")
                await ends.ended.wait()
                expected = ("kicked", "by an operator") if how == "cut" else ("limit", "limit: too long")
                assert (ends.session.close, ends.session.error) == expected

    run(main)


def test_a_quota_ends_a_carrier(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    """No more is sent than may be; that is no failure of the carrier."""

    async def main() -> None:
        with Bench() as bench:
            async with tunnels(bench, pump) as carrier:
                ends = bench.ends()
                accounts = Accounts(Ledger(), server=LimitsConfig(quota=Quota.parse("100 kB/day")))
                ends.session.lease = accounts.admit(None, ends.session.client.host, 0, 0)
                start(carrier, ends)
                sending = asyncio.get_running_loop().create_task(send(ends.client, bytes(MIB)))
                await ends.ended.wait()
                session = ends.session
                assert (session.close, session.up) == ("limit", 100_000)
                assert session.error == "limit: server: the quota of 100 kB/day is used up"
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)

    run(main)
    assert not caplog.records


def test_who_waits_for_a_bucket_is_not_idle(run: Run) -> None:
    """Nor who waits for a relay; anybody else is, and ends so, also where a relay has ended before."""

    async def relay_and_wait(tunnel: Tunnel) -> None:
        await tunnel.relay()
        await wait_for_ever(tunnel)

    async def main() -> None:
        with Bench() as bench:
            async with tunnels(bench, pump) as carrier:
                ends = bench.ends()
                accounts = Accounts(Ledger(), server=LimitsConfig(bandwidth=Bandwidth.parse(40_000)))
                ends.session.lease = accounts.admit(None, ends.session.client.host, 0, 0)
                start(carrier, ends)
                await send(ends.client, bytes(12_000))
                run_ = carrier.get(ends.session)
                assert run_ is not None
                await until(lambda: run_ is not None and run_.paced)
                run_.expire()
                assert len(await read(ends.server, 12_000)) == 12_000
                await until(lambda: run_ is not None and not run_.paced)
                run_.expire()
                await ends.ended.wait()
                assert (ends.session.close, ends.session.up) == ("idle", 12_000)
            async with tunnels(bench, relay_and_wait) as carrier:
                ends = bench.ends()
                start(carrier, ends)
                run_ = carrier.get(ends.session)
                assert run_ is not None
                await until(lambda: run_.relayed is not None)
                run_.expire()
                await send_and_end(ends.client, b"up")
                assert await read_all(ends.server) == b"up"
                ends.server.shutdown(socket.SHUT_WR)
                assert await read_all(ends.client) == b""
                moved = run_.moved
                run_.expire()
                await ends.ended.wait()
                assert (ends.session.close, ends.session.up, moved) == ("idle", 2, 1)

    run(main)


def test_a_quiet_carrier_ends_as_idle(run: Run) -> None:
    """By itself, after the time of the relays; what was handed over has the time of a relay."""

    async def main() -> None:
        for carry in (wait_for_ever, hand_over_and_wait):
            with Bench(idle=0.05, half_closed=0.05) as bench:
                async with tunnels(bench, carry) as carrier:
                    ends = bench.ends()
                    start(carrier, ends)
                    await ends.ended.wait()
                    assert ends.session.close == "idle"
                    for run_ in carrier.active.values():
                        run_.expire()
                        assert not run_.task.cancelling()

    run(main)


def test_a_rule_says_how_long_a_carrier_may_be_quiet(run: Run) -> None:
    """As for relays: by the rule that has allowed its session."""

    async def main() -> None:
        with Bench(idle=100.0, half_closed=100.0) as bench:
            async with tunnels(bench, wait_for_ever) as carrier:
                bench.relays.rules.seconds = {"short": 5.0}
                ends, others = bench.ends(), bench.ends()
                ends.session.rule = "short"
                start(carrier, ends)
                start(carrier, others)
                carrier.quiet.sweep(monotonic() + 6)
                await ends.ended.wait()
                assert ends.session.close == "idle"
                assert others.session in carrier.active

    run(main)


async def hand_over_and_wait(tunnel: Tunnel) -> None:
    """Hand over, and do not end."""
    tunnel.hand_over()
    await wait_for_ever(tunnel)


@pytest.mark.parametrize("carry", [wait_for_ever, Tunnel.relay, hand_over_and_wait])
def test_shutdown_cancels_and_waits(run: Run, carry: Carry) -> None:
    """Each has its line, and no task is left."""

    async def main() -> None:
        with Bench() as bench:
            async with tunnels(bench, carry) as carrier:
                several = [bench.ends() for _ in range(3)]
                for ends in several:
                    start(carrier, ends)
                await turns()
            assert not carrier.active
            bench.relays.close("shutdown")
            for ends in several:
                assert ends.ended.is_set()
                assert ends.session.close == "shutdown"
                assert await read_all(ends.client) == b""

    run(main)


def test_a_carrier_that_was_cancelled_before_it_ran(run: Run) -> None:
    """Its streams are closed all the same."""

    async def main() -> None:
        with Bench() as bench:
            async with tunnels(bench, pump) as carrier:
                ends = bench.ends()
                start(carrier, ends)
                run_ = carrier.get(ends.session)
                assert run_ is not None
                run_.task.cancel()
                await ends.ended.wait()
                assert ends.session.close == "shutdown"
                assert await read_all(ends.client) == b""

    run(main)


def test_a_carrier_that_does_not_end(
    run_once: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Closing does not wait for it for ever: its session ends, and the log says so."""
    monkeypatch.setattr(module, "PATIENCE", 0.01)
    let_go: list[asyncio.Future[None]] = []

    async def carry(tunnel: Tunnel) -> None:
        let_go.append(asyncio.get_running_loop().create_future())
        while not let_go[0].done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.shield(let_go[0])
        with pytest.raises(RuntimeError):
            await tunnel.relay()

    async def main() -> None:
        with Bench() as bench:
            async with tunnels(bench, carry) as carrier:
                ends = bench.ends()
                start(carrier, ends)
                run_ = carrier.get(ends.session)
                assert run_ is not None
                await until(lambda: let_go)
            assert ends.session.close == "shutdown"
            assert await read_all(ends.client) == b""
            let_go[0].set_result(None)
            await run_.task

    run_once(main)
    assert [record.getMessage() for record in caplog.records] == ["the carrier of session 1 does not end"]


def test_a_stream_that_the_carrier_has_closed_cannot_be_relayed(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    """That is a fault of the carrier, and said so."""

    async def carry(tunnel: Tunnel) -> None:
        tunnel.server.close()
        await tunnel.relay()

    async def main() -> None:
        with Bench() as bench:
            async with tunnels(bench, carry) as carrier:
                ends = bench.ends()
                start(carrier, ends)
                await ends.ended.wait()
                assert (ends.session.close, ends.session.error) == ("error", "internal error: ConnectionAbortedError")

    run(main)
    assert len(caplog.records) == 1


# --- the head ---


def test_a_head_can_be_looked_at(run: Run) -> None:
    """With what has come behind it; it stays, and is received first, in pieces of any size."""
    seen: list[bytes] = []

    async def carry(tunnel: Tunnel) -> None:
        seen.append(await tunnel.client.peek(3))
        seen.append(await tunnel.client.peek(100, 4))
        seen.append(await tunnel.client.receive(2))
        seen.append(await tunnel.client.receive(100))
        while data := await tunnel.client.receive(100):
            seen.append(data)

    async def main() -> None:
        seen.clear()
        with Bench() as bench:
            async with tunnels(bench, carry) as carrier:
                ends = bench.ends()
                start(carrier, ends, b"head")
                await until(lambda: seen)
                await send_and_end(ends.client, b"behind")
                await ends.ended.wait()
        assert seen[:3] == [b"hea", b"headbehind", b"he"]
        assert b"".join(seen[3:]) == b"adbehind"

    run(main)


def test_tls_may_begin_in_the_head(run: Run) -> None:
    """A handshake and payload that were sent without waiting for the answer: a carrier that takes the TLS apart gets
    all of it."""

    async def carry(tunnel: Tunnel) -> None:
        await accept_tls(tunnel.client, server_context(), get_tls_shared())
        await tunnel.relay()

    async def main() -> None:
        with Bench() as bench:
            async with tunnels(bench, carry) as carrier:
                ends = bench.ends()
                peer = TlsPeer(ends.client, client_context())
                loop = asyncio.get_running_loop()
                sending = loop.create_task(peer.handshake())
                await ends.near_client.readable()
                head = await ends.near_client.receive(200)  # a part of the first message
                start(carrier, ends, head)
                await sending
                await peer.send(b"inside")
                assert await read(ends.server, 6) == b"inside"
                await send_and_end(ends.server, b"answer")
                assert await peer.read_all() == b"answer"
                await peer.end()
                await ends.ended.wait()
                assert ends.session.up == 6
                assert ends.session.down > 6  # the handshake too: that is what the carrier has sent

    run(main)


def test_a_head_below_something_else(run: Run) -> None:
    """As a socket for whatever is put upon it: reads go to the head first, all else to the socket below."""

    async def main() -> None:
        with Bench() as bench:
            ends = bench.ends()
            stream = ends.near_client
            sock = HeadSock(stream, b"head")
            above: Any = object()
            stream.sock = above
            with pytest.raises(OSError, match="not received"):
                sock.detach()
            assert sock.recv(10, MSG_PEEK) == b"head"
            buffer = bytearray(3)
            assert sock.recv_into(buffer) == 3
            assert buffer == b"hea"
            assert sock.recv_into(memoryview(bytearray(10))) == 1
            assert stream.sock is above
            await send(ends.client, b"behind")
            await until(lambda: ends.near_client.events)
            near: Any = sock.below
            await until(lambda: readable(near))
            assert sock.recv(3) == b"beh"
            assert sock.recv_into(buffer) == 3
            assert buffer == b"ind"
            assert sock.send(b"back") == 4
            assert await read(ends.client, 4) == b"back"
            stream.sock = near
            stream.reactor.forget(stream.fd)
            stream.fd = -1
            await turns()  # nobody is there to be told any more
            with socket.socket(fileno=sock.detach()):
                pass

    run(main)


def readable(sock: socket.socket) -> bool:
    """Whether octets have come."""
    try:
        return bool(sock.recv(1, socket.MSG_PEEK))
    except BlockingIOError:
        return False


def test_tls_errors_are_those_of_a_stream(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    """A client that breaks TLS inside a tunnel is no failure of the carrier."""

    async def carry(tunnel: Tunnel) -> None:
        await accept_tls(tunnel.client, server_context(), get_tls_shared())
        while await tunnel.client.receive():
            pass

    async def main() -> None:
        with Bench() as bench:
            async with tunnels(bench, carry) as carrier:
                ends = bench.ends()
                start(carrier, ends)
                peer = TlsPeer(ends.client, client_context(ssl.TLSVersion.TLSv1_2))
                await peer.handshake()
                await send(ends.client, b"no TLS any more")
                await ends.ended.wait()
                assert ends.session.close == "error"

    run(main)
    assert not caplog.records


class GivingBack(Stage):
    """Passes everything on up to a word, behind which its tunnel takes the streams back."""

    def __init__(self, tunnel: Tunnel) -> None:
        super().__init__()
        self.tunnel = tunnel
        self.kept: tuple[bytes, bytes] | None = None

    def receive(self, data: bytes) -> None:
        """See `Stage`."""
        if data == b"back":
            self.kept = self.tunnel._run.take_back()
        else:
            self.emit(data)


@pytest.mark.parametrize("at_once", [False, True])
def test_streams_are_taken_back_from_a_relay(run: Run, at_once: bool) -> None:
    """In the middle of its turn, or already at its start: the carrier goes on with both, and may relay again."""

    async def main() -> None:
        async def carry(tunnel: Tunnel) -> None:
            stage = GivingBack(tunnel)
            if at_once:
                HeadSock(tunnel.client, b"back")
            await tunnel.relay(up=[stage], down=[Stage()])
            assert stage.kept == (b"", b"")
            assert await tunnel.client.receive() == b"ours"
            await tunnel.server.send_all(b"from us")
            await tunnel.relay()

        with Bench() as bench:
            async with tunnels(bench, carry) as carrier:
                ends = bench.ends()
                start(carrier, ends)
                if not at_once:
                    await send(ends.client, b"first")
                    assert await read(ends.server, 5) == b"first"
                    await send(ends.client, b"back")
                    await turns()
                await send(ends.client, b"ours")
                assert await read(ends.server, 7) == b"from us"
                await send(ends.client, b"last")
                assert await read(ends.server, 4) == b"last"
                ends.client.close()
                await send_and_end(ends.server, b"")
                await ends.ended.wait()
                assert ends.session.up == len(b"from us" + b"last") + (0 if at_once else len(b"first"))

    run(main)


@pytest.mark.parametrize("relayed", [False, True])
def test_the_descriptor_of_the_client(run: Run, relayed: bool) -> None:
    """While the carrier has it, or a relay on its behalf."""

    async def carry(tunnel: Tunnel) -> None:
        if relayed:
            await tunnel.relay()
        else:
            await asyncio.Event().wait()

    async def main() -> None:
        with Bench() as bench:
            async with tunnels(bench, carry) as carrier:
                ends = bench.ends()
                number = ends.near_client.fd
                start(carrier, ends)
                await turns()
                found = carrier.get(ends.session)
                assert found is not None
                assert found.client_fd == number
                found.cut("over")
                assert found.client_fd < 0

    run(main)
