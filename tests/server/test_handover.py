"""A compiled configuration goes from one process to another in small pieces, and decides there as it did."""

from __future__ import annotations

import os
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest

from tabi.config import make_config
from tabi.errors import ConfigError
from tabi.policy.guard import LocalAddresses
from tabi.policy.ledger import Ledger
from tabi.server.compiled import Compiled, compile_config
from tabi.server.handover import PIECE, cut, read, read_source, write
from tabi.server.reload import load
from tabi.session import Session
from tabi.wire.address import Address, parse_address


@pytest.fixture
def memory() -> Iterator[int]:
    """Where it is written."""
    fd = os.memfd_create("test")
    yield fd
    os.close(fd)


def decide(compiled: Compiled, user: str, destination: str) -> str:
    """What becomes of a request."""
    session = Session(1, "socks5://127.0.0.1:0", Address(ip_address("127.0.0.1"), 1), 0)
    session.user, session.command, session.protocol = user, "connect", "socks5"
    decision = compiled.policy(Ledger(), LocalAddresses()).find(session, parse_address(destination), None, 0)
    return f"{decision.action} {decision.rule}"  # type: ignore[union-attr]


def test_what_is_read_decides_as_what_was_written(memory: int) -> None:
    """Rules of every kind, more of each than a piece has; users with groups, limits and passwords."""
    names = [f"n{number}.test" for number in range(3 * PIECE + 1)]
    config = make_config(
        {
            "users": {
                f"u{number}": {
                    "password": "x",
                    "plain": True,
                    "groups": ["odd"] * (number % 2),
                    "expires": "2027-01-01",
                }
                for number in range(300)
            },
            "rule": [
                {"name": "names", "action": "deny", "hosts": names},
                {"name": "suffix", "action": "deny", "hosts": ["*.bad.test", "re:^x[0-9]+$"]},
                {"name": "odd", "action": "reset", "users": ["@odd"], "ports": ["25-26"]},
                {"name": "hours", "action": "drop", "hosts": ["h.test"], "hours": "Thu 00:00-24:00 Europe/Berlin"},
                *({"name": f"r{number}", "action": "deny", "hosts": [f"10.{number}.0.0/16"]} for number in range(200)),
            ],
        }
    )
    compiled = compile_config(config)
    write(compiled, memory)
    found = load(memory)
    for user, destination, decision in (
        ("u1", f"{names[-1]}:80", "deny names"),
        ("u1", "a.bad.test:80", "deny suffix"),
        ("u1", "x7:80", "deny suffix"),
        ("u1", "8.8.8.8:25", "reset odd"),
        ("u2", "8.8.8.8:25", "allow None"),
        ("u2", "h.test:1", "drop hours"),
        ("u2", "10.199.1.1:80", "deny r199"),
        ("nobody", "8.8.8.8:26", "allow None"),
    ):
        assert decide(found, user, destination) == decide(compiled, user, destination) == decision
    assert dict(found.users) == dict(compiled.users)
    users = found.users.secrets()
    assert users is not None
    assert users.verify(b"u299", b"x") == "u299"
    assert (found.authenticates, found.open_proxy, len(found.rules)) == (False, False, 204)
    limits = found.policy(Ledger(), LocalAddresses()).limits
    assert limits.expires["u1"] == compiled.users["u1"].expires


def test_lists_of_hosts_go_as_memory(memory: int, tmp_path: Path) -> None:
    """They are the same object for all that name the file, and stand behind the users; no piece grows with them."""
    hosts, networks = tmp_path / "hosts", tmp_path / "networks"
    hosts.write_text("".join(f"h{number}.test\n" for number in range(10_000)) + "*.bad.test\n192.0.2.0/24\n")
    networks.write_text("127.0.0.0/8\n")
    table = {"hosts_file": str(hosts)}
    config = make_config(
        {
            "users": {"alice": {"password": "x", "plain": True}},
            "rule": [
                {"name": "deny", "action": "deny", **table, "networks_file": [str(networks)]},
                {"name": "same", "action": "deny", **table, "ports": [1]},
            ],
            "intercept": [{"action": "pass", **table}],
            "distort": [{"fault": "3g", "networks_file": str(networks)}],
        }
    )
    compiled = compile_config(config)
    write(compiled, memory)
    found = load(memory)
    for destination, decision in (
        ("h9999.test:80", "deny deny"),
        ("a.bad.test:80", "deny deny"),
        ("192.0.2.9:80", "deny deny"),
        ("192.0.3.9:80", "allow None"),
    ):
        assert decide(found, "alice", destination) == decide(compiled, "alice", destination) == decision
    first, second = (rule.hosts for rule in found.rules)
    assert first is not None
    assert second is not None
    assert first.lists[0] is second.lists[0]
    assert found.intercepts is not None
    assert [rule.hosts and rule.hosts.lists[0] for rule in found.intercepts.rules] == [first.lists[0]]
    assert dict(found.users) == dict(compiled.users)
    assert sum(1 for _ in read(memory)) < 20


def test_no_piece_is_large() -> None:
    """However large a container is, and wherever it stands in others: a step is short."""
    value = {"a": [tuple(range(PIECE * 10)), {str(number): {number} for number in range(PIECE * 10)}]}
    pieces: list[bytes] = []
    cut(value, pieces, {}, [])
    assert len(pieces) == 21
    assert max(map(len, pieces)) < 2000


def test_the_program_of_the_last_word_is_imported(memory: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A function does not go from process to process: its name does."""
    (tmp_path / "handed_over.py").write_text("def decide(session):\n    return None\n")
    monkeypatch.syspath_prepend(tmp_path)
    write(compile_config(make_config({"decide": "python:handed_over:decide"})), memory)
    decide = load(memory).decide
    assert decide is not None
    assert decide.__module__ == "handed_over"
    (tmp_path / "handed_over.py").write_text("")
    monkeypatch.delitem(__import__("sys").modules, "handed_over")
    with pytest.raises(ConfigError, match="decide: python:handed_over:decide: "):
        load(memory)


def test_the_file_may_be_closed_once_it_is_read(memory: int) -> None:
    """Users stay readable: the memory lives as long as somebody looks at it."""
    other = os.dup(memory)
    write(compile_config(make_config({"users": {"alice": {"password": "x", "plain": True}}})), other)
    found = load(other)
    os.close(other)
    assert found.users["alice"].password == "x"


def test_nothing_is_held_up_between_two_steps(memory: int) -> None:
    """Reading is a generator: each step reads one piece."""
    rules = [{"action": "deny", "hosts": [f"{number}.test"]} for number in range(10 * PIECE)]
    write(compile_config(make_config({"rule": rules})), memory)
    assert sum(1 for _ in read(memory)) > 10


def test_rules_and_users_as_they_were_written(memory: int) -> None:
    """They are there for the admin API, which explains by them, and nowhere else."""
    text = {"users": {"a": {"password": "x", "plain": True}}, "rule": [{"action": "deny", "name": "no"}]}
    config = make_config({**text, "admin": {"listen": "127.0.0.1:0"}})
    write(compile_config(config), memory)
    assert read_source(memory) == (config.users, config.rule)
    loaded = load(memory)
    assert (loaded.config.users, loaded.config.rule) == ({}, [])
    assert decide(loaded, "a", "1.2.3.4:5") == "deny no"
    os.ftruncate(memory, 0)
    write(compile_config(make_config(text)), memory)
    with pytest.raises(EOFError):
        read_source(memory)
    assert decide(load(memory), "a", "1.2.3.4:5") == "deny no"
