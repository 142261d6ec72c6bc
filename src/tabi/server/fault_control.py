"""Faults that are set by ``tabi fault``: the supervisor checks and keeps them, and has all workers act by them.

A message to a worker is ``{"faults": {"id": N, "set": {NAME: …}, "remove": [NAME], "keep": [NAME], "list": true}}``, of
which each part may be missing; it answers ``{"faults": N, …}``. One that starts later has them from the fork on.
"""

from __future__ import annotations

import asyncio
import importlib
import itertools
import logging
import sys
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from tabi.config import Config, FaultConfig
from tabi.config.check_matchers import LONGEST_NAME
from tabi.config.compile import make_distort
from tabi.config.faults import HTTP_FAULTS
from tabi.config.live_faults import LARGEST, changed, describe, find_profile, plain, read_fault
from tabi.config.load import decode_special
from tabi.errors import ConfigError
from tabi.policy.quantities import Seconds
from tabi.server.channel import Channel
from tabi.server.child import Place
from tabi.server.faults import Faults, check_name, labels_of, new_name
from tabi.server.intercept_files import check_fault

log = logging.getLogger("tabi")

Answer = Callable[[Mapping[str, Any]], object]
"""Takes the answer to a request: ``{"ok": {...}}`` or ``{"error": TEXT}``; at once or later."""

PATIENCE = 2.0
"""Seconds that a worker may take to act by a fault."""

LONGEST_TEXT = 200
"""Letters of what is shown of a fault in one column."""

MOLDING = "tabi.server.distortion"
"""The module that imports all others of molding, but those for HTTP."""

OF_HTTP = ("tabi.server.interception", "tabi.distort.rewrites")
"""Those that import the latter."""

MOST_OCTETS, MOST_OF_WORKER = 60_000, 30_000
"""Octets of a list, and of the part that a worker says, as JSON: messages in a channel have a bound."""


class Held(NamedTuple):
    """A fault that was set."""

    given: dict[str, Any]
    """Its keys."""
    profile: dict[str, Any] | None
    """The figures of its profile, as they were when it was set."""
    until: float | None = None
    """When it is removed, by the monotonic clock."""

    @property
    def message(self) -> dict[str, Any]:
        """What a worker needs of it."""
        return {"given": self.given, "profile": self.profile}


class Question:
    """What workers were told, until all have answered or their time is over."""

    def __init__(self, deadline: float, done: Callable[[Question], object]) -> None:
        self.deadline = deadline
        self.done = done
        self.waiting: set[Place] = set()
        self.silent: list[Place] = []
        self.answers: list[Mapping[str, Any]] = []


