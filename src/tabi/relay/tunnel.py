"""Tunnels: a program's own carrier, an async function in a task for each session.

    async def carry(tunnel: Tunnel) -> None:
        greeting = await tunnel.server.receive()
        await tunnel.client.send_all(greeting)
        await tunnel.relay()

Whatever it does or raises, both streams are closed and the session ends with its line. What it sends is counted, and
kept within the session's limits.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Sequence
from typing import Any

from tabi.errors import LimitExceeded
from tabi.net.reactor import IN, OUT
from tabi.net.stream import MSG_PEEK, Sock, Stream
from tabi.net.timeouts import IdleTimeouts
from tabi.policy.limits import DOWN, UP
from tabi.relay.carrier import Carry
from tabi.relay.relays import Relays
from tabi.relay.stage import Stage
from tabi.session import Close, Session

log = logging.getLogger("tabi")

PIECE = 1 << 16
"""Octets after which a long send is counted."""

PATIENCE = 5.0
"""Seconds that a carrier which was cancelled may take to end."""


class HeadSock:
    """A socket with octets that were already read from it, to be read again. It removes itself when they are read.

    It stays if something else was put upon it, such as TLS.
    """

    def __init__(self, stream: Stream, head: bytes) -> None:
        self.stream = stream
        self.below: Any = stream.sock
        self.head = head
        sock: Any = self
        stream.sock = sock
        stream.events |= IN

    def __getattr__(self, name: str) -> Any:
        """Everything else is as in the socket below."""
        return getattr(self.below, name)

    def recv(self, size: int, flags: int = 0, /) -> bytes:
        """As recv(2). Octets that were looked at stay, and more behind them can be seen."""
        head = self.head
        if not head:
            return bytes(self.below.recv(size, flags))
        if flags & MSG_PEEK:
            try:
                return head[:size] + (self.below.recv(size - len(head), flags) if size > len(head) else b"")
            except BlockingIOError:
                return head
        self.head = head[size:]
        if not self.head:
            self.step_aside()
        return head[:size]

    def recv_into(self, buffer: bytearray | memoryview, /) -> int:
        """As recv_into(2)."""
        if not self.head:
            return int(self.below.recv_into(buffer))
        data = self.recv(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def detach(self) -> int:
        """Raises OSError while there are octets that the socket does not have any more."""
        if self.head:
            raise OSError(errno.EOPNOTSUPP, "the client has sent octets that were not received yet")
        return int(self.below.detach())

    def take(self) -> bytes:
        """Return the octets and remove itself."""
        head, self.head = self.head, b""
        self.step_aside()
        return head

    def step_aside(self) -> None:
        """Report what has arrived at the socket meanwhile: a reader that got less than it asked for waits for that."""
        if self.stream.sock is self:
            self.stream.sock = self.below
        self.stream.reactor.later(self.tell)

    def tell(self) -> None:
        """As an event would."""
        handler = self.stream.reactor.handlers.get(self.below.fileno())
        if handler is not None:
            handler(IN)


class TunnelStream(Stream):
    """One end of a tunnel. What is sent on it is counted, within the session's limits."""

    __slots__ = ("direction", "failures", "run")

    def __init__(self, stream: Stream, run: Run, direction: int) -> None:
        self.reactor = stream.reactor  # the socket is already registered there
        self.sock: Sock = stream.sock
        self.fd, self.events, self.peer, self.unsent = stream.fd, stream.events, stream.peer, stream.unsent
        self.expired = False
        self.burst = 0
        self.reader = self.writer = self.on_gone = None
        self.run = run
        self.direction = direction
        self.failures: list[OSError | None] = [None, None]  # the last of receiving, and of sending
        self.reactor.replace(self.fd, self.on_ready)
        stream.fd, stream.unsent = -1, b""

    def receive_nowait(self, size: int) -> bytes | None:
        """See `Stream.receive_nowait`."""
        try:
            data = super().receive_nowait(size)
        except OSError as exc:
            self.failures[0] = exc
            raise
        if data is not None:
            self.run.moved += 1
            if not data and self.run.first is None:
                self.run.first = "client" if self.direction == DOWN else "server"
        return data

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """See `Stream.send_all`.

        Raises:
            LimitExceeded: no more may be sent.
        """
        view = memoryview(data).cast("B")
        try:
            while True:
                count = min(len(view), PIECE)
                if count and self.run.lease is not None:
                    count = await self.run.pace(self.direction, count)
                await super().send_all(view[:count])
                self.run.note(self.direction, count)
                view = view[count:]
                if not view:
                    return
        except OSError as exc:
            self.failures[1] = exc
            raise


