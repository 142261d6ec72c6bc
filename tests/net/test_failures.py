"""The table from what went wrong to the reply code of RFC 1928 section 6."""

from __future__ import annotations

import errno
import socket

import pytest

from tabi.errors import AuthError, DialError, TabiError
from tabi.net.failures import (
    connect_error,
    local_error,
    lookup_error,
    most_telling,
    no_port_error,
    reason_of,
    resolve_error,
    timeout_error,
)
from tabi.wire.socks5 import ReplyCode


@pytest.mark.parametrize(
    ("number", "reply_code"),
    [
        (errno.ECONNREFUSED, ReplyCode.CONNECTION_REFUSED),
        (errno.ECONNRESET, ReplyCode.CONNECTION_REFUSED),
        (errno.ENETUNREACH, ReplyCode.NETWORK_UNREACHABLE),
        (errno.ENETDOWN, ReplyCode.NETWORK_UNREACHABLE),
        (errno.EADDRNOTAVAIL, ReplyCode.NETWORK_UNREACHABLE),
        (errno.EHOSTUNREACH, ReplyCode.HOST_UNREACHABLE),
        (errno.EHOSTDOWN, ReplyCode.HOST_UNREACHABLE),
        (errno.ETIMEDOUT, ReplyCode.HOST_UNREACHABLE),
        (errno.EACCES, ReplyCode.NOT_ALLOWED),
        (errno.EPERM, ReplyCode.NOT_ALLOWED),
        (errno.EAFNOSUPPORT, ReplyCode.ADDRESS_TYPE_NOT_SUPPORTED),
        (errno.EMFILE, ReplyCode.GENERAL_FAILURE),
        (errno.ENOBUFS, ReplyCode.GENERAL_FAILURE),
        (99_999, ReplyCode.GENERAL_FAILURE),
    ],
)
def test_a_failed_connect(number: int, reply_code: ReplyCode) -> None:
    """REP says what happened; our own trouble is a general failure. The text names the destination."""
    error = connect_error(number, "example.com:80")
    assert (error.reply_code, error.errno) == (reply_code, number)
    assert str(error).startswith("example.com:80: ")


def test_no_port_is_left() -> None:
    """It is not the network: it is a general failure, and the address is named."""
    error = no_port_error("example.com:80", "192.0.2.7")
    assert (str(error), error.reply_code) == ("example.com:80: no free port on 192.0.2.7", ReplyCode.GENERAL_FAILURE)


def test_the_text_is_the_systems() -> None:
    """In lower case, as all messages."""
    assert str(connect_error(errno.ECONNREFUSED, "[::1]:80")) == "[::1]:80: connection refused"


@pytest.mark.parametrize(
    ("numbers", "told"),
    [
        ([errno.ECONNREFUSED], errno.ECONNREFUSED),
        ([errno.ENETUNREACH, errno.ECONNREFUSED], errno.ECONNREFUSED),
        ([errno.ENETUNREACH, errno.EHOSTUNREACH], errno.EHOSTUNREACH),
        ([errno.EHOSTUNREACH, errno.ETIMEDOUT], errno.ETIMEDOUT),
        ([errno.EMFILE, errno.ENETUNREACH], errno.ENETUNREACH),
        ([errno.EMFILE, errno.EACCES], errno.EACCES),
        ([errno.EIO], errno.EIO),
    ],
)
def test_a_failed_connect_to_several_addresses(numbers: list[int], told: int) -> None:
    """What says most about the destination is the answer: somebody there who refuses, rather than our missing IPv6."""
    failures = [connect_error(number, "example.com:80") for number in numbers]
    assert most_telling(failures) is failures[numbers.index(told)]


def test_of_equal_failures_the_first_is_told() -> None:
    """Which has what is known of it alone, such as the key of an egress; one without a number is the last to count."""
    failures = [DialError("one", 5, errno.ECONNREFUSED), DialError("two", 5, errno.ECONNREFUSED), DialError("three", 4)]
    assert most_telling(failures) is failures[0]
    assert most_telling(failures[2:]) is failures[2]


def test_a_name_without_an_address() -> None:
    """No such name, or no server that knows, is host unreachable; a resolver that is broken is our fault."""
    error = resolve_error("Domain name not found", "nowhere.example")
    assert (error.reply_code, error.errno) == (ReplyCode.HOST_UNREACHABLE, None)
    assert str(error) == "nowhere.example: domain name not found"
    assert resolve_error("x", "x", ReplyCode.GENERAL_FAILURE).reply_code == ReplyCode.GENERAL_FAILURE


@pytest.mark.parametrize(
    ("exc", "reply_code", "text"),
    [
        (socket.gaierror(socket.EAI_NONAME, "Name not known"), ReplyCode.HOST_UNREACHABLE, "name not known"),
        (socket.gaierror(socket.EAI_NODATA, "No address"), ReplyCode.HOST_UNREACHABLE, "no address"),
        (socket.herror(1, "Unknown host"), ReplyCode.HOST_UNREACHABLE, "unknown host"),
        (UnicodeError("label too long"), ReplyCode.HOST_UNREACHABLE, "no such name"),
        (socket.gaierror(socket.EAI_AGAIN, "Try again"), ReplyCode.GENERAL_FAILURE, "try again"),
        (OSError(errno.EMFILE, "Too many open files"), ReplyCode.GENERAL_FAILURE, "too many open files"),
        (TimeoutError(), ReplyCode.GENERAL_FAILURE, "not resolved"),
    ],
)
def test_a_resolver_that_knows_only_the_systems_errors(
    exc: OSError | UnicodeError, reply_code: ReplyCode, text: str
) -> None:
    """A name that does not exist is host unreachable, all else our fault; never taken for an error of a connect."""
    error = lookup_error(exc, "nowhere.example")
    assert (error.reply_code, error.errno, str(error)) == (reply_code, None, f"nowhere.example: {text}")


def test_no_answer_in_time() -> None:
    """A deadline says how long it was."""
    error = timeout_error(0.5, "192.0.2.1:80")
    assert (error.reply_code, error.errno) == (ReplyCode.HOST_UNREACHABLE, errno.ETIMEDOUT)
    assert str(error) == "192.0.2.1:80: no answer within 0.5 s"


@pytest.mark.parametrize(
    ("exc", "text"),
    [
        (OSError(errno.EMFILE, "Too many open files"), "192.0.2.1: too many open files"),
        (OSError(errno.EADDRINUSE, "no port of 1-2 is free"), "192.0.2.1: no port of 1-2 is free"),
        (OSError("Nothing known"), "192.0.2.1: nothing known"),
    ],
)
def test_a_socket_of_our_own(exc: OSError, text: str) -> None:
    """What we cannot open or bind is a general failure, whatever its number: the destination has no part in it."""
    error = local_error(exc, "192.0.2.1")
    assert (error.reply_code, error.errno, str(error)) == (ReplyCode.GENERAL_FAILURE, exc.errno, text)


@pytest.mark.parametrize(
    ("exc", "text"),
    [
        (TimeoutError(), "no answer within 3 s"),
        (ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), "Connection reset by peer"),
        (OSError("odd"), "odd"),
        (AuthError("the proxy refused"), "the proxy refused"),
        (timeout_error(5, "example.com"), "example.com: no answer within 5 s"),
        (TabiError(), "TabiError"),
    ],
)
def test_a_reason_is_a_few_words(exc: TabiError | OSError, text: str) -> None:
    """The end of our deadline says how long it was; all others what they say themselves."""
    assert reason_of(exc, 3) == text
