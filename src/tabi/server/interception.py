"""Interception, composed from a configuration. It is imported only where a configuration has something to look into."""

from __future__ import annotations

import asyncio
import socket
import weakref
from collections.abc import Callable, Iterable, Sequence

import msgspec

from tabi.config import Ca
from tabi.config.compile import make_intercepts
from tabi.errors import ConfigError
from tabi.ingress.gate import Gate
from tabi.intercept.authority import read_certificates
from tabi.intercept.contexts import ClientContexts, ServerContexts
from tabi.intercept.datagram_hooks import DatagramHooks
from tabi.intercept.hooks import Hooks
from tabi.intercept.interception import Interception
from tabi.intercept.page import Page
from tabi.intercept.page_egress import PageEgress
from tabi.intercept.quic_filter import QuicFilter, refuses
from tabi.intercept.recorder import Recorder
from tabi.intercept.scripts import Scripts
from tabi.intercept.tls import Handshakes
from tabi.intercept.writer import ThreadSink
from tabi.net.stream import Stream
from tabi.net.tls import TlsShared
from tabi.parts.intercept import Intercept
from tabi.policy.intercepts import InterceptRule
from tabi.relay.datagram_inspector import DatagramInspector
from tabi.relay.first_octets import FirstOctets
from tabi.relay.relays import Relays
from tabi.server.compiled import Compiled
from tabi.server.intercept_files import authority_paths, check_interception, load_authority
from tabi.server.record_writer import SocketSink
from tabi.server.rerouting import Rerouting
from tabi.session import Close, Session


class RuleParts:
    """The hooks and the recorder of each ``[[intercept]]``.

    Args:
        given: hooks of a program: they see the flows of all entries, before those of scripts.
        recorder: of the entries that record or print; None if there is no place for records.
    """

    def __init__(self, given: Sequence[object] = (), recorder: Recorder | None = None) -> None:
        self.given = tuple(given)
        self.writer = recorder
        self.scripts = Scripts()
        self.made: dict[InterceptRule, Hooks] = {}

    def prepare(self, intercepts: Iterable[InterceptRule]) -> dict[InterceptRule, Hooks]:
        """The hooks of other entries; equal entries keep theirs. Raises ConfigError: a script cannot be loaded. Nothing
        has changed then."""
        found: dict[InterceptRule, Hooks] = {}
        try:
            for rule in intercepts:
                if rule.action == "intercept":
                    found[rule] = self.made.get(rule) or self.make(rule)
        except ConfigError:
            self.forget(found)
            raise
        return found

    def take(self, found: dict[InterceptRule, Hooks]) -> None:
        """Use what `prepare` has found from now on."""
        before, self.made = self.made, found
        self.forget(before)
        self.scripts.start()

    def forget(self, hooks: dict[InterceptRule, Hooks]) -> None:
        """Let go of hooks that are no more used for new flows. Their threads end with the last flow that has them."""
        for rule, one in hooks.items():
            if self.made.get(rule) is not one:
                self.scripts.forget(one)
                weakref.finalize(one, one.threads.close)

    def make(self, rule: InterceptRule) -> Hooks:
        """The hooks of one entry. Raises ConfigError."""
        hooks = Hooks((), rule.hook_timeout, rule.on_error == "close")
        try:
            self.scripts.add(hooks, rule.scripts, self.given)
        except ConfigError as exc:
            path = "--script" if rule.label.startswith("--") else f"intercept[{rule.number}].scripts"
            raise ConfigError(str(exc), path) from None
        return hooks

    def hooks(self, rule: InterceptRule) -> Hooks:
        """The hooks that see the flows of an entry."""
        hooks = self.made.get(rule)
        if hooks is None:  # chosen just before a reload
            hooks = self.made[rule] = self.make(rule)
        return hooks

    def see_octets(self) -> bool:
        """Whether a hook wants to see octets that are neither TLS nor HTTP."""
        return any(hooks.tcp_data for hooks in self.made.values())

    def recorder(self, rule: InterceptRule) -> Recorder | None:
        """What gets the records of an entry; None if it wants none."""
        return self.writer if rule.har is not None or rule.print else None

    def slow_since(self, when: float) -> str | None:
        """The hook that was slow in the loop since a moment (`time.monotonic`), for the watchdog."""
        return next((name for hooks in self.made.values() if (name := hooks.slow_since(when)) is not None), None)

    async def aclose(self) -> None:
        """End the threads of hooks, look at scripts no more, and have written what was recorded."""
        self.scripts.close()
        for hooks in self.made.values():
            hooks.close()
        if self.writer is not None:
            await self.writer.aclose()


