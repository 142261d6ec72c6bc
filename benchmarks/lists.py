"""Print what lists in files cost: reading them, memory, lookups. A number of lines as argument. Default: a million."""

from __future__ import annotations

import random
import string
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from statistics import median
from typing import Any

from tabi.config import make_config
from tabi.config.lists import list_errors
from tabi.policy.host_list import HostList

LETTERS = string.ascii_lowercase + string.digits
SUFFIXES = (".com", ".net", ".co.uk", ".example.org", ".io")
LOOKUPS, PARTS = 20_000, 9


def memory() -> tuple[float, float]:
    """What this process takes, and took at most, in MB."""
    found = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    resident, peak = (int(found[key].split()[0]) * 1024 / 1e6 for key in ("VmRSS", "VmHWM"))
    return resident, peak


def read(key: str, lines: Sequence[str]) -> HostList:
    """Write a file and read it; print what that costs."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write("\n".join(lines) + "\n")
        file.flush()
        config = make_config({"rule": [{"action": "deny", key: file.name}]})
        lists: dict[tuple[str, str], HostList] = {}
        Path("/proc/self/clear_refs").write_text("5")  # the peak is that from here on
        before, _ = memory()
        began = time.process_time()
        assert not list(list_errors(config, lists))
        seconds = time.process_time() - began
        after, peak = memory()
        found = lists[key, file.name]
    print(
        f"{key:14} {len(lines):9,} lines  read in {seconds:4.1f} s, {len(found.data) / 1e6:5.1f} MB; "
        f"the process {after - before:5.1f} MB more, {peak - before:5.1f} MB at its peak"
    )
    return found


def look_up(what: str, asked: Sequence[Any], find: Callable[[Any], bool], expected: bool) -> None:
    """Print what a lookup costs."""
    times = []
    for start in range(0, len(asked), len(asked) // PARTS):
        part = asked[start : start + len(asked) // PARTS]
        began = time.process_time()
        found = [find(one) for one in part]
        times.append((time.process_time() - began) / len(part) * 1e6)
        assert found.count(expected) > 0.99 * len(part)
    print(f"{'':14} {what:34} {median(times):5.2f} us")


def main() -> None:
    """Measure."""
    count = int(sys.argv[1]) if sys.argv[1:] else 1_000_000
    draw = random.Random(1)

    def name() -> str:
        return "".join(draw.choices(LETTERS, k=draw.randint(5, 16))) + draw.choice(SUFFIXES)

    names = [name() for _ in range(count)]
    known = draw.choices(names, k=LOOKUPS * PARTS)
    others = [f"www.{name()}" for _ in range(LOOKUPS * PARTS)]
    hosts = read("hosts_file", [f"*.{one}" if number % 2 else one for number, one in enumerate(names)])
    stars = set(names[1::2])
    look_up("a name of it", [one for one in known if one not in stars], hosts.has_name, True)
    look_up("one below a star", [f"www.{one}" for one in known if one in stars], hosts.has_name, True)
    look_up("one that is not in it", others, hosts.has_name, False)
    plain = frozenset(names)
    look_up("the same in a frozenset, for itself", others, plain.__contains__, False)
    del plain, names, known
    numbers = [draw.getrandbits(32) for _ in range(count)]
    networks = read("networks_file", [str(IPv4Address(number)) for number in numbers])
    look_up("an address of IPv4", [IPv4Address(one) for one in numbers[: LOOKUPS * PARTS]], networks.__contains__, True)
    prefixes = [0x2001 << 48 | draw.getrandbits(48) for _ in range(count // 10)]
    networks = read("networks_file", [f"{IPv6Address(one << 64)}/64" for one in prefixes])
    inside = [IPv6Address(draw.choice(prefixes) << 64 | draw.getrandbits(64)) for _ in range(LOOKUPS * PARTS)]
    look_up("an address of IPv6", inside, networks.__contains__, True)


if __name__ == "__main__":
    main()
