"""The gate: what becomes of a session before anything is dialled for it, and who waits or has to end."""

from __future__ import annotations

import asyncio
import contextlib
from time import monotonic_ns, time
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from conftest import Run
from gates import HERE, NAMES, enter, gate, limited, session
from tabi.config import RuleConfig, make_config
from tabi.config.compile import make_guard, make_limits, make_rule_set
from tabi.errors import DialError, LimitExceeded, PolicyDenied
from tabi.ingress.gate import SWEEP, Gate, Waiting, as_resolved
from tabi.net.reactor import ENDED
from tabi.policy.policy import Policy
from tabi.session import Decision, Session
from tabi.wire.address import Address, parse_host

# --- decisions ---


def test_without_rules_everybody_goes_directly(run_once: Run) -> None:
    """At once, with the guard's part to ask, no lease and no rule."""

    async def main() -> None:
        async with gate() as found:
            asks = session("10.0.0.1")
            way = found.enter(asks)
            assert way is not None
            assert way.egress.name == asks.via == "direct"
            assert (asks.rule, asks.lease) == (None, None)
            with pytest.raises(PolicyDenied, match=r"^guard: 10\.0\.0\.1 is in 10\.0\.0\.0/8"):
                way.address_filter(parse_host("10.0.0.1"))  # type: ignore[arg-type]

    run_once(main)


@pytest.mark.parametrize("action", ["deny", "reset", "drop"])
def test_a_rule_refuses(run_once: Run, action: Any) -> None:
    """With its action, its name in the session, and counted."""

    async def main() -> None:
        async with gate(RuleConfig(action, "no-web", ports=[443])) as found:
            asks = session()
            with pytest.raises(PolicyDenied, match=f"^rule no-web: {action} outer.test:443$") as caught:
                await enter(found, asks)
            assert (caught.value.action, asks.rule, asks.via) == (action, "no-web", None)
            assert found.metrics.value("tabi_denied_total", action=action, rule="no-web") == 1
            assert (await enter(found, session(port=80))).name == "direct"

    run_once(main)


def test_rules_are_asked_again_with_a_name(run_once: Run) -> None:
    """A refusal is counted as any other; a name that no rule refuses changes nothing."""

    async def main() -> None:
        rules = RuleConfig("deny", "no-names", hosts=["*.bad.test"]), RuleConfig("allow")
        async with gate(*rules) as found:
            asks = session()
            await enter(found, asks)
            assert found.ask_again(asks, "good.test") is None
            assert found.ask_again(asks, "www.bad.test") == Decision("deny", "no-names")
            assert found.metrics.value("tabi_denied_total", action="deny", rule="no-names") == 1

    run_once(main)


def test_a_rule_names_the_way_out(run_once: Run) -> None:
    """``via``; and a way that a reload has taken away is a refusal, not an error."""

    async def main() -> None:
        async with gate(RuleConfig("allow", via="other")) as found:
            asks = session()
            assert (await enter(found, asks)).name == asks.via == "other"
            assert (await found.enter_slowly(session(), HERE)).egress.name == "other"
            found.replace(found.policy, {"direct": found.direct})
            with pytest.raises(PolicyDenied, match="there is no egress other"):
                await enter(found, session())

    run_once(main)


def test_a_decision_that_depends_on_addresses_waits_for_them(run_once: Run) -> None:
    """Those that were decided on are kept for the one who dials; a name without any is an error of its own."""

    async def main() -> None:
        async with gate(RuleConfig("deny", "inner", hosts=["10.0.0.0/8"])) as found:
            for name, refused in (("outer.test", False), ("inner.test", True), ("both.test", True)):
                asks = session(name)
                assert found.enter(asks) is None
                with pytest.raises(PolicyDenied) if refused else contextlib.nullcontext():
                    await found.enter_slowly(asks, HERE)
                assert [str(address) for address in asks.addresses or ()] == NAMES[name]
            with pytest.raises(DialError) as caught:
                await enter(found, session("nowhere.test"))
            assert caught.value.reply_code == 4

    run_once(main)


