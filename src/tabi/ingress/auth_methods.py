"""The authentication methods of SOCKS5 (RFC 1928 section 3): each finds out in its own way who the client is."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from tabi.ingress.authenticate import Ask, identify
from tabi.ingress.conversation import MachineConversation
from tabi.ingress.refusal import Refusal, login_refused
from tabi.net.timeouts import FixedTimeouts
from tabi.session import Session
from tabi.wire.socks5 import Credentials, CredentialsReply, Method, MethodSelection

ACCEPTED = CredentialsReply(0)
NO_ACCEPTABLE_METHODS = MethodSelection(Method.NO_ACCEPTABLE_METHODS)


class Refused(NamedTuple):
    """How a method refuses a client."""

    answer: Any
    """The message that tells the client."""
    refusal: Refusal


class AuthMethod(Protocol):
    """One authentication method. A listener has a list of them, in the order of its preference."""

    method: int
    """The METHOD octet."""

    async def authenticate(self, conversation: MachineConversation) -> Refused | None:
        """Find out who the client is, after the method's selection, and set the session's user.

        A method with messages of its own begins with ``conversation.machine.negotiate`` and ends with ``negotiated``.
        It may put a layer between the client's stream and its socket (``client.sock``, a `LayeredSock`), as TLS does:
        the request, and all that follows, then comes through that layer; and set ``session.protection``, which wraps
        the client's datagrams. The handshake's deadline runs.

        Returns:
            None if the client may go on, else how it is refused.

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

    def __init__(self, ask: Ask, handshake: FixedTimeouts) -> None:
        self.ask = ask
        self.handshake = handshake

    async def authenticate(self, conversation: MachineConversation) -> Refused | None:
        """See `AuthMethod`."""
        credentials = await conversation.next_message()
        assert isinstance(credentials, Credentials)
        client, left = conversation.client, self.handshake.left(conversation.client)
        refusal = await identify(
            self.ask, client, conversation.session, credentials.username, credentials.password, left
        )
        if refusal is not None:
            return Refused(CredentialsReply(refusal.login_status), refusal)
        conversation.send(ACCEPTED)
        return None


class MethodChoice:
    """The methods of one listener.

    Args:
        methods: in the order of preference.
        required: whether a client must be a user. One whose TLS certificate names its user is one.
    """

    def __init__(self, methods: tuple[AuthMethod, ...], required: bool) -> None:
        none = NoAuthentication()
        self.known: tuple[AuthMethod, ...] = (none, *methods)
        """For a client whose certificate names its user."""
        self.unknown = methods if required else (*methods, none)

    def choose(self, session: Session, offered: bytes) -> AuthMethod | Refused:
        """The method for a client that offers these, or how it is refused."""
        methods = self.unknown if session.user is None else self.known
        for method in methods:
            if method.method in offered:
                return method
        wanted = " or ".join(f"{method.method:#04x}" for method in methods) or f"{Method.USERNAME_PASSWORD:#04x}"
        text = f"no acceptable method: offered {offered.hex(' ') or 'none'}, expected {wanted}"
        return Refused(NO_ACCEPTABLE_METHODS, login_refused(text))
