"""What is wrong with what a ``[[distort]]`` changes in HTTP: each mistake by its key, and no value in any of them."""

from __future__ import annotations

from typing import Any

import pytest

from tabi.config import load_config, make_config
from tabi.config.distort import DistortConfig, HeadersConfig
from tabi.config.rewrites import OURS, rewrite_errors, url_fault

SECRET = "s3cret"


def errors_of(**keys: Any) -> list[str]:
    """The mistakes of an entry."""
    return [str(error) for error in rewrite_errors(DistortConfig(**keys), "it")]


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"status": 199}, ["it.status: 199, expected 200 to 599"]),
        ({"status": 600}, ["it.status: 600, expected 200 to 599"]),
        ({"status": 204, "body": "a"}, ["it.body: an answer with status 204 has no content"]),
        (
            {"map_local": "a", "map_remote": "http://a"},
            ["it.map_remote: it contradicts map_local: expected one of both"],
        ),
        ({"map_local": "a", "body": "b"}, ["it.body: it contradicts map_local: expected one of both"]),
        ({"status": 200, "body": "a", "map_remote": "https://a:8443/b"}, []),
        ({"strip_cookies": True}, []),
    ],
)
def test_what_contradicts_itself(keys: dict[str, Any], expected: list[str]) -> None:
    """Of two answers one is meant."""
    assert errors_of(**keys) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("X-A", None),
        ("x!#$%&'*+.^_`|~9", None),
        ("Via", None),
        ("", "'', expected the name of a field"),
        ("a b", "'a b', expected the name of a field"),
        ("a:", "'a:', expected the name of a field"),
        ("ä", "'ä', expected the name of a field"),
        ("a\n", "'a\\n', expected the name of a field"),
        (":authority", "':authority' is no field, but part of the request or the status"),
        ("hOST", "hOST cannot be changed: it says where a message goes, or where it ends"),
    ],
)
def test_names_of_fields(name: str, expected: str | None) -> None:
    """What can be sent, and what tabi does not write itself; the latter may be in an order."""
    place = name if name.isprintable() else repr(name)
    for headers, key in (
        (HeadersConfig(remove=[name]), "remove[0]"),
        (HeadersConfig(set={name: "1"}), f"set.{place}"),
        (HeadersConfig(append={name: "1"}), f"append.{place}"),
        (HeadersConfig(order=[name]), "order[0]"),
    ):
        allowed = expected is None or (headers.order and name.lower() in OURS)
        assert errors_of(headers=headers) == ([] if allowed else [f"it.headers.{key}: {expected}"])


def test_the_same_field_twice() -> None:
    """In whatever case."""
    assert errors_of(headers=HeadersConfig(remove=["a", "B", "A"])) == ["it.headers.remove[2]: A: the same field twice"]
    assert errors_of(response_headers=HeadersConfig(set={"a": "1", "A": "2"})) == [
        "it.response_headers.set.A: A: the same field twice"
    ]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("", None),
        ("a\tb \u00e4 {client}", None),
        (f"{SECRET}\r\nx: 1", "expected text without control characters and line ends"),
        (f"{SECRET}\0", "expected text without control characters and line ends"),
        (f"{SECRET}\ud800", "expected text without control characters and line ends"),
        (f" {SECRET}", "expected text without white space around it"),
    ],
)
def test_values_of_fields(value: str, expected: str | None) -> None:
    """No value can end its line, and none is shown."""
    for headers in (HeadersConfig(set={"A": value}), HeadersConfig(append={"A": value})):
        key = "set" if headers.set else "append"
        assert errors_of(headers=headers) == ([] if expected is None else [f"it.headers.{key}.A: {expected}"])
    found = errors_of(response_headers=HeadersConfig(append={"A": ["x", value]}))
    assert found == ([] if expected is None else [f"it.response_headers.append.A[1]: {expected}"])


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://a", None),
        ("https://a.test:8443/base/", None),
        ("http://[2001:db8::1]:80/", None),
        ("a.test", "expected http://host:port/path or https://host:port/path"),
        ("ftp://a.test", "expected http://host:port/path or https://host:port/path"),
        ("http://a b", "expected http://host:port/path or https://host:port/path"),
        ("http://\ud800", "expected http://host:port/path or https://host:port/path"),
        ("http://a:0", "port 0, expected one of a server"),
        ("http://a/b?c", "a query or a fragment, expected a path alone"),
        (f"http://user:{SECRET}@a/", None),
        (f"http://:99999/{SECRET}", "expected http://host:port/path or https://host:port/path"),
    ],
)
def test_urls_of_other_servers(url: str, expected: str | None) -> None:
    """A server with a path, and no secret in an error."""
    found = url_fault(url)
    assert (found or "").endswith(expected or "")
    assert (found is None) is (expected is None)
    assert SECRET not in (found or "")


def test_an_order_may_name_what_tabi_writes() -> None:
    """Host stays what it is, wherever it stands."""
    assert make_config({"distort": [{"headers": {"order": ["Host", "content-length", "A"]}}]}).distort


def test_paths_are_below_the_folder_of_the_file(tmp_path: Any) -> None:
    """As all paths of a configuration."""
    (tmp_path / "tabi.toml").write_text("[[distort]]\nmap_local = 'site'\n[[distort]]\nbody = 'page'\n")
    first, second = load_config(tmp_path / "tabi.toml").distort
    assert (first.map_local, second.body) == (str(tmp_path / "site"), str(tmp_path / "page"))
