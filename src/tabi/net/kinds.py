"""Both kinds of a name's addresses, IPv4 and IPv6, out of one question for each (RFC 8305 section 3)."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address

from tabi.config import Prefer
from tabi.errors import DialError
from tabi.net.resolve import IP, Answer
from tabi.wire.dns import AAAA, A

DELAY = 0.05
"""Seconds that the other kind is waited for once there are addresses: the Resolution Delay of RFC 8305 section 8."""

POLICY = [
    (IPv6Network(network), precedence, label)
    for network, precedence, label in (
        ("::1/128", 50, 0),
        ("::ffff:0:0/96", 35, 4),
        ("2002::/16", 30, 2),
        ("2001::/32", 5, 5),
        ("fc00::/7", 3, 13),
        ("::/0", 40, 1),
    )
]
"""The default policy table (RFC 6724 section 2.1), without what is deprecated."""


def kinds_of(prefer: Prefer) -> tuple[int, ...]:
    """The types of records to ask for."""
    return {"ipv4-only": (A,), "ipv6-only": (AAAA,)}.get(prefer, (A, AAAA))


async def first_answer(questions: Sequence[asyncio.Future[Answer]]) -> Answer:
    """The answer of several questions about one name, one for each kind of addresses.

    Once there are addresses, the others have DELAY; what comes later is in ``rest``. A question that fails is not an
    answer: without addresses of the other kind it is the failure of all. If the task is cancelled, so are they.

    Raises:
        DialError: there are no addresses, and a question has failed.
    """
    waiting: set[asyncio.Future[Answer]] = set(questions)
    seconds = None
    try:
        while waiting:
            done, waiting = await asyncio.wait(waiting, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if not done:
                break
            if any(map(has_addresses, done)):
                seconds = DELAY
    except asyncio.CancelledError:
        for question in questions:
            question.cancel()
        raise
    if not waiting:
        return merge(questions)
    rest = asyncio.get_running_loop().create_task(wait_for_all(questions))
    rest.add_done_callback(lambda _: [question.cancel() for question in questions])
    return merge([question for question in questions if question not in waiting])._replace(whole=False, rest=rest)


def has_addresses(question: asyncio.Future[Answer]) -> bool:
    """Whether a question that is over has an answer with addresses."""
    return not question.cancelled() and question.exception() is None and bool(question.result().addresses)


async def wait_for_all(questions: Sequence[asyncio.Future[Answer]]) -> Answer:
    """`merge`, as soon as all are answered."""
    await asyncio.wait(questions)
    return merge(questions)


def merge(questions: Sequence[asyncio.Future[Answer]]) -> Answer:
    """One answer of several, which are there. Raises DialError, see `first_answer`."""
    answers = list[Answer]()
    failure: BaseException | None = None
    for question in questions:
        if question.cancelled():
            failure = failure or DialError("the resolver was closed", 1)
        elif (exc := question.exception()) is not None:
            failure = failure or exc
        else:
            answers.append(question.result())
    addresses = order_kinds([address for answer in answers for address in answer.addresses])
    if failure is not None and not addresses:
        raise failure
    telling = [answer for answer in answers if answer.addresses] or answers
    ttl = min((answer.ttl for answer in telling if answer.ttl is not None), default=None)
    return Answer(addresses, ttl, telling[0].text, whole=failure is None)


def order_kinds(addresses: list[IP]) -> list[IP]:
    """The kind first that this machine reaches better (RFC 6724 section 6); within a kind the order of the server.

    The first address of each kind stands for all.
    """
    four = [address for address in addresses if isinstance(address, IPv4Address)]
    six = [address for address in addresses if isinstance(address, IPv6Address)]
    if not four or not six:
        return addresses
    return [*six, *four] if rank(six[0]) < rank(four[0]) else [*four, *six]


def rank(address: IP) -> tuple[bool, bool, int]:
    """How well an address is reached; the least is the best: rules 1, 5 and 6 of RFC 6724 section 6."""
    precedence, label = policy_of(address)
    source = source_toward(address)
    if source is None:
        return True, True, -precedence
    return False, policy_of(source)[1] != label, -precedence


def policy_of(address: IP) -> tuple[int, int]:
    """The precedence and the label of an address."""
    mapped = IPv6Address(b"\0" * 10 + b"\xff\xff" + address.packed) if address.version == 4 else address
    return next((precedence, label) for network, precedence, label in POLICY if mapped in network)


def source_toward(address: IP) -> IP | None:
    """The address that this machine would send from; None if it has no way there. Nothing is sent."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.connect((str(address), 9))
            return ip_address(sock.getsockname()[0])
    except OSError:
        return None
