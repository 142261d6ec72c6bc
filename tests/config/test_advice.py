"""Advice: what is right and may not be meant is said, and nothing is said of what is meant."""

from __future__ import annotations

import pytest

from tabi.config import parse_config
from tabi.config.advice import advise, may_meet

GUESTS = '[[listen]]\nurl = "socks5://0.0.0.0:1080"\nusers = "optional"\n[users.alice]\npassword = "x"\nplain = true\n'
ALLOWED = '[guard]\nallow = ["10.20.0.0/16"]\n'
ALICE = '[users.alice]\npassword = "x"\nplain = true\n'
TLS = '{ certificate = "c", key = "k", client_ca = "a" }'
ALL = "no rule refuses it (listener socks5://0.0.0.0:1080)"
CLOSED = "there is no [[intercept]] that opens the TLS of its hosts"
REACH = "clients without a user reach 10.20.0.0/16: guard.allow opens it, and"


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("", []),
        (
            "[[rule]]\nhosts_file = 'a'\naction = 'deny'\n[[rule]]\nhosts_file = ['a']\nports = [1]\naction = 'deny'",
            ["rule[1]: rule[1] can never match, since rule[0] matches all that it would"],
        ),
        (
            f"{GUESTS}{ALLOWED}[[rule]]\nname = 'listed'\nnetworks_file = 'a'\naction = 'allow'",
            [f"{REACH} listed lets them (listener socks5://0.0.0.0:1080)"],
        ),
        (
            "[[rule]]\naction = 'deny'\n[[rule]]\naction = 'allow'\nname = 'late'",
            ["rule[1]: late can never match, since rule[0] matches all that it would"],
        ),
        (
            "[[rule]]\nusers = ['@dev']\naction = 'allow'",
            ["rule[0].users: no user is in @dev, so rule[0] can never match"],
        ),
        (
            f"[[rule]]\nusers = ['alicce', '@dev', 'alice']\naction = 'deny'\n{ALICE}groups = ['dev']",
            ["rule[0].users: there is no user alicce"],
        ),
        (
            f"[[rule]]\nusers = ['alice']\naction = 'deny'\n[[listen]]\ntls = {TLS}",
            [],
        ),
        (
            "[[intercept]]\nports = [443]\n[[intercept]]\nports = [443]\nhosts = ['a.example']",
            ["intercept[1]: intercept[1] can never match, since intercept[0] matches all that it would"],
        ),
        (
            (
                "[[intercept]]\n[[distort]]\ntls = 'mirror'\nprofile = 'chrome:152'\n"
                "[[distort]]\ntls = 'a:1'\nprofile = 'a:1'"
            ),
            [],
        ),
        ("[[intercept]]\n[[distort]]\nprofile = 'a:1'\n[[distort]]\ntls = 'a:1'", []),
        (
            "[[intercept]]\n[[distort]]\nprofile = 'a:1'",
            ['distort[0].profile: no browser has the TLS of tabi; tls = "a:1" agrees with it'],
        ),
        (
            "[[intercept]]\n[[distort]]\nprofile = 'a:1'\ntls = 'a:2'",
            ["distort[0].profile: tls is that of a:2, which sends other HTTP"],
        ),
        (
            (
                "[[distort]]\nstrip_cookies = true\n[[distort]]\nfault = { answer_delay = 1, truncate = 5 }\n"
                "[[distort]]\ntls = 'mirror'\n[[distort]]\nfault = '3g'"
            ),
            [
                f"distort[0]: strip_cookies applies to HTTP without TLS alone: {CLOSED}",
                f"distort[1]: fault.answer_delay, fault.truncate apply to HTTP without TLS alone: {CLOSED}",
                f"distort[2]: tls never applies: {CLOSED}",
            ],
        ),
        (
            (
                "[[intercept]]\nhosts = ['a.example']\n[[distort]]\nstrip_cookies = true\nhosts = ['*.example']\n"
                "[[distort]]\nstrip_cookies = true\nhosts = ['b.example']"
            ),
            [f"distort[1]: strip_cookies applies to HTTP without TLS alone: {CLOSED}"],
        ),
        (
            (
                "[[intercept]]\ntls = false\n[[intercept]]\ncommands = ['forward']\n[[intercept]]\naction = 'pass'\n"
                "[[distort]]\nmap_local = 'a'"
            ),
            [
                "intercept[1]: intercept[1] can never match, since intercept[0] matches all that it would",
                "intercept[2]: intercept[2] can never match, since intercept[0] matches all that it would",
                f"distort[0]: map_local applies to HTTP without TLS alone: {CLOSED}",
            ],
        ),
        (
            "[[distort]]\nstrip_cookies = true\nports = [80]\n[[distort]]\nstatus = 404\ncommands = ['forward']",
            [],
        ),
        (
            "[[intercept]]\nusers = ['alicce']",
            ["intercept[0].users: there is no user alicce"],
        ),
        (
            f"{ALICE}[[distort]]\nfault = '3g'\nusers = ['@dev']\n[[distort]]\nfault = '3g'\nusers = ['bob', 'alice']",
            [
                "distort[0].users: no user is in @dev, so distort[0] can never match",
                "distort[1].users: there is no user bob",
            ],
        ),
        (
            "[[distort]]\nname = 'rare'\nfault = '3g'\nprobability = 0",
            ["distort[0].probability: it is 0, so rare never acts"],
        ),
        ("[[distort]]\nfault = '3g'\n[[distort]]\nfault = '3g'\nhosts = ['a.example']", []),  # all that match apply
        ("[[intercept]]\naction = 'pass'\nhosts = ['a.example']\n[[intercept]]\nhosts = ['a.example']", []),
        (GUESTS, []),
        (f"{GUESTS}[guard]\nallow = ['8.8.8.0/24']", []),
        (GUESTS + ALLOWED, [f"{REACH} no rule refuses it (listener socks5://0.0.0.0:1080)"]),
        (
            f"{GUESTS}{ALLOWED}[[rule]]\nname = 'all'\naction = 'allow'",
            [f"{REACH} all lets them (listener socks5://0.0.0.0:1080)"],
        ),
        (
            f"{GUESTS}{ALLOWED}[[rule]]\nhosts = ['10.20.1.0/24']\naction = 'allow'",
            [f"{REACH} rule[0] lets them (listener socks5://0.0.0.0:1080)"],
        ),
        # Kept away as a whole, whatever stands beside it
        (f"{GUESTS}{ALLOWED}[[rule]]\nhosts = ['10.0.0.0/8']\naction = 'deny'", []),
        (f"{GUESTS}{ALLOWED}[[rule]]\nusers = ['alice']\naction = 'allow'\n[[rule]]\naction = 'deny'", []),
        (f"{GUESTS}{ALLOWED}[[rule]]\nclients = ['127.0.0.1']\naction = 'allow'\n[[rule]]\naction = 'deny'", []),
        (f"{GUESTS}{ALLOWED}[[rule]]\nhosts = ['8.0.0.0/8']\naction = 'allow'\n[[rule]]\naction = 'deny'", []),
        # Kept away from a part only
        (
            f"{GUESTS}{ALLOWED}[[rule]]\nports = [22]\naction = 'deny'",
            [f"{REACH} no rule refuses it (listener socks5://0.0.0.0:1080)"],
        ),
        (
            f"{GUESTS}{ALLOWED}[[rule]]\nhosts = ['10.20.1.0/24']\naction = 'deny'",
            [f"{REACH} no rule refuses it (listener socks5://0.0.0.0:1080)"],
        ),
        (
            f"{GUESTS}[guard]\ndeny = []",
            [f"clients without a user reach 0.0.0.0/8: guard.deny without 'private' opens it, and {ALL}"],
        ),
        (
            f"{GUESTS}[guard]\nexempt = ['127.0.0.1', 'unix', '192.168.0.0/16']",
            [f"clients without a user reach 0.0.0.0/8: guard.exempt with 192.168.0.0/16 opens it, and {ALL}"],
        ),
        (f"{GUESTS}[guard]\nexempt = ['127.0.0.1', 'unix', '127.9.0.0/16']", []),
        # Nobody comes from outside, or only users do
        (GUESTS.replace("0.0.0.0", "127.0.0.1") + ALLOWED, []),
        (GUESTS.replace("0.0.0.0", "localhost") + ALLOWED, []),
        (GUESTS.replace("optional", "required") + ALLOWED, []),
        (GUESTS.replace("socks5://0.0.0.0:1080", "unix:///run/tabi.sock") + ALLOWED, []),
        (
            f"{ALLOWED}[[listen]]\nurl = 'unix:///run/a'\nproxy_protocol = ['unix']",
            [f"{REACH} no rule refuses it (listener unix:///run/a)"],
        ),
        (
            f"{ALLOWED}[[listen]]\nurl = 'mixed://127.0.0.1:1'\nproxy_protocol = ['10.0.0.0/8']",
            [f"{REACH} no rule refuses it (listener mixed://127.0.0.1:1)"],
        ),
        (
            f"{GUESTS}{ALLOWED}[[rule]]\nlisteners = ['socks5://0.0.0.0:1080']\naction = 'allow'",
            [f"{REACH} rule[0] lets them (listener socks5://0.0.0.0:1080)"],
        ),
    ],
)
def test_what_is_said(text: str, advice: list[str]) -> None:
    """Rules for nobody, rules that another hides, and inner networks that guests reach."""
    assert advise(parse_config(text)) == advice


