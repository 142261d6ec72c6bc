"""Measure tabi beside other servers on this machine: `make bench`, or this file with the project's Python.

README.md beside it says what the scenarios are and how to read the results.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markdown import Markdown
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from peers import PEERS, Peer, apt_install, custom, install_debian
from process import Failure, free_port, running
from report import Results, bar_rows, describe_machine, put_into_readme, write_report, write_summary
from scenarios import SCENARIOS, Figures, Scenario, measure

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results.md"
README = HERE.parent / "README.md"

DESCRIPTORS = 20_000
"""Soft limit for the load and the servers: 2,000 tunnels take 4,000 in a server, and pipes where it splices."""

EXAMPLES = """\
examples:
  make bench                                        everything; writes benchmarks/results.md and the README's table
  make bench ARGS=--quick                           one short round, to see that it all runs
  make bench ARGS="--scenario conn --peer microsocks --peer tabi"
  make bench ARGS="--scenario idle --server 'mine=./my-server --port {port}'"

A whole run takes about fifty minutes and wants the machine to itself: whatever else runs is measured with it.
A run that leaves something out prints its results; it writes them only where --output says.
exit code: 0 measured; 1 tabi failed a scenario; 2 the command line is wrong, or there is no compiler or OpenSSL
"""


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="benchmarks/run.py",
        description="Measure tabi beside other servers on this machine, in rounds, each peer in turn: every\n"
        "figure on a server started for it, with the CPU time of all its processes beside the rate.",
        epilog="scenarios:\n"
        + "".join(f"  {scenario.name:<12} {scenario.what}\n" for scenario in SCENARIOS)
        + f"\npeers:\n  {', '.join(peer.name for peer in PEERS)}\n\n{EXAMPLES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = [scenario.name for scenario in SCENARIOS]
    parser.add_argument(
        "--scenario", action="append", choices=names, metavar="NAME", help="only this one; may be given several times"
    )
    parser.add_argument(
        "--peer",
        action="append",
        choices=[peer.name for peer in PEERS],
        metavar="NAME",
        help="only this one; may be given several times",
    )
    parser.add_argument(
        "--server",
        action="append",
        default=[],
        type=custom,
        metavar="NAME=COMMAND",
        help="also this server, or in place of the peer NAME: COMMAND runs it in the foreground on 127.0.0.1:{port}",
    )
    parser.add_argument(
        "--rounds", type=int, metavar="N", help="measure everything at least N times (default: 3; quick: 1)"
    )
    parser.add_argument("--quick", action="store_true", help="one round of short loads: not for comparing")
    parser.add_argument("--output", type=Path, metavar="FILE", help=f"the report (a whole run: {RESULTS.name})")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every single measurement there")
    return parser


def build_load(folder: Path) -> Path:
    """Compile the load generators, `https` beside `load`. Ends the program where that cannot be."""
    compiler = install_debian("gcc", "build-essential")
    if compiler is None:
        print("benchmarks: load.c needs gcc: install it (Debian: apt install build-essential)", file=sys.stderr)
        raise SystemExit(2)
    load = folder / "load"
    headers = [compiler, "-E", "-include", "openssl/ssl.h", "-x", "c", os.devnull]
    if subprocess.run(headers, capture_output=True).returncode:
        apt_install("libssl-dev")
    if subprocess.run(headers, capture_output=True).returncode:
        print("benchmarks: load.c needs OpenSSL's headers (Debian: apt install libssl-dev)", file=sys.stderr)
        raise SystemExit(2)
    for program in (load, folder / "https"):
        source = HERE / f"{program.name}.c"
        command = [compiler, "-O2", "-std=gnu11", "-pthread", "-o", str(program), str(source), "-lssl", "-lcrypto"]
        if subprocess.run(command).returncode:
            print(f"benchmarks: gcc cannot compile {source.name}", file=sys.stderr)
            raise SystemExit(2)
    return load


def prepare(peers: Sequence[Peer], console: Console) -> tuple[dict[str, str], dict[str, str]]:
    """Make the peers ready: the version of each, and the reason of each that cannot run."""
    versions: dict[str, str] = {}
    reasons: dict[str, str] = {}
    for peer in peers:
        if console.is_terminal:
            console.print(f"preparing {peer.name}", style="dim")
        try:
            versions[peer.name] = peer.prepare()
        except Failure as exc:
            versions[peer.name] = reasons[peer.name] = str(exc)
    return versions, reasons


def measure_once(scenario: Scenario, peer: Peer, load: Path, quick: bool) -> Figures | str:
    """Start a server, measure it, end it. A text is the reason why that failed."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="tabi-bench-") as name:
        folder = Path(name)
        try:
            command = peer.commands[scenario.listener](port, folder)
            with running(command, port, folder / "output") as server:
                return measure(scenario, server, load, quick, peer.straight, peer.by_address, peer.connect)
        except Failure as exc:
            return str(exc)


