"""Reactor: every hosting calls the right handler, and leaves asyncio's own loop as it was."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import select
import signal
import socket
import sys
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any

import pytest

from conftest import Run, run_in_loop
from sockets import read, tcp_pair, turns, unix_pair, until
from tabi.net.reactor import (
    BUDGET,
    IN,
    LEAST,
    LOOKS,
    OUT,
    READABLE,
    SLOW,
    NestedReactor,
    PortableReactor,
    Prompt,
    Reactor,
    SelectorReactor,
    get_reactor,
    make_loop,
    make_reactor,
)
from tabi.net.selector import ReactorLoop


class Heard:
    """A handler that notes what it is told."""

    def __init__(self) -> None:
        self.events: list[int] = []

    def __call__(self, events: int) -> None:
        self.events.append(events)

    @property
    def readable(self) -> bool:
        """Whether it has been told that there is something to read."""
        return any(events & READABLE for events in self.events)


def listen_to(sock: socket.socket, handler: Callable[[int], object], events: int = IN) -> Reactor:
    """Register a handler and ask for events."""
    reactor = get_reactor()
    reactor.register(sock.fileno(), handler)
    reactor.watch(sock.fileno(), events)
    return reactor


# --- registering ---


def test_a_handler_hears_of_what_arrives(run: Run) -> None:
    """From registration on the handler is called when its socket can be read."""

    async def main() -> None:
        here, there = unix_pair()
        heard = Heard()
        with there:
            reactor = listen_to(here, heard)
            there.send(b"x")
            await until(lambda: heard.readable)
            assert here.recv(10) == b"x"
            reactor.close(here)

    run(main)


def test_a_handler_hears_of_room_to_write(run: Run) -> None:
    """A socket that was full and is read from is reported writable."""

    async def main() -> None:
        here, there = unix_pair()
        heard = Heard()
        with there:
            reactor = listen_to(here, heard, OUT)
            await until(lambda: any(events & OUT for events in heard.events))
            reactor.close(here)

    run(main)


def test_a_forgotten_descriptor_is_silent_and_open(run: Run) -> None:
    """After `forget` the handler is not called any more, but the socket is the caller's to use and register again."""

    async def main() -> None:
        here, there = unix_pair()
        first, second = Heard(), Heard()
        with there:
            reactor = listen_to(here, first)
            reactor.forget(here.fileno())
            reactor.forget(here.fileno())
            first.events.clear()
            there.send(b"x")
            await turns()
            assert first.events == []
            assert here.recv(10) == b"x"
            listen_to(here, second)
            there.send(b"y")
            await until(lambda: second.readable)
            assert first.events == []
            reactor.close(here)

    run(main)


def test_a_replaced_handler_hears_no_more(run: Run) -> None:
    """A relay takes descriptors over from their streams without a system call."""

    async def main() -> None:
        here, there = unix_pair()
        first, second = Heard(), Heard()
        with there:
            reactor = listen_to(here, first)
            await turns()
            first.events.clear()
            reactor.replace(here.fileno(), second)
            there.send(b"x")
            await until(lambda: second.readable)
            assert first.events == []
            reactor.close(here)

    run(main)


def test_a_listener_is_heard_until_everybody_is_accepted(run: Run) -> None:
    """Listening sockets are level-triggered: whoever is left in the backlog is reported again."""

    async def main() -> None:
        reactor = get_reactor()
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.setblocking(False)
            accepted: list[socket.socket] = []

            def accept(events: int) -> None:
                accepted.append(listener.accept()[0])

            reactor.register_listener(listener.fileno(), accept)
            clients = [socket.create_connection(listener.getsockname()) for _ in range(3)]
            await until(lambda: len(accepted) == 3)
            reactor.forget(listener.fileno())
            for sock in clients + accepted:
                sock.close()

    run(main)


def udp_pair() -> tuple[socket.socket, socket.socket]:
    """Two UDP sockets on 127.0.0.1, connected to each other, non-blocking."""
    pair = socket.socket(type=socket.SOCK_DGRAM), socket.socket(type=socket.SOCK_DGRAM)
    for sock in pair:
        sock.bind(("127.0.0.1", 0))
        sock.setblocking(False)
    for sock, peer in (pair, pair[::-1]):
        sock.connect(peer.getsockname())
    return pair


