"""Lists of hosts and networks in files: ``hosts_file`` and ``networks_file``, one in each line.

A line is read by a regular expression if it is as most are, and else word by word: a million take two seconds.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import islice

from tabi.config.distort import DistortConfig
from tabi.config.schema import BROADCAST, Config, InterceptConfig, RuleConfig
from tabi.errors import ConfigError
from tabi.policy.host_list import Builder, HostList
from tabi.policy.networks import Network, parse_network
from tabi.policy.rules import FILES, read_host
from tabi.session import UNIX
from tabi.wire.address import MAX_NAME, parse_ip

MAX_SIZE = 256_000_000
"""Octets of a file."""
MAX_LINE = 4096
"""Octets of a line."""
SHOWN = 10
"""Mistakes of one file that are reported."""

MARK = b"\xef\xbb\xbf"
"""What some editors put in front of UTF-8."""

NAME = re.compile(
    rb"(?:0\.0\.0\.0[ \t]+|127\.0\.0\.1[ \t]+|(\*\.))?((?:[a-z0-9_-]{1,63}\.){0,9}[a-z][a-z0-9_-]{0,62})\s*"
)
"""A line with a name in the form in which it is compared, as most are; its last label is no number, and so it is
none."""
NUMBER = rb"(0|[1-9][0-9]{0,2})"
NETWORK = re.compile(rb"%b\.%b\.%b\.%b(?:/([12]?[0-9]|3[0-2]))?\s*" % (NUMBER, NUMBER, NUMBER, NUMBER))
"""A line with an address or a network of IPv4."""


def files_of(given: str | list[str] | None, path: str) -> list[tuple[str, str]]:
    """Files that a key names, each with the place where it is named; ``path`` is that of the key."""
    if given is None or isinstance(given, str):
        return [] if given is None else [(path, given)]
    return [(f"{path}[{index}]", name) for index, name in enumerate(given)]


def list_errors(config: Config, lists: dict[tuple[str, str], HostList]) -> Iterator[ConfigError]:
    """Read the files of all rules and entries, each once; gives what is wrong with them. ``lists`` gets them."""
    tables: dict[str, Sequence[RuleConfig | InterceptConfig | DistortConfig]] = {
        "rule": config.rule,
        "intercept": config.intercept,
        "distort": config.distort,
    }
    for table, entries in tables.items():
        for index, entry in enumerate(entries):
            for key in FILES:
                for place, path in files_of(getattr(entry, key), f"{table}[{index}].{key}"):
                    if path and "\0" not in path and (key, path) not in lists:
                        lists[key, path] = HostList(path)
                        yield from read_file(path, key, place, lists)


def read_file(path: str, key: str, place: str, lists: dict[tuple[str, str], HostList]) -> Iterator[ConfigError]:
    """Read one file into ``lists``; gives what is wrong with it, for the key at ``place``."""
    builder = Builder()
    try:
        with open(path, "rb", opener=open_at_once) as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                yield ConfigError(f"{path}: not a regular file", place)
                return
            if found.st_size > MAX_SIZE:
                yield ConfigError(f"{path}: {found.st_size} octets, expected at most {MAX_SIZE}", place)
                return
            lines = iter(partial(file.readline, MAX_LINE + 1), b"")
            read = read_hosts if key == "hosts_file" else read_networks
            wrong = False
            for number, why in islice(read(lines, builder), SHOWN):
                wrong = True
                yield ConfigError(f"{path}, line {number}: {why}", place)
    except OSError as exc:
        yield ConfigError(f"{path}: {exc.strerror}", place)
        return
    if not wrong:
        lists[key, path] = builder.build(path)


def open_at_once(path: str, flags: int) -> int:
    """Open a file, and do not wait for the writer of a pipe."""
    return os.open(path, flags | os.O_NONBLOCK)


def read_hosts(lines: Iterable[bytes], builder: Builder) -> Iterator[tuple[int, str]]:
    """Read lines of a ``hosts_file``; gives the number of each that is wrong, and why."""
    plain, add = NAME.fullmatch, builder.add_name
    for number, line in enumerate(lines, 1):
        found = plain(line)
        if found is not None and len(line) < MAX_NAME:
            if found[1]:
                builder.add(f"*.{found[2].decode()}")
            else:
                add(found[2])
            continue
        if read_range(line, builder):
            continue
        try:
            for word in hosts_of(line):
                builder.add(read_listed(word))
        except ValueError as exc:
            yield number, str(exc)
            if len(line) > MAX_LINE:
                return


def read_networks(lines: Iterable[bytes], builder: Builder) -> Iterator[tuple[int, str]]:
    """Read lines of a ``networks_file``, as `read_hosts`."""
    for number, line in enumerate(lines, 1):
        if read_range(line, builder):
            continue
        try:
            words = words_of(line)
            if len(words) > 1:
                raise ValueError(f"{' '.join(words)!r}, expected one network in each line")
            for word in words:
                if word == UNIX:
                    builder.unix = True
                else:
                    builder.add(parse_network(word))
        except ValueError as exc:
            yield number, str(exc)
            if len(line) > MAX_LINE:
                return


def read_range(line: bytes, builder: Builder) -> bool:
    """Whether a line is a network of IPv4, and nothing else; then it is added."""
    found = NETWORK.fullmatch(line)
    if found is None:
        return False
    a, b, c, d = map(int, found.groups()[:4])
    host_bits = (1 << 32 - int(found[5] or 32)) - 1
    first = a << 24 | b << 16 | c << 8 | d
    if max(a, b, c, d) > 255 or first & host_bits:
        return False
    builder.add_range4(first, first | host_bits)
    return True


def words_of(line: bytes) -> list[str]:
    """The words of a line, without a comment. Raises ValueError."""
    if len(line) > MAX_LINE:
        raise ValueError(f"more than {MAX_LINE} octets")
    try:
        words = line.partition(b"#")[0].removeprefix(MARK).decode().split()
    except UnicodeDecodeError:
        raise ValueError("no UTF-8 text") from None
    for word in words:
        if len(word) > MAX_NAME:
            raise ValueError(f"a host has 1 to {MAX_NAME} octets, this one has more")
    return words


def hosts_of(line: bytes) -> list[str]:
    """The hosts of a line: one, or as in /etc/hosts names behind an address that nobody has in the net, such as
    0.0.0.0. Raises ValueError."""
    words = words_of(line)
    if len(words) > 1 and is_nowhere(words[0]):
        return [word for word in words if word != words[0]]
    if len(words) > 1:
        raise ValueError(f"{' '.join(words)[:MAX_NAME]!r}, expected one host in each line")
    return words


def is_nowhere(word: str) -> bool:
    """Whether a word is an address that names have in lists of what is to be blocked, and in those of this machine."""
    try:
        address = parse_ip(word)
    except ValueError:
        return False
    return (
        address.is_unspecified
        or address.is_loopback
        or address.is_link_local
        or address.is_multicast
        or str(address) == BROADCAST
    )


def read_listed(word: str) -> str | Network:
    """Read a host. Raises ValueError."""
    if word == "*" or word.startswith("re:"):
        raise ValueError(f"{word!r} may stand in hosts, but not in a file: expected a name, *.example.com or a network")
    return read_host(word)
