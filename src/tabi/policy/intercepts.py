"""Intercepts: which sessions are looked into. Pure: the clock is passed in.

The first entry that matches decides. Its matchers are those of rules, compiled and looked up in the same way, but
``hosts`` is asked for two names: that of CONNECT and that in the client's hello (SNI). One of them is enough, but an
exemption needs both. Networks in ``hosts`` match the address that was dialled, if it is the destination's own.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

import msgspec

from tabi.errors import ConfigError
from tabi.policy.networks import IP
from tabi.policy.rules import (
    NO_LISTS,
    Asked,
    Conditions,
    Lists,
    Rule,
    RuleSet,
    Texts,
    ask,
    make_hosts,
    make_rule,
    matchers_of,
    normal,
    shown,
)
from tabi.session import Action, Session
from tabi.wire.address import Address

COMMANDS = ("connect", "forward", "associate")
"""What can be looked into: a peer of BIND calls by itself, and has no name."""

DIRECT = (None, "direct")
"""What a session's ``via`` is if its destination was dialled from here."""


class InterceptRule(msgspec.Struct, frozen=True):
    """One ``[[intercept]]``, apart from its matchers. Paths are absolute."""

    number: int = 0
    """Its place in the configuration."""
    name: str | None = None
    action: Literal["intercept", "pass"] = "intercept"
    """``pass`` leaves what matches alone."""
    tls: bool = True
    """Whether TLS is opened. If not, only HTTP without TLS is looked into, and no authority is needed."""
    verify: bool = True
    """Whether the destination's certificate must be good."""
    trust: str | None = None
    """A file in PEM: authorities beside the system's."""
    certificate: str | None = None
    """A file in PEM: what destinations that ask for a certificate get."""
    key: str | None = None
    """A file in PEM: the key of ``certificate``."""
    on_pinning: Literal["pass", "refuse"] = "refuse"
    on_invalid: Literal["mirror", "alert"] = "mirror"
    on_error: Literal["pass", "close"] = "pass"
    mismatch: Literal["log", "deny"] = "log"
    quic: Literal["pass", "refuse"] = "pass"
    strip_alt_svc: bool = False
    har: str | None = None
    body_limit: int = 1_000_000
    """Octets of each body that are recorded."""
    secrets: bool = False
    """Whether records show secrets."""
    mask: tuple[str, ...] = ()
    """Names of further fields, query keys and form keys whose values are secrets; in small letters."""
    scripts: tuple[str, ...] = ()
    hook_timeout: float = 10.0
    """Seconds that an async hook has."""
    print: bool = False
    """Whether a line is printed for each flow."""
    http: bool = True
    """Whether HTTP without TLS is looked into. If that is not either, only the first octets are."""

    @property
    def label(self) -> str:
        """Its name for people."""
        return self.name or f"intercept[{self.number}]"


def make_matcher(intercept: InterceptRule, texts: Texts, lists: Lists = NO_LISTS) -> Rule:
    """Compile the matchers of an entry; ``lists`` as in `make_rule`. Raises ConfigError with a path within the entry.

    In a rule that refuses one address of several forms is enough, so that none of them is a way around inspection;
    an exemption needs the very address. Both are as `RuleSet` has it.
    """
    for index, word in enumerate(texts.commands or ()):
        if word not in COMMANDS:
            raise ConfigError(f"{word!r}, expected one of: {', '.join(COMMANDS)}", f"commands[{index}]")
    action: Action = "allow" if intercept.action == "pass" else "deny"
    return make_rule(intercept.number, action, texts, intercept.label, lists=lists)


