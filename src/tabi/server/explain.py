"""Explaining what would happen to a request: the server's own parts decide, and nothing is dialled."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from time import monotonic
from typing import Any

import msgspec

from tabi.config import Config, Listen
from tabi.config.check import raise_all
from tabi.config.compile import make_distorts, make_intercepts
from tabi.config.lists import list_errors
from tabi.config.users import UserTable, make_users
from tabi.errors import AuthError, ConfigError, DialError, LimitExceeded, PolicyDenied, TabiError
from tabi.ingress.gate import Gate
from tabi.ingress.refusal import refusal_of
from tabi.net.cache import NameCache
from tabi.net.dial import Dialer
from tabi.net.local_addresses import ask
from tabi.net.reactor import get_reactor
from tabi.net.resolve import find_number
from tabi.net.tls import TlsShared
from tabi.observe.metrics import Metrics
from tabi.policy.grammar import NONE, Grammar, Parameters
from tabi.policy.guard import LocalAddresses
from tabi.policy.host_list import HostList
from tabi.policy.ledger import Ledger
from tabi.policy.networks import unmapped
from tabi.server.compiled import sniffing_of
from tabi.server.compose import make_policy
from tabi.server.egresses import Egresses
from tabi.server.explain_distort import explain_distortion, note_inside
from tabi.server.explain_intercept import explain_interception, opens_tls
from tabi.server.explanation import QUESTIONS, EgressExplainer, Explanation, Recorder, is_name
from tabi.session import Session
from tabi.wire.address import Address
from tabi.wire.socks5 import ReplyCode

IP = IPv4Address | IPv6Address


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
    sni: str | None = None
    """The name in the client's hello. Default: it is not known."""


class Nobody:
    """The client of a request that is only explained: it waits for its answer, and never disconnects."""

    events = 0


NOBODY: Any = Nobody()


class Answered:
    """A resolver that knows one name, or why it has no address: what was found for the request.

    Args:
        addresses: of the destination.
        failure: why there are no addresses.
    """

    def __init__(self, addresses: Sequence[IP] | None, failure: DialError | None) -> None:
        self.addresses = addresses
        self.failure = failure

    async def resolve(self, name: str) -> list[IP]:
        """See `Resolver`."""
        if self.failure is not None:
            raise self.failure
        return list(self.addresses or ())

    async def reverse(self, address: IP) -> str:
        """See `Resolver`: it is not used here."""
        raise NotImplementedError

    async def close(self) -> None:
        """Nothing is open."""


async def explain(config: Config, request: Request, resolver: NameCache, quotas: Path | None = None) -> Explanation:
    """What would happen to a request. ``quotas`` is the file that says what was used.

    Raises:
        ConfigError: the configuration is wrong.
    """
    own = LocalAddresses()
    own.addresses = frozenset(ask())
    own.ports = frozenset(place.port for listen in config.listen if isinstance(place := listen.parsed.place, Address))
    users = make_users(config, without_password=True)
    lists: dict[tuple[str, str], HostList] = {}
    raise_all(list_errors(config, lists))
    policy = make_policy(config, Ledger(), own, None, users, lists)
    session, found, failure = begin(config, users, request)
    anybody = is_anybody(request.destination)
    openly = request.command == "associate" or (request.command == "bind" and anybody)
    addresses, no_address = (None, None) if anybody else await resolve(found, resolver, request.destination)
    used = read_used(quotas)
    policy.limits.ledger.restore(used)
    recorder = Recorder(found, config, policy, request.now, used, openly)
    dialer = Dialer(get_reactor(), Answered(addresses, no_address), config.timeouts.connect)
    egresses = Egresses(config, dialer, TlsShared())
    patience = config.timeouts.handshake
    gate = Gate(policy, dialer, egresses.by_name, Metrics(), patience, egresses.from_url, lambda: request.now, recorder)
    told = EgressExplainer(found, config, policy, session, addresses, no_address)
    try:
        if openly:
            route = await gate.enter_open(session, NOBODY)
            failure = failure or recorder.failure or await told.explain_openly(gate, route, anybody)
        else:
            egress = (await gate.enter_slowly(session, NOBODY)).egress
            failure = failure or recorder.failure
            refused = told.open(egress)
            failure = failure or refused
            if failure is None and sniffing_of(config).includes(session):
                found.sniff = "if it is TLS, the rules are asked again with the name that it asks for (SNI)"
            if failure is None and request.command == "resolve_ptr" and not found.proxy_resolves:
                failure = await reverse(found, resolver, request.destination)
    finally:
        gate.close()
        await dialer.close()
    conclude(found, request, failure)
    dials = failure is None or failure is no_address  # entries are asked before the name is resolved
    if dials and config.distort and not anybody:
        found.distort = explain_distortion(
            make_distorts(config, users, lists),
            session,
            request.now,
            request.sni,
            None if found.proxy_resolves else addresses,
        )
    intercepts = make_intercepts(config, users, lambda: request.now, lists) if found.error is None else None
    if intercepts is not None:
        found.intercept = explain_interception(intercepts, session, addresses or (), request.sni)
    note_inside(found.distort, None if request.command == "forward" else opens_tls(found.intercept))
    return found


