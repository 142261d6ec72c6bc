"""The ways out, composed from the configuration: each egress by its name, with whatever it leads through."""

from __future__ import annotations

import ssl
from collections.abc import Mapping, Sequence
from copy import copy
from typing import TYPE_CHECKING, cast

import msgspec

from tabi.config import Config
from tabi.config import Egress as Settings
from tabi.config import Member as Listed
from tabi.config.compile import BLOCK, DIRECT, check_target, members_of, name_of, proxies_of
from tabi.egress.chain import make_context, make_upstream
from tabi.egress.direct import CONNECTIONS_ALONE, STRAIGHT, Direct, Egress
from tabi.egress.pool import Check, Pooled, no_member
from tabi.egress.proxy_header import SendProxyHeader
from tabi.egress.ssh_keys import SshKeys, need_asyncssh
from tabi.egress.upstream import UpstreamTls
from tabi.egress.ways import Block, Isolated, ResolveHere
from tabi.errors import ConfigError, DialError
from tabi.net.dial import Dialer
from tabi.net.origin import Origin
from tabi.net.tls import TlsShared
from tabi.policy.grammar import Parameters
from tabi.policy.networks import parse_network
from tabi.policy.pool import Member, Pool
from tabi.url import ProxyURL, parse_url
from tabi.wire.socks5 import Credentials, ReplyCode

if TYPE_CHECKING:
    from tabi.egress.ssh import Ssh

NO_SETTINGS = Settings()

ORIGIN = ("source", "source_by", "interface", "mark", "keepalive", "user_timeout", "fast_open")
"""What `Origin` is made of, in its order."""


