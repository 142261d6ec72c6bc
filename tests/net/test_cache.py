"""NameCache: what is known is told at once, for as long as it may be, and nothing is asked twice meanwhile."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Mapping
from ipaddress import ip_address

import pytest

from conftest import Run
from tabi.config import Prefer
from tabi.errors import DialError
from tabi.net import cache
from tabi.net.cache import FAILURE_TTL, NameCache
from tabi.net.resolve import IP, Answer, Named
from tabi.wire.socks5 import ReplyCode

FOUR, OTHER_FOUR, SIX, OTHER_SIX = map(ip_address, ("192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8::2"))


class Clock:
    """Seconds as a test turns them."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class FakeSource:
    """Answers as a test gives them; any other name does not exist."""

    def __init__(self, answers: Mapping[str, Answer | Exception] | None = None) -> None:
        self.answers = dict(answers or {})
        self.asked: list[str] = []
        self.names: dict[IP, Named | Exception] = {}
        self.closed = False
        self.answering = asyncio.Event()
        self.answering.set()

    async def answer(self, name: str) -> Answer:
        self.asked.append(name)
        await self.answering.wait()
        found = self.answers.get(name, Answer([], None, "domain name not found"))
        if isinstance(found, Exception):
            raise found
        return found

    async def reverse(self, address: IP) -> Named:
        self.asked.append(str(address))
        await self.answering.wait()
        found = self.names.get(address, Named(None, None, "domain name not found"))
        if isinstance(found, Exception):
            raise found
        return found

    async def close(self) -> None:
        self.closed = True


class Parts:
    """A cache with everything around it."""

    def __init__(
        self,
        answers: Mapping[str, Answer | Exception] | None = None,
        hosts: Mapping[str, list[IP]] | None = None,
        prefer: Prefer = "any",
        size: int = 10,
        names_alone: bool = False,
    ) -> None:
        self.clock = Clock()
        self.source = FakeSource(answers)
        self.cache = NameCache(self.source, hosts, prefer, size, 2, 100, 5, self.clock, names_alone)


@pytest.mark.parametrize(
    ("ttl", "seconds"), [(60, 60), (2, 2), (100, 100), (1, 2), (0, 2), (None, 2), (101, 100), (2**31, 100)]
)
def test_an_answer_is_kept_as_long_as_it_says(run_once: Run, ttl: float | None, seconds: float) -> None:
    """Within the least and the most; one that does not say is kept the least; at its end it is asked for again."""

    async def main() -> None:
        parts = Parts({"a.test": Answer([FOUR, SIX], ttl)})
        assert parts.cache.lookup("a.test") is None
        assert await parts.cache.resolve("a.test") == [FOUR, SIX]
        parts.clock.now += seconds - 0.01
        assert parts.cache.lookup("a.test") == (FOUR, SIX)
        assert await parts.cache.resolve("a.test") == [FOUR, SIX]
        assert parts.source.asked == ["a.test"]
        parts.clock.now += 0.01
        assert parts.cache.lookup("a.test") is None
        parts.source.answers["a.test"] = Answer([OTHER_FOUR], ttl)
        assert await parts.cache.resolve("a.test") == [OTHER_FOUR]
        assert parts.source.asked == ["a.test"] * 2

    run_once(main)


@pytest.mark.parametrize(("ttl", "seconds"), [(None, 5), (600, 5), (3, 3), (0, 2)])
def test_that_a_name_does_not_exist_is_kept_for_a_short_time(run_once: Run, ttl: float | None, seconds: float) -> None:
    """Then it may exist; until then it is reply 04 at once, with the same text."""

    async def main() -> None:
        parts = Parts({"a.test": Answer([], ttl, "domain name not found")})
        for _ in range(3):
            with pytest.raises(DialError, match=r"^a\.test: domain name not found$") as caught:
                await parts.cache.resolve("a.test")
            assert caught.value.reply_code == ReplyCode.HOST_UNREACHABLE
        with pytest.raises(DialError):
            parts.cache.lookup("a.test")
        assert parts.source.asked == ["a.test"]
        parts.clock.now += seconds
        parts.source.answers["a.test"] = Answer([FOUR], 60)
        assert await parts.cache.resolve("a.test") == [FOUR]

    run_once(main)


