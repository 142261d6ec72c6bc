"""What types alone do not say: how ways out lead to one another, and what a mistake may show of a text."""

from __future__ import annotations

import pytest

from tabi.config import Config, Listen, UserConfig
from tabi.config.check import check_values, hidden, leads_to
from tabi.config.schema import EgressConfig
from tabi.errors import ConfigError

LISTEN = [Listen("mixed://127.0.0.1:0")]


def test_ways_are_followed_through_chains_and_pools() -> None:
    """All that one leads to, by name, as often as it leads there, and in a circle too."""
    config = Config(
        egress={
            "a": EgressConfig(chain=["b", "socks5://192.0.2.1:1"]),
            "b": EgressConfig(members=["c", "d", "http://192.0.2.2:1"]),
            "c": EgressConfig(chain=["d", "socks5://192.0.2.3:1"]),
            "d": EgressConfig(url="socks5://192.0.2.4:1"),
            "e": EgressConfig(members=["f"]),
            "f": EgressConfig(members=["e"]),
        }
    )
    assert leads_to(config, "a") == {"b", "c", "d"}
    assert leads_to(config, "d") == set()
    assert leads_to(config, "nobody") == set()
    assert leads_to(config, "e") == {"e", "f"}


@pytest.mark.parametrize(
    ("egress", "message"),
    [
        ({"a": EgressConfig(members=["a"])}, "egress.a: leads to itself"),
        ({"a": EgressConfig(members=["b"]), "b": EgressConfig(members=["a"])}, "egress.a: leads to itself"),
        ({"a": EgressConfig(members=["nobody"])}, "egress.a.members[0]: there is no [egress.nobody]"),
        (
            {"a": EgressConfig(chain=["socks5://192.0.2.1:1", "b"])},
            "egress.a.chain[1]: 'b', expected the URL of a proxy",
        ),
        ({"block": EgressConfig()}, "egress.block: the name of the one that leads nowhere"),
        (
            {"a": EgressConfig(url="socks5://192.0.2.1:1", members=["block"])},
            "egress.a: expected one of url, chain and",
        ),
        ({"a": EgressConfig(members=["direct", "direct"])}, "egress.a.members[1]: the same as members[0]"),
        (
            {"a": EgressConfig(members=["socks5://u:p@192.0.2.1:1", "socks5://v:q@192.0.2.1:1"])},
            "egress.a.members[1]: the same as members[0]",
        ),
    ],
)
def test_ways_that_lead_nowhere_or_in_a_circle(egress: dict[str, EgressConfig], message: str) -> None:
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
        check_values(Config(listen=LISTEN, egress={"a": EgressConfig(members=[text])}))
    assert "secret" not in str(caught.value)


def test_users_need_a_password_unless_somebody_else_knows_them() -> None:
    """A program that has a callback of its own, or a certificate, tells who they are."""
    config = Config(listen=LISTEN, users={"alice": UserConfig(None)})
    with pytest.raises(ConfigError, match=r"^users\.alice\.password: missing$"):
        check_values(config)
    check_values(config, known_otherwise=True)


@pytest.mark.parametrize("name", ["", "a" * 256, "ä" * 128])
def test_user_names_fit_into_rfc_1929(name: str) -> None:
    """1 to 255 octets, not letters."""
    with pytest.raises(ConfigError, match="a user name has 1 to 255 octets"):
        check_values(Config(listen=LISTEN, users={name: UserConfig("x", plain=True)}))
    check_values(Config(listen=LISTEN, users={"ä" * 127: UserConfig("x", plain=True)}))