def test_a_reader_hears_of_each_arrival_and_never_of_room(run: Run) -> None:
    """What a datagram socket sends leaves room behind it every time: its handler is called for what comes in alone."""

    async def main() -> None:
        reactor = get_reactor()
        here, there = udp_pair()
        heard = Heard()
        with there:
            reactor.register_reader(here.fileno(), heard)
            for number in range(3):
                for _ in range(50):
                    here.send(b"x" * 1000)
                    await read(there, 1000)
                assert heard.events == []
                there.send(b"%d" % number)
                await until(lambda: heard.events)
                assert here.recv(10) == b"%d" % number
                await turns()
                assert not any(events & ~IN for events in heard.events)
                heard.events.clear()
            reactor.close(here)

    run(main)


def test_a_stream_does_hear_of_room(run: Run) -> None:
    """What `register_reader` is for: where edges tell of both, sending alone wakes the handler of `register`."""

    async def main() -> None:
        reactor = get_reactor()
        here, there = udp_pair()
        heard = Heard()
        with there:
            reactor.register(here.fileno(), heard)
            await turns()
            heard.events.clear()
            here.send(b"x")
            await read(there, 1)
            await turns()
            if reactor.edge_triggered:
                await until(lambda: heard.events)
            assert heard.events == [OUT] * reactor.edge_triggered
            reactor.close(here)

    run(main)


def test_a_reader_hears_what_was_there_before_it(run: Run) -> None:
    """A datagram that arrived between bind and register is an edge, too."""

    async def main() -> None:
        reactor = get_reactor()
        here, there = udp_pair()
        heard = Heard()
        with there:
            there.send(b"early")
            reactor.register_reader(here.fileno(), heard)
            await until(lambda: heard.readable)
            assert here.recv(10) == b"early"
            reactor.close(here)

    run(main)


def test_a_forgotten_reader_is_silent(run: Run) -> None:
    """As any other descriptor, and it can be registered again."""

    async def main() -> None:
        reactor = get_reactor()
        here, there = udp_pair()
        first, second = Heard(), Heard()
        with there:
            reactor.register_reader(here.fileno(), first)
            reactor.forget(here.fileno())
            there.send(b"x")
            await turns()
            assert first.events == []
            reactor.register_reader(here.fileno(), second)
            await until(lambda: second.readable)
            reactor.close(here)

    run(main)


def test_close_outside_a_turn_closes_at_once(run: Run) -> None:
    """The peer sees the end, the descriptor is free."""

    async def main() -> None:
        here, there = unix_pair()
        with there:
            reactor = listen_to(here, Heard())
            reactor.close(here)
            assert here.fileno() == -1
            assert await read(there, 1) == b""

    run(main)


def test_a_socket_that_was_never_registered_can_be_closed(run: Run) -> None:
    """Closing through the reactor is always right, also as the first thing that is asked of it."""

    async def main() -> None:
        here, there = unix_pair()
        get_reactor().forget(here.fileno())
        get_reactor().close(here)
        assert here.fileno() == -1
        there.close()

    run(main)


# --- a turn ---


def test_a_handler_that_raises_is_reported_and_the_others_go_on(run: Run) -> None:
    """One broken session does not take its neighbours along; the loop's exception handler hears of it."""

    async def main() -> None:
        reports: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: reports.append(context))
        (one, far_one), (two, far_two) = unix_pair(), unix_pair()
        heard = Heard()

        def broken(events: int) -> None:
            one.recv(10)
            raise ValueError("broken")

        def postponed() -> None:
            raise KeyError("postponed")

        reactor = listen_to(one, Heard())
        listen_to(two, heard)
        await turns()
        reactor.replace(one.fileno(), broken)
        heard.events.clear()
        later = Heard()
        reactor.later(postponed)
        reactor.later(lambda: later(1))
        far_one.send(b"x")
        far_two.send(b"x")
        await until(lambda: heard.readable and len(reports) >= 2 and later.events)
        assert {str(report["exception"]) for report in reports} == {"broken", "'postponed'"}
        for sock in (one, two):
            reactor.close(sock)
        far_one.close()
        far_two.close()

    run(main)


