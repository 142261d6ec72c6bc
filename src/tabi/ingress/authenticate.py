"""Asking who the client is, without delaying other clients."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from contextvars import ContextVar
from functools import partial
from typing import NamedTuple

import msgspec

from tabi.config.load import decode_limits
from tabi.errors import AuthError
from tabi.ingress.login import Login, User
from tabi.ingress.presence import hearing
from tabi.ingress.refusal import Refusal, login_dropped, login_failed, login_refused
from tabi.net.reactor import BROKEN, ENDED
from tabi.net.stream import Stream
from tabi.policy.fair_queue import FairQueue
from tabi.policy.grammar import Grammar, Parameters
from tabi.policy.networks import network_of
from tabi.policy.users import Proofs, Users
from tabi.session import Session

log = logging.getLogger("tabi")

HASHERS = 2
"""Threads that compute hashes: each takes a core and 16 MiB for the time of one."""

WAITING = 256
"""Pairs of user name and password of one address that may wait for a thread: as many take about six seconds."""

WAITING_IN_ALL = 4096
"""Logins that may wait for a thread. A server has fewer: half of its sessions."""

SHOWN = 64
"""Characters of a wrong user name in the access log."""

client_of_login: ContextVar[Stream | None] = ContextVar("client_of_login", default=None)
"""The client that the task asks for. A `Login` is for programs, which have nothing to do with its stream."""


class Parted(NamedTuple):
    """A user, and the parameters that came with the user name."""

    user: str | User
    parameters: Parameters


Answer = str | User | Parted | None


Ask = Callable[[Login], "Answer | Awaitable[Answer]"]
"""`Authenticate`, or a version that first applies a grammar of user names."""


class TooManyLogins(Exception):
    """A login is given up, because more of them wait than can be looked at."""


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


async def identify(
    ask: Ask, client: Stream, session: Session, username: bytes, password: bytes, seconds: float
) -> Refusal | None:
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
    client_of_login.set(client)
    try:
        found = ask(login)
    except Exception as exc:
        return refusal_for(exc, login)
    if isinstance(found, Awaitable):
        async with asyncio.timeout(seconds):
            try:
                found = await found
            except Exception as exc:  # the deadline comes as a cancellation: what was asked has failed
                return refusal_for(exc, login)
    try:
        if isinstance(found, Parted):
            parameters, found = found.parameters, found.user
        if not isinstance(found, str | User | None):
            raise TypeError(f"authenticate returned {type(found).__name__}, expected str, tabi.User or None")
        user = found if isinstance(found, User) else User(found or "")
        limits = None if user.limits is None else decode_limits(user.limits)
        if not user.name:
            raise AuthError("wrong user name or password")
        session.identify(user.name, frozenset(user.groups), limits)
    except Exception as exc:
        return refusal_for(exc, login)
    session.parameters = parameters
    if session.watch is not None:
        session.watch.authenticated(session)
    return None


def refusal_for(exc: Exception, login: Login) -> Refusal:
    """How a client is refused whose login was not accepted. The name is told to the access log alone, as it came but
    for what cannot be seen."""
    name = login.username
    detail = f": {name if len(name) <= SHOWN else name[:SHOWN] + '…'!r}"
    if isinstance(exc, AuthError):
        return login_refused(str(exc) + detail)
    if isinstance(exc, TooManyLogins):
        return login_dropped(str(exc) + detail)
    log.error("authentication failed", exc_info=exc)
    return login_failed(f"authentication failed: {type(exc).__name__}")


Found = str | Exception | None
"""The user's name, what has failed, or None: no user."""


class Check:
    """A user name and a password that are being looked at, for all logins that have brought them."""

    __slots__ = ("logins", "mark", "under_way", "verify")

    def __init__(self, mark: bytes, verify: Callable[[], str | None]) -> None:
        self.mark = mark
        self.verify = verify
        self.logins: dict[asyncio.Future[Found], Hashable] = {}
        """What each login waits for, and its address."""
        self.under_way = False

    def tell(self, login: asyncio.Future[Found], found: Found) -> None:
        """Tell a login what was found, unless it waits no more."""
        if not login.done():
            login.set_result(found)


