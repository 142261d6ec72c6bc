"""Gates for tests, with who asks them."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from time import monotonic
from types import SimpleNamespace
from typing import Any

import msgspec

from doubles import FakeResolver
from tabi.config import Config, RuleConfig, make_config
from tabi.config.compile import make_guard, make_limits, make_rule_set
from tabi.egress.base import Egress
from tabi.egress.direct import Direct
from tabi.ingress.gate import Gate
from tabi.net.dial import Dialer
from tabi.net.reactor import get_reactor
from tabi.observe.metrics import Metrics
from tabi.policy.hook import DecideHook
from tabi.policy.ledger import Ledger
from tabi.policy.policy import Policy
from tabi.session import Session
from tabi.wire.address import Address, parse_host

HERE: Any = SimpleNamespace(events=0)
"""A client that waits."""

NAMES = {"inner.test": ["10.0.0.1"], "outer.test": ["8.8.8.8"], "both.test": ["8.8.8.8", "10.0.0.1"]}


def make_policy(config: Config, decide_hook: DecideHook | None = None) -> Policy:
    """What decides by a configuration."""
    return Policy(make_rule_set(config), make_guard(config), make_limits(config, Ledger()), decide_hook)


@contextlib.asynccontextmanager
async def gate(
    *rules: RuleConfig, decide_hook: DecideHook | None = None, patience: float = 0.05, **parts: Any
) -> AsyncIterator[Gate]:
    """A gate with a resolver that knows three names, and an egress beside the direct one."""
    config = msgspec.structs.replace(make_config(parts), rule=list(rules))
    dialer = Dialer(get_reactor(), FakeResolver(NAMES), 1)
    egresses: dict[str, Egress] = {"direct": Direct(dialer), "other": Direct(dialer)}
    egresses["other"].name = "other"
    found = Gate(make_policy(config, decide_hook), dialer, egresses, Metrics(), patience)
    try:
        yield found
    finally:
        found.close()
        await dialer.close()


def session(
    host: str = "outer.test", port: int = 443, user: str | None = "alice", client: str = "203.0.113.9"
) -> Session:
    """One that asks for a destination."""
    made = Session(1, "mixed://127.0.0.1:1080", Address(parse_host(client), 5000), monotonic())
    made.user, made.command, made.protocol = user, "connect", "socks5"
    made.destination = Address(parse_host(host), port)
    return made


async def enter(found: Gate, asks: Session) -> Egress:
    """What the commands do."""
    way = found.enter(asks) or await found.enter_slowly(asks, HERE)
    return way.egress


def limited(over: str = "refuse", **limits: Any) -> dict[str, Any]:
    """One user with limits."""
    return {"users": {"alice": {"password": "x", "plain": True, "limits": {"over": over, **limits}}}}