def test_a_decision_on_a_name_that_is_known_does_not_wait(run_once: Run) -> None:
    """Its addresses are those of the cache, and those that are dialled; that it has none is the answer at once."""

    async def main() -> None:
        rules = RuleConfig("deny", "inner", hosts=["10.0.0.0/8"]), RuleConfig("allow", hosts=["8.8.8.8"])
        async with gate(*rules) as found:
            known = {"inner.test": [parse_host("10.0.0.1")], "outer.test": [parse_host("8.8.8.8")]}
            found.dialer.lookup = known.get  # type: ignore[assignment]
            asks = session()
            assert found.enter(asks) is not None
            assert asks.addresses == known["outer.test"]
            with pytest.raises(PolicyDenied, match="rule inner"):
                found.enter(session("inner.test"))
            assert found.enter(session("both.test")) is None

            def none(name: str) -> None:
                raise DialError(f"{name}: no address", 4)

            found.dialer.lookup = none
            with pytest.raises(DialError, match="no address"):
                found.enter(session())

    run_once(main)


def test_a_resolver_that_is_silent_has_a_deadline(run_once: Run) -> None:
    """That of connecting."""

    async def main() -> None:
        async with gate(RuleConfig("deny", hosts=["10.0.0.0/8"])) as found:
            resolver: Any = found.dialer.resolver
            resolver.answering.clear()
            found.dialer.seconds = 0.01
            with pytest.raises(DialError, match=r"outer\.test:443: no answer within 0\.01 s"):
                await enter(found, session())

    run_once(main)


def test_numbers_are_looked_at_as_the_addresses_that_they_are(run_once: Run) -> None:
    """0x7f.1 is 127.0.0.1 for a rule too; what looks like a number and is none stays a name."""

    async def main() -> None:
        async with gate(RuleConfig("deny", hosts=["127.0.0.0/8"])) as found:
            with pytest.raises(PolicyDenied):
                found.enter(session("0x7f.1"))

    run_once(main)
    assert as_resolved("127.1") == parse_host("127.0.0.1")
    assert as_resolved("1.2.3.4.5") == "1.2.3.4.5"
    assert as_resolved("example.com") == "example.com"
    assert as_resolved(parse_host("::1")) == parse_host("::1")


# --- the last word ---


def test_a_program_has_the_last_word(run_once: Run) -> None:
    """It sees the rules' decision, and may say another; without a word they are right."""
    seen: list[tuple[str, str | None]] = []

    def decide(asks: Session) -> Decision | None:
        assert asks.decision is not None
        seen.append((asks.decision.action, asks.decision.rule))
        assert asks.destination is not None
        if asks.destination.port == 80:
            return Decision("deny", reason="no web today")
        if asks.destination.port == 25:
            return Decision("deny", rule="mail")
        return Decision(via="other") if asks.destination.port == 443 else None

    async def main() -> None:
        async with gate(RuleConfig("deny", "ssh", ports=[22]), decide_hook=decide) as found:
            assert (await enter(found, session())).name == "other"
            with pytest.raises(PolicyDenied, match=r"^no web today$"):
                await enter(found, session(port=80))
            with pytest.raises(PolicyDenied, match=r"^rule mail: deny outer\.test:25$"):
                await enter(found, session(port=25))
            with pytest.raises(PolicyDenied, match=r"^rule ssh: deny outer\.test:22$"):
                await enter(found, session(port=22))

    run_once(main)
    assert seen == [("allow", None)] * 3 + [("deny", "ssh")]


@pytest.mark.parametrize("error", [ValueError("a secret"), PolicyDenied("its own text"), None])
def test_a_program_that_fails_lets_nobody_through(
    run_once: Run, caplog: pytest.LogCaptureFixture, error: Exception | None
) -> None:
    """Whatever it raises, and whatever it returns that is no decision; the client hears of no text of it."""

    def decide(asks: Session) -> Any:
        if error is not None:
            raise error
        return True

    async def main() -> None:
        async with gate(decide_hook=decide) as found:
            with pytest.raises(PolicyDenied) as caught:
                await enter(found, session())
            name = {ValueError: "decide failed: ValueError", PolicyDenied: "its own text"}
            assert str(caught.value) == name.get(type(error), "decide failed: TypeError")

    run_once(main)
    assert ("a secret" in caplog.text) == isinstance(error, ValueError)