class Intercepts:
    """All entries of a configuration.

    Args:
        entries: in their order: what each says, and its matchers.
        clock: seconds since 1970, for ``hours``.
        groups: of each user.
        direct: names of egresses that dial destinations themselves, in addition to ``direct``.
    """

    def __init__(
        self,
        entries: Iterable[tuple[InterceptRule, Rule]],
        clock: Callable[[], float],
        groups: Mapping[str, frozenset[str]] | None = None,
        direct: Collection[str] = (),
    ) -> None:
        entries = list(entries)
        self.settings = [intercept for intercept, _ in entries]
        self.rules = RuleSet((rule for _, rule in entries), groups)
        self.clock = clock
        self.direct = frozenset((*DIRECT, *direct))
        self.decisive = list(decisive(self.rules, self.settings))
        self.by_name = self.rules.by_name and all(one.rule is not None for one in self.decisive)
        """Whether all that decide open no TLS, and are for names."""
        self.constant: bool | None = None
        """The answer of `candidate` for every session, if it is the same for all."""
        if not self.decisive:
            self.constant = False
        elif self.decisive[0].always:
            self.constant = self.decisive[0].answer

    def __len__(self) -> int:
        return len(self.settings)

    def __iter__(self) -> Iterator[InterceptRule]:
        return iter(self.settings)

    def __repr__(self) -> str:
        return f"Intercepts({len(self)})"

    @property
    def need_authority(self) -> bool:
        """Whether there may be TLS to open: it takes an authority to do that."""
        return any(
            intercept.action == "intercept"
            and intercept.tls
            and (rule.texts.commands is None or "connect" in rule.texts.commands)
            for intercept, rule in zip(self.settings, self.rules, strict=True)
        )

    def candidate(self, session: Session) -> bool:
        """Whether a session may be intercepted, depending on the name in its hello and on the hour: all else matches.

        It is asked for every session, and takes up to a microsecond for each entry with other matchers than hosts. An
        entry that opens no TLS is asked for its hosts here: no hello can change what it says.
        """
        if session.command == "bind":
            return False
        if self.constant is not None:
            return self.constant
        destination = session.destination
        if self.by_name and (destination is None or not self.rules.knows(destination.host)):
            return False
        port = None if destination is None else destination.port
        for conditions, answer, rule in self.decisive:
            if self.rules.holds(conditions, session, port, 0.0) and (
                rule is None or ((asked := self.names(session, None, None)) and leads(self.rules, rule, asked))
            ):
                return answer
        return False

    def may_match(self, session: Session, wanted: Callable[[InterceptRule], bool]) -> bool:
        """Whether one of the entries that are wanted may match datagrams of an association, whatever their
        destination and the hour."""
        return any(
            wanted(intercept) and self.rules.holds(rule.conditions._replace(hours=None), session, None, 0.0)
            for intercept, rule in zip(self.settings, self.rules, strict=True)
        )

    def match(
        self, session: Session, sni: str | None = None, destination: Address | None = None
    ) -> InterceptRule | None:
        """The entry that a session is intercepted by; None if it is not, or if its entry says ``pass``.

        Args:
            session: its ``destination`` and ``address`` are known.
            sni: the name in the client's hello, if there is one.
            destination: of one datagram. Default: the session's own.
        """
        found = self.find(session, sni, destination)
        return None if found is None or found.action == "pass" else found

    def find(
        self, session: Session, sni: str | None = None, destination: Address | None = None
    ) -> InterceptRule | None:
        """The first entry that matches, whatever it says; arguments as `match`."""
        asked = self.names(session, sni, destination)
        if not asked:
            return None
        rules, now = self.rules, self.clock()
        positions = rules.candidates(session, asked[0])
        if len(asked) > 1:
            positions = sorted({*positions, *rules.candidates(session, asked[1])})
        for position in positions:
            rule = rules.rules[position]
            if rules.holds(rule.conditions, session, asked[0].port, now) and leads(rules, rule, asked):
                return self.settings[position]
        return None

    def names(self, session: Session, sni: str | None, destination: Address | None) -> list[Asked]:
        """What ``hosts`` is asked for: the destination, and the name of the hello if that is another one. Both have the
        destination's port, and its own address if that is known."""
        if destination is None:
            destination, dialled = session.destination, session.address
            if (session.member or session.via) not in self.direct:
                dialled = None  # the address of a proxy
        else:
            dialled = None
        if destination is None:
            return []
        host = destination.host
        if not isinstance(host, str):
            known: tuple[IP, ...] = (host,)
        else:
            known = () if dialled is None or isinstance(dialled.host, str) else (dialled.host,)
        asked = [ask(destination, known)]
        if sni is not None and normal(sni) != asked[0].text:
            asked.append(ask(Address(sni, destination.port), known))
        return asked

    # --- explaining ---

    def explain(self, session: Session, sni: str | None = None) -> list[InterceptStep]:
        """What `find` does, entry after entry, up to the first that matches; arguments as `match`."""
        now, steps, rules = self.clock(), [], self.rules
        asked = self.names(session, sni, None)
        for rule, intercept in zip(rules, self.settings, strict=True):
            found = [rules.mismatch(rule, session, one, now) for one in asked]
            if rules.holds(rule.conditions, session, asked[0].port, now) and leads(rules, rule, asked):
                names = [one.text for one, why in zip(asked, found, strict=True) if why is None]
                by = f" ({' and '.join(names)})" if rule.hosts is not None else ""
                steps.append(InterceptStep(intercept, True, matchers_of(rule) + by))
                break
            steps.append(InterceptStep(intercept, False, "; ".join(dict.fromkeys(filter(None, found)))))
        return steps

    def by_hello(self, session: Session) -> list[str]:
        """What a hello for another name would change, for people."""
        now, found = self.clock(), []
        for asked in self.names(session, None, None):
            named = isinstance(session.destination and session.destination.host, str)
            for rule, intercept in zip(self.rules, self.settings, strict=True):
                names = [word for word in rule.texts.hosts or () if not make_hosts((word,)).networks]
                names += [f"one of {path}" for path in rule.texts.hosts_file or ()]
                exempts = intercept.action == "pass"
                if self.rules.mismatch(rule, session, asked, now) is None:
                    if exempts and named and names and "*" not in names:
                        found.append(f"a hello for a name other than {shown(names)} is not exempt by {intercept.label}")
                        continue
                    break
                if names and self.rules.holds(rule.conditions, session, asked.port, now) and not (exempts and named):
                    what = "exempt" if exempts else "looked into"
                    found.append(f"a hello for {shown(names)} is {what}, by {intercept.label}")
        return found