class Tunnel:
    """What a carrier gets: both ends of a session, and what is known of it.

    The client's end begins with what the client has sent already; the reply to its request is on its way.
    """

    __slots__ = ("_run", "client", "server", "session")

    def __init__(self, run: Run) -> None:
        self._run = run
        self.client: Stream = run.client
        self.server: Stream = run.server
        self.session = run.session

    async def relay(self, up: Sequence[Stage] = (), down: Sequence[Stage] = ()) -> None:
        """Have the kernel carry the rest, and return when that has ended. Both streams are closed then.

        Args:
            up: stages that pass on what the client sends, the one next to the client first. If a stage
                does not only count, this process copies the octets.
            down: stages for what the server sends, the one next to the server first.

        Raises:
            RuntimeError: it was handed over already.
            OSError: a stream is closed.
            ValueError: a stage is on a relay already.
        """
        await self._run.relay(join_stages(up, down))

    def hand_over(self, up: Sequence[Stage] = (), down: Sequence[Stage] = ()) -> None:
        """Have the kernel carry the rest, without a task: from now on the session has nothing to do with the carrier.

        Arguments and errors as `relay`.
        """
        self._run.hand_over(join_stages(up, down))


Stages = list[tuple[int, Stage]]
"""Each stage with its direction, UP or DOWN."""


def join_stages(up: Sequence[Stage], down: Sequence[Stage]) -> Stages:
    """The stages of both directions."""
    return [*((UP, stage) for stage in up), *((DOWN, stage) for stage in down)]


class Run:
    """One session of a carrier. The line of ``session`` is written when the task has ended."""

    def __init__(self, owner: Tunnels, client: Stream, server: Stream, session: Session) -> None:
        self.owner = owner
        self.session = session
        lease = session.lease
        self.lease = lease if lease is not None and lease.meters else None
        self.client = TunnelStream(client, self, DOWN)
        self.server = TunnelStream(server, self, UP)
        self.first: Close | None = None  # the side that was first seen to end
        self.reason: Close | None = None  # why it was ended from outside
        self.moved = self.paced = 0  # see `Moving`; how many sends wait for a bucket
        self.relayed: asyncio.Future[None] | None = None
        self.handed = self.finished = False
        self.task = asyncio.Task(owner.carry(Tunnel(self)), loop=owner.relays.reactor.loop)
        self.task.add_done_callback(self.over)

    # --- what moves ---

    @property
    def counts(self) -> tuple[int, int]:
        """See `Carried`."""
        relay = self.owner.relay_of(self.session)
        return (self.session.up, self.session.down) if relay is None else relay.counts

    @property
    def client_fd(self) -> int:
        """See `Carried`."""
        relay = self.owner.relay_of(self.session)
        return self.client.fd if relay is None else relay.client_fd

    def note(self, direction: int, count: int) -> None:
        """So many octets were sent."""
        self.moved += 1
        if direction == UP:
            self.session.up += count
        else:
            self.session.down += count

    async def pace(self, direction: int, most: int) -> int:
        """Wait until octets may be sent; how many. Raises LimitExceeded."""
        assert self.lease is not None
        self.paced += 1
        try:
            return await self.owner.relays.pacer.take(self.lease, direction, most)
        finally:
            self.paced -= 1

    def send_answer(self, answer: bytes) -> None:
        """Send the reply; a client that was reset meanwhile says so here, and only once."""
        try:
            self.client.sock.send(answer)
        except OSError:
            self.reason = self.reason or "reset"
            self.close_streams(True)
            self.task.cancel()

    # --- relays ---

    def give(self) -> bytes:
        """Prepare both streams for a relay; returns what the client has sent and the carrier has not received."""
        if self.relayed is not None or self.handed or self.finished:
            raise RuntimeError("the tunnel is relayed already")
        for stream in (self.client, self.server):
            stream.check()
            stream.wake_waiting(ConnectionAbortedError("the stream was handed over"))
        sock: Any = self.client.sock
        return sock.take() if isinstance(sock, HeadSock) else b""

    async def relay(self, stages: Stages) -> None:
        """See `Tunnel.relay`."""
        head, relays = self.give(), self.owner.inner
        self.relayed = relayed = relays.reactor.loop.create_future()
        try:
            relays.start(self.client, self.server, self.session, b"", head, stages)
        except BaseException:
            self.relayed = None  # it never began
            raise
        try:
            await relayed
        finally:
            relay = relays.get(self.session)
            if relay is not None:  # the task that waits was cancelled
                relay.close(self.reason or "shutdown")
            if self.session.lease is not None:
                self.session.lease.cut = self.cut
            self.moved += 1

    def take_back(self) -> tuple[bytes, bytes]:
        """Take both streams back from the relay that carries them just now; see `Relay.release`. `relay` returns."""
        relay = self.owner.inner.active[self.session]
        fds = relay.up.source_fd, relay.down.source_fd
        kept = relay.release()
        for stream, fd in zip((self.client, self.server), fds, strict=True):
            stream.fd = fd
            stream.events = IN | OUT
            stream.reactor.replace(fd, stream.on_ready)
        relayed, self.relayed = self.relayed, None
        assert relayed is not None
        relayed.set_result(None)
        return kept

    def hand_over(self, stages: Stages) -> None:
        """See `Tunnel.hand_over`."""
        head = self.give()
        self.owner.relays.start(self.client, self.server, self.session, b"", head, stages)
        self.handed = True

    # --- the end ---

    @property
    def rule(self) -> str | None:
        """See `Moving`."""
        return self.session.rule

    def expire(self) -> None:
        """See `Moving`. A relay has its own idle time, and a carrier that waits for a bucket is not idle."""
        if not self.handed and not self.paced and (self.relayed is None or self.relayed.done()):
            self.end("idle")

    def cut(self, why: str, reason: Close = "limit") -> None:
        """See `Carried`."""
        relay = self.owner.relay_of(self.session)
        if relay is not None:
            relay.cut(why, reason)
        elif self.reason is None and not self.finished:
            if self.relayed is None:
                self.session.error = why
            self.end(reason if self.relayed is None else self.session.close)  # as the relay has set it

    def end(self, reason: Close) -> None:
        """End the task and both streams."""
        self.reason = self.reason or reason
        self.task.cancel()
        self.close_streams(False)

    def close_streams(self, reset: bool) -> None:
        """Close both, if the carrier has not done that. Harmless when done twice."""
        for stream in (self.client, self.server):
            stream.reset() if reset else stream.close()

    def over(self, task: asyncio.Task[object]) -> None:
        """The task has ended, or will not."""
        error = task.exception() if task.done() and not task.cancelled() else None
        if self.finished:
            return
        self.finished = True
        self.owner.forget(self)
        reason = None if error is None else self.explain(error)
        if self.handed:
            relay = self.owner.relays.get(self.session)
            if reason is not None and relay is not None:
                relay.fail(self.session.error or "")
        else:
            self.close_streams(error is not None)
            self.session.close = self.reason or reason or self.ending(task.cancelled())
            self.owner.relays.done(self.session)
        # They refer to each other in circles, and the collector, which is to have nothing to do, comes by seldom.
        self.client.failures = self.server.failures = [None, None]
        del self.client, self.server

    def ending(self, cancelled: bool) -> Close:
        """How a carrier has ended that has raised nothing, and was not ended from outside."""
        if cancelled:
            return "shutdown"
        return self.first or "server" if self.relayed is None else self.session.close  # as the relay has set it

    def explain(self, error: BaseException) -> Close:
        """Record what a carrier has raised: in the session, and in the log if neither a peer nor a limit caused it."""
        session, leaves = self.session, leaves_of(error)
        known = self.client.failures + self.server.failures
        strange = next((leaf for leaf in leaves if not isinstance(leaf, LimitExceeded) and leaf not in known), None)
        if strange is not None:
            log.error("the carrier of session %x failed", session.number, exc_info=error)
            session.error = f"internal error: {type(strange).__name__}"
            return "error"
        leaf = leaves[0]
        if isinstance(leaf, OSError):
            session.error = (leaf.strerror or str(leaf)).lower()
            return "reset" if isinstance(leaf, ConnectionError) else "error"
        session.error = str(leaf)
        return "limit"


