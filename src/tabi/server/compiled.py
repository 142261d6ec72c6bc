"""The configuration, compiled once: read, checked, and made into the parts that decide. It needs no second check."""

from __future__ import annotations

import itertools
import socket
from collections.abc import Collection, Mapping, Sequence
from ipaddress import ip_network
from typing import TYPE_CHECKING, Any, NamedTuple

from tabi.config import Config, Listen, RuleConfig, Udp
from tabi.config.check import check_values
from tabi.config.compile import make_distorts, make_guard, make_intercepts, make_limits, make_rule_set
from tabi.config.load import check_config
from tabi.config.users import UserTable, make_users
from tabi.errors import ConfigError
from tabi.ingress.tls import Certificates
from tabi.net.listen import AF_UNIX
from tabi.policy.distorts import NO_DISTORTS, Distorts
from tabi.policy.guard import Guard, LocalAddresses
from tabi.policy.hook import DecideHook
from tabi.policy.host_list import HostList
from tabi.policy.ledger import Ledger
from tabi.policy.networks import IP
from tabi.policy.policy import Policy
from tabi.policy.rules import RuleSet
from tabi.relay.sniffer import NOTHING, Sniffing
from tabi.server.compose import load_callable
from tabi.server.egresses import check_files
from tabi.server.intercept_files import check_distorts, check_fingerprints, check_interception
from tabi.server.loops import refuse_loops
from tabi.server.names import MakeResolver, ResolvedUdp, prepare_resolver, resolve_advertised
from tabi.wire.address import Address, from_sockaddr

if TYPE_CHECKING:
    from tabi.policy.intercepts import Intercepts

INNER = tuple(
    ip_network(text)
    for text in (
        *("127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16", "100.64.0.0/10"),
        *("::1/128", "fc00::/7", "fe80::/10"),
    )
)
"""Networks whose addresses nobody has from outside: loopback, RFC 1918, link-local, RFC 6598, RFC 4193."""


def is_inside(network: Any, other: Any) -> bool:
    """Whether a network is part of another one."""
    return bool(network.version == other.version and network.subnet_of(other))


class Compiled(NamedTuple):
    """What `compile_config` makes of a configuration.

    ``authenticates`` says that a program authenticates users too, ``open_proxy`` that any client that reaches it may
    use it.
    """

    config: Config
    rules: RuleSet
    guard: Guard
    users: UserTable
    certificates: Sequence[Certificates | None]
    """The certificates of each listener."""
    decide: DecideHook | None
    """The function that ``decide`` of the configuration names."""
    authenticates: bool
    open_proxy: bool
    make_resolver: MakeResolver | None = None
    advertised: Mapping[str, Sequence[IP]] = {}
    """The addresses of the names that listeners advertise."""
    idle_of_rules: Mapping[str, float] = {}
    """How long what a rule allows may be idle, by the rule's name in the access log, where it says so."""
    sniffing: Sniffing = NOTHING
    """Which sessions' first octets are looked at."""
    intercepts: Intercepts | None = None
    """What is looked into; None if nothing is."""
    distorts: Distorts = NO_DISTORTS
    """What is done to which sessions."""

    contents: Mapping[str, bytes] = {}
    """What is in certificates and keys of listeners that workers cannot read, by their paths."""

    def udp_of(self, listen: Listen) -> Udp:
        """``udp`` of a listener, with the addresses of the name that it advertises."""
        udp = listen.udp
        if udp.name is None:
            return udp
        return ResolvedUdp(udp.advertise, udp.ports, udp.fragments, udp.senders, self.advertised[udp.name])

    def __repr__(self) -> str:
        return f"Compiled(rules={len(self.rules)}, users={len(self.users)})"

    def required(self, listen: Listen) -> bool:
        """Whether a listener's clients must be users."""
        return listen.wants_user(self.has_logins)

    @property
    def has_logins(self) -> bool:
        """Whether a user can log in by a password, or may be able to after the next reload."""
        return self.authenticates or self.users.has.passwords or self.config.auth.users_file is not None

    def certificates_of(self, index: int, before: Compiled | None = None) -> Certificates | None:
        """The certificates of a listener, if possible the ones in use; a client certificate is required if nothing else
        can prove a user. Raises ConfigError."""
        listen = self.config.listen[index]
        if listen.tls is None:
            return None
        required = not self.has_logins and self.required(listen) and not listen.no_user
        if listen.tls.key in self.contents:
            return Certificates.of_contents(listen.tls, f"listen[{index}].tls", required, self.contents)
        old = None if before is None else before.certificates[index]
        if old is not None and old.tls == listen.tls and old.required == required:
            old.next_look = 0.0  # at the next connection
            return old
        return Certificates(listen.tls, f"listen[{index}].tls", required)

    def policy(
        self, ledger: Ledger, own: LocalAddresses, decide: DecideHook | None = None, given_limits: bool = False
    ) -> Policy:
        """The policy, with what this machine knows: its addresses, and what was used. ``decide`` replaces that of
        the configuration; ``given_limits`` says that a program may give limits to users."""
        self.guard.own = own
        limits = make_limits(self.config, ledger, self.users)
        policy = Policy(self.rules, self.guard, limits, decide or self.decide)
        policy.given_limits = given_limits
        return policy

    def complete(self) -> Compiled:
        """A copy with the parts that cannot be sent between processes: keys, and the resolver. Raises ConfigError."""
        if self.certificates and self.make_resolver is not None:
            return self
        certificates = [self.certificates_of(index) for index in range(len(self.config.listen))]
        return self._replace(
            certificates=certificates, make_resolver=self.make_resolver or prepare_resolver(self.config)
        )

    @property
    def with_quotas(self) -> bool:
        """Whether any account has a quota."""
        config = self.config
        some = [config.limits, *[one.limits for one in config.groups.values()], *[one.limits for one in config.clients]]
        return self.users.has.quotas or any(limits.quota is not None for limits in some)