def test_events_of_a_closed_socket_never_reach_another(run: Run) -> None:
    """A handler closes two sockets of its batch and opens new ones: the new ones get none of the old ones' events."""

    async def main() -> None:
        reactor = get_reactor()
        pairs = [unix_pair() for _ in range(2)]
        fresh: list[socket.socket] = []
        wrong = Heard()
        numbers: set[int] = set()

        def replace_all(events: int) -> None:
            if fresh or not events & READABLE:
                return
            for here, _ in pairs:
                numbers.add(here.fileno())
                reactor.close(here)
            for _ in range(4):
                new = socket.socket()  # not connected: HUP and OUT would be its own events, IN is not
                new.bind(("127.0.0.1", 0))
                new.listen()
                new.setblocking(False)
                fresh.append(new)
                reactor.register_listener(new.fileno(), wrong)

        for here, _ in pairs:
            listen_to(here, replace_all)
        for _, there in pairs:
            there.send(b"x")
        await until(lambda: fresh)
        await turns()
        assert wrong.events == []
        assert all(here.fileno() == -1 for here, _ in pairs)
        if reactor.edge_triggered:
            assert numbers.isdisjoint(sock.fileno() for sock in fresh)
        for sock in fresh:
            reactor.close(sock)
        for _, there in pairs:
            there.close()

    run(main)


def test_later_comes_in_the_next_turn(run: Run) -> None:
    """What a handler puts off runs after the other handlers of the turn, once, though nothing becomes ready."""

    async def main() -> None:
        reactor = get_reactor()
        order: list[str] = []

        def first() -> None:
            order.append("first")
            reactor.later(lambda: order.append("second"))
            order.append("end of first")

        reactor.later(first)
        assert order == []
        await until(lambda: len(order) == 3)
        await turns()
        assert order == ["first", "end of first", "second"]

    run(main)


def test_what_is_put_off_does_not_starve_the_loop(run: Run) -> None:
    """A callback that puts itself off again and again leaves asyncio its turns."""

    async def main() -> None:
        reactor = get_reactor()
        count = 0

        def again() -> None:
            nonlocal count
            count += 1
            if count < 1000:
                reactor.later(again)

        reactor.later(again)
        await turns(3)
        assert 0 < count < 1000
        await until(lambda: count == 1000)

    run(main)


# --- send_at_end ---


def test_outside_a_turn_a_message_is_sent_at_once(run: Run) -> None:
    """There is no turn whose end it could wait for."""

    async def main() -> None:
        sent: list[bytes] = []
        get_reactor().send_at_end(sent.append, b"one")
        assert sent == [b"one"]

    run(main)


def in_a_turn(handler: Callable[[], object]) -> Callable[[], Coroutine[Any, Any, None]]:
    """An async main that has the reactor call a handler in a turn."""

    async def main() -> None:
        done: list[bool] = []

        def call() -> None:
            handler()
            done.append(True)

        get_reactor().later(call)
        await until(lambda: done)
        await turns()

    return main


def test_in_a_turn_messages_go_out_at_its_end_in_order(run: Run) -> None:
    """Handlers of one turn run first, then their messages go out back to back."""
    order: list[object] = []

    def handler() -> None:
        reactor = get_reactor()
        reactor.send_at_end(order.append, b"one")
        reactor.send_at_end(order.append, b"two")
        order.append("handler")

    run(in_a_turn(handler))
    assert order == ["handler", b"one", b"two"]


def test_flush_sends_before_what_must_come_behind(run: Run) -> None:
    """`flush` sends what was put off, once."""
    order: list[object] = []

    def handler() -> None:
        reactor = get_reactor()
        reactor.send_at_end(order.append, b"one")
        reactor.flush()
        order.append("behind")

    run(in_a_turn(handler))
    assert order == [b"one", "behind"]


def test_a_message_that_cannot_be_sent_harms_no_other(run: Run) -> None:
    """That a peer is gone is found by who reads from it."""
    sent: list[bytes] = []

    def refuse(data: bytes) -> None:
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

    def handler() -> None:
        reactor = get_reactor()
        reactor.send_at_end(refuse, b"lost")
        reactor.send_at_end(sent.append, b"kept")

    run(in_a_turn(handler))
    assert sent == [b"kept"]


