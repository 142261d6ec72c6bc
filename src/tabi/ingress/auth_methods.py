"""The authentication methods of SOCKS5 (RFC 1928 section 3): each finds out in its own way who the client is."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from tabi.ingress.authenticate import Ask, Outcome, identify
from tabi.ingress.conversation import MachineConversation
from tabi.net.deadline import Deadlines
from tabi.session import Close, Session
from tabi.wire.socks5 import Credentials, CredentialsReply, Method


class Refused(NamedTuple):
    """How a method refuses a client."""

    answer: Any
    """The message that says so."""
    close: Close = "denied"


class AuthMethod(Protocol):
    """One authentication method. A listener has a list of them, in the order of its preference."""

    method: int
    """The METHOD octet."""

    async def authenticate(self, conversation: MachineConversation) -> Refused | None:
        """Find out who the client is, behind the method's selection, and set the session's user.

        A method with messages of its own begins with ``conversation.machine.negotiate`` and ends with ``negotiated``.
        It may put a layer between the client's stream and its socket (``client.sock``), as TLS does: the request, and
        all that follows, then comes through that layer. The handshake's deadline runs.

        Returns:
            None where the client may go on; else how it is refused, with the reason in the session's error.

        Raises:
            TimeoutError, RemoteProtocolError, OSError: as `Ingress.serve`.
        """


class NoAuthentication:
    """Method 00: nothing is asked."""

    method = int(Method.NO_AUTHENTICATION)

    async def authenticate(self, conversation: MachineConversation) -> None:
        """See `AuthMethod`."""


class UsernamePassword:
    """Method 02, user name and password (RFC 1929).

    Args:
        ask: says who a client is.
        handshake: the deadline of the handshake, which the answer has to keep.
    """

    method = int(Method.USERNAME_PASSWORD)

    def __init__(self, ask: Ask, handshake: Deadlines) -> None:
        self.ask = ask
        self.handshake = handshake

    async def authenticate(self, conversation: MachineConversation) -> Refused | None:
        """See `AuthMethod`. Status 01 is a wrong user name or password, 02 a failure on our side."""
        credentials = await conversation.next_message()
        assert isinstance(credentials, Credentials)
        session, left = conversation.session, self.handshake.left(conversation.client)
        outcome = await identify(self.ask, session, credentials.username, credentials.password, left)
        if outcome is Outcome.ACCEPTED:
            conversation.send(ACCEPTED)
            return None
        return REJECTED if outcome is Outcome.REJECTED else FAILED


ACCEPTED, REJECTED, FAILED = CredentialsReply(0), Refused(CredentialsReply(1)), Refused(CredentialsReply(2), "error")
"""RFC 1929 section 2: 0 is success; any other status ends the connection, and its meaning is the server's."""


class MethodChoice:
    """The methods of one listener.

    Args:
        methods: in the order of preference.
        required: whether a client must be a user. One whose TLS certificate names its user is one.
    """

    def __init__(self, methods: tuple[AuthMethod, ...], required: bool) -> None:
        none = NoAuthentication()
        self.known: tuple[AuthMethod, ...] = (none, *methods)
        """For a client whose certificate has said who it is."""
        self.unknown = methods if required else (*methods, none)

    def choose(self, session: Session, offered: bytes) -> AuthMethod | None:
        """The method for a client that offers these; None where it cannot go on, with the reason in the session."""
        methods = self.unknown if session.user is None else self.known
        for method in methods:
            if method.method in offered:
                return method
        wanted = " or ".join(f"{method.method:#04x}" for method in methods) or f"{Method.USERNAME_PASSWORD:#04x}"
        session.error = f"no acceptable method: offered {offered.hex(' ') or 'none'}, expected {wanted}"
        return None
