"""The decide hook where it may wait: its answers, its failures, its delay, and the egresses that it names."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

import tabi.ingress.hook
from conftest import Run
from doubles import FakeResolver
from gates import HERE, enter, gate, limited, session
from tabi.egress.base import Egress
from tabi.egress.direct import Direct
from tabi.errors import ConfigError, LimitExceeded, PolicyDenied
from tabi.ingress.gate import Gate
from tabi.ingress.hook import MAX_MADE, HookDestinationPolicy, MadeEgresses
from tabi.net.dial import Dialer
from tabi.net.reactor import ENDED, get_reactor
from tabi.policy.limits import UP
from tabi.policy.policy import Pending
from tabi.session import Decision, Session
from tabi.wire.address import Address, parse_host

HOSTS: Any = [parse_host("8.8.8.8")]


async def judged(destination_policy: Any, port: int = 443, addresses: Any = HOSTS) -> Any:
    """What whoever has datagrams does: ask, wait where that is said, ask again."""
    destination = Address("outer.test", port)
    verdict = destination_policy(destination, addresses)
    if isinstance(verdict, Pending):
        await verdict
        verdict = destination_policy(destination, addresses)
    return verdict


def with_async(decide: Callable[[Session], Any]) -> Callable[[Session], Any]:
    """The same as a function whose answer is awaited."""

    async def asked(asks: Session) -> Any:
        await asyncio.sleep(0)
        return decide(asks)

    return asked


@pytest.mark.parametrize("is_async", [False, True])
def test_the_hook_is_asked_once_for_each_session(run_once: Run, is_async: bool) -> None:
    """With or without async it sees the rules' decision and says another; it is not asked again where limits wait."""
    seen: list[Any] = []

    def decide(asks: Session) -> Decision | None:
        seen.append((asks.number, asks.decision))
        assert asks.destination is not None
        return Decision(via="other", rule="mine") if asks.destination.port == 443 else None

    async def main() -> None:
        hook = with_async(decide) if is_async else decide
        async with gate(decide_hook=hook, patience=20, **limited("wait", connections=1)) as found:
            first, second = session(), session()
            assert (await enter(found, first)).name == "other"
            assert (first.rule, first.decision, first.via) == ("mine", None, "other")
            waiting = asyncio.get_running_loop().create_task(enter(found, second))
            while not found.queues:
                await asyncio.sleep(0)
            assert first.lease is not None
            found.leave(first.lease)
            await waiting
            assert not found.paused

    run_once(main)
    assert seen == [(1, Decision())] * 2


class Called:
    """A hook that is an object, asked as a function is."""

    async def __call__(self, asks: Session) -> Decision:
        return Decision("deny", reason="said later")


def test_an_object_may_be_the_hook(run_once: Run) -> None:
    """Its answer is awaited where its ``__call__`` is async."""

    async def main() -> None:
        async with gate(decide_hook=Called()) as found:
            assert found.enter(session()) is None
            with pytest.raises(PolicyDenied, match=r"^said later$"):
                await enter(found, session())

    run_once(main)


async def cancelled() -> None:
    """Await a task of one's own that is cancelled."""
    task = asyncio.get_running_loop().create_task(asyncio.sleep(10))
    task.cancel()
    await task


