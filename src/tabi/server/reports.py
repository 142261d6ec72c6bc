"""What a worker answers when it is asked about itself: its sessions, its metrics, the members of its pools.

A question is ``{"ask": {"id": N, "about": NAME, ...}}``; the answer ``{"told": N}`` comes with a file in memory, which
holds JSON. What takes long is done a few sessions at a time: no session waits for it.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import os
from collections.abc import Awaitable, Callable, Mapping
from itertools import islice
from time import monotonic
from typing import Any

import msgspec

from tabi.net.kernel import open_memory
from tabi.policy.ledger import USED
from tabi.policy.limits import NEVER, Account, Limits
from tabi.server.channel import Channel
from tabi.server.measure import AT_ONCE, Measure
from tabi.server.server import Server
from tabi.server.sessions import SessionInfo
from tabi.session import Session

log = logging.getLogger("tabi")

MOST = 10_000
"""Sessions that one answer has at most, and users, and accounts."""

AT_A_TIME = 8
"""Questions that are answered at a time; further ones are refused."""

FILTERS = ("id", "listener", "client", "protocol", "command", "user", "host", "rule", "via")
"""By which sessions can be chosen: each is a text that must be equal; ``client`` and ``host`` go without the port."""

SEARCH = "search"
"""A text that must be part of one of ``SEARCHED``."""

SEARCHED = ("id", "client", "user", "host", "via")

SORTED_BY = ("seconds", "up", "down", "octets")
"""By which sessions can be sorted, the largest first."""


class Reports:
    """Answers the questions of the supervisor.

    Args:
        server: it has been started.
        channel: to the supervisor.
    """

    def __init__(self, server: Server, channel: Channel) -> None:
        self.server = server
        self.channel = channel
        self.measure = Measure(server)
        self.tasks: set[asyncio.Task[None]] = set()
        self.about: dict[str, Callable[[Mapping[str, Any]], Awaitable[Any]]] = {
            "sessions": self.sessions,
            "kick": self.kick,
            "metrics": self.metrics,
            "egress": self.egress,
            "steer": self.steer,
            "users": self.users,
            "refusals": self.refusals,
        }

    def ask(self, question: Mapping[str, Any]) -> None:
        """Answer a question, soon."""
        if len(self.tasks) < AT_A_TIME:
            task = asyncio.get_running_loop().create_task(self.answer(question))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)
        else:
            self.tell(question["id"], encode({"error": "too many questions at once, try again later"}))

    async def answer(self, question: Mapping[str, Any]) -> None:
        """Answer a question."""
        try:
            found = encode({"ok": await self.about[question["about"]](question)})
        except Exception as exc:
            log.exception("a question about %s was not answered", question["about"])
            found = encode({"error": f"internal error: {type(exc).__name__}"})
        self.tell(question["id"], found)

    def tell(self, number: int, found: bytes) -> None:
        """Send an answer."""
        memory = open_memory("tabi-answer")
        try:
            with open(memory, "wb", closefd=False) as file:
                file.write(found)
            self.channel.send({"told": number}, (memory,))
        finally:
            os.close(memory)

    async def close(self) -> None:
        """Answer nothing any more."""
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    # --- what there is to know ---

    async def metrics(self, _: Mapping[str, Any]) -> Any:
        """All metrics, as lists: JSON has no other keys than texts."""
        samples = await self.measure.samples()
        return {name: [(labels, value) for labels, value in found.items()] for name, found in samples.items()}

    async def sessions(self, question: Mapping[str, Any]) -> Any:
        """The sessions that match, and how many there are. Rows are made for those alone that are shown."""
        limit, by = min(int(question.get("limit", MOST)), MOST), question.get("sort")
        found: list[tuple[float, Session]] = []
        matching = 0
        async for session in self.chosen(question.get("filter", {})):
            matching += 1
            if by is not None:
                found.append((self.size(session, by), session))
            elif len(found) < limit:
                found.append((0.0, session))
        if by is not None:
            found = heapq.nlargest(limit, found, key=lambda pair: pair[0])
        rows: list[bytes] = []  # encoded one by one: of many together that is a slow turn
        for number, (_, session) in enumerate(found):
            if session in self.server.parts.sessions.running:
                rows.append(encode(self.row(session)))
            if not number % AT_ONCE:
                await asyncio.sleep(0)
        return {"sessions": msgspec.Raw(b"[%s]" % b",".join(rows)), "matching": matching}

    def size(self, session: Session, by: str) -> float:
        """What a session is sorted by."""
        if by == "seconds":
            return -session.started
        carried = self.server.parts.sessions.carried(session)
        up, down = (session.up, session.down) if carried is None else carried.counts
        return up if by == "up" else down if by == "down" else up + down

    async def kick(self, question: Mapping[str, Any]) -> Any:
        """End the sessions that match; how many that were."""
        sessions, ended = self.server.parts.sessions, 0
        async for session in self.chosen(question.get("filter", {})):
            sessions.kick(session, session.number)
            ended += 1
        return {"ended": ended}

    async def egress(self, _: Mapping[str, Any]) -> Any:
        """The members of pools, and how each is."""
        now = monotonic()
        return [
            {
                "pool": pool.name,
                "member": member.name,
                "up": member.due is None,
                "drained": member.drained,
                "sessions": member.running,
                "failures": member.failures,
                "trial_in": None if member.due in (None, NEVER) else round(max(0.0, member.due - now), 1),
                "reason": pool.reasons.get(member),
            }
            for pool in self.server.parts.egresses.pools
            for member in pool.pool.members
        ]

    async def steer(self, question: Mapping[str, Any]) -> Any:
        """Give a member of a pool no more requests, or give it some again; whether there is such a member."""
        return self.steer_member(question["pool"], question["member"], question["action"])

    def steer_member(self, name: str, wanted: str, action: str) -> bool:
        """As `steer`."""
        for pool in self.server.parts.egresses.pools:
            for member in pool.pool.members:
                if (pool.name, member.name) == (name, wanted):
                    (pool.pool.drain if action == "drain" else pool.pool.undrain)(member)
                    return True
        return False

    async def users(self, _: Mapping[str, Any]) -> Any:
        """The users that have sessions here, with what these have moved, and the accounts that limits have for all."""
        parts, found = self.server.parts, dict[str, dict[str, Any]]()
        async for session in self.chosen({}):
            if session.user is not None and (session.user in found or len(found) < MOST):
                user = found.setdefault(session.user, {"sessions": 0, "up": 0, "down": 0})
                carried = parts.sessions.carried(session)
                up, down = (session.up, session.down) if carried is None else carried.counts
                user["sessions"] += 1
                user["up"] += up
                user["down"] += down
        limits = parts.gate.policy.limits
        accounts, rows = iter(tuple(islice(limits.accounts, MOST))), []
        while batch := tuple(islice(accounts, AT_ONCE)):
            rows += [account_row(limits, account) for account in batch]
            await asyncio.sleep(0)
        return {"users": found, "accounts": rows}

    async def refusals(self, _: Mapping[str, Any]) -> Any:
        """The last requests that were refused, the latest first."""
        return [{"id": f"{self.server.parts.prefix}{one['number']:x}", **one} for one in self.server.metrics.refusals]

    async def chosen(self, wanted: Mapping[str, str]) -> Any:
        """The running sessions that match, a few in each turn of the loop."""
        running = iter(tuple(self.server.parts.sessions.running))
        while batch := tuple(islice(running, AT_ONCE)):
            for session in batch:
                if session in self.server.parts.sessions.running and self.matches(session, wanted):
                    yield session
            await asyncio.sleep(0)

    def matches(self, session: Session, wanted: Mapping[str, str]) -> bool:
        """Whether a session is one of those that are asked for."""
        for name, text in wanted.items():
            if name == SEARCH:
                if not any(text in self.text_of(session, searched) for searched in SEARCHED):
                    return False
            elif self.text_of(session, name) != text:
                return False
        return True

    def text_of(self, session: Session, name: str) -> str:
        """What a filter is compared with."""
        if name == "id":
            return self.id_of(session)
        if name == "client":
            return str(session.client.host)
        if name == "host":
            return str(session.destination.host) if session.destination else ""
        return getattr(session, name) or ""

    def id_of(self, session: Session) -> str:
        """Its id in the access log."""
        return f"{self.server.parts.prefix}{session.number:x}"

    def row(self, session: Session) -> dict[str, Any]:
        """A session as it is now, with the keys of the access log."""
        info: SessionInfo = self.server.parts.sessions.info(session, monotonic())
        destination = info.destination
        return {
            "id": self.id_of(session),
            "listener": info.listener,
            "protocol": info.protocol,
            "command": info.command,
            "client": str(info.client),
            "user": info.user,
            "host": str(destination.host) if destination else None,
            "port": destination.port if destination else None,
            "address": str(info.address) if info.address else None,
            "rule": info.rule,
            "via": info.via,
            "member": session.member,
            "up": info.up,
            "down": info.down,
            "seconds": round(info.seconds, 3),
        }


def account_row(limits: Limits, account: Account) -> dict[str, Any]:
    """What limits allow an account, and what is used of it."""
    terms, quota = account.terms, account.quota
    return {
        "name": account.name,
        "sessions": limits.ledger.running(account.at),
        "connections": account.connections,
        "bandwidth": None if terms.bandwidth is None else int(terms.bandwidth),
        "quota": None if quota is None else str(quota),
        "quota_octets": None if quota is None else int(quota.octets),
        "used": limits.ledger.cells[account.at + USED],
    }


def encode(found: Any) -> bytes:
    """JSON, also of names that clients have sent and that are not text."""
    try:
        return msgspec.json.encode(found)
    except UnicodeEncodeError:  # lone surrogates
        return msgspec.json.encode(as_text(found))


def as_text(found: Any) -> Any:
    """The same with escapes in place of what is not text."""
    if isinstance(found, str):
        return found.encode("utf-8", "backslashreplace").decode()
    if isinstance(found, dict):
        return {as_text(key): as_text(value) for key, value in found.items()}
    return [as_text(one) for one in found] if isinstance(found, list | tuple) else found
