"""Asks the supervisor, and through it all workers, on behalf of clients: in the processes that these talk to."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from tabi.errors import ConfigError
from tabi.server.answers import ABOUT, Answers
from tabi.server.channel import Channel, Message, close_all

PATIENCE = 5.0
"""Seconds that the supervisor may take for an answer."""

PATIENCES = {"upgrade": 40.0}
"""The same for commands that take longer."""


def patience_for(request: Mapping[str, Any]) -> float:
    """Seconds that the supervisor may take for the answer to a request."""
    return PATIENCES.get(str(request.get("command")), PATIENCE)


class Asked:
    """A request that waits for its answer."""

    def __init__(self, request: Mapping[str, Any]) -> None:
        self.request = request
        self.answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self.parts: list[tuple[int, int]] = []
        """Pids of workers, and their answers: descriptors of files."""


class Asker:
    """Asks, and finds out for whom each answer is.

    Args:
        channel: to the supervisor; what comes through it is given to `heard`.
        version: of the program, which ``status`` tells.
    """

    def __init__(self, channel: Channel, version: str) -> None:
        self.channel = channel
        self.version = version
        self.answers = Answers(version)
        self.numbers = itertools.count(1)
        self.asked: dict[int, Asked] = {}

    def heard(self, message: Message) -> None:
        """Give an answer of the supervisor, or the part of a worker, to whom it is for."""
        body = message.body
        asked = self.asked.get(body.get("id", 0))
        if asked is None or asked.answer.done():
            close_all(message.fds)
        elif "part" in body:
            asked.parts.append((body["part"], message.fds.pop()))
        elif "silent" in body:
            asked.answer.set_result(self.join(asked, body["silent"]))
        else:
            asked.answer.set_result({name: value for name, value in body.items() if name != "id"})

    def end(self) -> None:
        """Answer whoever still waits: the server has ended."""
        for asked in self.asked.values():
            if not asked.answer.done():
                asked.answer.set_result({"error": "the server has ended"})

    def join(self, asked: Asked, silent: Sequence[int]) -> dict[str, Any]:
        """One answer out of those of workers."""
        try:
            return self.answers.join(asked.request, asked.parts, silent)
        except ConfigError as exc:
            return {"error": exc.message, "path": exc.path}

    async def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to a request: ``{"ok": {...}}``, or ``{"error": TEXT}`` and ``path``, the key that is wrong."""
        number, name = next(self.numbers), request.get("command")
        about = ABOUT.get(name) if isinstance(name, str) else None
        self.asked[number] = asked = Asked(request)
        try:
            if about is not None:
                about.check(request)
            if not self.channel.send({"id": number, "request": request}):
                return {"error": "the server does not listen, try again later"}
            async with asyncio.timeout(patience_for(request)):
                answer = await asked.answer
        except ConfigError as exc:
            return {"error": exc.message, "path": exc.path}
        except ValueError:
            return {"error": "the request is too large"}
        except TimeoutError:
            return {"error": f"the server has not answered within {patience_for(request):g} s"}
        finally:
            del self.asked[number]
            close_all([file for _, file in asked.parts])
        if name == "status" and "ok" in answer:
            answer["ok"]["version"] = self.version
        return answer
