"""What is measured: the load of each scenario, and the figures that come out of it."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from distortion import measure_many, wanted_rate
from https_origin import FIRST, SIZES, origin, proxy_authority
from process import Failure, Server

Figure = Literal["rate", "cost", "merit", "lost", "p50", "p99", "connections"]
FIGURES: tuple[Figure, ...] = get_args(Figure)

Figures = dict[Figure, float]
"""Of one measurement. ``rate``: more is better; ``cost``: less is better; both in the units of the scenario's group.
``merit``: what one second of the server's CPU did; more is better. ``lost``: datagrams that never came back.
``p50`` and ``p99``: microseconds. ``connections``: that the client opened.
"""

Listener = Literal[
    "socks5",
    "mixed",
    "socks5+tls",
    "http",
    "10 rules",
    "20,000 rules",
    "10 MB/s",
    "through microsocks",
    "through tabi",
    "bulk through microsocks",
    "a name",
    "two addresses",
    "a pool",
    "looks into TLS",
    "looks into HTTP/2",
    "looks into others",
    "100 ms later",
    "1 s later",
    "faults that change nothing",
    "a line of 1 MB/s",
    "a line of 10 MB/s",
    "a line of 100 MB/s",
    "a line of half of the chain",
    "a fault of other hosts",
]
LISTENERS: tuple[Listener, ...] = get_args(Listener)
"""What a scenario wants of a server's port, as the scheme of tabi's listener says it. All others are SOCKS5: for the
user alice, with so many rules and all limits, or with a bandwidth; through another proxy; with a name that is known and
has one address, or two; with a pool of a thousand members; that looks into all TLS, and into HTTP/2 too, or into that
of other hosts; with a fault on each connection, or on those to other hosts."""

SETTLE = 0.5
"""Seconds between the last tunnel or association and the look at the memory."""

LOOK = 0.05
"""Seconds between two looks at the memory while something passes."""

GIVE_UP = 120.0
"""Seconds that one measurement may take."""


@dataclass(frozen=True, slots=True)
class Group:
    """Scenarios that share a table."""

    title: str
    columns: dict[Figure, str]
    """The figures that they have, with the heading of each."""


CONNECTIONS = Group(
    "Connections",
    {"rate": "connections/s", "cost": "CPU us/connection", "p50": "p50 us", "p99": "p99 us"},
)
THROUGHPUT = Group("Throughput", {"rate": "Gbit/s", "cost": "CPU s/GB"})
ROUND_TRIPS = Group(
    "Round trips",
    {"rate": "round trips/s", "cost": "CPU us/round trip", "p50": "p50 us", "p99": "p99 us"},
)
DATAGRAMS = Group(
    "Datagrams",
    {"rate": "echoes/s", "cost": "CPU us/echo", "lost": "lost", "p50": "p50 us", "p99": "p99 us"},
)
REQUESTS = Group(
    "HTTP requests",
    {
        "rate": "requests/s",
        "cost": "CPU us/request",
        "merit": "requests/CPU s",
        "p50": "p50 us",
        "p99": "p99 us",
        "connections": "connections",
    },
)
LOOKED_INTO = Group(
    "Requests inside TLS that is looked into",
    {"rate": "requests/s", "cost": "CPU us/request", "p50": "p50 us", "p99": "p99 us"},
)
GROWTH = Group("Memory while content passes that is looked into", {"cost": "MB more"})
MEMORY = Group("Memory", {"cost": "kB each"})
LINES = Group("Lines of a bandwidth", {"rate": "part of the rate that was asked for", "cost": "CPU s/GB"})
SCALED = Group("Throughput through faults", {"rate": "Gbit/s of 24 without a proxy", "cost": "CPU s/GB"})
UNDER_WAY = Group("Memory while octets are late", {"cost": "MB more", "lost": "connections lost"})
START = Group("Start", {"cost": "seconds"})
CHOICES = Group("Choices", {"cost": "us each"})

GROUPS = [CONNECTIONS, THROUGHPUT, ROUND_TRIPS, DATAGRAMS, REQUESTS, LOOKED_INTO, MEMORY, GROWTH]
GROUPS += [LINES, SCALED, UNDER_WAY, START, CHOICES]
"""In the order of the report."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """One thing that a server is asked to do."""

    name: str
    group: Group
    what: str
    load: list[str]
    """The arguments of `load`, without the port; empty: only start the server."""
    quick: list[str]
    """The same for --quick."""
    rounds: int = 1
    """How often it is measured at least, whatever --rounds says without --quick."""
    listener: Listener = "socks5"
    warm_up: tuple[str, ...] = ("conn", "400", "64")
    """Another load, before a measurement: what a server does once in its life."""


NAMES: list[tuple[str, str, Listener]] = [
    ("name", "one address", "a name"),
    ("name-2", "two addresses", "two addresses"),
]

LINES_OF_FAULTS: list[tuple[str, Listener]] = [
    ("fault-line-1", "a line of 1 MB/s"),
    ("fault-line-10", "a line of 10 MB/s"),
    ("fault-line-100", "a line of 100 MB/s"),
    ("fault-line-half", "a line of half of the chain"),
]

UNCHOSEN = [
    (
        "conn",
        CONNECTIONS,
        "connect, echo 64 octets, close, where other hosts have a fault",
        ["conn", "10000", "64"],
        ["conn", "2000", "64"],
    ),
    ("bulk", THROUGHPUT, "8 streams to clients, likewise", ["bulk", "down", "8", "3"], ["bulk", "down", "8", "1"]),
    (
        "udp",
        DATAGRAMS,
        "1,200 octets there and back, 1 association, 32 under way, likewise",
        ["udp", "1200", "32", "3"],
        ["udp", "1200", "32", "1"],
    ),
]
"""What sessions that no fault is chosen for do."""

SCENARIOS = [
    Scenario(
        "conn",
        CONNECTIONS,
        "connect, echo 64 octets, close: 10,000 times, 64 at once",
        ["conn", "10000", "64"],
        ["conn", "2000", "64"],
    ),
    Scenario("bulk-1", THROUGHPUT, "1 stream to the client", ["bulk", "down", "1", "3"], ["bulk", "down", "1", "1"]),
    Scenario("bulk-down", THROUGHPUT, "8 streams to clients", ["bulk", "down", "8", "3"], ["bulk", "down", "8", "1"]),
    Scenario("bulk-up", THROUGHPUT, "8 streams from clients", ["bulk", "up", "8", "3"], ["bulk", "up", "8", "1"]),
    Scenario("ping-1", ROUND_TRIPS, "64 octets there and back, 1 tunnel", ["ping", "1", "3"], ["ping", "1", "1"]),
    Scenario("ping-128", ROUND_TRIPS, "the same on 128 tunnels", ["ping", "128", "3"], ["ping", "128", "1"]),
    Scenario(
        "udp",
        DATAGRAMS,
        "1,200 octets there and back, 1 association, 32 under way",
        ["udp", "1200", "32", "3"],
        ["udp", "1200", "32", "1"],
    ),
    Scenario(
        "voices",
        DATAGRAMS,
        "200 octets there and back, 20 times a second on each of 500 associations",
        ["voices", "500", "20", "5"],
        ["voices", "100", "20", "1"],
    ),
    Scenario("idle", MEMORY, "hold 2,000 tunnels on a server that did nothing else", ["idle", "2000"], ["idle", "500"]),
    Scenario(
        "associations",
        MEMORY,
        "hold 1,000 associations that relayed a datagram each, likewise",
        ["associations", "1000"],
        ["associations", "200"],
    ),
    Scenario("start", START, "from the start of the process until the port accepts", [], [], rounds=5),
    Scenario(
        "mixed",
        CONNECTIONS,
        "connect, echo 64 octets, close, on a port that takes every protocol",
        ["conn", "10000", "64"],
        ["conn", "2000", "64"],
        rounds=7,  # its bar is 6 %: less than what one measurement may be off
        listener="mixed",
    ),
    *(
        Scenario(
            f"tls-{direction}",
            THROUGHPUT,
            f"1 stream {whither} the client in TLS 1.3, AES-256-GCM",
            ["tls", direction, "1", "3"],
            ["tls", direction, "1", "1"],
            listener="socks5+tls",
            warm_up=("tls", "down", "1", "0.2"),
        )
        for direction, whither in [("down", "to"), ("up", "from")]
    ),
    Scenario(
        "rules-10",
        CONNECTIONS,
        "connect as a user, echo 64 octets, close: 10 rules and all limits",
        ["conn", "10000", "64", "user"],
        ["conn", "2000", "64", "user"],
        rounds=7,
        listener="10 rules",
        warm_up=("conn", "400", "64", "user"),
    ),
    Scenario(
        "rules-20000",
        CONNECTIONS,
        "the same with 20,000 rules",
        ["conn", "10000", "64", "user"],
        ["conn", "2000", "64", "user"],
        rounds=7,
        listener="20,000 rules",
        warm_up=("conn", "400", "64", "user"),
    ),
    Scenario(
        "rules-start",
        START,
        "from the start of the process until the port accepts, with 20,000 rules",
        [],
        [],
        rounds=5,
        listener="20,000 rules",
    ),
    *(
        Scenario(
            f"bandwidth-{streams}",
            THROUGHPUT,
            f"{streams} stream{'s' if streams > 1 else ''} to a user who may have 10 MB/s",
            ["bulk", "down", str(streams), "10", "user"],
            ["bulk", "down", str(streams), "2", "user"],
            listener="10 MB/s",
            warm_up=("conn", "400", "64", "user"),
        )
        for streams in (1, 50)
    ),
    Scenario(
        "upstream",
        CONNECTIONS,
        "connect through microsocks, echo 64 octets, close",
        ["conn", "10000", "64"],
        ["conn", "2000", "64"],
        rounds=5,
        listener="through microsocks",
    ),
    Scenario(
        "upstream-tabi",
        CONNECTIONS,
        "the same through a tabi, which takes greeting and request together",
        ["conn", "10000", "64"],
        ["conn", "2000", "64"],
        rounds=5,
        listener="through tabi",
    ),
    Scenario(
        "upstream-bulk",
        THROUGHPUT,
        "8 streams to clients through microsocks",
        ["bulk", "down", "8", "3"],
        ["bulk", "down", "8", "1"],
        listener="bulk through microsocks",
    ),
    *(
        Scenario(
            name,
            CONNECTIONS,
            f"connect to a name that is known to have {addresses}, echo 64 octets, close",
            ["conn", "10000", "64", "name"],
            ["conn", "2000", "64", "name"],
            rounds=7,  # its bar is 5 %
            listener=listener,
            warm_up=("conn", "400", "64", "name"),
        )
        for name, addresses, listener in NAMES
    ),
    Scenario(
        "pool",
        CHOICES,
        "choose one of 1,000 members by least-connections, begin and end a request",
        ["choose"],
        ["choose"],
        listener="a pool",
    ),
    Scenario(
        "http",
        REQUESTS,
        "GET of 1 KiB through an HTTP proxy, again and again by each of 32 clients",
        ["http", "32", "3"],
        ["http", "32", "1"],
        listener="http",
        warm_up=("http", "32", "0.2"),
    ),
    Scenario(
        "https",
        LOOKED_INTO,
        "GET of 1 KiB in TLS that is looked into, again and again on each of 16 connections",
        ["keep", "16", "3", "/1k"],
        ["keep", "16", "1", "/1k"],
        listener="looks into TLS",
        warm_up=("keep", "16", "0.3", "/1k"),
    ),
    Scenario(
        "https-h2",
        LOOKED_INTO,
        "the same by HTTP/2, 16 streams at a time on each of 4 connections",
        ["h2", "4", "3", "/1k"],
        ["h2", "4", "1", "/1k"],
        listener="looks into HTTP/2",
        warm_up=("h2", "4", "0.3", "/1k"),
    ),
    Scenario(
        "https-10m",
        THROUGHPUT,
        "GET of 10 MB in TLS that is looked into, again and again on each of 4 connections",
        ["keep", "4", "3", "/10m"],
        ["keep", "4", "1", "/10m"],
        listener="looks into TLS",
        warm_up=("keep", "4", "0.3", "/10m"),
    ),
    Scenario(
        "https-new",
        CONNECTIONS,
        "a new TLS connection that is looked into for each GET of 1 KiB, 8 at a time, to one host",
        ["new", "8", "3", "/1k"],
        ["new", "8", "1", "/1k"],
        listener="looks into TLS",
        warm_up=("new", "8", "0.3", "/1k"),
    ),
    Scenario(
        "https-hosts",
        CONNECTIONS,
        "the same, 4 at a time, each to a host that is new",
        ["hosts", "4", "3", "/1k", str(FIRST)],
        ["hosts", "4", "1", "/1k", str(FIRST)],
        listener="looks into TLS",
        warm_up=("hosts", "4", "0.3", "/1k"),
    ),
    Scenario(
        "https-memory",
        GROWTH,
        "one GET of 1 GB in TLS that is looked into",
        ["keep", "1", "0", "/1g"],
        ["keep", "1", "0", "/1g"],
        listener="looks into TLS",
        warm_up=("keep", "4", "0.3", "/10m"),
    ),
    Scenario(
        "others-conn",
        CONNECTIONS,
        "connect, echo 64 octets, close, where the TLS of other hosts is looked into",
        ["conn", "10000", "64"],
        ["conn", "2000", "64"],
        rounds=15,  # its bar is what chance makes
        listener="looks into others",
    ),
    Scenario(
        "others-bulk",
        THROUGHPUT,
        "8 streams to clients, likewise",
        ["bulk", "down", "8", "3"],
        ["bulk", "down", "8", "1"],
        rounds=15,
        listener="looks into others",
    ),
    Scenario(
        "fault-latency",
        ROUND_TRIPS,
        "echo 64 octets 5 times a second on each of 200 connections, where answers come 100 ms late",
        ["pace", "200", "5", "5"],
        ["pace", "200", "5", "2"],
        listener="100 ms later",
        warm_up=("conn", "400", "64"),
    ),
    *(
        Scenario(
            name,
            LINES,
            f"1 stream to the client, through {listener}",
            ["bulk", "down", "1", "5"],
            ["bulk", "down", "1", "2"],
            listener=listener,
        )
        for name, listener in LINES_OF_FAULTS
    ),
    Scenario(
        "fault-chain",
        SCALED,
        "1 stream to the client, through every fault, none of which changes anything",
        ["bulk", "down", "1", "3"],
        ["bulk", "down", "1", "1"],
        listener="faults that change nothing",
    ),
    Scenario(
        "fault-many",
        UNDER_WAY,
        "200 octets to the client on each of 5,000 connections, 1 MB in all, 1 s late",
        ["many", "5000", "200"],
        ["many", "500", "200"],
        listener="1 s later",
    ),
    Scenario(
        "fault-full",
        UNDER_WAY,
        "5,000 streams to clients, as much as goes through, 1 s late",
        ["bulk", "down", "5000", "6"],
        ["bulk", "down", "500", "3"],
        listener="1 s later",
    ),
    *(
        Scenario(
            f"unchosen-{name}", group, what, load, quick, rounds=15, listener="a fault of other hosts"
        )  # its bar is what chance makes
        for name, group, what, load, quick in UNCHOSEN
    ),
]


def measure(
    scenario: Scenario, server: Server, load: Path, quick: bool, straight: bool, by_address: bool, connect: bool = False
) -> Figures:
    """Take one measurement of a freshly started server.

    Args:
        straight: in TLS, no SOCKS5 is spoken with it.
        by_address: it is asked for addresses where the others are for names.
        connect: it is asked by CONNECT of HTTP where the others are by SOCKS5.

    Raises:
        Failure: the server does not do what the scenario asks.
    """
    kind, *arguments = (scenario.quick if quick else scenario.load) or ["start"]
    if kind == "start":
        return {"cost": server.start_seconds}
    if kind == "choose":
        return {"cost": choice_us()}
    if scenario.listener in ("looks into TLS", "looks into HTTP/2"):
        way = "straight" if straight else "address" if by_address else "connect" if connect else "socks5"
        return measure_https(scenario, server, load.with_name("https"), way, [kind, *arguments])
    if by_address:
        arguments = [word for word in arguments if word != "name"]
    ending = ["straight"] if straight else []
    command = [str(load), kind, str(server.port), *arguments, *ending]
    if scenario.group is UNDER_WAY:
        return measure_under_way(command, server)
    if scenario.group is MEMORY:
        return measure_memory(command, server)
    warm_up, *words = scenario.warm_up
    run_load([str(load), warm_up, str(server.port), *words, *ending])
    before = server.cpu_seconds()
    got = run_load(command)
    cpu = server.cpu_seconds() - before
    if kind in ("bulk", "tls"):
        octets = got["octets"]
        rate, cost = octets * 8 / got["seconds"] / 1e9, cpu / (octets / 1e9)
        if scenario.group is LINES:
            rate *= 1e9 / 8 / wanted_rate(scenario.listener)
        elif scenario.group is SCALED:
            rate *= 24 / direct_rate(load)
        return {"rate": rate, "cost": cost}
    count = got["count"]
    figures: Figures = {"rate": count / got["seconds"], "cost": cpu / count * 1e6}
    figures |= {"p50": got["p50"] * 1e6, "p99": got["p99"] * 1e6}
    figures |= {"merit": count / cpu, "connections": got["connections"]}
    return figures | {"lost": got["lost"]} if kind in ("udp", "voices") else figures


def measure_https(scenario: Scenario, server: Server, https: Path, way: str, words: Sequence[str]) -> Figures:
    """Take one measurement of a proxy that looks into TLS. Raises Failure."""
    there, authority = origin(), proxy_authority() / "ca.crt"

    def command(mode: str, *arguments: str) -> list[str]:
        return [str(https), mode, str(server.port), way, str(there.port), str(authority), *arguments]

    run_load(command(*scenario.warm_up))
    if scenario.group is GROWTH:
        return measure_growth(command(*words), server, SIZES["1g"])
    before = server.cpu_seconds()
    got = run_load(command(*words))
    cpu = server.cpu_seconds() - before
    if scenario.group is THROUGHPUT:
        octets = got["octets"]
        return {"rate": octets * 8 / got["seconds"] / 1e9, "cost": cpu / (octets / 1e9)}
    count = got["count"]
    times: Figures = {"p50": got["p50"] * 1e6, "p99": got["p99"] * 1e6}
    return {"rate": count / got["seconds"], "cost": cpu / count * 1e6, **times}


@functools.cache
def direct_rate(load: Path) -> float:
    """Gbit/s of one stream without a proxy, measured once in a run. Raises Failure."""
    got = run_load([str(load), "bulk", "0", "down", "1", "3"])
    return got["octets"] * 8 / got["seconds"] / 1e9


def measure_under_way(command: list[str], server: Server) -> Figures:
    """By how much the server's memory is larger at most while octets are late, and how many connections were lost.
    Raises Failure."""
    _, kind, _, *words = command
    if kind == "many":
        octets, lost = measure_many(server, *map(int, words))
        return {"cost": octets / 1e6, "lost": lost}
    before = most = server.user_memory()
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            until = time.monotonic() + GIVE_UP
            while process.poll() is None and time.monotonic() < until:
                most = max(most, server.user_memory())
                time.sleep(LOOK)
            if process.poll() is None:
                raise Failure(f"not done after {GIVE_UP:.0f} s")
            read_result(process.stdout.read())  # it fails with the first connection that is lost
        finally:
            process.kill()
    return {"cost": (most - before) / 1e6, "lost": 0}


def measure_growth(command: list[str], server: Server, octets: int) -> Figures:
    """By how much the server's memory is larger at most while a load gets so many octets. Raises Failure."""
    time.sleep(SETTLE)  # what the warm-up left to do
    before = most = server.user_memory()
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            until = time.monotonic() + GIVE_UP
            while process.poll() is None and time.monotonic() < until:
                most = max(most, server.user_memory())
                time.sleep(LOOK)
            if process.poll() is None:
                raise Failure(f"not done after {GIVE_UP:.0f} s")
            if read_result(process.stdout.read())["octets"] != octets:
                raise Failure("an answer is not whole")
        finally:
            process.kill()
    return {"cost": (most - before) / 1e6}