def test_a_message_is_sent_before_its_socket_is_closed(run: Run) -> None:
    """A last reply and the close behind it in one turn: the peer gets the reply, then the end."""

    async def main() -> None:
        here, there = tcp_pair()
        with there:
            reactor = listen_to(here, Heard())

            def refuse(events: int) -> None:
                if events & READABLE:
                    reactor.send_at_end(here.send, b"refused")
                    reactor.close(here)

            reactor.replace(here.fileno(), refuse)
            there.send(b"x")
            await until(lambda: here.fileno() == -1)
            data = b""
            try:
                data = await read(there, 7)
            except ConnectionResetError:  # what was not read makes this a reset, behind the reply
                pass
            assert data == b"refused"

    run(main)


# --- hostings ---


def test_each_loop_has_one_reactor(run: Run) -> None:
    """Asked twice it is the same one; another loop has another."""

    async def main() -> Reactor:
        assert get_reactor() is get_reactor(asyncio.get_running_loop())
        return get_reactor()

    assert run(main) is not run(main)


def test_threads_with_loops_of_their_own_do_not_disturb_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """While one looks for loops that are closed, another may make a reactor or find the same ones."""

    class Disturbing:
        """A closed loop; while it is looked at, another thread does something."""

        def __init__(self, disturb: Callable[[object], object]) -> None:
            self.disturb = disturb

        def is_closed(self) -> bool:
            self.disturb(self)
            return True

    table: dict[Any, Any] = {}
    monkeypatch.setattr("tabi.net.reactor.reactors", table)
    for disturb in (lambda _: table.update({object(): None}), table.pop):
        table.clear()
        table.update({Disturbing(disturb): None for _ in range(3)})
        with contextlib.closing(asyncio.new_event_loop()) as loop:
            assert get_reactor(loop) is table[loop]
        assert not any(isinstance(old, Disturbing) for old in table)


@pytest.mark.parametrize(
    ("hosting", "kind"), [("selector", SelectorReactor), ("nested", NestedReactor), ("portable", PortableReactor)]
)
def test_the_hosting_can_be_chosen(monkeypatch: pytest.MonkeyPatch, hosting: str, kind: type[Reactor]) -> None:
    """TABI_REACTOR says which one runs."""
    monkeypatch.setenv("TABI_REACTOR", hosting)

    async def main() -> None:
        assert type(get_reactor()) is kind

    run_in_loop(main)


@pytest.mark.parametrize("unset", [None, ""])
def test_the_best_hosting_is_the_default(monkeypatch: pytest.MonkeyPatch, unset: str | None) -> None:
    """Our own loop hosts the reactor in its selector, where TABI_REACTOR is not set or empty."""
    monkeypatch.delenv("TABI_REACTOR", raising=False)
    if unset is not None:
        monkeypatch.setenv("TABI_REACTOR", unset)

    async def main() -> None:
        assert type(get_reactor()) is SelectorReactor

    run_in_loop(main)


def test_a_wrong_hosting_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A typing error in TABI_REACTOR is an error that says what it may be."""
    monkeypatch.setenv("TABI_REACTOR", "turbo")

    async def main() -> None:
        with pytest.raises(ValueError, match=r"TABI_REACTOR is 'turbo', expected one of selector, nested, portable"):
            get_reactor()

    run_in_loop(main)


@pytest.mark.usefixtures("asked_anew")
def test_another_platform_gets_the_portable_hosting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no epoll the loop's own readers and writers do."""
    monkeypatch.delenv("TABI_REACTOR", raising=False)
    monkeypatch.setattr(sys, "platform", "darwin")
    loop = make_loop()
    try:
        assert not isinstance(loop, ReactorLoop)
        assert type(make_reactor(loop, None)) is PortableReactor
    finally:
        loop.close()


@pytest.fixture
def foreign(monkeypatch: pytest.MonkeyPatch) -> Iterator[asyncio.AbstractEventLoop]:
    """Somebody else's loop."""
    monkeypatch.delenv("TABI_REACTOR", raising=False)
    loop = asyncio.new_event_loop()
    loop.set_debug(True)
    yield loop
    loop.close()


def epolls() -> int:
    """How many epolls this process has open."""
    count = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            count += os.readlink(f"/proc/self/fd/{name}") == "anon_inode:[eventpoll]"
        except OSError:
            continue
    return count


