"""What types alone do not say: how ways out lead to one another, and what a mistake may show of a text."""

from __future__ import annotations

import pytest

from tabi.config import Config, Listen, User
from tabi.config.check import check_values, hidden, leads_to
from tabi.config.schema import Egress
from tabi.errors import ConfigError

LISTEN = [Listen("mixed://127.0.0.1:0")]


def test_ways_are_followed_through_chains_and_pools() -> None:
    """All that one leads to, by name, as often as it leads there, and in a circle too."""
    config = Config(
        egress={
            "a": Egress(chain=["b", "socks5://192.0.2.1:1"]),
            "b": Egress(members=["c", "d", "http://192.0.2.2:1"]),
            "c": Egress(chain=["d", "socks5://192.0.2.3:1"]),
            "d": Egress(url="socks5://192.0.2.4:1"),
            "e": Egress(members=["f"]),
            "f": Egress(members=["e"]),
        }
    )
    assert leads_to(config, "a") == {"b", "c", "d"}
    assert leads_to(config, "d") == set()
    assert leads_to(config, "nobody") == set()
    assert leads_to(config, "e") == {"e", "f"}


@pytest.mark.parametrize(
    ("egress", "message"),
    [
        ({"a": Egress(members=["a"])}, "egress.a: leads to itself"),
        ({"a": Egress(members=["b"]), "b": Egress(members=["a"])}, "egress.a: leads to itself"),
        ({"a": Egress(members=["nobody"])}, "egress.a.members[0]: there is no [egress.nobody]"),
        ({"a": Egress(chain=["socks5://192.0.2.1:1", "b"])}, "egress.a.chain[1]: 'b', expected the URL of a proxy"),
        ({"block": Egress()}, "egress.block: the name of the one that leads nowhere"),
        ({"a": Egress(url="socks5://192.0.2.1:1", members=["block"])}, "egress.a: expected one of url, chain and"),
        ({"a": Egress(members=["direct", "direct"])}, "egress.a.members[1]: the same as members[0]"),
        (
            {"a": Egress(members=["socks5://u:p@192.0.2.1:1", "socks5://v:q@192.0.2.1:1"])},
            "egress.a.members[1]: the same as members[0]",
        ),
    ],
)
def test_ways_that_lead_nowhere_or_in_a_circle(egress: dict[str, Egress], message: str) -> None:
    """Each is told with its key, before a session would find out."""
    with pytest.raises(ConfigError) as caught:
        check_values(Config(listen=LISTEN, egress=egress))
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("text", "shown"), [("jump", "jump"), ("alice:secret@host:1", "…@host:1"), ("a@b@c", "…@c"), ("secret@", "…@")]
)
def test_what_may_be_a_password_is_not_shown(text: str, shown: str) -> None:
    """A URL whose scheme was forgotten is taken for a name; its user and password are no part of the message."""
    assert hidden(text) == shown
    with pytest.raises(ConfigError) as caught:
        check_values(Config(listen=LISTEN, egress={"a": Egress(members=[text])}))
    assert "secret" not in str(caught.value)


def test_users_need_a_password_unless_somebody_else_knows_them() -> None:
    """A program that has a callback of its own, or a certificate, tells who they are."""
    config = Config(listen=LISTEN, users={"alice": User(None)})
    with pytest.raises(ConfigError, match=r"^users\.alice\.password: missing$"):
        check_values(config)
    check_values(config, known_otherwise=True)


@pytest.mark.parametrize("name", ["", "a" * 256, "ä" * 128])
def test_user_names_fit_into_rfc_1929(name: str) -> None:
    """1 to 255 octets, not letters."""
    with pytest.raises(ConfigError, match="a user name has 1 to 255 octets"):
        check_values(Config(listen=LISTEN, users={name: User("x", plain=True)}))
    check_values(Config(listen=LISTEN, users={"ä" * 127: User("x", plain=True)}))