# --- several destinations ---


def test_an_association_is_refused_where_no_destination_would_help(run_once: Run) -> None:
    """At once; else each of its destinations is judged, by rules and by the guard."""

    async def main() -> None:
        async with gate(RuleConfig("deny", "no-udp", commands=["associate"])) as found:
            asks = session("0.0.0.0", 0)
            asks.command = "associate"
            with pytest.raises(PolicyDenied, match=r"^rule no-udp"):
                await found.enter_open(asks, HERE)
        async with gate(RuleConfig("deny", "dns", ports=[53])) as found:
            asks = session("0.0.0.0", 0)
            asks.command = "associate"
            destination_policy = (await found.enter_open(asks, HERE)).destination_policy
            destination_policy(Address("outer.test", 443), None)
            with pytest.raises(PolicyDenied, match=r"^rule dns"):
                destination_policy(Address("outer.test", 53), None)
            with pytest.raises(PolicyDenied, match=r"^guard"):
                destination_policy(Address("inner.test", 443), [parse_host("10.0.0.1")])  # type: ignore[list-item]

    run_once(main)


# --- limits ---


def test_over_a_limit_is_refused_and_counted(run_once: Run) -> None:
    """Until a session has ended; others than the user do not matter."""

    async def main() -> None:
        async with gate(**limited(connections=1)) as found:
            first = session()
            await enter(found, first)
            with pytest.raises(LimitExceeded, match=r"^limit: user alice: 1 connections at once$"):
                await enter(found, session())
            await enter(found, session(user="bob"))
            await found.enter_slowly(session(user="bob"), HERE)
            assert found.metrics.value("tabi_limited_total", limit="connections") == 1
            assert first.lease is not None
            found.leave(first.lease)
            found.leave(first.lease)
            await enter(found, session())

    run_once(main)


@pytest.mark.parametrize("open_", [False, True])
def test_who_waits_comes_in_its_turn(run_once: Run, open_: bool) -> None:
    """First come, first served, when a session has ended; nobody overtakes those who wait."""

    async def main() -> None:
        async with gate(patience=20, **limited("wait", connections=1)) as found:
            done: list[int] = []

            async def one(number: int) -> None:
                asks = session()
                await (found.enter_open(asks, HERE) if open_ else enter(found, asks))
                done.append(number)
                assert asks.lease is not None
                await asyncio.sleep(0)
                found.leave(asks.lease)

            first = session()
            await enter(found, first)
            async with asyncio.TaskGroup() as group:
                for number in range(4):
                    group.create_task(one(number))
                    await asyncio.sleep(0)
                assert found.queues["alice"].count == 4
                assert first.lease is not None
                found.leave(first.lease)
            assert done == [0, 1, 2, 3]
            assert not found.queues
            assert 1 <= found.metrics.value("tabi_limited_total", limit="connections") <= 4

    run_once(main)


