"""One table from what went wrong on the way to a destination to the reply code of RFC 1928 section 6.

system error or resolver's answer                      REP
refused, reset while connecting                        05 connection refused
network unreachable, no address of our own fits        03 network unreachable
host unreachable, timed out, no such name              04 host unreachable
forbidden by a local firewall                          02 not allowed
the machine does not speak that family                 08 address type not supported
no port left, descriptors used up, resolver broken     01 general failure
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Sequence

from tabi.errors import ConnectTimeout, DialError, ProxyError, TabiError
from tabi.wire.socks5 import ReplyCode

REPLY_BY_ERRNO: dict[int, int] = {
    errno.ECONNREFUSED: ReplyCode.CONNECTION_REFUSED,
    errno.ECONNRESET: ReplyCode.CONNECTION_REFUSED,
    errno.ENETUNREACH: ReplyCode.NETWORK_UNREACHABLE,
    errno.ENETDOWN: ReplyCode.NETWORK_UNREACHABLE,
    errno.EADDRNOTAVAIL: ReplyCode.NETWORK_UNREACHABLE,
    errno.EHOSTUNREACH: ReplyCode.HOST_UNREACHABLE,
    errno.EHOSTDOWN: ReplyCode.HOST_UNREACHABLE,
    errno.ETIMEDOUT: ReplyCode.HOST_UNREACHABLE,
    errno.EACCES: ReplyCode.NOT_ALLOWED,
    errno.EPERM: ReplyCode.NOT_ALLOWED,
    errno.EAFNOSUPPORT: ReplyCode.ADDRESS_TYPE_NOT_SUPPORTED,
}

NO_SUCH_NAME = (socket.EAI_NONAME, socket.EAI_NODATA)

# The first of these that occurs is the answer for a host with several addresses: it says most about it.
TELLING = (errno.ECONNREFUSED, errno.ECONNRESET, errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH)


def connect_error(number: int, what: object) -> DialError:
    """The error for a connect to ``what`` that failed with a system error number."""
    reply_code = REPLY_BY_ERRNO.get(number, ReplyCode.GENERAL_FAILURE)
    kind = ConnectTimeout if number == errno.ETIMEDOUT else DialError
    return kind(f"{what}: {os.strerror(number).lower()}", reply_code, number)


def no_port_error(what: object, address: object) -> DialError:
    """The error for a connect to ``what``, for which an address of this machine has no port left."""
    return DialError(f"{what}: no free port on {address}", ReplyCode.GENERAL_FAILURE, errno.EADDRNOTAVAIL)


def most_telling(failures: Sequence[DialError]) -> DialError:
    """Choose the answer among the failures of several addresses; there is at least one."""
    found = {failure.errno or errno.EIO: failure for failure in reversed(failures)}
    return found[next((number for number in TELLING if number in found), min(found))]


def resolve_error(text: str, name: str, reply_code: int = ReplyCode.HOST_UNREACHABLE) -> DialError:
    """The error for a name that the resolver did not turn into an address: 04 also if its name servers fail, 01 if
    they cannot even be asked."""
    return DialError(f"{name}: {text.lower()}", reply_code)


def lookup_error(exc: OSError | UnicodeError, name: str) -> DialError:
    """The error for what a resolver of an embedding program raises, such as `socket.getaddrinfo` and
    `gethostbyaddr`."""
    unknown = isinstance(exc, UnicodeError | socket.herror)
    unknown = unknown or (isinstance(exc, socket.gaierror) and exc.errno in NO_SUCH_NAME)
    text = getattr(exc, "strerror", None) or ("no such name" if unknown else "not resolved")
    return resolve_error(text, name, ReplyCode.HOST_UNREACHABLE if unknown else ReplyCode.GENERAL_FAILURE)


def local_error(exc: OSError, what: object) -> DialError:
    """The error for a socket of our own that could not be opened or bound."""
    text = (exc.strerror or str(exc)).lower()
    return DialError(f"{what}: {text}", ReplyCode.GENERAL_FAILURE, exc.errno)


def timeout_error(seconds: float, what: object) -> DialError:
    """The error for a destination that did not answer within the connect deadline."""
    return ConnectTimeout(f"{what}: no answer within {seconds:g} s", ReplyCode.HOST_UNREACHABLE, errno.ETIMEDOUT)


def is_deadline(exc: BaseException) -> bool:
    """Whether an error is the end of our own deadline; not an error made from it, or the kernel's ETIMEDOUT."""
    return isinstance(exc, TimeoutError) and exc.errno is None and not isinstance(exc, DialError | ProxyError)


def reason_of(exc: TabiError | OSError, seconds: float) -> str:
    """A failure in a few words."""
    if is_deadline(exc):
        return f"no answer within {seconds:g} s"
    return ((exc.strerror or str(exc)) if isinstance(exc, OSError) else str(exc)) or type(exc).__name__
