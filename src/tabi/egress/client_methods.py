"""The client's side of the authentication methods of SOCKS5 (RFC 1928 section 3): each proves who we are in a different
way."""

from __future__ import annotations

from typing import Protocol

from tabi.egress.upstream import read_exactly
from tabi.errors import AuthError
from tabi.net.stream import Stream
from tabi.wire.socks5 import ClientMachine, Credentials, Method


class ClientMethod(Protocol):
    """One authentication method that a client offers. The proxy chooses."""

    method: int
    """The METHOD octet."""

    async def authenticate(self, stream: Stream, machine: ClientMachine) -> None:
        """Prove to the proxy who we are, after it has chosen this method. The caller sets the deadline.

        A method with messages of its own begins with ``machine.negotiate`` and ends with ``machine.negotiated``. It may
        put a layer between the stream and its socket, as TLS does: the request then goes through that layer.

        Raises:
            AuthError: the proxy did not let us in.
            RemoteProtocolError, OSError: as `Stream.receive` and the machine.
        """


class NoAuthentication:
    """Method 00: nothing is asked."""

    method = int(Method.NO_AUTHENTICATION)

    async def authenticate(self, stream: Stream, machine: ClientMachine) -> None:
        """See `ClientMethod`."""


class UsernamePassword:
    """Method 02, user name and password (RFC 1929)."""

    method = int(Method.USERNAME_PASSWORD)

    def __init__(self, credentials: Credentials) -> None:
        self.credentials = credentials

    async def authenticate(self, stream: Stream, machine: ClientMachine) -> None:
        """See `ClientMethod`."""
        await stream.send_all(machine.send(self.credentials))
        if (await read_exactly(stream, machine, spare=1)).status:
            raise AuthError("the proxy did not accept the user name and password")


def client_methods(credentials: Credentials | None) -> tuple[ClientMethod, ...]:
    """The methods that a client with these credentials, or without any, offers."""
    none = NoAuthentication()
    return (none,) if credentials is None else (none, UsernamePassword(credentials))