class Ways:
    """All ways out of one configuration.

    Args:
        config: checked.
        dialer: connects, and resolves names.
        shared: see `TlsShared`.

    Raises:
        ConfigError: the authorities of a proxy cannot be read.
    """

    def __init__(self, config: Config, dialer: Dialer, shared: TlsShared) -> None:
        self.config = config
        self.dialer = dialer
        self.to_proxies = dialer.speaking_first()
        self.shared = shared
        self.seconds: float = config.timeouts.connect
        self.made: dict[str, Egress] = {}
        self.pools: list[Pooled] = []
        self.links: list[Ssh] = []
        for name in (DIRECT, BLOCK, *config.egress):
            self.way(name)

    @property
    def by_name(self) -> Mapping[str, Egress]:
        """Each of them."""
        return self.made

    def start(self) -> None:
        """Begin to check the members of pools."""
        for pool in self.pools:
            pool.start()

    async def close(self) -> None:
        """Stop checking."""
        for pool in self.pools:
            await pool.close()

    def retire(self) -> None:
        """Others take their place: stop checking, and end connections that are kept as soon as nobody uses them."""
        for pool in self.pools:
            pool.stop()
        for link in self.links:
            link.retire()

    @property
    def is_alive(self) -> bool:
        """Whether there are connections that are kept."""
        return any(link.is_alive for link in self.links)

    @property
    def channels(self) -> int:
        """How many sessions go through connections that are kept."""
        return sum(len(link.link.channels) for link in self.links if link.link is not None)

    async def close_links(self) -> None:
        """End them at once: behind the relays, so that these end in their own way."""
        for link in self.links:
            await link.close()

    def way(self, name: str) -> Egress:
        """The egress of a name, made when it is first asked for: others may lead through it."""
        egress = self.made.get(name)
        if egress is None:
            egress = self.made[name] = self.make(name, self.config.egress.get(name, NO_SETTINGS))
        return egress

    def make(self, name: str, settings: Settings) -> Egress:
        """Make one."""
        if name == BLOCK:
            return Block(name)
        through = bool(settings.members or settings.hops)
        egress: Egress = Direct(self.to_proxies if through else self.dialer, make_origin(settings), name)
        if settings.send_proxy_protocol:
            egress = SendProxyHeader(egress, settings.send_proxy_protocol)
        if settings.members:
            egress = self.make_pool(name, settings, egress)
        elif settings.hops:
            egress = self.make_chain(name, settings, egress)
        if settings.resolve == "here" and not egress.here:
            egress = ResolveHere(egress, self.dialer)
        egress.name = name
        return egress

    def make_chain(self, name: str, settings: Settings, below: Egress) -> Egress:
        """Through one proxy after the other."""
        urls = []
        for hop in settings.hops:
            if "://" in hop:
                urls.append(parse_url(hop))
            else:
                below = self.way(hop)
        if not urls:
            return copy(below)  # which gets another name
        for url in urls[:-1]:
            below = self.upstream(url, below, name, settings)
        last, nearest = urls[-1], below
        if not settings.isolate:
            return self.upstream(last, nearest, name, settings)

        def make(credentials: Credentials) -> Egress:
            user, password = credentials.username.decode(), credentials.password.decode()
            url = msgspec.structs.replace(last, username=user, password=password)
            return self.upstream(url, nearest, name, settings)

        return Isolated(make, settings.isolate)

    def make_pool(self, name: str, settings: Settings, below: Egress) -> Egress:
        """By one of several."""
        members: list[Member] = []
        egresses: dict[str, Egress] = {}
        for member in members_of(settings):
            called = name_of(member.to)
            members.append(Member(called, member.weight, member.labels))
            if "://" in member.to:
                egresses[called] = self.upstream(parse_url(member.to), below, name, settings)
            else:
                egresses[called] = self.way(called)
        pool = Pool(members, settings.balance, ttl=settings.sticky.ttl)
        check = None
        if settings.check is not None:
            destination, path = check_target(settings.check)
            check = Check(destination, settings.check.every, settings.check.timeout, path)
        found = Pooled(name, pool, egresses, self.seconds, by=settings.sticky.words, check=check)
        self.pools.append(found)
        return found

    def from_url(self, text: str) -> Egress:
        """The egress through the proxy of a URL, with the settings that are usual; ``direct://`` and ``block://`` are
        those of the configuration. Raises ValueError and ConfigError."""
        if text in (f"{DIRECT}://", f"{BLOCK}://"):
            return self.way(text.removesuffix("://"))
        url, name = parse_url(text), name_of(text)
        self.links = [link for link in self.links if not link.retired or link.is_alive]
        egress = self.upstream(url, Direct(self.to_proxies, None, name), name, NO_SETTINGS)
        egress.name = name
        return egress

    def upstream(self, url: ProxyURL, below: Egress, name: str, settings: Settings) -> Egress:
        """The way through one proxy."""
        context = context_for(url, name, settings)
        tls = None if context is None else UpstreamTls(context, self.shared)
        made = make_upstream(url, below, self.dialer.deadlines, tls, optimistic=True, keys=keys_of(settings))
        if url.protocol == "ssh":
            self.links.append(cast("Ssh", made))
        return made


def context_for(url: ProxyURL, name: str, settings: Settings) -> ssl.SSLContext | None:
    """What trusts a proxy inside TLS. Raises ConfigError."""
    try:
        return make_context(url, settings.ca)
    except ValueError as exc:
        raise ConfigError(str(exc), f"egress.{name}.ca") from None


def keys_of(settings: Settings) -> SshKeys:
    """What ``ssh`` of an egress says."""
    return SshKeys(settings.ssh.known_hosts, settings.ssh.key, settings.ssh.agent)


def check_files(config: Config) -> None:
    """Look at everything that ways through TLS and SSH servers need. Raises ConfigError."""
    for name, settings in config.egress.items():
        path = f"egress.{name}"
        if settings.ca is not None:
            for _, url in proxies_of(settings):
                context_for(url, name, settings)
        servers = [(key, url) for key, url in proxies_of(settings) if url.protocol == "ssh"]
        if servers:
            key, url = servers[0]
            need_asyncssh(url, f"{path}.{key}")
            try:
                keys_of(settings).check()
            except ConfigError as exc:
                raise ConfigError(exc.message, f"{path}.ssh.{exc.path}") from exc


def make_origin(settings: Settings) -> Origin | None:
    """Where a way out comes from; None for wherever the system chooses."""
    if all(getattr(settings, key) == getattr(NO_SETTINGS, key) for key in ORIGIN):
        return None
    _, *others = (getattr(settings, key) for key in ORIGIN)
    return Origin([parse_network(text) for text in settings.source], *others)