def make_interception(
    compiled: Compiled,
    relays: Relays,
    gate: Gate,
    shared: TlsShared,
    hooks: Sequence[object] = (),
    recorder: Recorder | None = None,
) -> Interception:
    """Compose the carrier of what is intercepted; `replace` gives it what it intercepts. Raises ConfigError."""
    assert compiled.intercepts is not None

    async def reopen(session: Session) -> Stream:
        egress, address_filter = session.route
        assert session.destination is not None
        found: Stream = await egress.open(session.destination, address_filter, session)
        return found

    first = FirstOctets(relays.reactor, relays, compiled.config.timeouts.handshake)
    parts = RuleParts(hooks, recorder)
    timeouts = compiled.config.timeouts
    rerouting = Rerouting(gate, ClientContexts(), shared, timeouts.connect, timeouts.idle)
    return Interception(relays, first, compiled.intercepts, None, parts, reopen, rerouting.fetch)


def make_handshakes(compiled: Compiled, shared: TlsShared) -> Handshakes:
    """What opens TLS, with the authority of a configuration. Raises ConfigError."""
    timeouts = compiled.config.timeouts
    own = TlsShared()
    own.turn = shared.turn
    contexts = ServerContexts(load_authority(compiled.config))
    return Handshakes(contexts, ClientContexts(), own, timeouts.connect, timeouts.handshake)


def prepare(interception: Interception, compiled: Compiled, shared: TlsShared) -> Callable[[], None]:
    """Prepare to intercept by a configuration; calling what is returned begins. Sessions that run go on as they began.

    Raises:
        ConfigError: a script or the authority cannot be loaded. Nothing has changed then.
    """
    intercepts, rules = compiled.intercepts, rules_of(interception)
    assert intercepts is not None
    handshakes = interception.handshakes
    if handshakes is None and intercepts.need_authority:
        handshakes = make_handshakes(compiled, shared)
    hooks = rules.prepare(intercepts)

    def begin() -> None:
        interception.intercepts, interception.handshakes = intercepts, handshakes
        rules.take(hooks)

    return begin


def compile_piece(compiled: Compiled, piece: Intercept) -> Compiled:
    """The configuration of a server, with what a piece says of interception. Raises ConfigError."""
    ca = compiled.config.ca if piece.authority is None else Ca(*piece.authority)
    config = msgspec.structs.replace(compiled.config, intercept=list(piece.entries), ca=ca)
    intercepts = make_intercepts(config, compiled.users)
    assert intercepts is not None
    check_interception(config, intercepts)
    return compiled._replace(config=config, intercepts=intercepts)


def rules_of(interception: Interception) -> RuleParts:
    """What its entries work with, as it was composed here."""
    rules = interception.rules
    assert isinstance(rules, RuleParts)
    return rules


def make_recorder(records: socket.socket | None, loop: asyncio.AbstractEventLoop) -> Recorder:
    """What takes records to the process that writes them, or where there is none to a thread."""
    return Recorder(ThreadSink() if records is None else SocketSink(records, loop))


def make_inspector(interception: Interception, inner: DatagramInspector | None) -> DatagramInspector | None:
    """What sees datagrams: that of a program, behind hooks where there are any, and these behind the filter for QUIC
    where an entry refuses it."""
    intercepts, hooks = interception.intercepts, rules_of(interception).made
    if rules_of(interception).scripts.uses_objects:  # a script that changes may want datagrams later
        inner = DatagramHooks(intercepts, hooks, inner)
    return QuicFilter(intercepts, inner) if any(map(refuses, intercepts)) else inner


def make_page(compiled: Compiled) -> PageEgress:
    """What leads to the page of the authority, at PAGE. Raises ConfigError."""
    certificate, _ = authority_paths(compiled.config)
    return PageEgress(Page(read_certificates(certificate)[0]))


async def close_interception(interception: Interception, reason: Close = "shutdown") -> None:
    """End all of its sessions, then what their hooks need; then have written what was recorded."""
    await interception.close(reason)
    interception.first.close(reason)
    await rules_of(interception).aclose()