def test_a_foreign_loop_hosts_the_nested_reactor(foreign: asyncio.AbstractEventLoop) -> None:
    """An embedded Server works in anybody's loop, and nothing of it is left there when its sockets are closed."""
    before = epolls()

    async def main() -> None:
        reactor = get_reactor()
        assert type(reactor) is NestedReactor
        for _ in range(3):
            here, there = unix_pair()
            heard = Heard()
            with there:
                listen_to(here, heard)
                assert epolls() == before + 1
                there.send(b"x")
                while not heard.readable:
                    await asyncio.sleep(0)
                reactor.close(here)
            assert epolls() == before

    foreign.run_until_complete(asyncio.wait_for(main(), 20))


def test_the_last_socket_of_a_foreign_loop_may_go_in_a_turn(foreign: asyncio.AbstractEventLoop) -> None:
    """A handler that closes or forgets the only socket ends the nested epoll as well."""
    before = epolls()

    async def main() -> None:
        reactor = get_reactor()
        for end in ("close", "forget"):
            here, there = unix_pair()

            def last(events: int, here: socket.socket = here, end: str = end) -> None:
                if events & READABLE:
                    reactor.close(here) if end == "close" else reactor.forget(here.fileno())

            listen_to(here, last)
            there.send(b"x")
            await until(lambda: epolls() == before)
            here.close()
            there.close()

    foreign.run_until_complete(asyncio.wait_for(main(), 20))


def test_one_goes_and_one_comes_in_the_same_turn(run: Run) -> None:
    """A handler forgets the only socket and registers another: that one is heard, and nothing stays behind."""

    async def main() -> None:
        reactor = get_reactor()
        (old, far_old), (new, far_new) = unix_pair(), unix_pair()
        heard, before = Heard(), epolls()

        def change(events: int) -> None:
            if events & READABLE:
                reactor.forget(old.fileno())
                listen_to(new, heard)

        listen_to(old, change)
        during = epolls()
        far_old.send(b"x")
        far_new.send(b"x")
        await until(lambda: heard.readable)
        assert epolls() == during
        reactor.close(new)
        assert epolls() == before
        for sock in (old, far_old, far_new):
            sock.close()
        others = [unix_pair() for _ in range(8)]  # the loop must know none of their numbers already
        called: list[int] = []
        for here, there in others:
            asyncio.get_running_loop().add_reader(here, called.append, here.fileno())
            there.send(b"x")
        await until(lambda: set(called) == {here.fileno() for here, _ in others})
        for here, there in others:
            asyncio.get_running_loop().remove_reader(here)
            here.close()
            there.close()

    run(main)


def test_sockets_may_be_closed_after_their_loop(foreign: asyncio.AbstractEventLoop) -> None:
    """Whoever tidies up too late gets no error."""
    here, there = unix_pair()

    async def main() -> Reactor:
        return listen_to(here, Heard())

    reactor = foreign.run_until_complete(main())
    foreign.close()
    reactor.close(here)
    there.close()


# --- the time of a turn ---


class Clock:
    """A clock that only work moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The reactor's clock."""
    clock = Clock()
    monkeypatch.setattr("tabi.net.reactor.monotonic", clock)
    return clock


class Worker:
    """A handler that takes its time, and notes in which turn it was called."""

    def __init__(
        self, clock: Clock, seconds: float, calls: list[tuple[str, float]], name: str, sock: socket.socket | None = None
    ) -> None:
        self.clock, self.seconds, self.calls, self.name, self.sock = clock, seconds, calls, name, sock

    def on_ready(self, events: int = 0) -> None:
        if self.sock is not None:
            self.sock.recv(10)
        self.work(self.name)

    def work(self, name: str) -> None:
        self.calls.append((name, get_reactor().started))
        self.clock.now += self.seconds


class QuickWorker(Worker, Prompt):
    """One that never takes long."""


