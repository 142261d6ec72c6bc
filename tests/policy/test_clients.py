"""The table of clients' addresses: what each may have, whatever others have, in a space that does not grow."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from tabi.errors import LimitExceeded
from tabi.policy import clients
from tabi.policy.clients import OPEN, PLACES, ClientTable, ClientTerms, key_of
from tabi.policy.quantities import Rate

SECOND = 10**9
NOW = 1000 * SECOND
ALICE, BOB = key_of(ip_address("192.0.2.1")), key_of(ip_address("192.0.2.2"))


def refused(table: ClientTable, key: int, terms: ClientTerms, now: int = NOW) -> tuple[str, str]:
    """The limit that refuses a connection, and its text."""
    with pytest.raises(LimitExceeded) as caught:
        table.admit(key, terms, now)
    return caught.value.limit, str(caught.value)


def admitted(table: ClientTable, key: int, terms: ClientTerms, now: int = NOW) -> int:
    """The row of a connection that may begin."""
    row = table.admit(key, terms, now)
    assert row is not None
    return row


def test_a_key_is_that_of_an_address_or_of_a_64() -> None:
    """Each IPv4 address has its own, each /64 of IPv6 too; all fit a cell, and none is that of an empty row."""
    hosts = ["0.0.0.0", "0.0.0.1", "127.0.0.1", "255.255.255.255", "::1", "2001:db8::", "2001:db8:0:1::", "fe80::1"]
    hosts += ["::ffff:127.0.0.1", "ffff:ffff:ffff:ffff::"]
    keys = [key_of(ip_address(host)) for host in hosts]
    assert len({*keys}) == len(hosts) - 1  # of ::1 and an address inside ::/64
    assert all(key and -(1 << 63) <= key < 1 << 63 for key in keys)
    assert key_of(ip_address("2001:db8::1")) == key_of(ip_address("2001:db8::ffff:0:0:1"))
    assert key_of(ip_address("fe80::1%eth0")) == key_of(ip_address("fe80::2"))


def test_connections_at_once() -> None:
    """So many and no more of one address; another address has its own, and one that ends makes room."""
    table, terms = ClientTable(), ClientTerms(connections=2)
    row = admitted(table, ALICE, terms)
    assert admitted(table, ALICE, terms) == row
    assert refused(table, ALICE, terms) == ("connections", "2 connections at once")
    assert admitted(table, BOB, terms) != row
    table.ended(row)
    assert admitted(table, ALICE, terms) == row


def test_connections_that_have_not_come_to_their_request() -> None:
    """One that has come to it does not count any more."""
    table, terms = ClientTable(), ClientTerms(waiting=1)
    row = admitted(table, ALICE, terms)
    assert refused(table, ALICE, terms) == ("unauthenticated", "1 connections that have asked for nothing")
    table.asked(row)
    assert admitted(table, ALICE, terms) == row


def test_how_often_a_connection_may_begin() -> None:
    """As many as the number says at once, then one after another; one that was refused costs nothing."""
    table, terms = ClientTable(), ClientTerms(connect_rate=Rate.parse("2/s"))
    for _ in range(2):
        table.ended(admitted(table, ALICE, terms))
    for _ in range(5):
        assert refused(table, ALICE, terms) == ("connect_rate", "2/s connections")
    assert refused(table, ALICE, terms, NOW + SECOND // 2 - 1)[0] == "connect_rate"
    admitted(table, BOB, terms)
    admitted(table, ALICE, terms, NOW + SECOND // 2)
    assert refused(table, ALICE, terms, NOW + SECOND // 2)[0] == "connect_rate"


def test_all_workers_count_together() -> None:
    """What another one has counts too; what a worker had that has died does not."""
    ours = ClientTable(workers=2)
    theirs = ClientTable(workers=2)
    theirs.cells, theirs.column = ours.cells, OPEN + 2
    terms = ClientTerms(connections=2, waiting=2)
    assert admitted(ours, ALICE, terms) == admitted(theirs, ALICE, terms)
    assert refused(ours, ALICE, terms)[0] == refused(theirs, ALICE, terms)[0] == "connections"
    ours.forget_worker(1)
    admitted(ours, ALICE, terms)
    assert refused(theirs, ALICE, terms)[0] == "connections"


def crowd(table: ClientTable, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Keys of more addresses than there are rows; all are rows of each of them."""
    monkeypatch.setattr(clients, "ROWS", PLACES)
    return [key_of(ip_address(f"198.51.100.{number}")) for number in range(PLACES + 1)]


def test_an_address_for_which_there_is_no_row_is_not_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    """The table does not grow; as soon as another address has nothing, its row is free."""
    table = ClientTable()
    terms = ClientTerms(connections=1)
    *some, last = crowd(table, monkeypatch)
    rows = [admitted(table, key, terms) for key in some]
    assert len({*rows}) == PLACES
    assert table.admit(last, terms, NOW) is table.admit(last, terms, NOW) is None
    table.asked(rows[3])
    table.ended(rows[3])
    assert admitted(table, last, terms) == rows[3]
    assert refused(table, some[0], terms)[0] == "connections"


def test_a_row_is_kept_as_long_as_the_rate_of_its_address_matters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else an address would begin anew as soon as its connections have ended."""
    table = ClientTable()
    terms = ClientTerms(connect_rate=Rate.parse("1/s"))
    *some, last = crowd(table, monkeypatch)
    for key in some:
        row = admitted(table, key, terms)
        table.asked(row)
        table.ended(row)
    assert table.admit(last, terms, NOW) is None
    assert refused(table, some[0], terms)[0] == "connect_rate"
    assert table.admit(last, terms, NOW + SECOND) is not None