def test_patience_has_an_end(run_once: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits too long is refused with the limit's text, and so is who stands behind such a one."""

    def begun_now() -> Session:
        """One of whose patience nothing is used up yet, however slow this machine is."""
        made = session()
        monkeypatch.setattr("tabi.ingress.gate.monotonic", lambda: made.started)
        return made

    async def main() -> None:
        async with gate(**limited("wait", connections=1)) as found:
            await enter(found, session())
            with pytest.raises(LimitExceeded) as caught:
                await enter(found, begun_now())
            assert str(caught.value) == "limit: user alice: 1 connections at once; waited 0.05 s"
            assert caught.value.limit == "connections"
            assert not found.queues
            found.queues["alice"] = first = Waiting()
            await first.turn.acquire()
            with pytest.raises(LimitExceeded) as caught:
                await enter(found, begun_now())
            assert str(caught.value) == "limit: user alice: too many wait; waited 0.05 s"
            assert caught.value.limit == "wait"
            assert not found.queues

    run_once(main)


def test_a_quota_is_not_waited_for(run_once: Run) -> None:
    """It would be until tomorrow: who waits for a connection while it is used up is refused at once."""

    async def main() -> None:
        async with gate(patience=20, **limited("wait", connections=1, quota="1 kB/day")) as found:
            first = session()
            await enter(found, first)
            assert first.lease is not None
            async with asyncio.TaskGroup() as group:
                waiting = group.create_task(expect_quota(found))
                await asyncio.sleep(0)
                first.lease.spend(1, 1000, 0)
                await waiting

    run_once(main)


async def expect_quota(found: Gate) -> None:
    """Ask, and be refused for the quota."""
    with pytest.raises(LimitExceeded, match="is used up"):
        await enter(found, session())


def test_a_sweep_ends_whose_time_is_over(run_once: Run) -> None:
    """A user who expires, a session that is long enough: whoever carries it is told once, and it is counted."""

    async def main() -> None:
        async with gate(**limited(max_session=60)) as found:
            asks = session()
            await enter(found, asks)
            cuts: list[str] = []
            lease = asks.lease
            assert lease is not None
            lease.cut = cuts.append
            now, wall = monotonic_ns(), time()
            found.sweep(now + 59 * 10**9, wall)
            assert cuts == []
            for _ in range(2):
                found.sweep(now + 61 * 10**9, wall)
            assert cuts == ["limit: user alice: 60 s for a session"]
            assert found.metrics.value("tabi_limited_total", limit="max_session") == 1

    run_once(main)


def test_the_timer_runs_while_there_is_somebody(run_once: Run) -> None:
    """It begins with the first lease, and ends after the last; `close` stops it."""

    async def main() -> None:
        async with gate(**limited(connections=5)) as found:
            assert found.timer is None
            asks = session()
            await enter(found, asks)
            first = found.timer
            assert first is not None
            assert first.when() - asyncio.get_running_loop().time() <= SWEEP
            await enter(found, session())
            assert found.timer is first
            first.cancel()
            found.tick()
            assert found.timer is not None
            found.timer.cancel()
            for lease in tuple(found.leases):
                found.leave(lease)
            found.tick()
            assert found.timer is None
            found.close()

    run_once(main)


# --- what could go wrong ---


@pytest.mark.parametrize(
    "error", [ValueError("a secret"), DialError("of another kind", 4), PolicyDenied("its own"), None]
)
def test_a_program_that_fails_lets_no_datagram_through(
    run_once: Run, caplog: pytest.LogCaptureFixture, error: Exception | None
) -> None:
    """Of an association too each failure is a refusal, which is counted: it does not get into the reactor."""

    def decide(asks: Session) -> Any:
        if error is not None:
            raise error
        return True

    async def main() -> None:
        async with gate(decide_hook=decide) as found:
            asks = session("0.0.0.0", 0)
            asks.command = "associate"
            destination_policy = (await found.enter_open(asks, HERE)).destination_policy
            for addresses in (None, [parse_host("8.8.8.8")]):
                with pytest.raises(PolicyDenied) as caught:
                    destination_policy(Address("outer.test", 443), addresses)  # type: ignore[arg-type]
                name = {PolicyDenied: "its own", type(None): "decide failed: TypeError"}
                assert str(caught.value) == name.get(type(error), f"decide failed: {type(error).__name__}")

    run_once(main)
    assert ("a secret" in caplog.text) == isinstance(error, ValueError)


def test_a_program_without_fault_judges_datagrams(run_once: Run) -> None:
    """Its word is for each destination, and the guard has its own after it."""

    def decide(asks: Session) -> Decision | None:
        assert asks.destination is not None
        return Decision("deny", reason="not there") if asks.destination.port == 53 else None

    async def main() -> None:
        async with gate(decide_hook=decide) as found:
            destination_policy = (await found.enter_open(session("0.0.0.0", 0), HERE)).destination_policy
            destination_policy(Address("outer.test", 443), [parse_host("8.8.8.8")])  # type: ignore[list-item]
            with pytest.raises(PolicyDenied, match=r"^not there$"):
                destination_policy(Address("outer.test", 53), None)
            with pytest.raises(PolicyDenied, match=r"^guard: 10\.0\.0\.1 is in"):
                destination_policy(Address("inner.test", 443), [parse_host("10.0.0.1")])  # type: ignore[list-item]

    run_once(main)


def test_what_a_program_calls_its_rules_does_not_fill_the_metrics(run_once: Run) -> None:
    """A label has as many values as the configuration has rules: a program could make one of every host."""

    def decide(asks: Session) -> Decision | None:
        assert asks.destination is not None
        return None if asks.destination.port == 22 else Decision("deny", f"blocked-{asks.destination}")

    async def main() -> None:
        async with gate(RuleConfig("deny", "ssh", ports=[22]), decide_hook=decide) as found:
            for port in (22, *range(1000, 1010)):
                asks = session(port=port)
                with pytest.raises(PolicyDenied):
                    await enter(found, asks)
                assert asks.rule == ("ssh" if port == 22 else f"blocked-outer.test:{port}")
            assert found.metrics.value("tabi_denied_total", action="deny", rule="ssh") == 1
            assert found.metrics.value("tabi_denied_total", action="deny", rule="") == 10
            assert len(found.metrics.counts) == 2

    run_once(main)


def clients(network: str, **limits: Any) -> dict[str, Any]:
    """Limits for the clients of a network, which wait."""
    return {"clients": [{"networks": [network], "limits": {"over": "wait", **limits}}]}


def test_nobody_waits_behind_those_with_other_limits(run_once: Run) -> None:
    """Clients without a user are no user: those of a network wait for each other, not the whole world for them."""

    async def main() -> None:
        async with gate(patience=20, **clients("192.0.2.0/24", connections=1)) as found:
            first = session(user=None, client="192.0.2.1")
            await enter(found, first)
            async with asyncio.TaskGroup() as group:
                second, third = (session(user=None, client=f"192.0.2.{number}") for number in (2, 3))
                waiting = [group.create_task(enter(found, asks)) for asks in (second, third)]
                await asyncio.sleep(0)
                assert [queue.count for queue in found.queues.values()] == [2]
                assert found.enter(session(user=None, client="203.0.113.9")) is not None
                assert first.lease is not None
                found.leave(first.lease)
                await waiting[0]
                assert second.lease is not None
                found.leave(second.lease)
            assert third.lease is not None
            assert not found.queues

    run_once(main)


def test_who_leaves_while_waiting_makes_room(run_once: Run) -> None:
    """A client that goes, at the head of a queue or within it, takes nothing with it: the next has its turn."""

    async def main() -> None:
        async with gate(patience=20, **limited("wait", connections=1)) as found:
            first = session()
            await enter(found, first)
            waiting = [found.dialer.reactor.loop.create_task(enter(found, session())) for _ in range(3)]
            await asyncio.sleep(0)
            for gone in waiting[:2]:
                gone.cancel()
            await asyncio.gather(*waiting[:2], return_exceptions=True)
            assert found.queues["alice"].count == 1
            assert not waiting[2].done()
            assert first.lease is not None
            found.leave(first.lease)
            assert (await waiting[2]).name == "direct"
            assert not found.queues
            assert len(found.leases) == 1

    run_once(main)


@pytest.mark.parametrize("open_", [False, True])
def test_who_waits_meets_what_a_reload_brings(run_once: Run, open_: bool) -> None:
    """More room lets it in, a rule that came meanwhile refuses it all the same, and a limit that refuses does so."""

    async def main() -> None:
        def wait() -> asyncio.Task[Any]:
            asks = session()
            coming: Any = found.enter_open(asks, HERE) if open_ else enter(found, asks)
            return found.dialer.reactor.loop.create_task(coming)

        def reload(over: str, connections: int, *rules: RuleConfig) -> None:
            parts: Any = limited(over, connections=connections)
            config = msgspec.structs.replace(make_config(parts), rule=list(rules))
            policy = Policy(make_rule_set(config), make_guard(config), make_limits(config, ledger))
            found.replace(policy, {"direct": found.direct})

        async with gate(patience=20, **limited("wait", connections=1)) as found:
            ledger = found.policy.limits.ledger
            await enter(found, session())
            waiting = wait()
            await asyncio.sleep(0)
            reload("wait", 2)
            await waiting
            waiting = wait()
            await asyncio.sleep(0)
            reload("wait", 3, RuleConfig("deny", "all"))
            with pytest.raises(PolicyDenied, match=r"^rule all"):
                await waiting
            reload("wait", 1)
            waiting = wait()
            await asyncio.sleep(0)
            reload("refuse", 1)
            with pytest.raises(LimitExceeded, match=r"^limit: user alice: 1 connections at once$"):
                await waiting

    run_once(main)


def test_a_client_that_has_gone_waits_no_longer(run_once: Run) -> None:
    """It takes no room from those behind it, and nothing is opened for it."""

    async def main() -> None:
        async with gate(patience=20, **limited("wait", connections=1)) as found:
            await enter(found, session())
            gone: Any = SimpleNamespace(events=ENDED)
            with pytest.raises(LimitExceeded, match=r"^limit: the client has gone while it waited$"):
                await found.enter_slowly(session(), gone)
            assert len(found.leases) == 1

    run_once(main)


def test_patience_begins_with_the_session(run_once: Run) -> None:
    """Who took long to ask has less of it left: a handshake has one deadline for all of it."""

    async def main() -> None:
        async with gate(patience=20, **limited("wait", connections=1)) as found:
            await enter(found, session())
            late = session()
            late.started -= 30
            with pytest.raises(LimitExceeded, match=r"waited 0 s$"):
                await found.enter_slowly(late, HERE)

    run_once(main)


def test_a_user_whose_time_is_over_is_ended_and_comes_in_no_more(run_once: Run) -> None:
    """``expires``: by the wall clock, refused at the door, ended by the sweep; others stay."""

    async def main() -> None:
        users = {
            "alice": {"password": "x", "plain": True, "expires": "2100-01-01"},
            "bob": {"password": "x", "plain": True, "expires": "2000-01-01"},
        }
        async with gate(users=users) as found:
            with pytest.raises(LimitExceeded, match=r"^limit: user bob: expired at 2000-01-01"):
                await enter(found, session(user="bob"))
            assert found.metrics.value("tabi_limited_total", limit="expires") == 1
            asks, other = session(), session(user="carol")
            await enter(found, asks)
            await enter(found, other)
            assert other.lease is None
            assert asks.lease is not None
            now = monotonic_ns()
            found.sweep(now, asks.lease.expires - 1)
            assert asks.lease.ended is None
            found.sweep(now, asks.lease.expires)  # nobody carries it yet: whoever will finds it ended
            assert str(asks.lease.ended).startswith("limit: user alice: expired at 2100-01-01")
            assert found.metrics.value("tabi_limited_total", limit="expires") == 2

    run_once(main)


def test_a_refusal_of_an_association_is_counted(run_once: Run) -> None:
    """As one of a connection is: a rule that refuses whatever the destination, and a limit."""

    async def main() -> None:
        async with gate(RuleConfig("drop", "no-udp", commands=["associate"]), **limited(connections=1)) as found:
            asks = session("0.0.0.0", 0)
            asks.command = "associate"
            with pytest.raises(PolicyDenied) as caught:
                await found.enter_open(asks, HERE)
            assert (caught.value.action, asks.rule, asks.lease) == ("drop", "no-udp", None)
            assert found.metrics.value("tabi_denied_total", action="drop", rule="no-udp") == 1
            for refused in (False, True):
                asks = session("0.0.0.0", 0)
                asks.command = "bind"
                with pytest.raises(LimitExceeded) if refused else contextlib.nullcontext():
                    await found.enter_open(asks, HERE)
            assert found.metrics.value("tabi_limited_total", limit="connections") == 1

    run_once(main)