def leads(rules: RuleSet, rule: Rule, asked: Sequence[Asked]) -> bool:
    """Whether a destination and the name of its hello are among the hosts of an entry.

    To be looked into, one of them is enough; an exemption needs both, so that a hello cannot lie a session out of
    inspection. Of a destination that was asked for by its address the hello's name is enough: there is no other.
    """
    hosts = rule.hosts
    if hosts is None:
        return True
    first = asked[0]
    by_address = first.addresses is not None and first.text in map(str, first.addresses)
    found = (rules.leads(rule, hosts, one) for one in asked)
    return any(found) if rule.refuses or by_address else all(found)


class InterceptStep(NamedTuple):
    """What became of one entry, for people."""

    intercept: InterceptRule
    matched: bool
    why: str


class Decisive(NamedTuple):
    """What `Intercepts.candidate` looks at.

    Attributes:
        conditions: without hours.
        answer: what it says where they hold.
        rule: whose hosts have to match as well; None: whatever they are.
    """

    conditions: Conditions
    answer: bool
    rule: Rule | None

    @property
    def always(self) -> bool:
        """Whether it holds for every session."""
        return self.rule is None and self.conditions == Conditions()


def decisive(rules: RuleSet, settings: Iterable[InterceptRule]) -> Iterator[Decisive]:
    """The entries that decide for `Intercepts.candidate`: those that may intercept, and those that exempt whatever the
    host and the hour."""
    for rule, intercept in zip(rules, settings, strict=True):
        everywhere = rule.hosts is None or rule.hosts.everything
        if intercept.action == "pass" and not (everywhere and rule.conditions.hours is None):
            continue
        hosts_decide = not everywhere and not intercept.tls
        found = Decisive(
            rule.conditions._replace(hours=None), intercept.action == "intercept", rule if hosts_decide else None
        )
        yield found
        if found.always:
            return
