"""The egresses of a server, composed from the configuration: each by its name, with whatever it leads through."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Mapping, Sequence
from copy import copy
from typing import TYPE_CHECKING, cast

import msgspec

from tabi.config import Config, StickyConfig
from tabi.config import EgressConfig as Settings
from tabi.config.check import leads_to
from tabi.config.compile import BLOCK, DIRECT, check_target, members_of, name_of, proxies_of
from tabi.egress.base import Egress
from tabi.egress.block import Block
from tabi.egress.chain import make_context, make_upstream
from tabi.egress.custom import CustomEgress, Opener
from tabi.egress.direct import Direct
from tabi.egress.inspected import AddressFilterFor, DialInspector, Inspected
from tabi.egress.isolated import Isolated
from tabi.egress.pool import Check, Pooled
from tabi.egress.proxy_header import SendProxyHeader
from tabi.egress.resolve_locally import ResolveLocally
from tabi.egress.ssh_keys import SshKeys, need_asyncssh
from tabi.egress.upstream import UpstreamTls
from tabi.errors import ConfigError
from tabi.net.dial import Dialer
from tabi.net.source import SourceBinding
from tabi.net.tls import TlsShared
from tabi.policy.networks import parse_network
from tabi.policy.pool import Member, Pool
from tabi.policy.pool_store import PoolStore
from tabi.url import ProxyURL, parse_url
from tabi.wire.socks5 import Credentials

if TYPE_CHECKING:
    from tabi.egress.ssh import Ssh

NO_SETTINGS = Settings()
NOTHING: Mapping[str, Opener] = {}
NO_TIMEOUTS: Mapping[str, float] = {}

SOURCE = ("source", "source_by", "interface", "mark", "keepalive", "user_timeout", "fast_open")
"""What `SourceBinding` is made of, in its order."""


class Egresses:
    """All egresses of one configuration.

    Args:
        config: checked.
        dialer: connects, and resolves names. To inspect egresses a `StillDialer` is enough.
        shared: see `TlsShared`.
        given: those that a program brings, by name; they are its own to close.
        inspection: the inspector that is asked before each dial, and the address filter for its redirects.
        before: the egresses that these replace: their pools are remembered.
        timeouts: seconds for connecting, by the name of an egress; ``timeouts.connect`` is for all others.

    Raises:
        ConfigError: the authorities of a proxy cannot be read.
    """

    def __init__(
        self,
        config: Config,
        dialer: Dialer,
        shared: TlsShared,
        given: Mapping[str, Opener] = NOTHING,
        inspection: tuple[DialInspector, AddressFilterFor] | None = None,
        before: Egresses | None = None,
        timeouts: Mapping[str, float] = NO_TIMEOUTS,
    ) -> None:
        self.config = config
        self.dialer = dialer
        self.timeouts = timeouts
        self.dialers = {name: dialer.within(seconds) for name, seconds in timeouts.items()}
        self.shared = shared
        self.seconds: float = config.timeouts.connect
        self.given = given
        self.inspection = inspection
        self.made: dict[str, Egress] = {
            name: CustomEgress(name, one, self.seconds_of(name)) for name, one in given.items()
        }
        self.pools: list[Pooled] = []
        self.before = before
        self.links: list[Ssh] = []
        for name in (DIRECT, BLOCK, *config.egress):
            self.get(name)
        self.before = None
        self.by_name: Mapping[str, Egress] = self.made if inspection is None else self.inspected(*inspection)
        """What sessions take. What these lead through is not inspected again."""

    def reloaded(self, config: Config) -> Egresses:
        """The egresses of another configuration, which replace these. Raises ConfigError."""
        return Egresses(config, self.dialer, self.shared, self.given, self.inspection, self, self.timeouts)

    def seconds_of(self, name: str) -> float:
        """How long connecting by an egress may take."""
        return self.timeouts.get(name, self.seconds)

    def dialer_of(self, name: str) -> Dialer:
        """What an egress connects with."""
        return self.dialers.get(name, self.dialer)

    def inspected(self, inspector: DialInspector, address_filter_for: AddressFilterFor) -> dict[str, Egress]:
        """All egresses, with an inspector in front."""
        return {
            name: Inspected(one, inspector, address_filter_for, self.seconds_of(name))
            for name, one in self.made.items()
        }

    def start(self) -> None:
        """Begin to check the members of pools."""
        for pool in self.pools:
            pool.start()

    async def close(self) -> None:
        """Stop checking."""
        async with contextlib.AsyncExitStack() as closing:  # all of them, even if one of these waits is cancelled
            for pool in self.pools:
                closing.push_async_callback(pool.close)
            for dialer in self.dialers.values():
                closing.callback(dialer.deadlines.close)

    def retire(self) -> None:
        """Other egresses replace these: stop checking, and end kept connections as soon as they are unused."""
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
        """End the kept connections at once: after the relays, so that these end in their own way."""
        async with contextlib.AsyncExitStack() as closing:
            for link in self.links:
                closing.push_async_callback(link.close)

    # --- making them ---

    def get(self, name: str) -> Egress:
        """The egress of a name, made when it is first asked for: others may lead through it."""
        egress = self.made.get(name)
        if egress is None:
            egress = self.made[name] = self.make(name, self.config.egress.get(name, NO_SETTINGS))
        return egress

    def make(self, name: str, settings: Settings) -> Egress:
        """Make an egress."""
        if name == BLOCK:
            return Block(name)
        through = bool(settings.members or settings.hops)
        source, dialer = make_source(settings), self.dialer_of(name)
        egress: Egress = Direct(dialer.speaking_first(), source, "") if through else Direct(dialer, source, name)
        if settings.send_proxy_protocol:
            egress = SendProxyHeader(egress, settings.send_proxy_protocol)
        if settings.members:
            egress = self.make_pool(name, settings, egress)
        elif settings.hops:
            egress = self.make_chain(name, settings, egress)
        egress.name = name
        if settings.resolve == "here" and not egress.resolves_locally:
            egress = ResolveLocally(egress, dialer)
        return egress

    def make_chain(self, name: str, settings: Settings, below: Egress) -> Egress:
        """Make an egress through one proxy after the other."""
        urls = []
        for hop in settings.hops:
            if "://" in hop:
                urls.append(parse_url(hop))
            else:
                below = self.get(hop)
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
        """Make an egress that uses one of several members."""
        members: list[Member] = []
        egresses: dict[str, Egress] = {}
        for member in members_of(settings):
            called = name_of(member.to)
            members.append(Member(called, member.weight, member.labels))
            if "://" in member.to:
                egresses[called] = self.upstream(parse_url(member.to), below, name, settings)
            else:
                egresses[called] = self.get(called)
        store = self.remember(name, [member.to for member in members_of(settings)])
        pool = Pool(members, settings.balance, ttl=settings.sticky.ttl, store=store)
        check = None
        if settings.check is not None:
            destination, path = check_target(settings.check)
            check = Check(destination, settings.check.every, settings.check.timeout, path)
        found = Pooled(name, pool, egresses, self.seconds_of(name), by=settings.sticky.words, check=check)
        self.pools.append(found)
        return found

    def remember(self, pool: str, members: Sequence[str]) -> PoolStore | None:
        """What an earlier pool of this name knew about unchanged members. None if there was no such pool."""
        before = self.before
        old = None if before is None else next((one.pool for one in before.pools if one.name == pool), None)
        if before is None or old is None:
            return None
        same = {
            name_of(member)
            for member in members
            if member_of(self.config, pool, member) == member_of(before.config, pool, member)
        }
        return old.store.succeed(same)

    def from_url(self, text: str) -> Egress:
        """The egress through the proxy of a URL, with the settings that are usual; ``direct://`` and ``block://`` are
        those of the configuration. Raises ValueError and ConfigError."""
        if text in (f"{DIRECT}://", f"{BLOCK}://"):
            return self.get(text.removesuffix("://"))
        url, name = parse_url(text), name_of(text)
        self.links = [link for link in self.links if not link.retired or link.is_alive]
        egress = self.upstream(url, Direct(self.dialer.speaking_first(), None, name), name, NO_SETTINGS)
        egress.name = name
        return egress

    def upstream(self, url: ProxyURL, below: Egress, name: str, settings: Settings) -> Egress:
        """The egress through one proxy, for the egress with a name."""
        context = context_for(url, name, settings)
        tls = None if context is None else UpstreamTls(context, self.shared)
        made = make_upstream(url, below, self.dialer_of(name).deadlines, tls, optimistic=True, keys=keys_of(settings))
        if url.protocol == "ssh":
            self.links.append(cast("Ssh", made))
        return made


def member_of(config: Config, pool: str, member: str) -> object:
    """The identity of a pool's member: two equal ones are the same member."""
    settings = config.egress[pool]
    if "://" in member:  # which the pool says how to reach
        around = msgspec.structs.replace(settings, members=None, balance="random", sticky=StickyConfig(), check=None)
        return around if member in [one.to for one in members_of(settings)] else None
    named = {member, *leads_to(config, member)}
    return {name: config.egress.get(name) for name in named}


def context_for(url: ProxyURL, name: str, settings: Settings) -> ssl.SSLContext | None:
    """The TLS context that trusts a proxy. Raises ConfigError."""
    try:
        return make_context(url, settings.ca)
    except ValueError as exc:
        raise ConfigError(str(exc), f"egress.{name}.ca") from None


def keys_of(settings: Settings) -> SshKeys:
    """What ``ssh`` of an egress says."""
    return SshKeys(settings.ssh.known_hosts, settings.ssh.key, settings.ssh.agent)


def check_files(config: Config) -> None:
    """Check all files that egresses through TLS and SSH servers need. Raises ConfigError."""
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


def make_source(settings: Settings) -> SourceBinding | None:
    """Where the connections of an egress come from; None for wherever the system chooses."""
    if all(getattr(settings, key) == getattr(NO_SETTINGS, key) for key in SOURCE):
        return None
    _, *others = (getattr(settings, key) for key in SOURCE)
    return SourceBinding([parse_network(text) for text in settings.source], *others)