def labels_of(config: Config) -> list[tuple[str, RuleConfig]]:
    """The rules, and what the access log calls them."""
    return [(rule.name or f"rule[{index}]", rule) for index, rule in enumerate(config.rule)]


def idle_of_rules(config: Config) -> dict[str, float]:
    """See `Compiled`."""
    return {label: float(rule.idle) for label, rule in labels_of(config) if rule.idle is not None}


def sniffing_of(config: Config) -> Sniffing:
    """See `Compiled`."""
    return Sniffing(
        frozenset(listen.url for listen in config.listen if listen.sniff),
        frozenset(label for label, rule in labels_of(config) if rule.sniff),
    )


def compile_config(
    config: Config, open_proxy: bool = False, authenticates: bool = False, egresses: Collection[str] = ()
) -> Compiled:
    """Check a configuration, read the files that it names, and make the parts that decide.

    Args:
        config: its types are right: it is from a file, or went through `check_types`.
        open_proxy: allow listening beyond loopback without users.
        authenticates: a program authenticates users, so that those of the configuration need no password.
        egresses: the names of those that a program brings.

    Raises:
        ConfigError: something in it is wrong, or would make an open proxy.
    """
    check_config(config)
    lists: dict[tuple[str, str], HostList] = {}
    rules = check_values(config, authenticates, egresses, lists)
    make_resolver = prepare_resolver(config)
    check_files(config)
    users = make_users(config, authenticates or config.by_certificate)
    decide = None if config.decide is None else load_callable(config.decide, "decide")
    rule_set, guard = make_rule_set(config, users, rules), make_guard(config)
    made = Compiled(config, rule_set, guard, users, (), decide, authenticates, open_proxy, make_resolver)
    made = made._replace(advertised=resolve_advertised(config), idle_of_rules=idle_of_rules(config))
    made = made._replace(sniffing=sniffing_of(config))
    made = made._replace(distorts=make_distorts(config, users, lists))
    made = made._replace(intercepts=make_intercepts(config, users, lists=lists, distorts=made.distorts))
    check_distorts(made.distorts)
    if made.intercepts is not None:
        check_interception(config, made.intercepts)
    check_fingerprints(config)
    check_listeners(made)
    for index, listen in enumerate(config.listen):
        if listen.no_user or listen.by_certificate:
            continue
        if listen.parsed.protocol == "socks4" and made.required(listen):
            raise ConfigError(
                f'{listen.url} could not be used by any client, since SOCKS4 has no passwords: say users = "none", '
                "or take another protocol",
                f"listen[{index}].url",
            )
    return made.complete()


def refuse_open_networks(listen: Listen, path: str) -> None:
    """Raise ConfigError for networks whose clients need no user although they may be anybody."""
    for index, network in enumerate(listen.without_user):
        if network is not None and not any(is_inside(network, one) for one in INNER):
            raise ConfigError(
                f"{network} is not a private network, so that {listen.url} would be an open proxy for it: name private "
                "ones, or say --open if anybody there may use it",
                f"{path}[{index}]",
            )


def check_listeners(compiled: Compiled, sockets: Sequence[Sequence[socket.socket]] = ()) -> None:
    """Raise ConfigError for a listener that anyone could use, or that an egress leads back to. Of places that are not
    known from their URLs ``sockets`` tell."""
    refuse_open_proxy(compiled, sockets)
    refuse_loops(compiled.config, sockets)


def refuse_open_proxy(compiled: Compiled, sockets: Sequence[Sequence[socket.socket]]) -> None:
    """Raise ConfigError for a listener that any client in the network could use: by its URL, or by its sockets."""
    for index, listen in enumerate(compiled.config.listen):
        if compiled.open_proxy:
            continue
        if compiled.required(listen):
            refuse_open_networks(listen, f"listen[{index}].no_user")
            continue
        place = listen.parsed.place
        known = [place] if isinstance(place, Address) else []  # clients of a unix socket are on this machine
        opened = itertools.chain(*sockets[index : index + 1])
        known += [from_sockaddr(sock.getsockname()) for sock in opened if sock.family != AF_UNIX]
        if listen.proxy_protocol:
            raise ConfigError(
                f"{listen.url} would be an open proxy to all clients of the proxies in proxy_protocol: add a user "
                "(-u NAME:PASSWORD), or say --open if anybody whom they bring may use it",
                f"listen[{index}].proxy_protocol",
            )
        for address in known:
            host = address.host
            if not (host == "localhost" if isinstance(host, str) else host.is_loopback):
                where = listen.url if address == place else f"{listen.url} at {address}"
                why = f", since {host} is not a loopback address" if isinstance(host, str) else ""
                raise ConfigError(
                    f"{where} would be an open proxy{why}: add a user (-u NAME:PASSWORD), listen on 127.0.0.1, "
                    "or say --open if anybody who reaches this address may use it",
                    f"listen[{index}].url",
                )