class PasswordAuthenticator:
    """Checks passwords against `Users`: proven pairs at once, plain ones here, hashes in a small pool of threads.

    Addresses from which no wrong password has come lately are first, and equal pairs are hashed once. Nothing is
    computed for a client that has gone. One that has ended, so that nobody knows, waits for no thread.

    Args:
        users: may be replaced at any time.
        most: logins that may wait for a thread.
    """

    def __init__(self, users: Users, most: int = WAITING_IN_ALL) -> None:
        self.users = users
        self.proofs = Proofs()
        self.checks: dict[bytes, Check] = {}
        self.queue: FairQueue[Check] = FairQueue(WAITING, most)
        self.hashers: ThreadPoolExecutor | None = None
        self.running = 0
        self.closed = False

    def __call__(self, login: Login) -> str | Awaitable[str | None] | None:
        username = login.username.encode("utf-8", "surrogateescape")
        password = login.password.encode("utf-8", "surrogateescape")
        users = self.users
        if not users.is_slow:
            return users.verify(username, password)
        name, stored = users.find(username)
        mark = self.proofs.mark(username, password, stored)
        if self.proofs.recall(mark, asyncio.get_running_loop().time()):
            return name
        return self.verify(username, password, network_of(login.client))

    async def verify(self, username: bytes, password: bytes, address: Hashable) -> str | None:
        """Have a hash computed. What is stored for the user at the end counts. Raises TooManyLogins."""
        while True:
            users, stored = self.users, self.users.find(username)[1]
            if not users.is_slow:
                return users.verify(username, password)
            mark = self.proofs.mark(username, password, stored)
            check = self.checks.get(mark)
            if check is None:
                check = self.checks[mark] = Check(mark, partial(users.verify, username, password))
            name = await self.wait(check, address)
            if self.users is users or self.users.find(username)[1] == stored:
                return name

    async def wait(self, check: Check, address: Hashable) -> str | None:
        """Wait for a check. Raises TooManyLogins, and what the check raises."""
        client = client_of_login.get()
        login: asyncio.Future[Found] = asyncio.get_running_loop().create_future()

        def told(events: int) -> None:
            if events & ENDED and not events & BROKEN and not check.under_way:
                check.tell(login, TooManyLogins("too many logins wait, and the client has ended"))

        check.logins[login] = address
        try:
            if not check.under_way:
                too_many = self.queue.add(address, check)
                if too_many is not None:
                    self.give_up(*too_many)
                self.begin()
            with nullcontext() if client is None else hearing(client, told):
                if client is not None:
                    told(client.events)
                found = await login
        finally:
            if check.logins.pop(login, None) is not None and not check.under_way:
                self.queue.remove(address, check)
                self.forget_unused(check)
        if isinstance(found, Exception):
            raise found
        return found

    def give_up(self, address: Hashable, check: Check) -> None:
        """Give up the logins of an address that wait for a check: too many others do."""
        for login in [login for login, other in check.logins.items() if other == address]:
            del check.logins[login]
            check.tell(login, TooManyLogins("too many logins wait"))
        self.forget_unused(check)

    def forget_unused(self, check: Check) -> None:
        """Forget a check that has not begun, if nobody waits for it any more."""
        if not check.logins:
            del self.checks[check.mark]

    def begin(self) -> None:
        """Begin the next checks, if threads are free. The last one stays free for addresses that have not failed."""
        loop = asyncio.get_running_loop()
        while self.running < HASHERS and not self.closed:
            taken = self.queue.take(loop.time(), without_failure=self.running == HASHERS - 1)
            if taken is None:
                break
            address, check = taken
            if self.hashers is None:
                self.hashers = ThreadPoolExecutor(HASHERS, "tabi-hash")
            self.running += 1
            check.under_way = True
            try:
                found = loop.run_in_executor(self.hashers, check.verify)
            except RuntimeError as exc:  # the system has no room for a thread
                found = loop.create_future()
                found.set_exception(exc)
            found.add_done_callback(partial(self.finish, address, check))

    def finish(self, address: Hashable, check: Check, found: asyncio.Future[str | None]) -> None:
        """A check is done, in the turn of an address: tell all logins that wait for it."""
        self.running -= 1
        del self.checks[check.mark]
        if found.cancelled():  # the server closes
            return
        error = found.exception()
        result: Found = found.result() if error is None else RuntimeError(f"a check failed: {error!r}")
        now = asyncio.get_running_loop().time()
        if isinstance(result, str):
            self.proofs.remember(check.mark, now)
        elif result is None:
            for other in {address, *check.logins.values()}:
                self.queue.fail(other, now)
        for login in check.logins:
            check.tell(login, result)
        self.begin()

    async def close(self) -> None:
        """End the threads: hashes that have not begun are dropped, the last ones are waited for."""
        self.closed = True
        for check in self.checks.values():
            for login in check.logins:
                login.cancel()
        if self.hashers is not None:
            hashers, self.hashers = self.hashers, None
            await asyncio.to_thread(hashers.shutdown, cancel_futures=True)