def test_a_turn_that_is_over_time_calls_only_what_is_prompt(run: Run, clock: Clock) -> None:
    """However many are ready with much to do: who has little to do is served in that turn, and the others in theirs, in
    the order in which they came."""

    async def main() -> None:
        pairs = [unix_pair() for _ in range(3 * LOOKS)]
        calls: list[tuple[str, float]] = []
        workers = [
            Worker(clock, BUDGET / LOOKS, calls, f"{index:02}", pair[0]) for index, pair in enumerate(pairs[:-1])
        ]
        workers.append(QuickWorker(clock, 0.0, calls, "quick", pairs[-1][0]))
        reactor = get_reactor()
        for (here, there), worker in zip(pairs, workers, strict=True):
            reactor.register_reader(here.fileno(), worker.on_ready)
            there.send(b"x")
        await until(lambda: {name for name, _ in calls} == {worker.name for worker in workers})
        turns_of: dict[float, list[str]] = {}
        for name, turn in calls:
            turns_of.setdefault(turn, []).append(name)
        first, *others = turns_of.values()
        assert "quick" in first
        names = list(dict.fromkeys(name for name, _ in calls if name != "quick"))
        if reactor.edge_triggered:
            assert names == sorted(names)
        assert len(first) <= LOOKS + 6  # those of a look, who is prompt, and some that had waited
        assert others
        assert all(len(set(turn) - {"quick"}) <= LOOKS + 5 for turn in others)
        for here, there in pairs:
            reactor.close(here)
            there.close()

    run(main)


def test_what_waits_for_time_is_forgotten_with_its_socket(run: Run, clock: Clock) -> None:
    """No event of a closed socket reaches another one that has its number now."""

    async def main() -> None:
        reactor = get_reactor()
        calls: list[tuple[str, float]] = []
        busy = [unix_pair() for _ in range(2 * LOOKS)]
        here, there = unix_pair()
        for sock, peer in busy:
            reactor.register_reader(sock.fileno(), Worker(clock, BUDGET, calls, "busy", sock).on_ready)
            peer.send(b"x")
        reactor.register_reader(here.fileno(), Worker(clock, 0.0, calls, "closed", here).on_ready)
        there.send(b"x")
        await until(lambda: here.fileno() in reactor.crowd or calls[-1:] == [("closed", reactor.started)])
        if here.fileno() in reactor.crowd:
            number = here.fileno()
            reactor.close(here)
            assert number not in reactor.crowd
            await until(lambda: not reactor.crowd)
            assert ("closed", reactor.started) not in calls
        else:
            reactor.close(here)
        there.close()
        for sock, peer in busy:
            reactor.close(sock)
            peer.close()

    run(main)


def test_what_was_put_off_shares_the_turns(run: Run, clock: Clock) -> None:
    """Who has had a share goes behind the others; a turn has time for some, for one at least."""

    async def main() -> None:
        reactor = get_reactor()
        calls: list[tuple[str, float]] = []
        for name in "abcdefgh":
            reactor.later(Worker(clock, BUDGET * 0.6, calls, name).on_ready)
        reactor.later(Worker(clock, 10 * BUDGET, calls, "long").on_ready)
        reactor.later(Worker(clock, 0.0, calls, "last").on_ready)
        await until(lambda: len(calls) == 10)
        assert [name for name, _ in calls] == [*"abcdefgh", "long", "last"]
        shares = [
            len([name for name, turn in calls if turn == started]) for started in dict.fromkeys(t for _, t in calls)
        ]
        assert shares == [2, 2, 2, 2, 1, 1]
        assert LEAST < BUDGET

    run(main)


def test_many_things_are_spread_over_turns(run: Run, clock: Clock) -> None:
    """Each is looked at once, in order; a turn in which others have their share comes between parts of them."""

    async def main() -> None:
        reactor = get_reactor()
        calls: list[tuple[str, float]] = []
        worker = Worker(clock, LEAST / 2.5, calls, "")
        reactor.spread("abcdefgh", lambda name: worker.work(name))
        assert "".join(name for name, _ in calls) == "abc"
        reactor.later(lambda: worker.work("other"))
        await until(lambda: len(calls) == 9)
        assert [name for name, _ in calls] == [*"abcdef", "other", *"gh"]

    run(main)


def test_a_task_waits_for_another_turn(run: Run, clock: Clock) -> None:
    """A task that has used up the time of a turn finds it out, and goes on in another one, behind what waits."""

    async def main() -> None:
        reactor = get_reactor()
        order: list[str] = []
        reactor.later(lambda: order.append("before"))
        await reactor.next_turn()
        order.append("task")
        assert not reactor.late()
        clock.now += BUDGET
        assert reactor.late()
        assert order == ["before", "task"]
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await reactor.next_turn()
        await reactor.next_turn()  # behind the one that was given up

    run(main)