def choice_us() -> float:
    """Microseconds of one choice in a pool, in a process of its own: no server is asked."""
    script = Path(__file__).parent / "choose.py"
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=GIVE_UP)
    if done.returncode:
        raise Failure(done.stderr.strip().splitlines()[-1])
    return float(done.stdout)


def run_load(command: list[str]) -> dict[str, float]:
    """Run `load` to its end. Raises Failure."""
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=GIVE_UP)
    except subprocess.TimeoutExpired:
        raise Failure(f"not done after {GIVE_UP:.0f} s") from None
    return read_result(done.stdout)


def read_result(line: str) -> dict[str, float]:
    """The figures of `load`. Raises Failure where it reports one."""
    result = json.loads(line or '{"error": "the load generator gave no result", "after": 0}')
    if "error" in result:
        after = f" (after {result['after']:,})" if result["after"] else ""
        raise Failure(result["error"] + after)
    return {key: float(value) for key, value in result.items()}


def measure_memory(command: list[str], server: Server) -> Figures:
    """What the server's memory grows by, for each tunnel or association that is open.

    It must not have done anything before.
    """
    before = server.user_memory()
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None
        try:
            count = read_result(process.stdout.readline())["count"]
            time.sleep(SETTLE)  # what the last of them left to do
            return {"cost": (server.user_memory() - before) / count / 1000}
        finally:
            process.kill()