@pytest.mark.parametrize(
    ("does", "text"),
    [
        (lambda: [][0], "decide failed: IndexError"),
        (lambda: sys.exit(1), "decide failed: RuntimeError"),
        (cancelled, "decide failed: RuntimeError"),
        (lambda: asyncio.sleep(0, "yes"), "decide failed: TypeError"),
        (lambda: asyncio.sleep(0, Decision(via=7)), "decide failed: TypeError"),
        (lambda: asyncio.sleep(0, Decision(reply_code=9)), "decide failed: ValueError"),
        (lambda: asyncio.sleep(0, Decision(delay=-1)), "decide failed: ValueError"),
        (lambda: asyncio.sleep(0, Decision(delay=float("nan"))), "decide failed: ValueError"),
        (lambda: asyncio.sleep(0, Decision(limits={"bandwith": 1})), "decide failed: ConfigError"),
        (lambda: asyncio.sleep(0, Decision(limits=7)), "decide failed: ConfigError"),
        (lambda: asyncio.sleep(0, Decision(via="nowhere")), "decide: there is no egress nowhere"),
        (lambda: asyncio.sleep(0, Decision(via="ftp://a:b@c")), "decide: egresses are not made from URLs here"),
        (lambda: asyncio.sleep(10), "decide: no answer within 0.05 s"),
        (lambda: asyncio.wait_for(asyncio.sleep(10), 0.001), "decide failed: TimeoutError"),
    ],
)
def test_a_hook_that_fails_lets_nobody_through(
    run_once: Run, caplog: pytest.LogCaptureFixture, does: Callable[[], Any], text: str
) -> None:
    """Whatever it raises, returns or waits for: the session is refused, and the log has the traceback."""

    async def decide(asks: Session) -> Any:
        return await does()

    async def main() -> None:
        async with gate(decide_hook=decide) as found:
            with pytest.raises(PolicyDenied) as caught:
                await enter(found, session())
            assert str(caught.value) == text

    run_once(main)
    assert ("Traceback" in caplog.text) == text.startswith("decide failed")


def test_a_task_that_is_cancelled_ends_the_hook(run_once: Run) -> None:
    """As at a shutdown: that is no failure of the program."""
    entered = asyncio.Event()

    async def decide(asks: Session) -> None:
        entered.set()
        await asyncio.sleep(10)

    async def main() -> None:
        async with gate(decide_hook=decide, patience=20) as found:
            task = asyncio.get_running_loop().create_task(enter(found, session()))
            await entered.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    run_once(main)


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("action", ["allow", "deny"])
def test_a_delay_comes_before_the_answer(
    run_once: Run, monkeypatch: pytest.MonkeyPatch, is_async: bool, action: Any
) -> None:
    """Of a refusal as of a way out; it has a bound, and a client that has gone is not opened anything for."""
    slept: list[float] = []
    sleep = asyncio.sleep

    async def note(seconds: float) -> None:
        if seconds:
            slept.append(seconds)
        await sleep(0)

    def decide(asks: Session) -> Decision:
        assert asks.destination is not None
        return Decision(action, delay=asks.destination.port, reply_code=5)

    async def main() -> None:
        monkeypatch.setattr(asyncio, "sleep", note)
        async with gate(decide_hook=with_async(decide) if is_async else decide) as found:
            for port in (3, 1000):
                asks = session(port=port)
                assert found.enter(asks) is None
                if action == "allow":
                    assert (await found.enter_slowly(asks, HERE)).egress.name == "direct"
                else:
                    with pytest.raises(PolicyDenied) as caught:
                        await found.enter_slowly(asks, HERE)
                    assert caught.value.reply_code == 5
            with pytest.raises(PolicyDenied, match="has gone while it waited"):
                await found.enter_slowly(session(port=7), SimpleNamespace(events=ENDED))  # type: ignore[arg-type]
        monkeypatch.undo()

    run_once(main)
    assert slept == [3, tabi.ingress.hook.MAX_DELAY, 7]


@pytest.mark.parametrize("of_the_user", [{}, {"bandwidth": "10 MB/s", "max_session": 5}])
def test_limits_of_one_session_alone(run_once: Run, of_the_user: dict[str, Any]) -> None:
    """They hold beside those of the user, and what they count is the session's own."""

    def decide(asks: Session) -> Decision:
        return Decision(limits={"quota": "1 kB/day", "max_session": 3})

    async def main() -> None:
        async with gate(decide_hook=decide, **(limited(**of_the_user) if of_the_user else {})) as found:
            for _ in range(2):
                asks = session()
                assert found.enter(asks) is not None
                lease = asks.lease
                assert lease is not None
                assert lease in found.leases
                assert asks.decision is None
                assert lease.spend(UP, 999, 10**15) == 1
                assert lease.spend(UP, 1, 10**15) == -1
                assert lease.left == 0
                assert lease.exhausted() == "limit: session: the quota of 1 kB/day is used up"
                assert str(lease.overdue(1 << 62, 0)) in (
                    "limit: session: 3 s for a session",
                    "limit: user alice: 5 s for a session",
                )
                found.leave(lease)
                assert lease.released

    run_once(main)