def test_a_slow_turn_is_counted_and_its_culprit_told(run: Run, clock: Clock) -> None:
    """The owner of the handler that took most of it; none if no handler did."""

    async def main() -> None:
        reactor = get_reactor()
        told: list[tuple[float, Sequence[object], float]] = []
        reactor.watchdogs.append(lambda *about: told.append(about))
        calls: list[tuple[str, float]] = []
        here, there = unix_pair()
        slow, quick = Worker(clock, SLOW, calls, "slow", here), Worker(clock, SLOW / 4, calls, "quick")
        reactor.register_reader(here.fileno(), slow.on_ready)
        there.send(b"x")
        await until(lambda: told)
        assert [(round(seconds, 6), culprits, now) for seconds, culprits, now in told] == [(SLOW, [slow], clock.now)]
        slow.sock = None
        reactor.later(quick.on_ready)
        reactor.later(slow.on_ready)
        await until(lambda: len(told) == 2)
        assert told[1][1] == [slow]
        reactor.later(quick.on_ready)
        await until(lambda: calls[-1][0] == "quick")
        await turns()
        assert len(told) == reactor.slow_turns == 2
        reactor.close(here)
        there.close()

    run(main)


# --- beside asyncio ---


def test_asyncio_readers_and_writers_work_beside_the_reactor(run: Run) -> None:
    """add_reader, add_writer and their removal, by socket and by number, with a reactor in the same loop."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        get_reactor()
        here, there = unix_pair()
        with here, there:
            calls: list[str] = []
            loop.add_reader(here, calls.append, "read")
            loop.add_writer(here, calls.append, "write")
            await until(lambda: "write" in calls)
            assert "read" not in calls
            assert loop.remove_writer(here.fileno())
            there.send(b"x")
            await until(lambda: "read" in calls)
            assert loop.remove_reader(here)
            assert not loop.remove_reader(here)

    run(main)


def test_asyncio_transports_work_beside_the_reactor(run: Run) -> None:
    """Servers and clients of asyncio's own, in the loop that hosts the reactor."""

    async def main() -> None:
        get_reactor()

        async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(await reader.read())
            writer.close()
            await writer.wait_closed()

        data = bytes(range(256)) * 4096
        async with await asyncio.start_server(echo, "127.0.0.1", 0) as server:
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            writer.write(data)
            writer.write_eof()
            assert await reader.read() == data
            writer.close()
            await writer.wait_closed()
        await turns()

    run(main)


def test_asyncio_timers_threads_and_signals_work_beside_the_reactor(run: Run) -> None:
    """call_later, executors and signal handlers wake the loop that sleeps in the reactor's poll."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        get_reactor()
        timer, signalled = asyncio.Event(), asyncio.Event()
        began = loop.time()
        loop.call_later(0.02, timer.set)
        await timer.wait()
        assert loop.time() - began >= 0.019
        assert await loop.run_in_executor(None, lambda: 42) == 42
        loop.add_signal_handler(signal.SIGUSR1, signalled.set)
        os.kill(os.getpid(), signal.SIGUSR1)
        await signalled.wait()
        assert loop.remove_signal_handler(signal.SIGUSR1)

    run(main)


def test_asyncio_subprocesses_work_beside_the_reactor(run: Run) -> None:
    """A program can be started, fed, read and waited for."""

    async def main() -> None:
        get_reactor()
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec("cat", stdin=pipe, stdout=pipe)
        out, _ = await process.communicate(b"octets")
        assert out == b"octets"
        assert process.returncode == 0
        await turns()

    run(main)


def test_a_full_batch_is_taken_in_several_turns(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """More sockets become ready than one poll takes: each is heard once."""
    monkeypatch.setattr("tabi.net.reactor.BATCH", 2)
    monkeypatch.setattr("tabi.net.selector.BATCH", 2)

    async def main() -> None:
        pairs = [unix_pair() for _ in range(9)]
        heard = [Heard() for _ in pairs]
        reactor = get_reactor()
        for (here, _), handler in zip(pairs, heard, strict=True):
            listen_to(here, handler)
        for _, there in pairs:
            there.send(b"x")
        await until(lambda: all(handler.readable for handler in heard))
        for here, there in pairs:
            reactor.close(here)
            there.close()

    run(main)


def test_readiness_comes_once(run: Run) -> None:
    """On an epoll a socket that stays readable is not reported again and again: a wait costs no system call."""

    async def main() -> None:
        reactor = get_reactor()
        here, there = unix_pair()
        with there:
            heard = Heard()
            listen_to(here, heard)
            there.send(b"x")
            await until(lambda: heard.readable)
            count = len(heard.events)
            if not reactor.edge_triggered:
                reactor.watch(here.fileno(), 0)
            await turns(10)
            assert len(heard.events) == count
            reactor.close(here)

    run(main)


def test_the_kernels_numbers_are_the_ones_used() -> None:
    """The constants are written down so that they exist on every platform: they are Linux'."""
    assert (IN, OUT) == (select.EPOLLIN, select.EPOLLOUT)
    assert select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLERR | select.EPOLLHUP == READABLE