def test_servers_in_trouble_are_left_alone_for_a_moment(run_once: Run) -> None:
    """A failure is remembered, for a second (RFC 9520); one of our own is not: it says nothing of the name."""

    async def main() -> None:
        failure = DialError("a.test: timeout", ReplyCode.HOST_UNREACHABLE)
        own = DialError("b.test: too many", ReplyCode.GENERAL_FAILURE)
        parts = Parts({"a.test": failure, "b.test": own})
        for name in ("a.test", "a.test", "b.test", "b.test"):
            with pytest.raises(DialError) as caught:
                await parts.cache.resolve(name)
            assert str(caught.value) == str(parts.source.answers[name])
        assert parts.source.asked == ["a.test", "b.test", "b.test"]
        parts.clock.now += FAILURE_TTL
        assert parts.cache.lookup("a.test") is None

    run_once(main)


def test_a_name_is_the_same_in_capitals(run_once: Run) -> None:
    """DNS does not tell them apart (RFC 4343)."""

    async def main() -> None:
        parts = Parts({"a.test": Answer([FOUR], 60)}, {"db.internal": [SIX]})
        assert await parts.cache.resolve("A.Test") == [FOUR]
        assert parts.cache.lookup("a.TEST") == (FOUR,)
        assert parts.cache.lookup("DB.Internal") == (SIX,)

    run_once(main)


def test_whoever_was_asked_for_last_stays(run_once: Run) -> None:
    """The bound holds, and names that nobody wants push those out last that are wanted."""

    async def main() -> None:
        parts = Parts({f"{number}.test": Answer([FOUR], 60) for number in range(20)})
        await parts.cache.resolve("0.test")
        for number in range(1, 20):
            await parts.cache.resolve(f"{number}.test")
            assert parts.cache.lookup("0.test") == (FOUR,)
            assert len(parts.cache.entries) <= 10
        assert list(parts.cache.entries) == [*(f"{number}.test" for number in range(11, 20)), "0.test"]

    run_once(main)


def test_without_a_cache_each_is_a_question(run_once: Run) -> None:
    """Size 0 keeps nothing; hosts and the order of addresses are as ever."""

    async def main() -> None:
        parts = Parts({"a.test": Answer([FOUR, SIX], 60)}, {"db.internal": [FOUR, SIX]}, "ipv6", 0)
        for _ in range(2):
            assert await parts.cache.resolve("a.test") == [SIX, FOUR]
        assert parts.source.asked == ["a.test"] * 2
        assert parts.cache.lookup("db.internal") == (SIX, FOUR)

    run_once(main)


def test_hosts_are_never_asked_for(run_once: Run) -> None:
    """What the configuration says of a name is the answer, for good."""

    async def main() -> None:
        parts = Parts({"db.internal": Answer([OTHER_FOUR], 60)}, {"db.internal": [FOUR]})
        parts.clock.now += 1e12
        assert parts.cache.lookup("db.internal") == (FOUR,)
        assert await parts.cache.resolve("db.internal") == [FOUR]
        assert parts.source.asked == []

    run_once(main)


@pytest.mark.parametrize("name", ["db.internal", "DB.Internal", "db.internal.", "DB.INTERNAL."])
def test_a_host_is_known_however_it_is_written(run_once: Run, name: str) -> None:
    """In capitals, and with the dot that says that a name is whole."""

    async def main() -> None:
        parts = Parts(hosts={"db.internal": [FOUR]})
        assert parts.cache.lookup(name) == (FOUR,)
        assert await parts.cache.resolve(name) == [FOUR]
        assert parts.source.asked == []

    run_once(main)


