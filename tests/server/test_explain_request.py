"""What somebody asks to have explained, out of texts."""

from __future__ import annotations

from typing import Any

import pytest

from conftest import Run
from tabi.config import parse_config
from tabi.errors import ConfigError
from tabi.server.explain_request import explain_request, make_request

CONFIG = parse_config(
    '[[listen]]\nurl = "mixed://127.0.0.1:1080"\n[[listen]]\nurl = "socks5://127.0.0.1:1081"\n'
    '[[rule]]\nname = "no"\naction = "deny"\nports = [25]\n'
)


def made(**given: str) -> Any:
    """A request of a client on this machine, or as given."""
    texts = {"command": "connect", "destination": "192.0.2.1:25", "client": "unix", **given}
    optional = [texts.get(name) for name in ("user", "listener", "protocol", "at", "sni")]
    return make_request(CONFIG, texts["command"], texts["destination"], texts["client"], *optional)


def test_what_is_not_said_is_as_usual() -> None:
    """The first listener, and the protocol that it is mostly used for."""
    assert (made().protocol, made().listen.url) == ("socks5", "mixed://127.0.0.1:1080")
    assert made(command="forward").protocol == "http"
    assert made(listener="socks5://127.0.0.1:1081").listen.url == "socks5://127.0.0.1:1081"
    assert made(client="192.0.2.9", at="2027-01-31T08:00").now == 1801382400


WRONG = [
    ({"command": "x"}, "COMMAND: 'x', expected one of: connect"),
    ({"protocol": "x"}, "--protocol: 'x', expected one of"),
    ({"command": "forward", "protocol": "socks5"}, "--protocol: socks5, but only HTTP has requests that are forwarded"),
    ({"command": "resolve", "protocol": "http"}, "--protocol: http, but only SOCKS5 has questions for names"),
    ({"destination": "x"}, "HOST:PORT: 'x' is not host:port"),
    ({"client": "x"}, "--from: 'x', expected an IP address or unix"),
    ({"listener": "x"}, "--listener: 'x', expected one of: mixed://127.0.0.1:1080, socks5://127.0.0.1:1081"),
    ({"at": "x"}, "--at: 'x', expected a time"),
    ({"sni": "1.2.3.4"}, "--sni: '1.2.3.4', expected a name"),
    ({"sni": ""}, "--sni: a host name has 1 to 255 octets"),
    ({"sni": "a.test", "command": "bind"}, "--sni: bind has no TLS hello of a client"),
]


@pytest.mark.parametrize(("given", "message"), WRONG)
def test_what_is_wrong_has_its_option(given: dict[str, str], message: str) -> None:
    """As `tabi explain` calls it."""
    with pytest.raises(ConfigError) as found:
        made(**given)
    assert str(found.value).startswith(message)


def test_it_is_explained(run_once: Run) -> None:
    """By the parts that the server has; what was opened for that is closed."""
    found = run_once(lambda: explain_request(CONFIG, made()))
    assert (found.rules[0].rule, found.rules[0].matched) == ("no", True)