# --- another socket in the place of one ---


def test_a_socket_is_exchanged(run: Run) -> None:
    """The handler of a descriptor hears of the other socket, which has that number then; the one that was there is
    whole, with the octets that have come, and can be registered again."""

    async def main() -> None:
        reactor = get_reactor()
        here, there = tcp_pair()
        other, far = tcp_pair()
        heard, again = Heard(), Heard()
        number = here.fileno()
        with there, far:
            listen_to(here, heard, IN | OUT)
            there.send(b"early")
            await until(lambda: heard.readable)
            heard.events.clear()
            reactor.exchange(number, other).close()
            assert (here.fileno(), other.fileno()) == (number, -1)
            if not reactor.edge_triggered:
                assert isinstance(reactor, PortableReactor)
                assert reactor.watched[number] == IN | OUT
            await until(lambda: any(events & OUT for events in heard.events))
            heard.events.clear()
            far.send(b"late")
            await until(lambda: heard.readable)
            assert here.recv(100) == b"late"
            here.send(b"answer")
            assert await read(far, 6) == b"answer"
            reactor.close(here)

        here, there = tcp_pair()
        other, far = tcp_pair()
        with there, far:
            listen_to(here, heard)
            there.send(b"early")
            await until(lambda: heard.readable)
            before = reactor.exchange(here.fileno(), other)
            assert not before.get_inheritable()
            assert not os.get_inheritable(here.fileno())
            assert before.getpeername() == there.getsockname()
            listen_to(before, again)
            await until(lambda: again.readable)
            assert before.recv(100) == b"early"
            with pytest.raises(BlockingIOError):
                before.recv(100)
            reactor.close(before)
            reactor.close(here)
            assert await read(far, 1) == b""

    run(main)


def test_what_waits_for_its_turn_is_not_the_other_sockets(run_once: Run) -> None:
    """Events of a socket that wait for a turn with time for them are forgotten with it; it tells of them anew."""

    async def main() -> None:
        reactor = get_reactor()
        here, there = unix_pair()
        other, far = unix_pair()
        heard, again = Heard(), Heard()
        with there, far:
            listen_to(here, heard)
            reactor.crowd[here.fileno()] = READABLE
            there.send(b"early")
            before = reactor.exchange(here.fileno(), other)
            assert not reactor.crowd
            listen_to(before, again)
            await until(lambda: again.readable)
            assert not heard.readable
            reactor.close(before)
            reactor.close(here)

    run_once(main)


def test_an_exchange_that_is_not_possible(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a descriptor that nobody hears of, or without a free one: nothing has changed."""

    async def main() -> None:
        reactor = get_reactor()
        here, there = unix_pair()
        other, far = unix_pair()
        heard = Heard()
        with there, other, far:
            with pytest.raises(ValueError, match="is not registered"):
                reactor.exchange(here.fileno(), other)
            listen_to(here, heard)

            def fails(fd: int) -> int:
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

            monkeypatch.setattr(os, "dup", fails)
            with pytest.raises(OSError, match="Too many open files"):
                reactor.exchange(here.fileno(), other)
            monkeypatch.undo()
            there.send(b"x")
            await until(lambda: heard.readable)
            assert here.recv(10) == b"x"
            reactor.close(here)

    run(main)
