"""Every exception that tabi raises on purpose. Imports nothing.

    TabiError
      ProtocolError           a SOCKS conversation went wrong (abstract)
        RemoteProtocolError     the peer broke the RFC
          HttpError               an HTTP client did, or wants what tabi does not have
          H2Error                 a peer of HTTP/2 did: its connection ends
            H2StreamError           in one stream, which alone ends
        LocalProtocolError      our caller used a machine in the wrong order
      DialError               a destination or a proxy could not be reached; an OSError too
        ConnectTimeout          it did not answer in time; a TimeoutError too
      ProxyError              the proxy that we asked refused; an OSError too
        ProxyTimeout            it did not answer in time; a TimeoutError too
      AuthError               the user name or the password was not accepted
      PolicyDenied            tabi's own rules forbid the request
      LimitExceeded           a limit was reached: connections, their rate, a quota, the time of a user
      TooLarge                content is larger than a hook wants to read
      ConfigError             the configuration or a command line is wrong

``reply_code`` is the REP octet of RFC 1928 section 6 that says the same thing on the wire, or None
where no reply fits. It is an ``int`` so that this module imports nothing.
"""

from __future__ import annotations


def printable(text: str, keep: str = "") -> str:
    """A text in which a terminal and a log show everything: characters that control them (C0, C1, directions of
    writing, separators of lines), and lone surrogates, are escaped as Python does it, except those in ``keep``."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() or letter in keep else ascii(letter)[1:-1] for letter in text)


class TabiError(Exception):
    """The base of all of tabi's own exceptions."""

    reply_code: int | None = None


class ProtocolError(TabiError):
    """A SOCKS conversation went wrong; raised only as one of its two subclasses."""

    def __init__(self, message: str, reply_code: int | None = None) -> None:
        super().__init__(message)
        self.reply_code = reply_code


class RemoteProtocolError(ProtocolError):
    """The peer sent what the RFC does not allow."""


class HttpError(RemoteProtocolError):
    """A client sent a request that HTTP does not allow or that tabi does not know; ``status`` is the answer to it."""

    error = "http_request_error"
    """The error type of RFC 9209 section 2.3."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


class H2Error(RemoteProtocolError):
    """A peer broke HTTP/2, or wants too much: its connection ends. ``code`` is that of RFC 9113 section 7."""

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


class H2StreamError(H2Error):
    """A peer broke HTTP/2 in one stream: that one alone ends (RFC 9113 section 5.4.2)."""


class LocalProtocolError(ProtocolError):
    """A machine was asked for a message that its state does not allow: a bug in the caller."""


class DialError(TabiError, OSError):
    """A name could not be resolved or an address could not be connected to. Code for sockets catches it as OSError.

    ``errno`` is the system's error number, or None where the failure came from the resolver or a deadline.
    """

    def __init__(self, message: str, reply_code: int, errno: int | None = None) -> None:
        super().__init__(message)
        self.reply_code = reply_code
        self.errno = errno


class EgressError(DialError):
    """An egress has no way now: no member of a pool answers, or our keys for an SSH server cannot be used."""


class ConnectTimeout(DialError, TimeoutError):
    """A destination or a proxy did not answer in time."""


class ProxyError(TabiError, OSError):
    """The proxy answered a request with a failure; ``reply_code`` is the one that it sent."""

    def __init__(self, message: str, reply_code: int | None = None) -> None:
        super().__init__(message)
        self.reply_code = reply_code


class ProxyTimeout(ProxyError, TimeoutError):
    """The proxy was reached, and did not answer in time."""


class AuthError(TabiError):
    """The user name or the password was not accepted, or no offered method was."""


class PolicyDenied(TabiError):
    """A rule or the guard forbids the destination (reply 02, connection not allowed by ruleset).

    ``action`` is what the client gets: ``deny`` answers, ``reset`` resets its connection, ``drop`` gives no answer.
    ``reply_code`` differs if a program has chosen another one.
    """

    reply_code = 2

    def __init__(self, message: str, action: str = "deny", reply_code: int = 2) -> None:
        super().__init__(message)
        self.action = action
        self.reply_code = reply_code


class LimitExceeded(TabiError):
    """A limit forbids the request (reply 02). ``limit`` is its key, such as ``connections``.

    ``seconds`` says when to try again where the request is to wait for that; None where it is refused.
    """

    reply_code = 2

    def __init__(self, message: str, limit: str, seconds: float | None = None) -> None:
        super().__init__(message)
        self.limit = limit
        self.seconds = seconds


class TooLarge(TabiError):
    """The content of a message is larger than the limit that a hook has set; it goes on as it comes."""


class ConfigError(TabiError):
    """The configuration is wrong. ``path`` names the place, such as ``listen[0].url``.

    The text is always one line: control characters come out escaped. ``errors`` are all
    errors that were found, if this is the first of several; else it holds only this one.
    """

    def __init__(self, message: str, path: str | None = None, errors: tuple[ConfigError, ...] = ()) -> None:
        text = f"{path}: {message}" if path else message
        super().__init__(printable(text))
        self.path = path
        self.message = message
        self.errors = errors or (self,)
