"""Asking who the client is, without holding up anyone else."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor

from tabi.errors import AuthError
from tabi.policy.grammar import Grammar, Parameters
from tabi.policy.users import Users
from tabi.session import Session

log = logging.getLogger("tabi")

Authenticate = Callable[[bytes, bytes, str], Awaitable[str | None]]
"""(user name, password, the client's address) -> the user's name, or None to refuse."""

HASHERS = 2
"""Threads that compute hashes: each takes a core and 16 MiB for the time of one."""

PENDING = 64
"""Hashes that may wait for a thread; the rest waits in its own task, within the handshake's deadline."""


class Identity(str):
    """A user's name, and the parameters that came with it."""

    __slots__ = ("name", "parameters")

    name: str
    parameters: Parameters


def with_grammar(authenticate: Authenticate, grammar: Grammar) -> Authenticate:
    """Ask for the user's own name, where it comes with parameters."""

    async def ask(username: bytes, password: bytes, client: str) -> str | None:
        try:
            name, parameters = grammar.read(username.decode("utf-8", "surrogateescape"))
        except ValueError as exc:
            raise AuthError(str(exc)) from None
        user = await authenticate(name.encode("utf-8", "surrogateescape"), password, client)
        if user is None:
            return None
        found = Identity(user)
        found.name, found.parameters = user, parameters
        return found

    return ask


async def identify(
    authenticate: Authenticate, session: Session, username: bytes, password: bytes, seconds: float
) -> bool:
    """Ask who a client is, within ``seconds``, and set the session's user or its error. False when it is nobody.

    Raises:
        TimeoutError: the answer took too long.
    """
    session.user = session.parameters = None
    async with asyncio.timeout(seconds):
        try:
            user = await authenticate(username, password, str(session.client.host))
            if isinstance(user, Identity):
                session.parameters, user = user.parameters, user.name
            session.user = user
        except AuthError as exc:
            session.error = str(exc)
        except Exception as exc:  # the deadline comes as a cancellation: this is a fault of who was asked
            log.exception("authenticate failed")
            session.error = f"authenticate failed: {type(exc).__name__}"
    if session.user is None:
        session.error = session.error or "wrong user name or password"
    elif session.watch is not None:
        session.watch.authenticated(session)
    return session.user is not None


class PasswordAuthenticator:
    """Checks passwords against `Users`: proven pairs at once, plain ones here, hashes in a small pool of threads."""

    def __init__(self, users: Users) -> None:
        self.users = users
        self.hashers: ThreadPoolExecutor | None = None
        self.turns = asyncio.Semaphore(PENDING)

    async def __call__(self, username: bytes, password: bytes, client: str) -> str | None:
        users, loop = self.users, asyncio.get_running_loop()
        if not users.is_slow(username):
            return users.verify(username, password)
        known = users.recall(username, password, loop.time())
        if known is not None:
            return known
        async with self.turns:
            if self.hashers is None:
                self.hashers = ThreadPoolExecutor(HASHERS, "tabi-hash")
            name = await loop.run_in_executor(self.hashers, users.verify, username, password)
        if name is not None:
            users.remember(username, password, loop.time())
        return name

    async def close(self) -> None:
        """End the threads: hashes that have not begun are dropped, the last ones are waited for."""
        if self.hashers is not None:
            hashers, self.hashers = self.hashers, None
            await asyncio.to_thread(hashers.shutdown, cancel_futures=True)
