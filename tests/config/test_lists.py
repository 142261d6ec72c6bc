"""Lists of hosts and networks in files: what a line may be, and what is said of one that is wrong."""

from __future__ import annotations

import os
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tabi.config import load_config, make_config
from tabi.config.lists import MAX_LINE, MAX_SIZE, SHOWN, files_of, list_errors, read_hosts, read_networks
from tabi.errors import ConfigError
from tabi.policy.host_list import Builder, HostList
from tabi.policy.rules import Hosts, make_hosts


def read(text: str | bytes, key: str = "hosts_file") -> tuple[HostList, list[tuple[int, str]]]:
    """What lines give, and what is wrong with them."""
    builder = Builder()
    octets = text.encode() if isinstance(text, str) else text
    lines = octets.splitlines(keepends=True)
    errors = list((read_hosts if key == "hosts_file" else read_networks)(lines, builder))
    return builder.build("list"), errors


def test_a_line_is_a_host() -> None:
    """In the words of ``hosts``, with comments and empty lines; CRLF, spaces and a mark of UTF-8 are no matter."""
    found, errors = read(
        b"\xef\xbb\xbfFirst.Test\r\n# comment\r\n\r\nb\xc3\xbccher.example. # and why\n  *.Below.test  \n*.deep.test\n"
        b"192.0.2.0/24\n 198.51.100.7\n2001:db8::/32\n[2001:db9::1]\n0x7f.1\nx_y.test"
    )
    assert not errors
    for name in ("first.test", "xn--bcher-kva.example", "a.below.test", "a.b.deep.test", "x_y.test"):
        assert found.has_name(name), name
    assert not found.has_name("below.test")
    for address in ("192.0.2.255", "198.51.100.7", "2001:db8:1::", "2001:db9::1", "127.0.0.1"):
        assert ip_address(address) in found, address
    assert ip_address("192.0.3.0") not in found


def test_lists_of_what_is_to_be_blocked_may_have_the_form_of_etc_hosts() -> None:
    """An address that nobody has says nothing; what stands behind it counts, but not the address again."""
    found, errors = read(
        "127.0.0.1 localhost\n::1 ip6-localhost ip6-loopback\nfe80::1%lo0 here\n255.255.255.255 broadcasthost\n"
        "ff02::1 ip6-allnodes\n0.0.0.0 0.0.0.0\n0.0.0.0 ads.test\n0.0.0.0\ttracker.test two.test # both\n:: six.test\n"
    )
    assert not errors
    for name in ("localhost", "ip6-loopback", "here", "broadcasthost", "ip6-allnodes"):
        assert found.has_name(name), name
    for name in ("ads.test", "tracker.test", "two.test", "six.test"):
        assert found.has_name(name), name
    assert not found.has_networks


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("10.0.0.5 db.internal", "'10.0.0.5 db.internal', expected one host in each line"),
        ("a.test b.test", "'a.test b.test', expected one host in each line"),
        ("*", "'*' may stand in hosts, but not in a file: expected a name, *.example.com or a network"),
        ("re:^a", "'re:^a' may stand in hosts, but not in a file: expected a name, *.example.com or a network"),
        ("a*.test", "'a*.test' has a star within, expected *.example.com; for anything else there is re:"),
        ("*.", "a host name has 1 to 255 octets, this one has 0"),
        ("10.0.0.1/8", "'10.0.0.1/8' has host bits set, expected 10.0.0.0/8"),
        ("10.0.0.0/33", "'10.0.0.0/33' is not a network, expected such as 10.0.0.0/8 or 2001:db8::1"),
        ("256.0.0.1", "neither an address nor a name"),
        ("http://a.test/", "'http://a.test/' is not a network, expected such as 10.0.0.0/8 or 2001:db8::1"),
        ("a\x01b.test", "'a\\x01b.test' holds white space or control characters"),
        ("x" * 256, "a host has 1 to 255 octets, this one has more"),
        (f"a.test {'#' * MAX_LINE}", f"more than {MAX_LINE} octets"),
        (b"\xff.test", "no UTF-8 text"),
        ("ä" * 40 + ".test", f"'{'ä' * 40}.test' has more than 32 characters outside ASCII"),
    ],
)
def test_a_broken_line_is_named(line: str | bytes, message: str) -> None:
    """With its number, as an editor shows it."""
    octets = line if isinstance(line, bytes) else line.encode()
    _, errors = read(b"# first\na.test\n" + octets)
    assert errors == [(3, message)]


def test_a_list_of_networks() -> None:
    """In the words of ``clients``."""
    found, errors = read("# who\n10.0.0.0/8\r\n\n192.0.2.1 # one\n2001:db8::/32\nunix\n", "networks_file")
    assert not errors
    assert found.shape.unix
    for address in ("10.255.255.255", "192.0.2.1", "2001:db8::7"):
        assert ip_address(address) in found, address
    for line, message in (
        ("a.test", "'a.test' is not a network, expected such as 10.0.0.0/8 or 2001:db8::1"),
        ("0.0.0.0 10.0.0.0/8", "'0.0.0.0 10.0.0.0/8', expected one network in each line"),
        ("10.0.0.1/8", "'10.0.0.1/8' has host bits set, expected 10.0.0.0/8"),
        ("#" * (MAX_LINE + 1), f"more than {MAX_LINE} octets"),
    ):
        assert read(line, "networks_file")[1] == [(1, message)]