def describe(config: Config, name: str) -> str:
    """A way out for people, without secrets."""
    settings = config.egress.get(name, NO_SETTINGS)
    if settings.members:
        return f"{name}: {settings.balance} of {shown(members_of(settings))}"
    if settings.hops:
        return f"{name}: through {', then '.join(map(name_of, settings.hops))}"
    if settings.source:
        return f"{name}: from {', '.join(settings.source)}"
    return name


def unable(config: Config, name: str, command: str) -> str | None:
    """Why a way out cannot carry a command other than ``connect``, as far as is known without asking; None: it may."""
    settings = config.egress.get(name, NO_SETTINGS)
    if settings.members:
        reasons = [unable_member(config, member.to, command) for member in members_of(settings)]
        return None if None in reasons else f"pool {name}: no member can do that: {reasons[0]}"
    hops = settings.hops if command == "associate" else settings.hops[-1:]
    return next((reason for hop in hops if (reason := unable_hop(config, hop, command)) is not None), None)


def unable_member(config: Config, member: str, command: str) -> str | None:
    """The same for a member of a pool: BIND listens on this machine only where a rule says so."""
    settings = config.egress.get(member, NO_SETTINGS)
    if command == "bind" and "://" not in member and not settings.hops and not settings.members:
        return f"egress {member}: {STRAIGHT}"
    return unable_hop(config, member, command)


def unable_hop(config: Config, hop: str, command: str) -> str | None:
    """The same for one hop: a URL, or a name."""
    if "://" not in hop:
        return unable(config, hop, command)
    url = parse_url(hop)
    return None if url.protocol == "socks5" else f"{url.address} is no SOCKS5 proxy: {CONNECTIONS_ALONE}"


def leads_nowhere(config: Config, name: str) -> bool:
    """Whether a way out is `block`, or begins there."""
    hops = config.egress.get(name, NO_SETTINGS).hops
    return name == BLOCK or any(leads_nowhere(config, hop) for hop in hops if "://" not in hop)


def shown(members: Sequence[Listed]) -> str:
    """Members for people, not more than a few."""
    return ", ".join(name_of(member.to) for member in members[:5]) + (
        f", … ({len(members):,})" if len(members) > 5 else ""
    )


def choice_of(config: Config, name: str, parameters: Parameters) -> list[str]:
    """What the parameters of a user name select on a way out, for people. Raises DialError where that is no member."""
    labels, token, ttl = parameters
    settings = config.egress.get(name, NO_SETTINGS)
    if token is not None and "session" in settings.isolate:
        return [f"session {token}: a user name of its own at the last proxy"]
    while settings.hops and "://" not in settings.hops[0]:  # it leads through that one
        settings = config.egress.get(settings.hops[0], NO_SETTINGS)
    if not settings.members:
        return [f"nothing: {name} is no pool"]
    found = []
    members = [member for member in members_of(settings) if set(labels) <= set(member.labels)]
    if not members:
        raise DialError(no_member(name), ReplyCode.GENERAL_FAILURE)
    if labels:
        found.append(f"label {' and '.join(labels)}: {shown(members)}")
    if token is not None:
        kept = {"sticky": "the same member as long as it is used", "hash": "always the same member"}
        by_session = "session" in settings.sticky.words and settings.balance in kept
        what = kept[settings.balance] if by_session else f"nothing, {name} does not go by it"
        found.append(f"session {token}: {what}")
    if ttl is not None:
        sticky = settings.balance == "sticky"
        what = "how long that is remembered without a request" if sticky else f"nothing, {name} remembers nobody"
        found.append(f"ttl {ttl:g} s: {what}")
    return found


def resolves_there(config: Config, name: str) -> bool:
    """Whether names that take a way out are resolved by a proxy on it."""
    settings = config.egress.get(name, NO_SETTINGS)
    if settings.resolve == "here":
        return False
    parts = [*settings.hops, *(member.to for member in members_of(settings))]
    return any("://" in part or resolves_there(config, part) for part in parts)
