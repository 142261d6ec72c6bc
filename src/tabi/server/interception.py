"""Interception, composed from a configuration. It is imported only where a configuration has something to look into."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from tabi.ingress.gate import Gate
from tabi.intercept.authority import read_certificates
from tabi.intercept.contexts import ClientContexts, ServerContexts
from tabi.intercept.hooks import Hooks
from tabi.intercept.inspection import Recorder
from tabi.intercept.interception import Interception
from tabi.intercept.page import Page
from tabi.intercept.page_egress import PageEgress
from tabi.intercept.scripts import Scripts
from tabi.intercept.tls import Handshakes
from tabi.net.stream import Stream
from tabi.net.tls import TlsShared
from tabi.policy.intercepts import InterceptRule
from tabi.relay.first_octets import FirstOctets
from tabi.relay.relays import Relays
from tabi.server.compiled import Compiled
from tabi.server.intercept_files import authority_paths, load_authority
from tabi.session import Session


class RuleParts:
    """The hooks and the recorder of each ``[[intercept]]``.

    Args:
        given: hooks of a program: they see the flows of all entries, before those of scripts.
        recorder: of all entries; None where nothing is recorded.
    """

    def __init__(self, rules: Iterable[InterceptRule], given: Sequence[object], recorder: Recorder | None) -> None:
        self.all_of_them = recorder
        self.scripts = Scripts()
        self.made: dict[InterceptRule, Hooks] = {}
        for rule in rules:
            hooks = self.made[rule] = Hooks((), rule.hook_timeout, rule.on_error == "close")
            self.scripts.add(hooks, rule.scripts, given)
        self.scripts.start()

    def hooks(self, rule: InterceptRule) -> Hooks:
        """The hooks that see the flows of an entry."""
        return self.made[rule]

    def recorder(self, rule: InterceptRule) -> Recorder | None:
        """What gets the records of an entry."""
        return self.all_of_them

    def close(self) -> None:
        """Look at no script any more, and end the threads of hooks."""
        self.scripts.close()
        for hooks in self.made.values():
            hooks.close()


def make_interception(
    compiled: Compiled, relays: Relays, first: FirstOctets, gate: Gate, shared: TlsShared, given: Sequence[object]
) -> Interception:
    """Compose the carrier of what is intercepted. Raises ConfigError."""
    assert compiled.intercepts is not None
    config, timeouts = compiled.config, compiled.config.timeouts
    handshakes = None
    if compiled.intercepts.need_authority:
        own = TlsShared()
        own.turn = shared.turn
        authority = load_authority(config)
        handshakes = Handshakes(ServerContexts(authority), ClientContexts(), own, timeouts.connect, timeouts.handshake)

    async def reopen(session: Session) -> Stream:
        egress, address_filter = session.route
        assert session.destination is not None
        found: Stream = await egress.open(session.destination, address_filter, session)
        return found

    async def fetch(*asked: Any) -> Any:
        raise NotImplementedError

    return Interception(
        relays, first, compiled.intercepts, handshakes, RuleParts(compiled.intercepts, given, None), reopen, fetch
    )


def make_page(compiled: Compiled) -> PageEgress | None:
    """What leads to the page of the authority, at PAGE; None where nothing is signed. Raises ConfigError."""
    if compiled.intercepts is None or not compiled.intercepts.need_authority:
        return None
    certificate, _ = authority_paths(compiled.config)
    return PageEgress(Page(read_certificates(certificate)[0]))