def test_a_fault_whose_time_is_over() -> None:
    """It stands there for nothing; one that comes, or comes each day, does not."""
    times = ["until = 2027-01-01", "from = 2027-01-01", "from = '22:00'", "until = '06:00'", "from = 2026-01-01"]
    text = "".join(f"[[distort]]\nfault = {{ latency = 1, {time} }}\n" for time in times)
    over = "distort[0].fault.until: that is over, so distort[0] never acts again"
    assert advise(parse_config(text), now=1.8e9) == [over]
    assert advise(parse_config(text), now=1.79e9) == []


@pytest.mark.parametrize(
    ("one", "other", "meet"),
    [
        (None, ["a.test"], True),
        (["*"], ["a.test"], True),
        (["a.test"], ["b.test"], False),
        (["A.test"], ["a.test"], True),
        (["*.test"], ["a.test"], True),
        (["*.a.test"], ["*.test"], True),
        (["*.a.test"], ["*.b.test"], False),
        (["re:a.*"], ["b.test"], True),
        (["10.0.0.0/8"], ["a.test"], True),
        (["10.0.0.0/8"], ["10.1.0.0/16"], True),
        (["10.0.0.0/8"], ["11.0.0.1"], False),
        (["10.0.0.0/8", "a.test"], ["*.b.test"], True),
    ],
)
def test_hosts_that_may_meet(one: list[str] | None, other: list[str] | None, meet: bool) -> None:
    """Whichever comes first; a name may have any address, and a pattern any name."""
    assert may_meet(one, other) is may_meet(other, one) is meet
