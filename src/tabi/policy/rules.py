"""Rules: the first that matches decides. Pure: the time is passed in, and so is what the resolver has found.

A rule matches when all of its matchers do; one that is left out matches everything. What is compiled at load:

    names, suffixes   a dict each: a host is looked up with all of its parents, however many rules there are
    networks          a `NetworkTable` of destinations, and one of clients for rules without hosts
    users             a dict for rules with neither
    the others        looked at one after another, regular expressions too, and rules with lists in files

So only those rules are looked at that may match, in their order. All other matchers of a rule are its `Conditions`;
rules with the same ones share an object.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from ipaddress import ip_network
from typing import Any, Final, NamedTuple

from tabi.errors import ConfigError
from tabi.policy.host_list import HostList, ListedNetworks
from tabi.policy.hours import Hours, parse_hours
from tabi.policy.networks import IP, Network, NetworkSet, NetworkTable, parse_network, unmapped
from tabi.session import NO_GROUPS, UNIX, Action, Session
from tabi.wire.address import Address, Host, embedded_ipv4, parse_host, read_number

COMMANDS = ("connect", "bind", "associate", "forward", "resolve", "resolve_ptr")
PROTOCOLS = ("socks5", "socks4", "http", "https", "socks5+tls", "socks4+tls")
PORTS = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?", re.ASCII)
SHOWN = 3
"""Values of a long list that an explanation shows."""

REFUSALS = frozenset(("deny", "reset", "drop"))


class Unresolved:
    """What `RuleSet.find` returns if the first match depends on the addresses of a name."""

    def __repr__(self) -> str:
        return "UNRESOLVED"


UNRESOLVED: Final = Unresolved()


class Conditions(NamedTuple):
    """All matchers of a rule but its hosts; None matches all."""

    commands: frozenset[str] | None = None
    protocols: frozenset[str] | None = None
    listeners: frozenset[str] | None = None
    users: frozenset[str] | None = None
    groups: frozenset[str] | None = None
    """The words of ``users`` with a @. ``users`` and ``groups`` are both None, or neither is."""
    ports: tuple[tuple[int, int], ...] | None = None
    clients: NetworkSet | None = None
    hours: Hours | None = None


NO_NETWORKS = NetworkSet(())


class Hosts(NamedTuple):
    """The matcher for destinations. ``everything`` is a star alone; ``networks`` has those of the lists, too."""

    everything: bool = False
    names: frozenset[str] = frozenset()
    suffixes: frozenset[str] = frozenset()
    networks: NetworkSet = NO_NETWORKS
    patterns: tuple[re.Pattern[str], ...] = ()
    lists: tuple[HostList, ...] = ()


class Texts(NamedTuple):
    """The matchers of a rule as they are written, for explanations; None is one that was left out."""

    hosts: tuple[str, ...] | None = None
    ports: tuple[str, ...] | None = None
    users: tuple[str, ...] | None = None
    clients: tuple[str, ...] | None = None
    commands: tuple[str, ...] | None = None
    listeners: tuple[str, ...] | None = None
    protocols: tuple[str, ...] | None = None
    hours: str | None = None
    hosts_file: tuple[str, ...] | None = None
    networks_file: tuple[str, ...] | None = None


Lists = Mapping[tuple[str, str], HostList]
"""What is in files: by the key that names one (`FILES`), and its path."""

NO_LISTS: Lists = {}

FILES = ("hosts_file", "networks_file")
"""Matchers that are lists in files."""


class Rule(NamedTuple):
    """One rule, as it was compiled."""

    number: int
    name: str | None
    action: Action
    via: str | None
    hosts: Hosts | None
    conditions: Conditions
    texts: Texts

    @property
    def label(self) -> str:
        """Its name for people."""
        return self.name or f"rule[{self.number}]"

    @property
    def refuses(self) -> bool:
        """Whether the rule does not allow."""
        return self.action in REFUSALS


class Step(NamedTuple):
    """What became of one rule, for people."""

    rule: Rule
    matched: bool
    why: str


# --- compiling ---


def make_rule(
    number: int, action: Action, texts: Texts, name: str | None = None, via: str | None = None, lists: Lists = NO_LISTS
) -> Rule:
    """Compile a rule. Of ``lists`` those that are not there have nothing in them: they were not read, since the rule is
    only looked at. Raises ConfigError, whose path is within the rule."""
    for key, words in zip(Texts._fields, texts, strict=True):
        if words is not None and not words:
            raise ConfigError("empty, expected one or more; leave it out to match all", key)
    hosts = None if texts.hosts is None else make_hosts(texts.hosts)
    clients = make_clients(texts.clients)
    if texts.hosts_file is not None:
        found = lists_of(lists, "hosts_file", texts.hosts_file)
        hosts = hosts or Hosts()
        hosts = hosts._replace(networks=ListedNetworks(hosts.networks, found), lists=found)
    if texts.networks_file is not None:
        clients = ListedNetworks(clients or NO_NETWORKS, lists_of(lists, "networks_file", texts.networks_file))
    users = None if texts.users is None else frozenset(word for word in texts.users if not word.startswith("@"))
    groups = None if texts.users is None else frozenset(word[1:] for word in texts.users if word.startswith("@"))
    commands = words_of(texts.commands, COMMANDS, "commands")
    if commands is not None and "connect" in commands:
        commands |= {"forward"}  # an HTTP request needs the same permission as a tunnel
    conditions = Conditions(
        commands=commands,
        protocols=words_of(texts.protocols, PROTOCOLS, "protocols"),
        listeners=None if texts.listeners is None else frozenset(texts.listeners),
        users=users,
        groups=groups,
        ports=each(texts.ports, parse_ports, "ports"),
        clients=clients,
        hours=None if texts.hours is None else each((texts.hours,), parse_hours, "hours")[0],
    )
    return Rule(number, name, action, via, hosts, conditions, texts)


def lists_of(lists: Lists, key: str, paths: Iterable[str]) -> tuple[HostList, ...]:
    """The lists of these files."""
    return tuple(lists.get((key, path)) or HostList(path) for path in paths)


def make_clients(words: Sequence[str] | None) -> NetworkSet | None:
    """Compile the matcher for clients. Raises ConfigError."""
    found = each(words, lambda text: None if text == UNIX else parse_network(text), "clients")
    if found is None:
        return None
    return NetworkSet([network for network in found if network is not None], None in found)


def each(words: Sequence[str] | None, parse: Any, key: str) -> Any:
    """Parse every word; a ValueError becomes a ConfigError that says which one it was."""
    if words is None:
        return None
    found = []
    for index, word in enumerate(words):
        try:
            found.append(parse(word))
        except ValueError as exc:
            raise ConfigError(str(exc), key if key == "hours" else f"{key}[{index}]") from None
    return tuple(found)


def words_of(words: Sequence[str] | None, known: Sequence[str], key: str) -> frozenset[str] | None:
    """Words from a fixed list. Raises ConfigError."""
    if words is None:
        return None
    for index, word in enumerate(words):
        if word not in known:
            raise ConfigError(f"{word!r}, expected one of: {', '.join(known)}", f"{key}[{index}]")
    return frozenset(words)


def parse_ports(text: str) -> tuple[int, int]:
    """Read ``25`` or ``465-587``. Raises ValueError."""
    found = PORTS.fullmatch(text)
    first, last = (0, -1) if found is None else (int(found[1]), int(found[2] or found[1]))
    if not 0 <= first <= last <= 65535:
        raise ValueError(f"{text!r}, expected a port or a range such as 465-587")
    return first, last


def make_hosts(words: Sequence[str]) -> Hosts:
    """Compile the matcher for destinations. Raises ConfigError."""
    everything = False
    names, suffixes, patterns = [], [], []
    networks: list[Network] = []
    for index, word in enumerate(words):
        try:
            if word == "*":
                everything = True
            elif word.startswith("re:"):
                patterns.append(re.compile(word[3:], re.IGNORECASE))
            elif not isinstance(host := read_host(word), str):
                networks.append(host)
            elif host.startswith("*."):
                suffixes.append(host[2:])
            else:
                names.append(host)
        except re.error as exc:
            raise ConfigError(f"{word!r} is not a regular expression: {exc}", f"hosts[{index}]") from None
        except ValueError as exc:
            raise ConfigError(str(exc), f"hosts[{index}]") from None
    found = NetworkSet(networks) if networks else NO_NETWORKS
    return Hosts(everything, frozenset(names), frozenset(suffixes), found, tuple(patterns))


def read_host(word: str) -> str | Network:
    """Read a destination: a name as hosts are compared, with ``*.`` in front for all below it, or a network. Raises
    ValueError."""
    if word.startswith("*."):
        return f"*.{parse_name(word[2:])}"
    if (number := read_number(word)) is not None:  # 0x7f.1 is what resolvers make of it
        return ip_network(number)
    return parse_network(word) if is_network(word) else parse_name(word)


def is_network(word: str) -> bool:
    """Whether a word is a network or an address, and not a name."""
    return "/" in word or ":" in word or word.replace(".", "").isdigit()


def parse_name(word: str) -> str:
    """A name as hosts are compared: in ASCII and small letters, without the dot at its end. Raises ValueError."""
    if "*" in word:
        raise ValueError(f"{word!r} has a star within, expected *.example.com; for anything else there is re:")
    host = parse_host(word)
    return normal(str(host))


def normal(name: str) -> str:
    """A name in the form in which it is compared."""
    return name.lower().removesuffix(".")


# --- deciding ---


class Asked(NamedTuple):
    """A destination as rules look at it.

    ``addresses`` are None if a name was not resolved. For rules that refuse, what stands inside IPv6 addresses
    counts too: ``every_form`` has it.
    """

    text: str
    port: int
    addresses: tuple[IP, ...] | None
    every_form: tuple[IP, ...]


def ask(destination: Address, addresses: Sequence[IP] | None) -> Asked:
    """See `Asked`."""
    host, port = destination
    if isinstance(host, str):
        text = normal(host)
        if addresses is None:
            return Asked(text, port, None, ())
        known = tuple(unmapped(address) for address in addresses)
    else:
        known = (unmapped(host),)
        text = str(known[0])
    inside = tuple(found for address in known if (found := embedded_ipv4(address)) is not None)
    return Asked(text, port, known, known + inside)


def matches_all(rule: Rule) -> bool:
    """Whether a rule has no matcher."""
    return rule.hosts is None and all(condition is None for condition in rule.conditions)


class RuleSet:
    """All rules of a configuration.

    Args:
        rules: in their order.
        groups: of each user.
    """

    def __init__(self, rules: Iterable[Rule] = (), groups: Mapping[str, frozenset[str]] | None = None) -> None:
        shared: dict[Conditions, Conditions] = {}
        self.rules = [rule._replace(conditions=shared.setdefault(rule.conditions, rule.conditions)) for rule in rules]
        self.groups = groups or {}
        self.names: dict[str, list[int]] = {}
        self.suffixes: dict[str, list[int]] = {}
        self.users: dict[str, list[int]] = {}
        self.by_group: dict[str, list[int]] = {}
        self.others: list[int] = []
        networks: list[tuple[Network, int]] = []
        clients: list[tuple[Network, int]] = []
        self.network_kinds: dict[Conditions, int] = {}
        """The conditions of rules with networks, and the first rule that has them."""
        for position, rule in enumerate(self.rules):
            self.file(position, rule, networks, clients)
        self.networks = NetworkTable(networks)
        self.clients = NetworkTable(clients)
        self.by_name = not (self.others or self.networks or self.clients or self.users or self.by_group)
        """Whether all rules are for names, so that none matches an address, nor a name that no rule knows."""
        self.always = next(filter(matches_all, self.rules[:1]), None)
        """The first rule, if it matches everything: then nothing has to be looked up (`tabi serve --via`)."""

    def file(
        self, position: int, rule: Rule, networks: list[tuple[Network, int]], clients: list[tuple[Network, int]]
    ) -> None:
        """Put a rule into the index that finds it."""
        hosts, conditions = rule.hosts, rule.conditions
        if hosts is not None:
            for name in hosts.names:
                self.names.setdefault(name, []).append(position)
            for suffix in hosts.suffixes:
                self.suffixes.setdefault(suffix, []).append(position)
            networks += [(network, position) for network in hosts.networks.networks]
            if hosts.networks:
                self.network_kinds.setdefault(conditions, position)
            if hosts.patterns or hosts.everything or hosts.lists:
                self.others.append(position)
        elif conditions.clients is not None and not conditions.clients.unix and type(conditions.clients) is NetworkSet:
            clients += [(network, position) for network in conditions.clients.networks]
        elif conditions.users is not None:
            for user in conditions.users:
                self.users.setdefault(user, []).append(position)
            for group in conditions.groups or ():
                self.by_group.setdefault(group, []).append(position)
        else:
            self.others.append(position)

    def __iter__(self) -> Iterator[Rule]:
        return iter(self.rules)

    def __len__(self) -> int:
        return len(self.rules)

    def knows(self, host: Host) -> bool:
        """Whether a rule is for this name."""
        if not isinstance(host, str):
            return False
        text, suffixes = normal(host), self.suffixes
        if text in self.names:
            return True
        return bool(suffixes) and any(parent in suffixes for parent in parents_of(text))

    def find(
        self, session: Session, destination: Address, addresses: Sequence[IP] | None, now: float
    ) -> Rule | Unresolved | None:
        """The first rule that matches, or None.

        Args:
            session: the client that asks, and how it asks.
            destination: the host and port; a name that is a number is expected as an address.
            addresses: of a name, if it was resolved.
            now: seconds since 1970.

        Returns:
            UNRESOLVED if that depends on the unknown addresses of a name: a rule with networks, whose other matchers
            all match, comes before the first match.
        """
        if self.always is not None or not self.rules:
            return self.always
        asked = ask(destination, addresses)
        rules = self.rules
        for position in self.candidates(session, asked):
            rule = rules[position]
            if not self.holds(rule.conditions, session, asked.port, now):
                continue
            if rule.hosts is None or self.leads(rule, rule.hosts, asked):
                if asked.addresses is None and self.depends(session, asked.port, now, position):
                    return UNRESOLVED
                return rule
        if asked.addresses is None and self.depends(session, asked.port, now, len(rules)):
            return UNRESOLVED
        return None

    def candidates(self, session: Session, asked: Asked) -> list[int]:
        """The positions of the rules that may match, in their order."""
        found = list(self.others)
        if self.names:
            found += self.names.get(asked.text, ())
        if self.suffixes:
            for parent in parents_of(asked.text):
                found += self.suffixes.get(parent, ())
        if self.networks:
            for address in asked.every_form:
                found += self.networks.find(address)
        client = session.client.host
        if self.clients and not isinstance(client, str):
            found += self.clients.find(unmapped(client))
        if session.user is not None:
            found += self.users.get(session.user, ())
            if self.by_group:
                for group in self.groups_of(session):
                    found += self.by_group.get(group, ())
        found.sort()
        return found

    def depends(self, session: Session, port: int, now: float, end: int) -> bool:
        """Whether a rule before ``end`` needs the network of a name."""
        return any(
            first < end and self.holds(conditions, session, port, now)
            for conditions, first in self.network_kinds.items()
        )

    def holds(self, conditions: Conditions, session: Session, port: int | None, now: float) -> bool:
        """Whether all matchers but hosts match; a port that is None is not known, and matches."""
        commands, protocols, listeners, users, groups, ports, clients, hours = conditions
        if commands is not None and session.command not in commands:
            return False
        if protocols is not None and session.protocol not in protocols:
            return False
        if listeners is not None and session.listener not in listeners:
            return False
        if users is not None and not self.is_one_of(session.user, self.groups_of(session), users, groups):
            return False
        if ports is not None and port is not None and not any(first <= port <= last for first, last in ports):
            return False
        if clients is not None and not clients.has_client(session.client.host):
            return False
        return hours is None or hours.includes(now)

    def groups_of(self, session: Session) -> frozenset[str]:
        """The groups of a session's user: those of the configuration, and those from a program."""
        groups = self.groups.get(session.user or "", NO_GROUPS)
        return groups | session.groups if session.groups else groups

    @staticmethod
    def is_one_of(
        user: str | None, its_groups: frozenset[str], users: frozenset[str], groups: frozenset[str] | None
    ) -> bool:
        """Whether a user is named, alone or by a group."""
        if user is None:
            return False
        return user in users or (bool(groups) and not its_groups.isdisjoint(groups or ()))

    @staticmethod
    def leads(rule: Rule, hosts: Hosts, asked: Asked) -> bool:
        """Whether a destination is one of a rule's hosts: by its name, or by its addresses if they are known.

        For a rule that refuses, one address of several is enough; a rule that allows needs all of them.
        """
        everything, names, suffixes, networks, patterns, lists = hosts
        if everything or asked.text in names or any(pattern.search(asked.text) for pattern in patterns):
            return True
        if suffixes and any(parent in suffixes for parent in parents_of(asked.text)):
            return True
        if lists and any(one.has_name(asked.text) for one in lists):
            return True
        if not networks or not asked.addresses:
            return False
        if rule.refuses:
            return any(address in networks for address in asked.every_form)
        return all(address in networks for address in asked.addresses)

    def find_refusal(self, session: Session, now: float) -> Rule | None:
        """The rule that refuses a session whatever its destination will be, or None; see `find_without_destination`."""
        rule = self.find_without_destination(session, now)
        return rule if rule is not None and rule.refuses else None

    def find_without_destination(self, session: Session, now: float) -> Rule | None:
        """The rule that decides whatever a session's destination will be, if none before it may allow one; or None.

        For UDP ASSOCIATE, and BIND for anyone: what does not depend on the destination is decided at once.
        """
        for rule in self.rules:
            if not self.holds(rule.conditions, session, None, now):
                continue
            if rule.hosts is None and rule.conditions.ports is None:
                return rule
            if not rule.refuses:
                return None
        return None

    # --- explaining ---

    def explain(self, session: Session, destination: Address, addresses: Sequence[IP] | None, now: float) -> list[Step]:
        """What `find` does, rule after rule, up to the first that matches; arguments as there."""
        asked = ask(destination, addresses)
        steps = []
        for rule in self.rules:
            why = self.mismatch(rule, session, asked, now)
            steps.append(Step(rule, why is None, matchers_of(rule) + entries_of(rule, asked) if why is None else why))
            if why is None:
                break
        return steps

    def mismatch(self, rule: Rule, session: Session, asked: Asked, now: float) -> str | None:
        """The first matcher that does not match, and the value; None if all match."""
        conditions, texts = rule.conditions, rule.texts
        seen = {
            "commands": session.command,
            "protocols": session.protocol,
            "listeners": session.listener,
            "users": session.user or "nobody",
            "ports": str(asked.port),
            "clients": str(session.client.host),
        }
        for key, value in seen.items():
            alone = Conditions(**{key: getattr(conditions, key)})
            if key == "users":
                alone = alone._replace(groups=conditions.groups)
            if not self.holds(alone, session, asked.port, now):
                return f"{key}: {value} is not {words_and_files(texts, key)}"
        if conditions.hours is not None and not conditions.hours.includes(now):
            return f"hours: it is not {texts.hours}"
        if rule.hosts is not None and not self.leads(rule, rule.hosts, asked):
            expected = words_and_files(texts, "hosts")
            if rule.hosts.networks and asked.addresses is None:
                return f"hosts: {asked.text} is not one of {expected} by its name, and was not resolved"
            addresses = ", ".join(map(str, asked.addresses or ()))
            what = asked.text if addresses in ("", asked.text) else f"{asked.text} ({addresses})"
            return f"hosts: {what} is not one of {expected}"
        return None