def test_a_dot_at_the_end_changes_nothing_where_names_are_asked_for_alone(run_once: Run) -> None:
    """Both are one name, in the cache and while it is asked for; a dot by itself stays one."""

    async def main() -> None:
        parts = Parts({"a.test": Answer([FOUR], 60)}, names_alone=True)
        assert await asyncio.gather(*map(parts.cache.resolve, ("a.test.", "A.test", "a.test"))) == [[FOUR]] * 3
        assert parts.cache.lookup("A.TEST.") == parts.cache.lookup("a.test") == (FOUR,)
        with pytest.raises(DialError):
            await parts.cache.resolve(".")
        assert parts.source.asked == ["a.test", "."]

    run_once(main)


def test_a_dot_at_the_end_keeps_search_domains_away(run_once: Run) -> None:
    """Of the system the name without it may be another: who asks for one must not be answered with the other."""

    async def main() -> None:
        parts = Parts({"db": Answer([FOUR], 60)})
        with pytest.raises(DialError):
            await parts.cache.resolve("db.")
        assert await parts.cache.resolve("db") == [FOUR]
        assert parts.source.asked == ["db.", "db"]

    run_once(main)


@pytest.mark.parametrize(
    ("prefer", "expected"),
    [
        ("any", [SIX, FOUR, OTHER_SIX, OTHER_FOUR]),
        ("ipv4", [FOUR, OTHER_FOUR, SIX, OTHER_SIX]),
        ("ipv6", [SIX, OTHER_SIX, FOUR, OTHER_FOUR]),
        ("ipv4-only", [FOUR, OTHER_FOUR]),
        ("ipv6-only", [SIX, OTHER_SIX]),
    ],
)
def test_addresses_come_as_they_are_preferred(run_once: Run, prefer: Prefer, expected: list[IP]) -> None:
    """Within a kind the order is the answer's, none comes twice, and hosts are treated like answers."""

    async def main() -> None:
        given = [SIX, FOUR, OTHER_SIX, OTHER_FOUR, FOUR]
        parts = Parts({"a.test": Answer(given, 60)}, {"b.test": given}, prefer)
        assert await parts.cache.resolve("a.test") == await parts.cache.resolve("b.test") == expected

    run_once(main)


@pytest.mark.parametrize(("prefer", "kind"), [("ipv4-only", "IPv4"), ("ipv6-only", "IPv6")])
def test_a_name_without_an_address_of_the_only_kind(run_once: Run, prefer: Prefer, kind: str) -> None:
    """It is as unreachable as one without any, and the text says why."""

    async def main() -> None:
        other = SIX if kind == "IPv4" else FOUR
        parts = Parts({"a.test": Answer([other], 60)}, {"b.test": [other]}, prefer)
        for name in ("a.test", "b.test"):
            with pytest.raises(DialError, match=f"^{name}: no {kind} address$"):
                await parts.cache.resolve(name)

    run_once(main)


def test_equal_questions_under_way_are_one(run_once: Run) -> None:
    """Whoever stops waiting takes the answer from nobody else, and from nobody who comes later."""

    async def main() -> None:
        parts = Parts({"a.test": Answer([FOUR], 60)})
        parts.source.answering.clear()
        loop = asyncio.get_running_loop()
        gone, *stay = [loop.create_task(parts.cache.resolve(name)) for name in ("a.test", "A.test", "a.test")]
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.wait((gone,))
        parts.source.answering.set()
        assert await asyncio.gather(*stay) == [[FOUR]] * 2
        assert parts.source.asked == ["a.test"]
        assert not parts.cache.questions

    run_once(main)


def test_an_answer_that_nobody_waits_for_is_kept(run_once: Run) -> None:
    """A client that asks again after its deadline finds it."""

    async def main() -> None:
        parts = Parts({"a.test": Answer([FOUR], 60)})
        parts.source.answering.clear()
        gone = asyncio.get_running_loop().create_task(parts.cache.resolve("a.test"))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.wait((gone,))
        (question,) = parts.cache.questions.values()
        parts.source.answering.set()
        await question
        assert parts.cache.lookup("a.test") == (FOUR,)

    run_once(main)