def test_a_limit_of_the_user_refuses_before_those_of_the_session(run_once: Run) -> None:
    """Nothing of the session's own is left behind."""

    async def main() -> None:
        hook = with_async(lambda asks: Decision(limits={"connections": 1}))
        async with gate(decide_hook=hook, **limited(connections=1)) as found:
            await enter(found, session())
            with pytest.raises(LimitExceeded, match=r"^limit: user alice: 1 connections at once$"):
                await enter(found, session())
            assert len(found.leases) == 1

    run_once(main)


# --- egresses that only the program knows ---


def make_dialer() -> Dialer:
    """One that dials nothing."""
    return Dialer(get_reactor(), FakeResolver({}), 1)


def test_a_way_out_by_url_or_as_an_object(run_once: Run) -> None:
    """A URL is made into an egress once, until another configuration comes; an object is taken as it is."""
    made: list[str] = []

    async def main() -> None:
        dialer = make_dialer()
        mine = Direct(dialer, name="mine")
        vias: list[Any] = ["socks5://u:p@127.0.0.1:1", "socks5://u:p@127.0.0.1:1", mine, "bad://"]

        def make(url: str) -> Egress:
            made.append(url)
            if url == "bad://":
                raise ConfigError("no such protocol")
            return Direct(dialer, name="socks5://127.0.0.1:1")

        async with gate(decide_hook=lambda asks: Decision(via=vias.pop(0))) as found:
            found.made.make = make
            assert await enter(found, asks := session()) is await enter(found, session())
            assert asks.via == "socks5://127.0.0.1:1"
            assert await enter(found, session()) is mine
            with pytest.raises(PolicyDenied, match=r"^decide failed: ConfigError$"):
                await enter(found, session())
            assert made == ["socks5://u:p@127.0.0.1:1", "bad://"]
            found.replace(found.policy, found.egresses)
            assert not found.made.by_url
        await dialer.close()

    run_once(main)


def test_made_egresses_are_bounded_and_retired(run_once: Run) -> None:
    """The one that rested longest goes; names are told apart, and none is that of a configured egress."""
    retired: list[str] = []

    class Made(SimpleNamespace):
        def retire(self) -> None:
            retired.append(self.url)

    def make(url: str) -> Any:
        return Made(url=url, name="one")

    found = MadeEgresses(make)
    found.clear({"direct": None, "one": None})
    for number in range(MAX_MADE + 2):
        found.find(f"socks5://{number}")
        found.find("socks5://0")
    assert retired == ["socks5://1", "socks5://2"]
    first, second = found.name_of("socks5://0"), found.name_of("socks5://5")
    assert (first, second) == ("one#2", "one#3")
    assert found.name_of("socks5://0") == first
    assert found.by_name[second] is found.find("socks5://5")
    for number in range(MAX_MADE):
        found.name_of(SimpleNamespace(name=f"object {number}"))
    assert len(found.by_name) == MAX_MADE
    found.clear(())
    assert len(retired) == MAX_MADE + 2


# --- several destinations ---


