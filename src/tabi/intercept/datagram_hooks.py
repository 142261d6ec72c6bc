"""Shows the datagrams of associations to the hooks of the ``[[intercept]]`` that matches their destination.

Hooks that do not wait are called at once. Where one waits, the datagrams of the association wait in a queue, and go on
in their order.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from tabi.intercept.events import Connection, DatagramInfo, QuicInfo
from tabi.intercept.hooks import HookFailed, Hooks
from tabi.intercept.quic import QuicConnections, QuicHello
from tabi.policy.intercepts import InterceptRule, Intercepts
from tabi.relay.datagram_inspector import Datagram, DatagramInspector, Emit, Inspect, pass_on
from tabi.session import Drop, Session
from tabi.wire.address import Address

log = logging.getLogger("tabi")

MAX_CONNECTIONS = 256
"""Destinations of an association whose `Connection` is kept; the oldest ones are forgotten."""

MAX_WAITING, MAX_OCTETS, COST = 256, 1 << 18, 512
"""Datagrams of an association that wait for hooks, and what they take; what each takes beside its payload."""

MAX_HELD = 1 << 24
"""Octets of all associations that wait for hooks."""


class Waiting(NamedTuple):
    """A datagram that waits for hooks."""

    datagram: Datagram
    emit: Emit
    info: DatagramInfo
    hooks: Hooks

    @property
    def octets(self) -> int:
        """What it takes."""
        return len(self.datagram.payload) + COST


class DatagramHooks(DatagramInspector):
    """Shows datagrams to hooks.

    Args:
        intercepts: the entries.
        hooks: of each entry that has some. Which methods they have may change.
        inner: sees what hooks do not drop, and all else.
    """

    def __init__(
        self, intercepts: Intercepts, hooks: Mapping[InterceptRule, Hooks], inner: DatagramInspector | None = None
    ) -> None:
        self.intercepts = intercepts
        self.hooks = hooks
        self.inner = inner
        self.held = 0

    def begin(self, session: Session) -> Inspect | None:
        """See `DatagramInspector`: an association of which no hook wants to see anything is left to the inner one."""
        then = None if self.inner is None else self.inner.begin(session)
        if not self.intercepts.may_match(session, self.wants):
            return then
        association = HookedAssociation(self, session, then or pass_on)
        session.when_over(association.close)
        return association.inspect

    def wants(self, intercept: InterceptRule) -> bool:
        """Whether a hook of an entry wants to see datagrams."""
        hooks = self.hooks.get(intercept)
        return hooks is not None and bool(hooks.udp_data)


class HookedAssociation:
    """The datagrams of one association.

    Args:
        owner: has the entries and their hooks.
        session: of the association.
        then: what sees the datagrams that are not dropped.
    """

    def __init__(self, owner: DatagramHooks, session: Session, then: Inspect) -> None:
        self.owner = owner
        self.session = session
        self.then = then
        self.quic = QuicConnections()
        self.connections: dict[Address, Connection] = {}
        self.waiting: deque[Waiting] = deque()
        self.held = 0
        self.task: asyncio.Task[None] | None = None
        self.failed = False

    def inspect(self, datagram: Datagram, emit: Emit) -> None:
        """See `DatagramInspector`."""
        destination = datagram.named or datagram.address
        up = datagram.direction == "up"
        begun = [hello for hello in self.quic.read(destination, datagram.payload) if hello.found] if up else []
        known = begun or [hello for hello in self.quic.of(destination) if hello.found]
        name = known[-1].found.sni if known and known[-1].found else None
        intercept = self.owner.intercepts.match(self.session, name, destination)
        hooks = None if intercept is None else self.owner.hooks.get(intercept)
        if intercept is None or hooks is None or not hooks.udp_data:
            self.then(datagram, emit)
            return
        if self.session.intercepted is None:
            self.session.intercepted = intercept.label
        quic = info_of(begun[-1]) if begun else None
        info = DatagramInfo(self.connection_to(destination), datagram.direction, datagram.payload, quic)
        if self.task is not None or any(handler.waits for handler in hooks.udp_data):
            self.put(Waiting(datagram, emit, info, hooks))
            return
        try:
            hooks.show_event(hooks.udp_data, info)
        except HookFailed:
            self.drop("inspector")
        else:
            self.send_on(datagram, emit, info)

    def connection_to(self, destination: Address) -> Connection:
        """What hooks see of the association, for one destination."""
        found = self.connections.get(destination)
        if found is None:
            session = self.session
            client = str(session.client.host), session.client.port
            where = str(destination.host), destination.port
            found = Connection(f"{session.number:x}", client, session.user, session.listener, *where)
            if len(self.connections) >= MAX_CONNECTIONS:
                del self.connections[next(iter(self.connections))]
            self.connections[destination] = found
        return found

    def send_on(self, datagram: Datagram, emit: Emit, info: DatagramInfo) -> None:
        """Send what hooks have left of a datagram."""
        if info.dropped:
            self.drop("denied")
            return
        if info.payload is not datagram.payload:
            datagram = msgspec.structs.replace(datagram, payload=info.payload)
        self.then(datagram, emit)

    # --- hooks that wait ---

    def put(self, one: Waiting) -> None:
        """Have a datagram wait for its turn, if there is room for it."""
        held = self.held + one.octets
        if len(self.waiting) >= MAX_WAITING or held > MAX_OCTETS or self.owner.held + one.octets > MAX_HELD:
            self.drop("waiting")
            return
        self.hold(one.octets)
        self.waiting.append(one)
        if self.task is None:
            self.task = asyncio.get_running_loop().create_task(self.run(), name="tabi-datagrams")

    def hold(self, octets: int) -> None:
        """Count octets that wait, or no more."""
        self.held += octets
        self.owner.held += octets

    async def run(self) -> None:
        """Show what waits to hooks, one after another, and send it on."""
        while self.waiting:
            one = self.waiting.popleft()
            try:
                await one.hooks.on_event(one.hooks.udp_data, one.info)
                self.send_on(one.datagram, one.emit, one.info)
            except HookFailed:
                self.drop("inspector")
            except Exception:
                self.drop("inspector")
                if not self.failed:
                    self.failed = True
                    log.exception("session %d: the inspector of datagrams raised", self.session.number)
            finally:
                self.hold(-one.octets)
        self.task = None

    def close(self) -> None:
        """The association is over: what waits is dropped."""
        if self.task is not None:
            self.task.cancel()
        while self.waiting:
            self.hold(-self.waiting.popleft().octets)
            self.drop("waiting")

    def drop(self, reason: Drop) -> None:
        """Count a datagram that is not sent on."""
        drops = self.session.drops
        if drops is not None:
            drops[reason] = drops.get(reason, 0) + 1


def info_of(hello: QuicHello) -> QuicInfo:
    """What hooks see of a connection whose hello is whole."""
    found = hello.found
    assert found is not None
    return QuicInfo(hello.version, found.sni, tuple(name.decode("latin-1") for name in found.alpn), found.ja4)
