"""What a client says about itself, for the function that knows the users; and what that function may answer."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import msgspec

from tabi.config import LimitsConfig
from tabi.errors import ConfigError
from tabi.wire.address import Address


class Login(msgspec.Struct, frozen=True):
    """A user name and a password that a client has sent, and how they came. The password is not in the repr.

    Octets that are not UTF-8 come as surrogates ("surrogateescape").
    """

    username: str
    password: str
    client: Address
    """Where the connection comes from. Its host is an IP address, or ``"unix"`` for a unix socket."""
    protocol: str | None = None
    """As in the access log, such as ``socks5`` or ``https``."""
    listener: str = ""
    """The URL of the listener that took the connection."""
    tls_identity: str | None = None
    """The user that the client's TLS certificate names; None without such a certificate."""

    def __repr__(self) -> str:
        return f"Login(username={self.username!r}, client={str(self.client)!r}, protocol={self.protocol!r})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [("username", self.username), ("client", str(self.client)), ("protocol", self.protocol)]


class User(msgspec.Struct, frozen=True):
    """A user from a program, with the settings that tabi.toml has under ``[users.NAME]``."""

    name: str
    """Goes into the access log, and is what rules match."""
    groups: Sequence[str] = ()
    """Groups that the user belongs to, besides those of tabi.toml, for rules and for limits that members share."""
    limits: LimitsConfig | Mapping[str, object] | None = None
    """What the user may use in all sessions together, as ``limits`` of a user in tabi.toml:
    ``{"bandwidth": "10 MB/s"}``. Each worker counts it for itself. None: what tabi.toml says."""


Authenticate = Callable[[Login], "str | User | Awaitable[str | User | None] | None"]
"""Says who a client is: the user's name, or a `User`; None refuses. May be async."""


def check_authenticate(function: object) -> None:
    """Raise ConfigError if something cannot be called as `Authenticate`."""
    if not callable(function):
        raise ConfigError(f"{function!r}, expected a function of one argument, a tabi.Login", "authenticate")
    try:
        inspect.signature(function).bind(None)
    except TypeError:
        raise ConfigError("expected a function of one argument, a tabi.Login", "authenticate") from None
    except ValueError:  # the signature is unknown, as for some functions of extension modules
        pass