def measure_all(
    chosen: Sequence[Scenario], peers: Sequence[Peer], reasons: dict[str, str], rounds: int, load: Path, quick: bool
) -> Results:
    """All rounds. Each begins with another peer, so that none always has the same neighbour."""
    results: Results = {
        scenario.name: {peer.name: [] for peer in peers if scenario.listener in peer.commands} for scenario in chosen
    }
    able = {
        scenario.name: [peer for peer in peers if scenario.listener in peer.commands and peer.name not in reasons]
        for scenario in chosen
    }
    counts = {scenario.name: rounds if quick else max(scenario.rounds, rounds) for scenario in chosen}
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=sum(counts[name] * len(able[name]) for name in counts))
        for number in range(max(counts.values())):
            for scenario in chosen:
                if number >= counts[scenario.name]:
                    continue
                turns = able[scenario.name]
                first = number % max(1, len(turns))
                for peer in turns[first:] + turns[:first]:
                    progress.update(task, description=f"round {number + 1}: {scenario.name} {peer.name}")
                    results[scenario.name][peer.name].append(measure_once(scenario, peer, load, quick))
                    progress.advance(task)
    for row in results.values():
        for name in row.keys() & reasons.keys():
            row[name].append(reasons[name])
    return results


def raise_descriptors() -> None:
    """As far as this user may: the servers inherit it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line says."""
    parser = make_parser()
    options = parser.parse_args(arguments)
    if options.rounds is not None and options.rounds < 1:
        parser.error("--rounds: expected 1 or more")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the servers are ended
    raise_descriptors()
    chosen = [scenario for scenario in SCENARIOS if scenario.name in (options.scenario or [scenario.name])]
    listed = [peer for peer in PEERS if peer.name in (options.peer or [peer.name])]
    wanted = {scenario.listener for scenario in chosen}
    named = {peer.name: peer for peer in [*listed, *options.server]}
    peers = [peer for peer in named.values() if wanted & peer.commands.keys()]
    whole = not (options.scenario or options.peer or options.server or options.quick)
    facts = describe_machine()
    facts["command"] = f"`{shlex.join(['benchmarks/run.py', *(sys.argv[1:] if arguments is None else arguments)])}`"
    rounds = options.rounds or (1 if options.quick else 3)
    facts["rounds"] = f"{rounds} (quick: short loads, not for comparing)" if options.quick else str(rounds)
    with tempfile.TemporaryDirectory(prefix="tabi-bench-") as folder:
        load = build_load(Path(folder))
        versions, reasons = prepare(peers, Console(stderr=True))
        results = measure_all(chosen, peers, reasons, rounds, load, options.quick)
    report = write_report(facts, versions, results)
    output = options.output or (RESULTS if whole else None)
    if output:
        output.write_text(report)
    if whole and not options.output:
        README.write_text(put_into_readme(README.read_text(), write_summary(facts, versions, results)))
    if options.json:
        data = {"facts": facts, "versions": versions, "bars": bar_rows(results), "results": results}
        options.json.write_text(json.dumps(data, indent=1) + "\n")
    console = Console()
    console.print(Markdown(report)) if console.is_terminal else print(report)
    if output:
        print(f"written to {os.path.relpath(output)}", file=sys.stderr)
    failed = any(isinstance(got, str) for row in results.values() for got in row.get("tabi", []))
    return int(failed)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