def parents_of(name: str) -> Iterator[str]:
    """The domains that a name is in, from the nearest on."""
    parent = name.partition(".")[2]
    while parent:
        yield parent
        parent = parent.partition(".")[2]


def shown(words: Sequence[str] | None) -> str:
    """A list for people."""
    words = words or ()
    more = f", … ({len(words):,})" if len(words) > SHOWN else ""
    return ", ".join(words[:SHOWN]) + more


def words_and_files(texts: Texts, key: str) -> str:
    """The words of a matcher, and the files with more of them, for people."""
    words, files = getattr(texts, key), {"hosts": texts.hosts_file, "clients": texts.networks_file}.get(key)
    return ", ".join([*([shown(words)] if words else []), *(f"those of {path}" for path in files or ())])


def entries_of(rule: Rule, asked: Asked) -> str:
    """The entries of lists by which a destination is one of a rule's hosts, for people."""
    lists = () if rule.hosts is None else rule.hosts.lists
    found = [entry for one in lists if (entry := one.entry_of(asked.text)) is not None]
    return f" ({', '.join(found)})" if found else ""


def matchers_of(rule: Rule) -> str:
    """All matchers of a rule for people."""
    parts = [
        f"{key} {words if isinstance(words, str) else shown(words)}"
        for key, words in zip(Texts._fields, rule.texts, strict=True)
        if words is not None
    ]
    return "; ".join(parts) or "matches everything"
