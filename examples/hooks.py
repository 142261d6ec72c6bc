"""Hooks for HTTP that tabi looks into: they mark requests, refuse some, count answers and tag the slow ones.

Run it: tabi ca init, then tabi serve --intercept '*.example.com' --script examples/hooks.py
Use it: curl --socks5-hostname 127.0.0.1:1080 --cacert "$(tabi ca show --path)" https://www.example.com/
"""

from __future__ import annotations

import logging
from collections import Counter
from time import monotonic

import tabi

log = logging.getLogger("hooks")

SLOW = 1.0
"""Seconds from which an answer is slow."""


class Mark:
    """Says in each request that it came through here."""

    def request(self, flow: tabi.Flow) -> None:
        flow.request.headers["X-Looked-Into"] = "tabi"


class Refuse:
    """Answers for a path that nobody is to reach."""

    def request(self, flow: tabi.Flow) -> None:
        if flow.request.path.startswith("/admin"):
            flow.respond(403, "not from here\n", {"Content-Type": "text/plain"})


class Statuses:
    """Counts answers by their status, and says now and then how many there were."""

    def __init__(self) -> None:
        self.counts: Counter[int] = Counter()

    def response(self, flow: tabi.Flow) -> None:
        if flow.response is not None:
            self.counts[flow.response.status] += 1

    def flow_end(self, flow: tabi.Flow) -> None:
        if self.counts.total() % 1000 == 999:
            log.warning("answers: %s", dict(self.counts))


class TagSlow:
    """Tags answers that were slow to begin: records can be searched for tags."""

    def request(self, flow: tabi.Flow) -> None:
        flow.store["asked"] = monotonic()

    def response(self, flow: tabi.Flow) -> None:
        if monotonic() - flow.store.get("asked", monotonic()) >= SLOW:
            flow.tags.add("slow")


class Greetings:
    """Changes JSON on its way: the whole content is waited for, up to a limit."""

    async def response(self, flow: tabi.Flow) -> None:
        answer = flow.response
        if answer is None or answer.headers.get("Content-Type") != "application/greeting+json":
            return
        try:
            text = await answer.text(limit=100_000)
        except tabi.TooLarge:
            return
        answer.set_body(text.replace("hello", "good day"))
