"""The decide hook if it may wait: an answer that is awaited, a delay, and the egresses that only a program names."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Container, Sequence
from functools import partial
from time import monotonic
from typing import Any

import msgspec

from tabi.config.load import decode_limits
from tabi.egress.base import Egress
from tabi.errors import ConfigError, PolicyDenied, TabiError
from tabi.policy.hook import ask_hook, check_said, prepare
from tabi.policy.networks import IP
from tabi.policy.policy import Pending, Policy
from tabi.policy.rules import Unresolved
from tabi.session import Decision, Session
from tabi.wire.address import Address

log = logging.getLogger("tabi")

MAX_DELAY = 60.0
"""Seconds that a decision may make a client wait: each of them holds a descriptor."""

MAX_MADE = 64
"""Egresses that a program has named by URL or as an object and that are kept; beyond that the oldest goes."""

MAX_VERDICTS, KEEP_VERDICT = 256, 10.0
"""Verdicts on destinations of one session that are kept, and for how many seconds: a task that waited asks again."""

MakeEgress = Callable[[str], Egress]
"""Makes an egress from the URL of a proxy. Raises ValueError or ConfigError if it is not one."""


def failure_of(exc: Exception) -> PolicyDenied:
    """The refusal that a failure of a program becomes: no client gets through because of a mistake."""
    log.error("decide failed", exc_info=exc)
    return PolicyDenied(f"decide failed: {type(exc).__name__}")


async def await_hook(
    policy: Policy, session: Session, destination: Address, decision: Decision, most: float
) -> Decision:
    """Ask a hook, and await its answer if needed, for ``most`` seconds.

    Raises:
        PolicyDenied: it has raised that, has failed, or has not answered in time.
        CancelledError: the task that asks is cancelled.
    """
    hook: Any = policy.decide_hook
    try:
        if not policy.hook_waits:
            return ask_hook(hook, session, destination, decision)
        async with asyncio.timeout(most) as deadline:
            said = await hook(prepare(session, destination, decision))
        return decision if said is None else check_said(said)
    except TabiError as exc:
        raise exc if isinstance(exc, PolicyDenied) else failure_of(exc) from exc
    except TimeoutError as exc:
        if policy.hook_waits and deadline.expired():
            log.error("decide has not answered within %g s", most)
            raise PolicyDenied(f"decide: no answer within {most:.3g} s") from None
        raise failure_of(exc) from exc
    except Exception as exc:
        raise failure_of(exc) from exc
    except KeyboardInterrupt:
        raise
    except BaseException as exc:  # sys.exit() and the like end a program, not ours; and a task of its own was cancelled
        task = asyncio.current_task()
        if isinstance(exc, asyncio.CancelledError) and task is not None and task.cancelling():
            raise
        error = RuntimeError(f"decide raised {type(exc).__name__}")
        error.__cause__ = exc
        raise failure_of(error) from exc


def with_terms(decision: Decision) -> Decision:
    """A decision with parsed limits. Raises PolicyDenied if they are invalid."""
    try:
        return msgspec.structs.replace(decision, limits=decode_limits(decision.limits))
    except ConfigError as exc:
        raise failure_of(exc) from exc


class MadeEgresses:
    """The egresses that a program names by a URL, or hands over as objects.

    Args:
        make: makes one from a URL.
    """

    def __init__(self, make: MakeEgress | None) -> None:
        self.make = make
        self.taken: Container[str] = ()
        """The names of the configuration, which belong to other egresses."""
        self.by_url: OrderedDict[str, Egress] = OrderedDict()
        self.by_name: dict[str, Egress] = {}

    def find(self, via: Any) -> Egress:
        """The egress for a URL or an object. Raises PolicyDenied."""
        if not isinstance(via, str):
            found: Egress = via
            return found
        egress = self.by_url.get(via)
        if egress is None:
            egress = self.by_url[via] = self.make_one(via)
            if len(self.by_url) > MAX_MADE:
                retire(self.by_url.popitem(last=False)[1])
        self.by_url.move_to_end(via)
        return egress

    def make_one(self, url: str) -> Egress:
        """Make one from a URL."""
        if self.make is None:
            raise PolicyDenied("decide: egresses are not made from URLs here")
        try:
            return self.make(url)
        except Exception as exc:
            raise failure_of(exc) from exc

    def name_of(self, via: Any) -> str:
        """A name by which `get` finds it: datagrams ask for their egress by its name."""
        egress = self.find(via)
        name, number = egress.name, 1
        while name in self.taken or self.by_name.get(name, egress) is not egress:
            number += 1
            name = f"{egress.name}#{number}"
        if name not in self.by_name and len(self.by_name) >= MAX_MADE:
            del self.by_name[next(iter(self.by_name))]
        self.by_name[name] = egress
        return name

    def clear(self, taken: Container[str]) -> None:
        """Another configuration has come, and with it other settings for proxies."""
        self.taken = taken
        for egress in self.by_url.values():
            retire(egress)
        self.by_url.clear()
        self.by_name.clear()


def retire(egress: Any) -> None:
    """End the connections that an egress keeps, as soon as they are unused."""
    if callable(end := getattr(egress, "retire", None)):
        end()


Verdict = str | PolicyDenied | None


class HookDestinationPolicy:
    """Asked for each destination of a session that has several, if there is a program to ask.

    Args:
        policy: the policy of the session, for as long as it runs.
        session: the session whose destinations are judged.
        made: the egresses that the program names.
        patience: seconds that an answer may take.
        clock: seconds since 1970.
    """

    def __init__(
        self, policy: Policy, session: Session, made: MadeEgresses, patience: float, clock: Callable[[], float]
    ) -> None:
        self.policy = policy
        self.session = session
        self.made = made
        self.patience = patience
        self.clock = clock
        self.verdicts: dict[tuple[Address, tuple[IP, ...]], tuple[float, Verdict]] = {}

    def __call__(self, destination: Address, addresses: Sequence[IP] | None) -> str | Unresolved | None:
        """See `DestinationPolicy`; `Pending` where the caller must await something first. Raises PolicyDenied alone."""
        if self.verdicts:
            until, verdict = self.verdicts.get((destination, tuple(addresses or ())), (0.0, None))
            if until > monotonic():
                return told(verdict)
        policy, session = self.policy, self.session
        found = policy.find(session, destination, addresses, self.clock())
        if isinstance(found, Unresolved):
            return found
        if policy.hook_waits:
            return Pending(partial(self.settle, destination, addresses, found))
        assert policy.decide_hook is not None
        try:
            found = ask_hook(policy.decide_hook, session, destination, found)
        except PolicyDenied:
            raise
        except Exception as exc:
            raise failure_of(exc) from exc
        if found.delay:
            return Pending(partial(self.settle, destination, addresses, found))
        return self.follow(destination, addresses, found)

    def follow(self, destination: Address, addresses: Sequence[IP] | None, decision: Decision) -> str | None:
        """What a decision means for a destination. Raises PolicyDenied."""
        self.policy.judge_decided(self.session, destination, addresses, decision)
        via = decision.via
        if via is None or via == "direct":
            return None
        return via if isinstance(via, str) and "://" not in via else self.made.name_of(via)

    async def settle(self, destination: Address, addresses: Sequence[IP] | None, decision: Decision) -> None:
        """Wait for the verdict on one destination, and keep it for the next question."""
        verdict: Verdict
        try:
            if self.policy.hook_waits:
                decision = await await_hook(self.policy, self.session, destination, decision, self.patience)
            if decision.delay:
                await asyncio.sleep(min(decision.delay, MAX_DELAY))
            verdict = self.follow(destination, addresses, decision)
        except PolicyDenied as exc:
            verdict = exc
        if len(self.verdicts) >= MAX_VERDICTS:
            del self.verdicts[next(iter(self.verdicts))]
        self.verdicts[destination, tuple(addresses or ())] = monotonic() + KEEP_VERDICT, verdict


def told(verdict: Verdict) -> str | None:
    """Tell a verdict that was kept."""
    if isinstance(verdict, PolicyDenied):
        raise PolicyDenied(str(verdict), verdict.action)
    return verdict
