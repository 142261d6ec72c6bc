"""Whether a session would be looked into, by which entry, and what another name in the client's hello would change."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, Any

import msgspec

from tabi.session import Session
from tabi.wire.address import Address

if TYPE_CHECKING:
    from tabi.policy.intercepts import InterceptRule, Intercepts

SETTINGS = ("tls", "verify", "on_pinning", "on_invalid", "on_error", "mismatch", "quic", "har", "scripts")
"""What is told of the entry that decides, if it is set."""


class InterceptStep(msgspec.Struct):
    """The answer of one entry."""

    entry: str
    matched: bool
    why: str
    action: str


class Interception(msgspec.Struct):
    """Whether a session would be looked into."""

    action: str = "none"
    """``intercept``, ``pass`` if an entry exempts it, ``none`` if no entry matches."""
    by: str | None = None
    """The entry that decides."""
    entries: list[InterceptStep] = []
    """The answer of each entry, up to the one that decides."""
    hello: list[str] = []
    """What a hello for another name would change."""
    settings: dict[str, Any] = {}
    """What the entry says."""


def explain_interception(
    intercepts: Intercepts, session: Session, addresses: Sequence[IPv4Address | IPv6Address], sni: str | None
) -> Interception | None:
    """Whether a session that is allowed would be looked into; None if its command has nothing to look into.

    Args:
        intercepts: the entries.
        session: its destination is known, and its way out.
        addresses: of the destination, the one to be dialled first.
        sni: the name in the client's hello. Default: that of the destination, or none.
    """
    from tabi.policy.intercepts import COMMANDS

    assert session.destination is not None
    if session.command not in COMMANDS:
        return None
    if addresses:
        session.address = Address(addresses[0], session.destination.port)
    found = Interception()
    for step in intercepts.explain(session, sni):
        rule = step.intercept
        found.entries.append(InterceptStep(rule.label, step.matched, step.why, rule.action))
        if step.matched:
            found.action, found.by = rule.action, rule.label
            found.settings = settings_of(rule)
    if sni is None and session.command != "forward":
        found.hello = intercepts.by_hello(session)
    return found


def settings_of(rule: InterceptRule) -> dict[str, Any]:
    """What an entry says, for people and for JSON."""
    if rule.action == "pass":
        return {}
    return {key: value for key in SETTINGS if (value := getattr(rule, key)) not in (None, ())}


def opens_tls(found: Interception | None) -> bool:
    """Whether the TLS of a session would be opened."""
    return found is not None and bool(found.settings.get("tls"))


def lines_of(found: Interception) -> Iterator[str]:
    """The answer for people."""
    width = max((len(step.entry) for step in found.entries), default=0)
    for step in found.entries:
        yield f"{step.entry:{width}}  {f'yes, {step.action}' if step.matched else 'no':14}  {step.why}"
    if found.action == "none":
        yield "none matches: it is passed on as it is"
    yield from found.hello
    if found.settings:
        yield ", ".join(f"{key} {shown(value)}" for key, value in found.settings.items())


def shown(value: object) -> str:
    """One setting."""
    if isinstance(value, bool):
        return str(value).lower()
    return " ".join(value) if isinstance(value, tuple) else str(value)
