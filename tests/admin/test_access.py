"""Who may ask the admin API: tokens, names by which it is called, pages of others, TLS."""

from __future__ import annotations

import hmac
import re
from pathlib import Path

import pytest

from origin import make_certificates
from tabi.admin.access import Access, Scope, tls_context
from tabi.config.admin import Admin, AdminTls
from tabi.errors import ConfigError

FULL, READ = "full-token-of-the-test", "read-token-of-the-test"


def status(scope: Scope, token: str | None = None, host: str = "localhost", origin: str | None = None) -> int:
    """With what a request is refused; 200: it is not."""
    authorization = "" if token is None else f"Bearer {token}"
    refused = Access(FULL, READ, ["Tabi.example"]).refuse(scope, authorization, host, origin, False)
    return 200 if refused is None else refused.status


@pytest.mark.parametrize(
    ("scope", "token", "expected"),
    [
        ("none", None, 200),
        ("none", "wrong", 200),
        ("read", None, 401),
        ("read", "wrong", 401),
        ("read", READ, 200),
        ("read", FULL, 200),
        ("full", None, 401),
        ("full", READ, 403),
        ("full", FULL, 200),
        ("full", FULL[:-1], 401),
        ("full", FULL + "x", 401),
        ("full", "\udcff\x80é", 401),
        ("full", "", 401),
    ],
)
def test_tokens(scope: Scope, token: str | None, expected: int) -> None:
    """One for everything, one for reading."""
    assert status(scope, token) == expected


def test_without_a_token_nobody_has_it() -> None:
    """Not even who gives none, or an empty one."""
    access = Access(None, None)
    for authorization in ("", "Bearer", "Bearer ", "Bearer None", "Basic eDp5"):
        refused = access.refuse("read", authorization, "localhost", None, False)
        assert refused is not None
        assert refused.status == 401
    assert access.refuse("none", "", "localhost", None, False) is None


def test_the_scheme_has_any_case() -> None:
    """RFC 9110 section 11.1."""
    assert Access(FULL, None).refuse("full", f"bEaReR   {FULL} ", "localhost", None, False) is None
    assert Access(FULL, None).refuse("full", f"Basic {FULL}", "localhost", None, False) is not None


def test_tokens_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every comparison is hmac's, for both tokens, whatever the first one says."""
    compared: list[tuple[bytes, bytes]] = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return one == other

    monkeypatch.setattr(hmac, "compare_digest", compare)
    for token in (FULL, READ, "wrong"):
        compared.clear()
        status("full", token)
        assert compared == [(token.encode(), FULL.encode()), (token.encode(), READ.encode())]


OURS = (
    "localhost localhost:9180 LOCALHOST:80 127.0.0.1 127.0.0.1:9180 192.0.2.7:1 [::1] [::1]:9180 [2001:db8::1]:443 "
    "tabi.example TABI.EXAMPLE:9180"
)
OTHERS = (
    "evil.example evil.example:9180 127.0.0.1.evil.example localhost.evil.example localhost: ::1 [::1]evil.example "
    "[::1 127.0.0.1:99999 user@127.0.0.1 127.0.0.1:80:80 ² a:² xtabi.example tabi.example. localhost\x00 \udcff"
)


@pytest.mark.parametrize("host", OURS.split())
def test_names_that_are_ours(host: str) -> None:
    """Any address is: no other site has one as its name."""
    assert status("none", host=host) == 200


@pytest.mark.parametrize("host", ["", "x" * 300, *OTHERS.split(" ")])
def test_names_of_others(host: str) -> None:
    """A page that has its name resolved to us (DNS rebinding) is refused, before its token is looked at."""
    assert status("none", host=host) == 421
    assert status("full", FULL, host=host) == 421


@pytest.mark.parametrize(
    ("origin", "expected"),
    [
        (None, 200),
        ("http://127.0.0.1:9180", 200),
        ("HTTP://127.0.0.1:9180", 200),
        ("https://127.0.0.1:9180", 403),
        ("http://127.0.0.1:9181", 403),
        ("http://localhost:9180", 403),
        ("http://evil.example", 403),
        ("null", 403),
        ("", 403),
    ],
)
def test_pages_of_others(origin: str | None, expected: int) -> None:
    """Only our own page may ask, with whatever token."""
    assert status("full", FULL, "127.0.0.1:9180", origin) == expected


def test_the_page_inside_tls() -> None:
    """Its origin says so."""
    access = Access(FULL, None)
    assert access.refuse("full", f"Bearer {FULL}", "[::1]:443", "https://[::1]:443", True) is None
    assert access.refuse("full", f"Bearer {FULL}", "[::1]:443", "http://[::1]:443", True) is not None


def test_certificates(tmp_path: Path) -> None:
    """What is wrong with one has its key."""
    found = make_certificates(tmp_path)
    assert tls_context(Admin()) is None
    assert tls_context(Admin(tls=AdminTls(str(found.chain), str(found.key)))) is not None
    for tls, key in ((AdminTls(str(found.chain), "/none"), "key"), (AdminTls(str(found.key), str(found.key)), "")):
        with pytest.raises(ConfigError, match=re.escape(f"admin.tls.{key}")):
            tls_context(Admin(tls=tls))