def leaves_of(error: BaseException) -> list[BaseException]:
    """What a task group has collected, or the error itself."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for part in error.exceptions for leaf in leaves_of(part)]
    return [error]


class Tunnels:
    """The carrier that runs a program's own: see `Carrier`.

    Args:
        carry: is called with a tunnel for each session (`carry_of`).
        relays: carry what is handed over, and are told of every session that has ended.
    """

    def __init__(self, carry: Carry, relays: Relays) -> None:
        self.carry = carry
        self.relays = relays
        self.inner = relays.sibling(self.relay_ended)
        self.quiet = IdleTimeouts(relays.reactor, relays.idle, relays.rules)
        self.active: dict[Session, Run] = {}

    def start(self, client: Stream, server: Stream, session: Session, answer: bytes, head: bytes) -> None:
        """See `Carrier.start`."""
        run = self.active[session] = Run(self, client, server, session)
        self.quiet.watch(run)
        if session.lease is not None:
            session.lease.cut = run.cut
        if head:
            HeadSock(run.client, head)
        if answer:
            self.relays.reactor.send_at_end(run.send_answer, answer)

    def get(self, session: Session) -> Run | None:
        """See `Carrier.get`."""
        return self.active.get(session)

    def relay_of(self, session: Session) -> Any:
        """The relay that carries a session just now, or None."""
        return self.inner.get(session) or self.relays.get(session)

    def relay_ended(self, session: Session) -> None:
        """Called by each relay that a carrier waits for."""
        relayed = self.active[session].relayed
        assert relayed is not None
        if not relayed.done():
            relayed.set_result(None)

    def forget(self, run: Run) -> None:
        """A session has ended, or the relays have it."""
        self.active.pop(run.session, None)
        self.quiet.forget(run)

    async def close(self, reason: Close) -> None:
        """Cancel all that run, and wait for their end."""
        runs = tuple(self.active.values())
        for run in runs:
            run.reason = run.reason or reason
            run.task.cancel()
        try:
            if runs:
                await asyncio.wait([run.task for run in runs], timeout=PATIENCE)
        finally:
            for run in runs:
                if not run.task.done():
                    log.error("the carrier of session %x does not end", run.session.number)
                run.over(run.task)
            self.quiet.close()
            self.inner.close(reason)
