"""Explaining what would become of a request: the parts that decide are those of the server, and nothing is dialled."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from datetime import UTC, datetime
from functools import partial
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any

import msgspec

from tabi.config import Config, Listen
from tabi.config.compile import BLOCK, DIRECT
from tabi.errors import AuthError, DialError, LimitExceeded, PolicyDenied, TabiError
from tabi.ingress.gate import as_resolved
from tabi.ingress.http import problem_of
from tabi.net.cache import NameCache
from tabi.net.own import ask
from tabi.net.resolve import find_number
from tabi.policy.grammar import NONE, Grammar, Parameters
from tabi.policy.guard import Own
from tabi.policy.ledger import USED, Ledger
from tabi.policy.limits import Account
from tabi.policy.networks import unmapped
from tabi.policy.policy import Policy, enforce
from tabi.policy.quantities import Quota, format_moment, format_size
from tabi.policy.rules import Unresolved
from tabi.server.compose import make_policy
from tabi.server.ways import choice_of, describe, leads_nowhere, resolves_there, unable
from tabi.session import Session
from tabi.wire.address import Address
from tabi.wire.socks5 import ReplyCode

IP = IPv4Address | IPv6Address


class RuleStep(msgspec.Struct):
    """What one rule said."""

    rule: str
    matched: bool
    why: str
    action: str


class Explanation(msgspec.Struct):
    """The whole answer, as ``--json`` prints it."""

    listener: str
    protocol: str
    client: str
    user: str | None
    command: str
    destination: str
    time: str
    identity: str
    """Who the client is to the listener, and whether that is enough."""
    login: str | None = None
    """The user name as it was given, with its parameters."""
    parameters: dict[str, Any] | None = None
    """These: labels, session and ttl; null where there are none."""
    rules: list[RuleStep] = []
    decide: str | None = None
    """What the program of ``decide`` said; null where there is none."""
    resolver: str = "not asked"
    addresses: list[str] = []
    guard: str = "not asked"
    limits: list[str] = []
    egress: str | None = None
    selects: list[str] = []
    """What the parameters select there."""
    there: bool = False
    """Whether the name is resolved or found by a proxy, and so neither the resolver's answer nor the guard's counts."""
    later: str | None = None
    """Of an association and of BIND for anybody: what becomes of datagrams, or callers."""
    action: str = "allow"
    rule: str | None = None
    reply: int | None = 0
    error: str | None = None
    """As the access log would have them; a destination that cannot be reached is another matter."""


class Request(msgspec.Struct, frozen=True):
    """What is asked about."""

    command: str
    destination: Address
    client: Any
    user: str | None
    """The user name as the client gives it."""
    listen: Listen
    protocol: str
    now: float
    """Seconds since 1970."""


async def explain(config: Config, request: Request, resolver: NameCache, quotas: Path | None = None) -> Explanation:
    """What would become of a request. ``quotas`` is the file that says what was used.

    Raises:
        ConfigError: the configuration is wrong.
    """
    own = Own()
    own.addresses = frozenset(ask())
    own.ports = frozenset(place.port for listen in config.listen if isinstance(place := listen.parsed.place, Address))
    policy = make_policy(config, Ledger(), own, None)
    failure: TabiError | None = None
    user, parameters = request.user, NONE
    try:
        user, parameters = read_login(config, request)
    except AuthError as exc:
        user, failure = None, exc
    session = Session(0, request.listen.url, Address(request.client, 0), 0)
    session.protocol, session.command, session.user = request.protocol, request.command, user
    session.destination = request.destination
    session.parameters = None if parameters == NONE else parameters
    found = Explanation(
        listener=request.listen.url,
        protocol=request.protocol,
        client=str(request.client),
        user=user,
        command=request.command,
        destination=str(request.destination),
        time=datetime.fromtimestamp(request.now, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        identity="nobody, since the login fails" if failure is not None else identity_of(config, request, user),
        login=request.user,
        parameters=None if session.parameters is None else parameters._asdict(),
    )
    if request.user is None and request.listen.wants_user(config.has_users):
        failure = AuthError("this listener wants a user")
    failure = failure or refuse_question(request)
    anybody = is_anybody(request.destination)
    addresses, no_address = (None, None) if anybody else await resolve(found, resolver, request.destination)
    steps = [
        partial(decide, found, config, policy, session, addresses, request.now),
        partial(judge, found, policy, session, addresses),
    ]
    if request.command == "associate" or (request.command == "bind" and anybody):
        # What it is for is judged later: each destination of a datagram, whoever calls.
        failure = failure or explain_open(
            found, config, policy, session, request.now, [] if anybody else steps, no_address
        )
        steps, no_address = [], None
    for step in [*steps, partial(limit, found, policy, session, request.now, quotas)]:
        try:
            step()
        except TabiError as exc:
            failure = failure or exc
    failure = failure or (None if found.there else no_address)
    if failure is None and request.command == "resolve_ptr" and not found.there:
        failure = await reverse(found, resolver, request.destination)
    if failure is not None:
        found.error, found.reply = str(failure), reply_to(request.protocol, failure)
        found.egress, found.selects = None, []
        if found.action in ("reset", "drop"):
            found.reply = None
        elif found.action == "allow" and isinstance(failure, PolicyDenied | LimitExceeded | AuthError):
            found.action = "deny"
    elif request.protocol in SUCCESS:
        found.reply = SUCCESS[request.protocol]
    return found


QUESTIONS = ("resolve", "resolve_ptr")


def refuse_question(request: Request) -> DialError | None:
    """Why a question for an address or a name is none that a listener answers."""
    if request.command not in QUESTIONS:
        return None
    if not request.listen.resolve_commands:
        return DialError("resolve_commands of this listener is false", ReplyCode.COMMAND_NOT_SUPPORTED)
    if request.command == "resolve_ptr" and is_name(request.destination):
        text = f"{request.destination.host}: only an address can be asked for its name"
        return DialError(text, ReplyCode.ADDRESS_TYPE_NOT_SUPPORTED)
    return None


SUCCESS = {"http": 200, "https": 200, "socks4": 90, "socks4+tls": 90}
"""What stands for reply 0 in protocols other than SOCKS5, as the access log has it."""


def reply_to(protocol: str, failure: TabiError) -> int | None:
    """The code that a client of a protocol gets."""
    if protocol.startswith("http"):
        return 407 if isinstance(failure, AuthError) else problem_of(failure)[0]
    if protocol.startswith("socks4"):
        return 91
    return failure.reply_code


def is_name(destination: Address) -> bool:
    """Whether somebody has to resolve it."""
    return isinstance(destination.host, str)


def is_anybody(destination: Address) -> bool:
    """Whether an address stands for none in particular."""
    host = destination.host
    return not isinstance(host, str) and unmapped(host).is_unspecified


def explain_open(
    found: Explanation,
    config: Config,
    policy: Policy,
    session: Session,
    now: float,
    steps: Sequence[Callable[[], None]],
    no_address: DialError | None,
) -> TabiError | None:
    """What becomes of a session that has no destination yet, and of the one destination that was asked about."""
    assert session.destination is not None
    rule = policy.refusal(session, now)
    if rule is not None:
        found.rules.append(RuleStep(rule.label, True, "whatever its destination", rule.action))
        found.action, found.rule = rule.action, rule.label
        try:
            enforce(policy.decisions[rule.number], session.destination)
        except PolicyDenied as exc:
            return exc
    way = policy.way(session, now)
    settled = policy.settled(session, now)
    reason = None if way is None else unable(config, way, str(session.command))
    if settled is not None and (reason is not None or not steps):
        found.rules.append(RuleStep(settled.label, True, "whatever its destination", settled.action))
    if reason is not None:
        return DialError(reason, ReplyCode.COMMAND_NOT_SUPPORTED)
    if way is not None and leads_nowhere(config, way):
        return PolicyDenied(f"egress {way}: {'datagrams' if session.command == 'associate' else session.destination}")
    failure: TabiError | None = None
    for step in steps:
        try:
            step()
        except TabiError as exc:
            failure = failure or exc
    failure = failure or (None if found.there else no_address)
    found.egress = found.egress or describe(config, way or DIRECT)
    found.action, found.rule = "allow", None if settled is None else settled.label
    if not steps:
        found.later = "each is judged when it comes"
    else:
        found.later = f"to {session.destination}: " + (f"dropped, {failure}" if failure is not None else "sent")
    return None


def read_login(config: Config, request: Request) -> tuple[str | None, Parameters]:
    """The user's own name and the parameters, where a client logs in: a certificate's name is taken as it is.

    Raises:
        AuthError: the parameters cannot be read.
    """
    grammar = Grammar(config.users_grammar.keys, config.users_grammar.separator)
    if request.user is None or request.listen.users == "none" or request.protocol.startswith("socks4"):
        return request.user, NONE
    try:
        return grammar.read(request.user)
    except ValueError as exc:
        raise AuthError(str(exc)) from None


def identity_of(config: Config, request: Request, user: str | None) -> str:
    """Who the client is."""
    if user is None:
        wanted = request.listen.wants_user(config.has_users)
        return "no user, and this listener wants one" if wanted else "no user, and this listener wants none"
    known = config.users.get(user)
    if known is None:
        return f"user {user}, who is not in [users]: of a certificate, or of a program"
    groups = f", of {', '.join('@' + group for group in known.groups)}" if known.groups else ""
    return f"user {user}{groups}"


async def resolve(
    found: Explanation, resolver: NameCache, destination: Address
) -> tuple[Sequence[IP] | None, DialError | None]:
    """The addresses of the destination, or why there are none."""
    host = destination.host
    try:
        number = find_number(host) if isinstance(host, str) else host
        addresses = [number] if number is not None else await resolver.resolve(str(host))
    except DialError as exc:
        found.resolver = str(exc)
        return None, exc
    found.addresses = [str(address) for address in addresses]
    if number is None:
        found.resolver = f"{host} has {', '.join(found.addresses)}"
    else:
        found.resolver = f"{host} is an address" if number == host else f"{host} is the address {number}"
    return addresses, None


async def reverse(found: Explanation, resolver: NameCache, destination: Address) -> DialError | None:
    """Ask what an address is called; returns why it has no name."""
    assert not isinstance(destination.host, str)
    try:
        found.resolver = f"{destination.host} is called {await resolver.reverse(destination.host)}"
    except DialError as exc:
        found.resolver = str(exc)
        return exc
    return None


def decide(
    found: Explanation,
    config: Config,
    policy: Policy,
    session: Session,
    addresses: Sequence[IP] | None,
    now: float,
) -> None:
    """Ask the rules, and the program that has the last word. Raises PolicyDenied for a refusal."""
    assert session.destination is not None
    destination = Address(as_resolved(session.destination.host), session.destination.port)
    # The server asks for the addresses of a name only where that makes a difference.
    needed = isinstance(policy.rules.find(session, destination, None, now), Unresolved)
    session.addresses = addresses if needed else None
    for step in policy.rules.explain(session, destination, session.addresses, now):
        found.rules.append(RuleStep(step.rule.label, step.matched, step.why, step.rule.action))
    try:
        decision = policy.decide(session, destination, session.addresses, now)
    except Exception as exc:  # of the program's
        found.decide = f"failed: {type(exc).__name__}: {exc}"
        raise PolicyDenied(f"decide failed: {type(exc).__name__}") from exc
    if isinstance(decision, Unresolved):  # the name has no address
        return
    if policy.last_word is not None:
        found.decide = f"{config.decide}: {decision.action}" + (f" by {decision.via}" if decision.via else "")
    found.action, found.rule = decision.action, decision.rule
    if decision.action == "allow":
        via = decision.via or DIRECT
        if via not in (DIRECT, BLOCK, *config.egress):
            raise PolicyDenied(f"decide: there is no egress {via}")
        found.egress = describe(config, via)
        asks = is_name(destination) or session.command == "resolve_ptr"
        there = resolves_there(config, via)
        found.there = session.addresses is None and asks and there
        command = str(session.command)
        goes = command in ("bind", "associate") or (command in QUESTIONS and there)
        reason = unable(config, via, command) if goes else None
        if reason is not None:
            raise DialError(reason, ReplyCode.COMMAND_NOT_SUPPORTED)
        if leads_nowhere(config, via):
            raise PolicyDenied(f"egress {via}: {session.destination}")
        if session.parameters is not None:
            found.selects = choice_of(config, via, session.parameters)
    enforce(decision, session.destination)


def judge(found: Explanation, policy: Policy, session: Session, addresses: Sequence[IP] | None) -> None:
    """Ask the guard. Raises PolicyDenied."""
    guard, client = policy.guard, session.client.host
    assert session.destination is not None
    if found.there and is_name(session.destination):
        later = ", and what it finds is looked at then" if session.command == "resolve" else ""
        found.guard = f"not asked: the name is the proxy's to resolve{later}"
    elif not guard.denied:
        found.guard = "off: guard.deny is empty"
    elif not guard.is_for(client):
        found.guard = f"not for {client}, which is in guard.exempt"
    elif addresses is None:
        found.guard = "has no address to look at"
    else:
        reasons = [reason for one in addresses if (reason := guard.catches(one, session.destination.port))]
        found.guard = f"refuses: {'; '.join(reasons)}" if reasons else f"lets {', '.join(found.addresses)} through"
        guard.judge(session.destination, addresses)


def limit(found: Explanation, policy: Policy, session: Session, now: float, quotas: Path | None) -> None:
    """Tell the limits that hold, and ask them as if nothing else were under way. Raises LimitExceeded."""
    limits, user = policy.limits, session.user
    used = read_used(quotas)
    limits.ledger.restore(used)
    accounts = limits.accounts_of(user, session.client.host)
    limits.turn_periods(now)
    for account in accounts:
        found.limits.append(f"{account.name}: {', '.join(terms_of(account, account.name in used))}")
    if user is not None and user in limits.expires:
        found.limits.append(f"user {user}: until {format_moment(limits.expires[user])}")
    limits.admit(user, session.client.host, 0, now)


def terms_of(account: Account, known: bool) -> list[str]:
    """The limits of an account for people; ``known`` says that what was used is."""
    terms, found = account.terms, []
    if terms.connections is not None:
        found.append(f"{terms.connections} connections at once")
    if terms.connect_rate is not None:
        found.append(f"new ones {terms.connect_rate}")
    if terms.bandwidth is not None:
        found.append(f"{format_size(int(terms.bandwidth))}/s each way")
    if terms.burst is not None:
        found.append(f"{format_size(terms.burst)} at once")
    if terms.quota is not None:
        found.append(describe_quota(account, terms.quota, known))
    if terms.max_session is not None:
        found.append(f"{terms.max_session:g} s for a session")
    return [*found, "who is over waits"] if terms.over == "wait" else found


def describe_quota(account: Account, quota: Quota, known: bool) -> str:
    """A quota, and how much of it was used."""
    used = account.ledger.cells[account.at + USED]
    return f"{quota} ({used / quota.octets:.0%} used)" if known else str(quota)


def read_used(path: Path | None) -> dict[str, tuple[int, int]]:
    """What the file of quotas says, if there is one that can be read."""
    try:
        if path is None or not path.exists():
            return {}
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
            rows = database.execute("SELECT account, period, used FROM quota").fetchall()
    except (OSError, sqlite3.Error):
        return {}
    return {account: (period, used) for account, period, used in rows}