def test_what_is_asked_at_a_time_is_bounded(run_once: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client has as many questions as are free; one more waits; what is known, or asked for already, does not."""
    monkeypatch.setattr(cache, "LOOKUPS", 4)

    async def main() -> None:
        parts = Parts({f"{number}.test": Answer([FOUR], 60) for number in range(9)})
        await parts.cache.resolve("0.test")
        parts.source.answering.clear()
        loop = asyncio.get_running_loop()
        tasks = [loop.create_task(parts.cache.resolve(f"{number}.test", FOUR)) for number in (1, 2, 2, 3, 4, 4)]
        await asyncio.wait(tasks, timeout=0.01)
        assert parts.source.asked == ["0.test", "1.test", "2.test"]
        assert await parts.cache.resolve("0.test", FOUR) == [FOUR]
        parts.source.answering.set()
        assert await asyncio.gather(*tasks) == [[FOUR]] * 6
        assert parts.source.asked == [f"{number}.test" for number in range(5)]
        assert parts.cache.questions == {}
        assert parts.cache.places.held == {}

    run_once(main)


def test_one_client_does_not_crowd_out_others(run_once: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many names it asks for, there is a place for the next client; an IPv6 network of 64 bits is one."""
    monkeypatch.setattr(cache, "LOOKUPS", 16)

    async def main() -> None:
        parts = Parts({"good.test": Answer([FOUR], 60)})
        parts.source.answering.clear()
        loop = asyncio.get_running_loop()
        hostile = [
            loop.create_task(parts.cache.resolve(f"{number}.test", ip_address(f"2001:db8::{number % 9}")))
            for number in range(100)
        ]
        await asyncio.wait(hostile, timeout=0.01)
        assert len(parts.cache.questions) == 8
        good = [loop.create_task(parts.cache.resolve("good.test", host)) for host in (FOUR, OTHER_FOUR, None)]
        await asyncio.sleep(0)
        assert parts.source.asked.count("good.test") == 0
        await asyncio.sleep(0)
        assert parts.source.asked.count("good.test") == 1
        parts.source.answering.set()
        assert await asyncio.gather(*good) == [[FOUR]] * 3
        await asyncio.wait(hostile)
        assert all(isinstance(task.exception(), DialError) for task in hostile)
        assert parts.cache.places.held == {}

    run_once(main)


def test_who_waits_for_a_place_is_told_of_the_end(run_once: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is asked any more once the cache was closed."""
    monkeypatch.setattr(cache, "LOOKUPS", 2)

    async def main() -> None:
        parts = Parts()
        parts.source.answering.clear()
        loop = asyncio.get_running_loop()
        tasks = [loop.create_task(parts.cache.resolve(f"{number}.test")) for number in range(3)]
        await asyncio.wait(tasks, timeout=0.01)
        await parts.cache.close()
        await asyncio.wait(tasks)
        assert [str(task.exception()) for task in tasks] == [f"{n}.test: the resolver was closed" for n in range(3)]
        assert parts.source.asked == ["0.test"]

    run_once(main)


def test_who_leaves_while_it_waits_asks_for_nothing(run_once: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """And takes no place."""
    monkeypatch.setattr(cache, "LOOKUPS", 2)

    async def main() -> None:
        parts = Parts()
        parts.source.answering.clear()
        loop = asyncio.get_running_loop()
        tasks = [loop.create_task(parts.cache.resolve(f"{number}.test")) for number in range(2)]
        await asyncio.wait(tasks, timeout=0.01)
        tasks[1].cancel()
        parts.source.answering.set()
        await asyncio.wait(tasks)
        assert parts.source.asked == ["0.test"]
        assert parts.cache.places.held == {}

    run_once(main)


def test_what_comes_late_is_kept_too(run_once: Run) -> None:
    """The answer is given with one kind of addresses; the other one enters the cache when it is there."""

    async def main() -> None:
        parts = Parts()
        rest: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

        async def wait() -> Answer:
            return await rest

        task = asyncio.get_running_loop().create_task(wait())
        parts.source.answers["a.test"] = Answer([FOUR], 60, whole=False, rest=task)
        assert await parts.cache.resolve("a.test") == [FOUR]
        assert parts.cache.lookup("a.test") == (FOUR,)
        rest.set_result(Answer([SIX, FOUR], 60))
        await asyncio.wait((task,))
        await asyncio.sleep(0)
        parts.clock.now += 59
        assert parts.cache.lookup("a.test") == (SIX, FOUR)
        assert not parts.cache.late

    run_once(main)


def test_a_kind_of_addresses_that_was_not_answered_is_asked_for_again_soon(run_once: Run) -> None:
    """What is there can be used, but it is not known that there is no more: no longer than ``negative_ttl``."""

    async def main() -> None:
        parts = Parts({"a.test": Answer([FOUR], 60, whole=False)})
        assert await parts.cache.resolve("a.test") == [FOUR]
        parts.clock.now += 4.9
        assert parts.cache.lookup("a.test") == (FOUR,)
        parts.clock.now += 0.1
        assert parts.cache.lookup("a.test") is None

    run_once(main)


@pytest.mark.parametrize("how", ["closed", "given up", "failed"])
def test_the_rest_of_an_answer_may_never_come(run_once: Run, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """It takes no place from questions; the oldest is given up if there are too many. What was there stays."""
    monkeypatch.setattr(cache, "LOOKUPS", 2)

    async def main() -> None:
        parts = Parts()
        loop = asyncio.get_running_loop()
        rests = [loop.create_future() for _ in range(3)]

        async def wait(rest: asyncio.Future[Answer]) -> Answer:
            return await rest

        tasks = [loop.create_task(wait(rest)) for rest in rests]
        for number, task in enumerate(tasks):
            parts.source.answers[f"{number}.test"] = Answer([FOUR], 60, whole=False, rest=task)
        await parts.cache.resolve("0.test")
        assert parts.cache.places.held == {}
        if how == "given up":
            await parts.cache.resolve("1.test")
            await parts.cache.resolve("2.test")
        elif how == "failed":
            rests[0].set_exception(DialError("x", 4))
        else:
            await parts.cache.close()
        await asyncio.wait(tasks[:1])
        await asyncio.sleep(0)
        assert tasks[0].cancelled() == (how != "failed")
        assert parts.cache.lookup("0.test") == (FOUR,)
        assert len(parts.cache.late) == (2 if how == "given up" else 0)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)

    run_once(main)


def test_settings_of_zero_keep_nothing(run_once: Run) -> None:
    """``cache = 0`` asks for each request, ``negative_ttl = 0`` after each failure, whatever kind it is."""

    async def main() -> None:
        source = FakeSource({"a.test": Answer([FOUR], 60), "b.test": DialError("b.test: x", 4)})
        for names in (NameCache(source, size=0), NameCache(source, negative_ttl=0)):
            for _ in range(2):
                assert await names.resolve("a.test") == [FOUR]
                for name in ("b.test", "none.test"):
                    with pytest.raises(DialError):
                        await names.resolve(name)
        assert [source.asked.count(name) for name in ("a.test", "b.test", "none.test")] == [3, 4, 4]

    run_once(main)


def test_close_ends_what_is_under_way(run_once: Run) -> None:
    """Who waits gets an error, not for ever nothing; the source is closed too."""

    async def main() -> None:
        parts = Parts()
        parts.source.answering.clear()
        task = asyncio.get_running_loop().create_task(parts.cache.resolve("a.test"))
        await asyncio.sleep(0)
        await parts.cache.close()
        with pytest.raises(DialError, match=r"^a\.test: the resolver was closed$"):
            await task
        assert parts.source.closed
        assert not parts.cache.questions

    run_once(main)


def test_an_error_that_nobody_waits_for_bothers_nobody(run_once: Run) -> None:
    """asyncio has nothing to complain of."""

    async def main() -> None:
        complaints: list[dict[str, object]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        parts = Parts({"a.test": OSError("broken")})
        parts.source.answering.clear()
        task = asyncio.get_running_loop().create_task(parts.cache.resolve("a.test"))
        await asyncio.sleep(0)
        task.cancel()
        questions = list(parts.cache.questions.values())
        parts.source.answering.set()
        await asyncio.wait((task, *questions))
        await asyncio.sleep(0)
        questions.clear()
        gc.collect()
        assert complaints == []

    run_once(main)


@pytest.mark.parametrize(("ttl", "seconds"), [(60, 60), (None, 2), (0, 2), (2**31, 100)])
def test_the_name_of_an_address_is_kept_as_long_as_it_says(run_once: Run, ttl: float | None, seconds: float) -> None:
    """Within the same bounds as addresses are; then it is asked for again."""

    async def main() -> None:
        parts = Parts()
        parts.source.names[FOUR] = Named("one.test", ttl)
        for _ in range(2):
            assert await parts.cache.reverse(FOUR) == "one.test"
            parts.clock.now += seconds - 0.01
        assert parts.source.asked == [str(FOUR)]
        parts.clock.now += 0.01
        parts.source.names[FOUR] = Named("two.test", ttl)
        assert await parts.cache.reverse(FOUR) == "two.test"

    run_once(main)


@pytest.mark.parametrize(("ttl", "seconds"), [(None, 5), (600, 5), (3, 3)])
def test_that_an_address_has_no_name_is_kept_for_a_short_time(run_once: Run, ttl: float | None, seconds: float) -> None:
    """Reply 04, the same text each time; a failure is remembered for a second."""

    async def main() -> None:
        parts = Parts()
        parts.source.names[FOUR] = Named(None, ttl, "domain name not found")
        parts.source.names[SIX] = DialError(f"{SIX}: silent", ReplyCode.HOST_UNREACHABLE)
        for address, text in ((FOUR, f"{FOUR}: domain name not found"), (SIX, f"{SIX}: silent")):
            for _ in range(2):
                with pytest.raises(DialError, match=f"^{text}$") as caught:
                    await parts.cache.reverse(address)
                assert caught.value.reply_code == ReplyCode.HOST_UNREACHABLE
        assert parts.source.asked == [str(FOUR), str(SIX)]
        parts.clock.now += seconds
        parts.source.names[FOUR] = Named("one.test", 60)
        assert await parts.cache.reverse(FOUR) == "one.test"

    run_once(main)


def test_hosts_answer_for_their_addresses_too(run_once: Run) -> None:
    """The first name that has an address is its name, whatever kind is preferred; nobody is asked."""

    async def main() -> None:
        hosts = {"db.internal": [FOUR, SIX], "alias.internal": [FOUR, OTHER_SIX]}
        parts = Parts(hosts=hosts, prefer="ipv4-only")
        assert [await parts.cache.reverse(address) for address in (FOUR, SIX, OTHER_SIX)] == [
            "db.internal",
            "db.internal",
            "alias.internal",
        ]
        assert parts.source.asked == []

    run_once(main)


def test_names_and_addresses_are_kept_together(run_once: Run) -> None:
    """One bound for both; whoever was asked for last stays; equal questions under way are one."""

    async def main() -> None:
        parts = Parts({f"{number}.test": Answer([FOUR], 60) for number in range(20)})
        parts.source.names[FOUR] = Named("one.test", 60)
        assert await asyncio.gather(*(parts.cache.reverse(FOUR) for _ in range(3))) == ["one.test"] * 3
        for number in range(20):
            await parts.cache.resolve(f"{number}.test")
            assert await parts.cache.reverse(FOUR) == "one.test"
            assert len(parts.cache.entries) <= 10
        assert parts.source.asked.count(str(FOUR)) == 1

    run_once(main)


def test_what_asking_takes_is_told(run_once: Run) -> None:
    """Once for each question to the source: what is known, and who joins a question, takes nothing."""

    async def main() -> None:
        parts = Parts({"a.test": Answer([FOUR], 60)})
        told: list[float] = []
        parts.cache.observe = told.append
        await asyncio.gather(parts.cache.resolve("a.test"), parts.cache.resolve("a.test"))
        await parts.cache.resolve("a.test")
        assert told == [0.0]

    run_once(main)