WORDS = st.one_of(
    st.from_regex(r"(\*\.)?([A-Za-z0-9_-]{1,5}\.){0,3}[A-Za-z0-9_-]{1,5}\.?", fullmatch=True),
    st.from_regex(r"[0-9]{1,3}(\.[0-9]{1,3}){3}(/[0-9]{1,2})?", fullmatch=True),
    st.from_regex(r"0x[0-9a-f]{1,3}|[0-9]{1,4}(\.[0-9a-z]{1,2})?", fullmatch=True),
    st.ip_addresses().map(str),
    st.text(max_size=8),
)


@given(WORDS)
def test_a_line_is_what_the_word_is_in_hosts(word: str) -> None:
    """Whether a line is read by a regular expression or word by word, it means what it would mean in tabi.toml."""
    if word.split() != [word] or set(word) & set("#\ufeff") or word == "*" or word.startswith("re:"):
        return
    found, errors = read(word)
    hosts, message = Hosts(), None
    try:
        hosts = make_hosts((word,))
    except ConfigError as exc:
        message = exc.message
    assert errors == ([] if message is None else [(1, message)])
    assert all(found.has_name(name) for name in hosts.names)
    assert all(found.has_name(f"x.{name}") and not found.has_name(name) for name in hosts.suffixes)
    assert all(network[0] in found and network[-1] in found for network in hosts.networks.networks)
    assert found.has_networks is bool(hosts.networks)
    assert sum(1 for slot in found.slots if slot) == len(hosts.names) + len(hosts.suffixes)


@given(st.binary(max_size=200))
def test_any_octets_are_read_or_named(octets: bytes) -> None:
    """Nothing but a message comes of a file with anything."""
    for key in ("hosts_file", "networks_file"):
        _, errors = read(octets, key)
        assert all(why.isprintable() for _, why in errors)


# --- files ---


def errors_of(*tables: dict[str, Any]) -> tuple[dict[tuple[str, str], HostList], list[str]]:
    """The lists of rules, and what is wrong with them."""
    lists: dict[tuple[str, str], HostList] = {}
    config = make_config({"rule": [{"action": "deny", **table} for table in tables]})
    return lists, [str(error) for error in list_errors(config, lists)]


def test_a_file_is_read_once_for_each_matcher(tmp_path: Path) -> None:
    """Several rules may name the same one; it is the same object for all of them."""
    path = tmp_path / "list"
    path.write_text("192.0.2.1\n")
    lists, errors = errors_of(
        {"hosts_file": str(path)}, {"hosts_file": [str(path)], "networks_file": str(path)}, {"ports": [1]}
    )
    assert not errors
    assert set(lists) == {("hosts_file", str(path)), ("networks_file", str(path))}


def test_what_is_no_file_is_named(tmp_path: Path) -> None:
    """Missing, a folder, a pipe (which is not waited for), too large; all of them at once."""
    pipe, large, fine = tmp_path / "pipe", tmp_path / "large", tmp_path / "fine"
    os.mkfifo(pipe)
    fine.write_text("a.test\n")
    with large.open("wb") as file:
        file.truncate(MAX_SIZE + 1)
    missing = tmp_path / "missing"
    _, errors = errors_of(
        {"hosts_file": [str(fine), str(missing), str(tmp_path)]}, {"networks_file": str(pipe), "hosts_file": str(large)}
    )
    assert errors == [
        f"rule[0].hosts_file[1]: {missing}: No such file or directory",
        f"rule[0].hosts_file[2]: {tmp_path}: Is a directory",
        f"rule[1].hosts_file: {large}: {MAX_SIZE + 1} octets, expected at most {MAX_SIZE}",
        f"rule[1].networks_file: {pipe}: not a regular file",
    ]


def test_many_broken_lines_are_not_all_said(tmp_path: Path) -> None:
    """The first ones are enough to see what is wrong."""
    path = tmp_path / "list"
    path.write_text("a b\n" * 100)
    lists, errors = errors_of({"hosts_file": str(path)})
    assert len(errors) == SHOWN
    assert errors[1] == f"rule[0].hosts_file: {path}, line 2: 'a b', expected one host in each line"
    assert not lists["hosts_file", str(path)].has_name("a")


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    """As those of certificates are."""
    (tmp_path / "tabi.toml").write_text(
        '[[rule]]\naction = "deny"\nhosts_file = "a"\nnetworks_file = ["b", "/c"]\n'
        '[[intercept]]\nhosts_file = ["d"]\n[[distort]]\nfault = "3g"\nnetworks_file = "e"\n'
    )
    config = load_config(tmp_path / "tabi.toml")
    assert config.rule[0].hosts_file == f"{tmp_path}/a"
    assert config.rule[0].networks_file == [f"{tmp_path}/b", "/c"]
    assert config.intercept[0].hosts_file == [f"{tmp_path}/d"]
    assert config.distort[0].networks_file == f"{tmp_path}/e"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("", "rule[0].hosts_file: expected the path of a file"),
        (["a", "b\0"], "rule[0].hosts_file[1]: expected the path of a file"),
        ([], "rule[0].hosts_file: empty, expected one or more; leave it out to match all"),
        (7, "rule[0].hosts_file: expected string or array, got integer"),
    ],
)
def test_what_is_no_path_is_refused(value: object, message: str) -> None:
    """Before anything is read."""
    with pytest.raises(ConfigError) as caught:
        make_config({"rule": [{"action": "deny", "hosts_file": value}]})
    assert str(caught.value) == message


def test_what_is_no_path_is_not_read() -> None:
    """Each mistake is said once."""
    assert files_of(None, "x") == []
    lists: dict[tuple[str, str], HostList] = {}
    config = make_config({})
    assert list(list_errors(config, lists)) == []