def begin(config: Config, users: UserTable, request: Request) -> tuple[Session, Explanation, TabiError | None]:
    """The session before anything is decided: who it is, and why its login or its command is refused if it is."""
    failure: TabiError | None = None
    user, parameters = request.user, NONE
    try:
        user, parameters = read_login(config, request)
    except AuthError as exc:
        user, failure = None, exc
    session = Session(0, request.listen.url, Address(request.client, 0), monotonic())
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
        identity="no user, since the login fails" if failure is not None else identity_of(config, users, request, user),
        login=request.user,
        parameters=None if session.parameters is None else parameters._asdict(),
    )
    if request.user is None and request.listen.needs_user(request.client, config.has_users):
        failure = AuthError("this listener wants a user")
    return session, found, failure or refuse_question(request)


def conclude(found: Explanation, request: Request, failure: TabiError | None) -> None:
    """What the client gets, and what the access log has."""
    if failure is not None:
        found.error, found.reply = str(failure), reply_to(request.protocol, failure)
        found.egress, found.selects = None, []
        if found.action in ("reset", "drop"):
            found.reply = None
        elif found.action == "allow" and isinstance(failure, PolicyDenied | LimitExceeded | AuthError):
            found.action = "deny"
    elif request.protocol in SUCCESS:
        found.reply = SUCCESS[request.protocol]


def refuse_question(request: Request) -> DialError | None:
    """Why a listener does not answer a question for an address or a name."""
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
        return 407 if isinstance(failure, AuthError) else refusal_of(failure).status
    if protocol.startswith("socks4"):
        return 91
    return failure.reply_code


def is_anybody(destination: Address) -> bool:
    """Whether an address stands for any address."""
    host = destination.host
    return not isinstance(host, str) and unmapped(host).is_unspecified


def read_login(config: Config, request: Request) -> tuple[str | None, Parameters]:
    """The user's own name and the parameters, if a client logs in: a certificate's name is taken as it is.

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


def check_user(config: Config, request: Request) -> None:
    """Raise ConfigError for a user that no client of the listener can be."""
    users = make_users(config, without_password=True)
    try:
        user, _ = read_login(config, request)
    except AuthError:  # the login is refused, and that is the answer
        return
    if user is not None and user not in users and not request.listen.by_certificate:
        text = f"{user!r} is not a user here: there is no [users.{user}], and {request.listen.url} has no tls.client_ca"
        raise ConfigError(text, "--user")


def identity_of(config: Config, users: UserTable, request: Request, user: str | None) -> str:
    """Who the client is."""
    if user is None:
        if not request.listen.wants_user(config.has_users):
            return "no user, and this listener wants none"
        if not request.listen.needs_user(request.client, config.has_users):
            return "no user, and this listener wants none of clients there (no_user)"
        return "no user, and this listener wants one"
    known = users.get(user)
    if known is None:
        return f"user {user}, who is not in [users]: by a certificate"
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
    """Look up the name of an address; returns why it has no name."""
    assert not isinstance(destination.host, str)
    try:
        found.resolver = f"{destination.host} is called {await resolver.reverse(destination.host)}"
    except DialError as exc:
        found.resolver = str(exc)
        return exc
    return None


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