@pytest.mark.parametrize("is_async", [False, True])
def test_each_destination_is_judged(run_once: Run, is_async: bool) -> None:
    """A refusal, the guard's after it, a way out by name, by URL and as an object; each awaited where needed."""
    asked: list[int] = []

    async def main() -> None:
        dialer = make_dialer()
        mine = Direct(dialer, name="mine")
        vias: dict[int, Any] = {1: "other", 2: "socks5://127.0.0.1:1", 3: mine, 4: "direct", 5: None}

        def decide(asks: Session) -> Decision:
            assert asks.destination is not None
            port = asks.destination.port
            asked.append(port)
            return Decision("deny", reason="not there") if port == 53 else Decision(via=vias[port], delay=port == 4)

        async with gate(decide_hook=with_async(decide) if is_async else decide) as found:
            found.made.make = lambda url: Direct(dialer, name="by url")
            destination_policy = (await found.enter_open(session("0.0.0.0", 0), HERE)).destination_policy
            assert isinstance(destination_policy(Address("outer.test", 1), None), Pending) == is_async
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(tabi.ingress.hook, "MAX_DELAY", 0.001)
                names = [await judged(destination_policy, port) for port in vias]
            assert names == ["other", "by url", "mine", None, None]
            assert found.egress("mine") is mine
            with pytest.raises(PolicyDenied, match=r"^not there$"):
                await judged(destination_policy, 53)
            with pytest.raises(PolicyDenied, match=r"^guard: 10\.0\.0\.1 is in"):
                await judged(destination_policy, 5, [parse_host("10.0.0.1")])
        await dialer.close()

    run_once(main)
    assert asked.count(1) == (1 if is_async else 2)


def test_a_verdict_is_kept_for_a_while(run_once: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that whoever waited for it finds it; not for long, and not for all destinations that there are."""
    now = 100.0
    monkeypatch.setattr(tabi.ingress.hook, "monotonic", lambda: now)
    asked: list[Any] = []

    async def decide(asks: Session) -> None:
        asked.append(asks.destination)

    async def main() -> None:
        nonlocal now
        async with gate(decide_hook=decide) as found:
            destination_policy = (await found.enter_open(session("0.0.0.0", 0), HERE)).destination_policy
            assert isinstance(destination_policy, HookDestinationPolicy)
            await judged(destination_policy)
            await judged(destination_policy)
            assert len(asked) == 1
            now += tabi.ingress.hook.KEEP_VERDICT
            await judged(destination_policy)
            assert len(asked) == 2
            for port in range(1000, 1000 + tabi.ingress.hook.MAX_VERDICTS + 5):
                await judged(destination_policy, port)
            assert len(destination_policy.verdicts) == tabi.ingress.hook.MAX_VERDICTS

    run_once(main)


def test_a_name_whose_rules_want_addresses_is_resolved_first(run_once: Run) -> None:
    """The hook is asked once the rules have decided."""
    from tabi.config import RuleConfig

    async def decide(asks: Session) -> Decision:
        assert asks.decision is not None
        return Decision(asks.decision.action, asks.decision.rule)

    async def main() -> None:
        async with gate(RuleConfig("deny", "inner", hosts=["10.0.0.0/8"]), decide_hook=decide) as found:
            destination_policy = (await found.enter_open(session("0.0.0.0", 0), HERE)).destination_policy
            verdict = destination_policy(Address("inner.test", 80), None)
            assert not isinstance(verdict, Pending)
            assert repr(verdict) == "UNRESOLVED"
            with pytest.raises(PolicyDenied, match=r"^rule inner"):
                await judged(destination_policy, 80, [parse_host("10.0.0.1")])

    run_once(main)


def test_a_reload_while_the_hook_is_awaited_asks_anew(run_once: Run) -> None:
    """The policy that there is then decides, rules and all."""
    from tabi.policy.guard import Guard
    from tabi.policy.ledger import Ledger
    from tabi.policy.limits import Limits
    from tabi.policy.policy import Policy
    from tabi.policy.rules import RuleSet, Texts, make_rule

    async def main() -> None:
        async def decide(asks: Session) -> None:
            found.replace(denying, found.egresses)

        denying = Policy(RuleSet([make_rule(0, "deny", Texts())]), Guard(), Limits(Ledger()))
        async with gate(decide_hook=decide) as made:
            found: Gate = made
            with pytest.raises(PolicyDenied, match=r"^rule rule\[0\]"):
                await enter(found, session())

    run_once(main)