class FaultControl:
    """The command ``fault`` of the control socket.

    Args:
        workers: the places of all of them.
        config: the configuration that they begin with.
        clock: seconds that nobody sets.
    """

    def __init__(self, workers: Sequence[Place], config: Config, clock: Callable[[], float] = time.monotonic) -> None:
        self.workers = workers
        self.listeners = [listen.url for listen in config.listen]
        self.clock = clock
        self.all: dict[str, Held] = {}
        self.ids = itertools.count(1)
        self.next = 1
        """The number of the next fault that is given no name."""
        self.questions: dict[int, Question] = {}
        self.late: set[Place] = set()
        """Workers that have not answered in time, and nothing since."""
        self.missed: set[Place] = set()
        """Those that a message could not be sent to: they get everything anew as soon as they answer."""
        self.actions = {"list": self.tell_all, "add": self.add, "change": self.change, "remove": self.remove}
        self.learn(config.profile, labels_of(config))

    def learn(self, profiles: Mapping[str, FaultConfig | dict[str, Any]], labels: Collection[str]) -> None:
        """Take note of another configuration: its profiles, and how its entries are called."""
        self.profiles = {name: as_fault(fault) for name, fault in profiles.items()}
        self.labels = frozenset(labels)

    # --- what is asked ---

    def do(self, request: Mapping[str, Any], answer: Answer) -> None:
        """Carry a request out; ``path`` beside an error is the key that it is about."""
        name = request.get("action")
        action = self.actions.get(name) if isinstance(name, str) else None
        try:
            if action is None:
                raise ConfigError(f"{name!r}, expected one of: {', '.join(self.actions)}", "action")
            action(request, answer)
        except ConfigError as exc:
            answer({"error": exc.message, "path": exc.path})

    def add(self, request: Mapping[str, Any], answer: Answer) -> None:
        """Set a fault."""
        given = changed(None, table_of(request))
        name = given.pop("name", None)
        if name is None:
            name = new_name(itertools.count(self.next), {*self.all, *self.labels})
        held = self.checked(name, given, request.get("for"), None)
        check_name(name, {*self.all, *self.labels}, len(self.all))
        self.next += 1
        self.hold(name, held, answer)

    def change(self, request: Mapping[str, Any], answer: Answer) -> None:
        """Change a fault: keys that are given hold from now on, the others stay."""
        name = self.find(request.get("name"))
        before, given = self.all[name], table_of(request)
        if not given and request.get("for") is None:
            raise ConfigError("nothing to change, expected one key or more")
        self.hold(name, self.checked(name, changed(before.given, given), request.get("for"), before), answer)

    def remove(self, request: Mapping[str, Any], answer: Answer) -> None:
        """Remove faults: those that are named, or all that were set."""
        names = request.get("names")
        if names is not None and not isinstance(names, list):
            raise ConfigError(f"{type(names).__name__}, expected a list", "names")
        found = list(self.all) if names is None else list(dict.fromkeys(map(self.find, names)))
        for name in found:
            del self.all[name]
            log.info("fault %s is removed", name)
        self.tell({"remove": found}, lambda asked: answer(result(asked, {"names": found})))

    def find(self, name: object) -> str:
        """The name of a fault that was set. Raises ConfigError if there is none."""
        if not isinstance(name, str):
            raise ConfigError(f"{type(name).__name__}, expected a name")
        if name in self.all:
            return name
        if name in self.labels:
            raise ConfigError(f"{name} is of the configuration: change it there, and reload")
        known = f", expected one of: {', '.join(self.all)}" if self.all else ": none is set"
        raise ConfigError(f"there is no fault {name!r}{known}")

    def checked(self, name: str, given: dict[str, Any], seconds: object, before: Held | None) -> Held:
        """A fault that can be set. Raises ConfigError, which names the key."""
        profile = None
        if "profile" in given:
            kept = before is not None and before.profile is not None and before.given["profile"] == given["profile"]
            profile = before.profile if kept and before else plain(find_profile(given["profile"], self.profiles))
        check_fault(make_distort(read_fault(given, name, profiles_of(given, profile), self.listeners), 0))
        if "seed" in given and len(self.workers) != 1:
            raise ConfigError("sessions are drawn by each worker for itself: expected workers = 1", "seed")
        size = len(msgspec.json.encode(given))
        if size > LARGEST:
            raise ConfigError(f"{size} octets, expected {LARGEST} at most")
        until = None if before is None else before.until
        if seconds is not None:
            try:
                until = self.clock() + Seconds.parse(seconds)
            except ValueError as exc:
                raise ConfigError(str(exc), "for") from None
        return Held(given, profile, until)

    def hold(self, name: str, held: Held, answer: Answer) -> None:
        """Keep a fault, and have the workers act by it."""
        self.all[name] = held
        log.info("fault %s is set: %s", name, "; ".join(filter(None, describe(held.given))))
        self.tell({"set": {name: held.message}}, lambda asked: answer(result(asked, {"name": name})))

    def tell_all(self, _: Mapping[str, Any], answer: Answer) -> None:
        """Answer with all entries, and what the workers have counted."""

        def done(asked: Question) -> None:
            rows, left_out = self.rows(asked.answers)
            answer(result(asked, {"faults": rows, "left_out": left_out}))

        self.tell({"list": True}, done)

    def rows(self, answers: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], int]:
        """All entries with the counts of all workers, those that were set first; and how many are left out."""
        now = self.clock()
        found: dict[tuple[str, int], dict[str, Any]] = {}
        for name, held in self.all.items():
            left = None if held.until is None else round(max(0.0, held.until - now), 1)
            found[name, -1] = row(name, True, *describe(held.given)) | {"seconds_left": left}
        for one in answers:
            for name, counts in one.get("live", {}).items():
                add_counts(found.get((name, -1)), counts)
            for number, (name, what, matchers, *counts) in enumerate(one.get("file", ())):
                add_counts(found.setdefault((name, number), row(name, False, what, matchers)), counts)
        rows = fitting(list(found.values()), MOST_OCTETS)
        return rows, len(found) - len(rows) + max((one.get("left_out", 0) for one in answers), default=0)

    # --- the workers ---

    @property
    def messages(self) -> dict[str, dict[str, Any]]:
        """All faults, for a worker that starts."""
        return {name: held.message for name, held in self.all.items()}

    def tell(self, message: Mapping[str, Any], done: Callable[[Question], object]) -> None:
        """Tell all workers something, and call ``done`` when they have answered or their time is over."""
        number = next(self.ids)
        question = Question(self.clock() + PATIENCE, done)
        for place in self.workers:
            if place.channel is None:
                continue
            if "list" in message and place in self.late:
                question.silent.append(place)
            elif not place.channel.send({"faults": {**message, "id": number}}):
                self.missed.add(place)
                question.silent.append(place)
            elif place in self.late:
                question.silent.append(place)
            else:
                question.waiting.add(place)
        self.questions[number] = question
        self.finish(number)

    def heard(self, place: Place, body: Mapping[str, Any]) -> None:
        """Take the answer of a worker."""
        self.late.discard(place)
        number = body["faults"]
        question = self.questions.get(number)
        if question is not None and place in question.waiting:
            question.waiting.discard(place)
            question.answers.append(body)
            self.finish(number)
        if place in self.missed and place.channel is not None and not place.channel.waiting:
            self.missed.discard(place)
            for name, held in self.all.items():
                place.channel.send({"faults": {"id": 0, "set": {name: held.message}}})
            place.channel.send({"faults": {"id": 0, "keep": list(self.all)}})

    def left(self, place: Place) -> None:
        """A worker has ended: nobody waits for it. The one that is started in its place has all faults."""
        self.late.discard(place)
        self.missed.discard(place)
        for number, question in tuple(self.questions.items()):
            question.waiting.discard(place)
            self.finish(number)

    def finish(self, number: int) -> None:
        """Give the answers of a question, if nobody is waited for any more."""
        if not self.questions[number].waiting:
            question = self.questions.pop(number)
            question.done(question)

    # --- another process takes over ---

    def state(self) -> dict[str, dict[str, Any]]:
        """All faults, for `adopt` of another process on this machine."""
        return {name: {**held.message, "until": held.until} for name, held in self.all.items()}

    def adopt(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Have the faults of the process before; what does not go with this configuration is left out, and logged."""
        for name, one in state.items():
            try:
                held = Held(one["given"], one["profile"], one["until"])
                check_name(name, {*self.all, *self.labels}, len(self.all))
                self.all[name] = self.checked(name, held.given, None, held)
            except (ConfigError, KeyError) as exc:
                log.warning("fault %s is not taken over: %s", name, exc)

    # --- time ---

    def due(self, now: float) -> float | None:
        """Seconds until something has to be done; None if nothing has."""
        times = [question.deadline for question in self.questions.values()]
        times += [held.until for held in self.all.values() if held.until is not None]
        return min(times) - now if times else None

    def keep_time(self) -> None:
        """Remove the faults whose time is over, and wait no longer for who has not answered in time."""
        now = self.clock()
        for number, question in tuple(self.questions.items()):
            if question.deadline <= now:
                self.late |= question.waiting
                question.silent += question.waiting
                question.waiting.clear()
                self.finish(number)
        over = [name for name, held in self.all.items() if held.until is not None and held.until <= now]
        if over:
            self.remove({"names": over}, lambda _: None)


def result(asked: Question, found: Mapping[str, Any]) -> dict[str, Any]:
    """The answer to a request, with the workers that have not answered."""
    errors = [one["error"] for one in asked.answers if "error" in one]
    if errors:
        return {"error": f"a worker could not: {errors[0]}"}
    return {"ok": {**found, "silent": [place.pid for place in asked.silent]}}


def table_of(request: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a request. Raises ConfigError."""
    given = request.get("fault", {})
    if not isinstance(given, dict):
        raise ConfigError(f"{type(given).__name__}, expected an object", "fault")
    return given


def as_fault(fault: FaultConfig | Mapping[str, Any]) -> FaultConfig:
    """A profile, also from JSON."""
    return fault if isinstance(fault, FaultConfig) else msgspec.convert(fault, FaultConfig, dec_hook=decode_special)


def profiles_of(given: Mapping[str, Any], profile: Mapping[str, Any] | None) -> dict[str, FaultConfig]:
    """The profile of a fault, by its name."""
    return {} if profile is None else {given["profile"]: as_fault(profile)}


def row(name: str, live: bool, what: str, matchers: str) -> dict[str, Any]:
    """A line of the list."""
    return {
        "name": name,
        "live": live,
        "what": cut(what),
        "matchers": cut(matchers),
        "sessions": 0,
        "chosen": 0,
        "seconds_left": None,
    }


def add_counts(row: dict[str, Any] | None, counts: Sequence[int]) -> None:
    """Add what a worker has counted."""
    if row is not None:
        row["sessions"] += counts[0]
        row["chosen"] += counts[1]


def cut(text: str, length: int = LONGEST_TEXT) -> str:
    """A text that is not too long."""
    return text if len(text) <= length else f"{text[: length - 1]}…"


def fitting(rows: list[Any], octets: int) -> list[Any]:
    """As many of these as fit into so many octets of JSON."""
    for number, one in enumerate(rows):
        octets -= len(msgspec.json.encode(one)) + 1
        if octets < 0:
            return rows[:number]
    return rows


# --- in a worker ---


class Orders:
    """Does what the supervisor says, in its order. The first fault of a server needs many modules: sessions are served
    while these are loaded.

    Args:
        faults: gives those of the server.
        channel: to the supervisor.
    """

    def __init__(self, faults: Callable[[], Faults], channel: Channel) -> None:
        self.faults = faults
        self.channel = channel
        self.waiting: deque[Mapping[str, Any]] = deque()
        self.task: asyncio.Task[None] | None = None

    def add(self, told: Mapping[str, Any]) -> None:
        """Do this, after all that was said before."""
        self.waiting.append(told)
        if self.task is None or self.task.done():
            self.task = asyncio.get_running_loop().create_task(self.work())

    async def work(self) -> None:
        """Do all that waits."""
        while self.waiting:
            told = self.waiting[0]
            for module in (MOLDING, *(OF_HTTP if acts_on_http(told) else ())):
                if module not in sys.modules:
                    await asyncio.to_thread(importlib.import_module, module)
            self.channel.send(obey(self.faults(), self.waiting.popleft()))

    async def close(self) -> None:
        """Do nothing any more."""
        if self.task is not None:
            self.task.cancel()
            await asyncio.gather(self.task, return_exceptions=True)


def acts_on_http(told: Mapping[str, Any]) -> bool:
    """Whether faults that are set act on HTTP."""
    found = told.get("set", {}).values()
    return any(key in one["given"] or key in (one["profile"] or ()) for one in found for key in HTTP_FAULTS)


def obey(faults: Faults, told: Mapping[str, Any]) -> dict[str, Any]:
    """Do what the supervisor says, and return what it is told."""
    answer: dict[str, Any] = {"faults": told["id"]}
    try:
        take(faults, told.get("set", {}))
        keep = told.get("keep")
        for name in told.get("remove", ()) if keep is None else set(faults.all) - set(keep):
            if name in faults.all:
                faults.all[name].remove()
        if told.get("list"):
            answer |= counted(faults)
    except Exception as exc:
        log.exception("a fault could not be set")
        answer["error"] = str(exc) or type(exc).__name__
    return answer


def take(faults: Faults, held: Mapping[str, Mapping[str, Any]]) -> None:
    """Set faults, or change them. Raises ConfigError."""
    for name, one in held.items():
        faults.hold(name, one["given"], profiles_of(one["given"], one["profile"]))


def counted(faults: Faults) -> dict[str, Any]:
    """What there is to be listed, and its counts."""
    live: dict[str, tuple[int, int]] = {}
    file: list[tuple[object, ...]] = []
    for found in faults.rows():
        if found.live:
            live[found.name] = found.sessions, found.chosen
        else:
            name, what, matchers = cut(found.name, LONGEST_NAME), cut(found.what), cut(found.matchers)
            file.append((name, what, matchers, found.sessions, found.chosen))
    rows = fitting(file, MOST_OF_WORKER)
    return {"live": live, "file": rows, "left_out": len(file) - len(rows)}
