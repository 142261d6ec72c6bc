"""Asking who the client is, without delaying other clients."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import msgspec

from tabi.config.load import decode_limits
from tabi.errors import AuthError
from tabi.ingress.login import Login, User
from tabi.ingress.refusal import Refusal, login_failed, login_refused
from tabi.policy.grammar import Grammar, Parameters
from tabi.policy.users import Users
from tabi.session import Session

log = logging.getLogger("tabi")

HASHERS = 2
"""Threads that compute hashes: each takes a core and 16 MiB for the time of one."""

PENDING = 64
"""Hashes that may wait for a thread; the rest waits in its own task, within the handshake's deadline."""


class Parted(NamedTuple):
    """A user, and the parameters that came with the user name."""

    user: str | User
    parameters: Parameters


Answer = str | User | Parted | None


Ask = Callable[[Login], "Answer | Awaitable[Answer]"]
"""`Authenticate`, or a version that first applies a grammar of user names."""


def with_grammar(authenticate: Ask, grammar: Grammar) -> Ask:
    """Ask for the user's own name, if it comes with parameters."""

    async def ask(login: Login) -> Answer:
        try:
            name, parameters = grammar.read(login.username)
        except ValueError as exc:
            raise AuthError(str(exc)) from None
        user = authenticate(msgspec.structs.replace(login, username=name))
        if isinstance(user, Awaitable):
            user = await user
        return user if user is None or isinstance(user, Parted) else Parted(user, parameters)

    return ask


async def identify(ask: Ask, session: Session, username: bytes, password: bytes, seconds: float) -> Refusal | None:
    """Ask who a client is, within ``seconds``, and set the session's user.

    Returns:
        None if it is a user, else how it is refused.

    Raises:
        TimeoutError: the answer took too long.
    """
    login = Login(
        username.decode("utf-8", "surrogateescape"),
        password.decode("utf-8", "surrogateescape"),
        session.client,
        session.protocol,
        session.listener,
        session.user,
    )
    session.identify(None)
    parameters: Parameters | None = None
    async with asyncio.timeout(seconds):
        try:
            found = ask(login)
            if isinstance(found, Awaitable):
                found = await found
            if isinstance(found, Parted):
                parameters, found = found.parameters, found.user
            if not isinstance(found, str | User | None):
                raise TypeError(f"authenticate returned {type(found).__name__}, expected str, tabi.User or None")
            user = found if isinstance(found, User) else User(found or "")
            limits = None if user.limits is None else decode_limits(user.limits)
        except AuthError as exc:
            return login_refused(str(exc))
        except Exception as exc:  # the deadline comes as a cancellation: what was asked has failed
            log.exception("authentication failed")
            return login_failed(f"authentication failed: {type(exc).__name__}")
    if not user.name:
        return login_refused("wrong user name or password")
    session.identify(user.name, frozenset(user.groups), limits)
    session.parameters = parameters
    if session.watch is not None:
        session.watch.authenticated(session)
    return None


class PasswordAuthenticator:
    """Checks passwords against `Users`: proven pairs at once, plain ones here, hashes in a small pool of threads."""

    def __init__(self, users: Users) -> None:
        self.users = users
        self.hashers: ThreadPoolExecutor | None = None
        self.turns = asyncio.Semaphore(PENDING)

    async def __call__(self, login: Login) -> str | None:
        users, loop = self.users, asyncio.get_running_loop()
        username = login.username.encode("utf-8", "surrogateescape")
        password = login.password.encode("utf-8", "surrogateescape")
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
