"""Names as this machine resolves them: by resolv.conf, the hosts file and nsswitch.conf."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Sequence
from ipaddress import ip_address
from pathlib import Path
from time import monotonic
from typing import NamedTuple

from tabi.errors import DialError
from tabi.net.dns_udp import UdpServer
from tabi.net.failover import LOCALHOST, Failover
from tabi.net.kinds import order_kinds
from tabi.net.resolve import IP, Answer, Named, make_named, without_zone
from tabi.wire.address import Address
from tabi.wire.dns import AAAA, A

TIMEOUT, TRIES = 2.0, 2
"""Seconds that a name server has for an answer, and how often all of them are asked. A question without an answer ends
after 4 seconds with one name server, and after 8 with two, before its waiters leave."""

LOOK = 1.0
"""Seconds between two looks at whether a file has changed."""

MAX_FILE = 4 << 20
"""Octets of a file that are read."""

LARGE = 64 << 10
"""Octets of a hosts file from which on it is read in a thread, once the resolver is made: lists that block advertising
have 100,000 lines, which take 0.3 s."""

MAX_SERVERS, MAX_SEARCH, MAX_DOTS = 8, 16, 15
"""Name servers and search domains that are used; the most that ``ndots`` may be (resolv.conf(5))."""


class Settings(NamedTuple):
    """What resolv.conf says (resolv.conf(5))."""

    servers: tuple[Address, ...]
    search: tuple[str, ...] = ()
    ndots: int = 1
    rotate: bool = False
    only_tcp: bool = False


def read_settings(text: str, environment: dict[str, str], hostname: str) -> Settings:
    """Read resolv.conf, with LOCALDOMAIN and RES_OPTIONS of the environment. What is not understood is ignored."""
    servers = list[Address]()
    search = [hostname.partition(".")[2]]
    options = list[str]()
    for line in text.splitlines():
        words = line.split()
        if not words or words[0][0] in "#;":
            continue
        if words[0] == "nameserver" and len(words) > 1 and (server := read_server(words[1])) is not None:
            servers.append(server)
        elif words[0] in ("search", "domain"):
            search = words[1:] if words[0] == "search" else words[1:2]
        elif words[0] == "options":
            options += words[1:]
    if "LOCALDOMAIN" in environment:
        search = environment["LOCALDOMAIN"].split()
    options += environment.get("RES_OPTIONS", "").split()
    ndots = 1
    for option in options:
        if option.startswith("ndots:") and option[6:].isdecimal():
            ndots = min(int(option[6:]), MAX_DOTS)
    domains = [domain.strip(".").lower() for domain in search[:MAX_SEARCH]]
    return Settings(
        tuple(dict.fromkeys(servers))[:MAX_SERVERS] or (Address(ip_address("127.0.0.1"), 53),),
        tuple(filter(None, domains)),
        ndots,
        "rotate" in options,
        "use-vc" in options,
    )


def read_server(text: str) -> Address | None:
    """An address, with a port as ``[address]:port``; None for anything else."""
    host, _, port = text.removeprefix("[").partition("]:") if text.startswith("[") else (text, "", "53")
    try:
        return Address(ip_address(host.removesuffix("]")), int(port or 53))
    except ValueError:
        return None


def read_order(text: str) -> tuple[str, ...]:
    """What nsswitch.conf(5) has for hosts: ``files`` and ``dns`` in their order; other services are left out."""
    for line in text.splitlines():
        name, _, services = line.partition("#")[0].partition(":")
        if name.strip() == "hosts":
            known = {"files": "files", "dns": "dns", "resolve": "dns"}
            order = tuple(dict.fromkeys(known[word] for word in services.split() if word in known))
            return order or ("files", "dns")
    return ("files", "dns")


def plain(text: str) -> str:
    """The one form of an IPv6 address that programs write; anything else stays as it is."""
    try:
        return str(ip_address(text)) if ":" in text else text
    except ValueError:
        return text


class Hosts:
    """The hosts file: addresses by name, and names by address (hosts(5))."""

    def __init__(self, text: str) -> None:
        self.addresses: dict[str, list[str]] = {}
        self.names: dict[str, str] = {}
        for line in text.splitlines():
            words = line.partition("#")[0].split()
            for name in words[1:]:
                self.addresses.setdefault(name.lower().removesuffix("."), []).append(words[0])
            if len(words) > 1:
                self.names.setdefault(plain(words[0]), words[1])

    def find(self, name: str) -> list[IP]:
        """The addresses of a name; what is not an address in the file is left out."""
        found = list[IP]()
        for text in self.addresses.get(name.lower().removesuffix("."), ()):
            try:
                found.append(ip_address(text))
            except ValueError:
                continue
        return list(dict.fromkeys(found))


class SystemResolver:
    """What the system is set up to ask, as a source of answers.

    Args:
        loop: on which the answers arrive.
        timeout: seconds that a name server has for an answer.
        tries: how often all of them are asked.
        kinds: the types of addresses to ask for.
        folder: where the files are.
        clock: seconds that never go back.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        timeout: float = TIMEOUT,
        tries: int = TRIES,
        kinds: Sequence[int] = (A, AAAA),
        folder: str | Path = "/etc",
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self.loop = loop
        self.timeout = timeout
        self.tries = tries
        self.kinds = kinds
        self.clock = clock
        self.paths = [Path(folder, name) for name in ("resolv.conf", "hosts", "nsswitch.conf")]
        self.stamps: list[object] = [None, None, None]
        self.next_look = float("-inf")
        self.settings = Settings(())
        self.hosts = Hosts("")
        self.order: tuple[str, ...] = ()
        self.servers = Failover([], tries)
        self.refresh()

    def refresh(self) -> None:
        """Read what has changed."""
        if self.clock() < self.next_look:
            return
        self.next_look = self.clock() + LOOK
        for index, path in enumerate(self.paths):
            stamp = stamp_of(path)
            if stamp == self.stamps[index] and self.order:
                continue
            self.stamps[index] = stamp
            if index == 0:
                self.use(read_settings(read_text(path), dict(os.environ), socket.gethostname()))
            elif index == 2:
                self.order = read_order(read_text(path))
            elif self.order and stamp is not None and stamp[2] > LARGE:
                self.loop.run_in_executor(None, read_hosts, path).add_done_callback(self.take_hosts)
            else:
                self.hosts = read_hosts(path)

    def take_hosts(self, reading: asyncio.Future[Hosts]) -> None:
        """A large hosts file has been read in a thread; until then questions found what was in the old one."""
        if not reading.cancelled() and reading.exception() is None:
            self.hosts = reading.result()

    def use(self, settings: Settings) -> None:
        """Ask other servers from now on; questions to the old ones come to their end."""
        old = self.settings
        if (settings.servers, settings.rotate, settings.only_tcp) != (old.servers, old.rotate, old.only_tcp):
            self.servers = Failover(
                [
                    UdpServer(self.loop, address, self.timeout, self.kinds, settings.only_tcp)
                    for address in settings.servers
                ],
                self.tries,
                rotate=settings.rotate,
            )
        self.settings = settings

    async def answer(self, name: str) -> Answer:
        """See `Source`. What the hosts file says has no time to live."""
        self.refresh()
        answer, failure = Answer([], None, "domain name not found"), None
        if is_localhost(name):  # both kinds, also where the hosts file has one of them
            return Answer(order_kinds(list(dict.fromkeys([*self.hosts.find(name), *LOCALHOST.addresses]))), 0)
        for service in self.order:
            if service == "files":
                answer = Answer(order_kinds(self.hosts.find(name)), 0)
            elif name.lower().removesuffix(".").endswith(".onion"):  # RFC 7686 section 2
                continue
            else:
                try:
                    answer = await self.search(name)
                except DialError as exc:
                    failure = exc
            if answer.addresses:
                return answer
        if failure is not None:
            raise failure
        return answer

    async def search(self, name: str) -> Answer:
        """Ask the name servers for a name, with the search domains as resolv.conf(5) has it.

        A search domain that the servers fail for does not hide the next one. Silence ends the search, because it costs
        time.

        Raises:
            DialError: there are no addresses, and the servers have failed.
        """
        began = self.clock()
        answer, failure, single = None, None, None
        for candidate in self.candidates(name):
            try:
                answer = await self.servers.answer(candidate)
            except DialError as exc:
                if "." in candidate.removesuffix("."):
                    failure = exc
                else:  # some servers fail for a single label, which they do not forward: others may have answered
                    single = exc
                if self.clock() - began >= self.timeout:
                    break
            else:
                if answer.addresses:
                    return answer
        failure = failure or (single if answer is None else None)
        if failure is not None:
            raise failure
        assert answer is not None
        return answer

    def candidates(self, name: str) -> list[str]:
        """The names to ask for, one after the other, until one has addresses."""
        if name.endswith("."):
            return [name]
        wider = [f"{name}.{domain}" for domain in self.settings.search]
        return [name, *wider] if name.count(".") >= self.settings.ndots else [*wider, name]

    async def reverse(self, address: IP) -> Named:
        """See `Source`."""
        self.refresh()
        named, failure = Named(None, None), None
        for service in self.order:
            if service == "files":
                text = self.hosts.names.get(without_zone(address))
                named = named if text is None else make_named([text], 0)
            else:
                try:
                    named = await self.servers.reverse(address)
                except DialError as exc:
                    failure = exc
            if named.name is not None:
                return named
        if failure is not None:
            raise failure
        return named

    async def close(self) -> None:
        """See `Source`."""
        await self.servers.close()


def is_localhost(name: str) -> bool:
    """RFC 6761 section 6.3: name servers are not asked for these."""
    plain = name.lower().removesuffix(".")
    return plain == "localhost" or plain.endswith(".localhost")


def stamp_of(path: Path) -> tuple[int, int, int] | None:
    """What differs once a file has been changed; None where it cannot be read."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size


def read_hosts(path: Path) -> Hosts:
    """The hosts file that is there now."""
    return Hosts(read_text(path))


def read_text(path: Path) -> str:
    """What a file has; nothing where it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(MAX_FILE).decode("utf-8", "replace")
    except OSError:
        return ""
