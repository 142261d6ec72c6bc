"""Who may do what on the admin API: TLS, tokens, and calls of other web pages, which are refused."""

from __future__ import annotations

import hmac
import ssl
from collections.abc import Collection
from typing import Literal, NamedTuple

from tabi.config.admin import Admin
from tabi.errors import ConfigError
from tabi.net.tls import load_certificate
from tabi.wire.address import parse_address, parse_host

Scope = Literal["none", "read", "full"]
"""What an operation needs: nothing, either token, or the one for everything."""

SCHEME = "bearer "


class Refused(NamedTuple):
    """Why a request is refused, with the status of HTTP (RFC 9110)."""

    status: int
    text: str


class Access:
    """Decides on requests.

    Args:
        token: for everything; None: nobody has it.
        read_token: to see things; None: nobody has it.
        hosts: names by which clients may call the server, beside ``localhost`` and addresses.
    """

    def __init__(self, token: str | None, read_token: str | None, hosts: Collection[str] = ()) -> None:
        self.full = None if token is None else token.encode()
        self.read = None if read_token is None else read_token.encode()
        self.hosts = {"localhost", *(name.lower() for name in hosts)}

    def refuse(self, scope: Scope, authorization: str, host: str, origin: str | None, secure: bool) -> Refused | None:
        """Why a request is refused; None: it is not.

        Args:
            scope: what it needs.
            authorization: the field ``Authorization``, or nothing.
            host: the field ``Host``: a name that is not ours may be a page's that has its name resolved to us.
            origin: the field ``Origin``, which browsers send for the scripts of pages; None without.
            secure: whether it came through TLS.
        """
        if not self.is_ours(host):
            return Refused(421, f"Host {host!r}: expected an address, localhost or one of admin.hosts")
        if origin is not None and origin.lower() != f"http{'s' if secure else ''}://{host}".lower():
            return Refused(403, "a page of another origin may not ask")
        if scope == "none":
            return None
        given = authorization[len(SCHEME) :].strip() if authorization.lower().startswith(SCHEME) else ""
        full, read = self.knows(given, self.full), self.knows(given, self.read)
        if full or (read and scope == "read"):
            return None
        if read:
            return Refused(403, "this token is for reading only")
        return Refused(401, "expected Authorization: Bearer TOKEN, with the token of [admin]")

    def knows(self, given: str, token: bytes | None) -> bool:
        """Whether a client has given a token; that takes the same time for each that it may give."""
        return hmac.compare_digest(given.encode("utf-8", "surrogateescape"), token or b"") and token is not None

    def is_ours(self, host: str) -> bool:
        """Whether a ``Host`` is one of ours: an address cannot be another site's name."""
        try:
            found = parse_address(host).host if host.rpartition(":")[2].isdigit() and host[-1:] != "]" else None
            name = parse_host(host) if found is None else found
        except ValueError:
            return False
        return name.lower() in self.hosts if isinstance(name, str) else True


def tls_context(admin: Admin) -> ssl.SSLContext | None:
    """What the API speaks TLS with; None without. Raises ConfigError."""
    if admin.tls is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        load_certificate(context, admin.tls.certificate, admin.tls.key)
    except ConfigError as exc:
        raise ConfigError(exc.message, f"admin.tls.{exc.path}") from None
    return context
