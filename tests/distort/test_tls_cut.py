"""TLS cut: a handshake ends with the first answer; all else passes."""

from __future__ import annotations

import pytest

from tabi.distort.latency import Latency
from tabi.distort.tls_cut import tls_cut
from tabi.policy.faults import Ending
from tabi.policy.limits import DOWN, UP
from virtual import Net

HELLO = b"\x16\x03\x01\x00\x05hello"


@pytest.mark.parametrize("how", ["close", "reset"])
def test_a_handshake_is_cut(how: Ending) -> None:
    """When the destination answers: it has seen the hello, and the client sees nothing of the answer."""
    for pieces in ([HELLO], [HELLO[:1], HELLO[1:]], [HELLO[:1], HELLO[1:2], HELLO[2:]]):
        net = Net(tls_cut(how, "one"))
        for piece in pieces:
            net.send(piece)
        assert net.server.outbox == HELLO
        net.send(b"answer", direction=DOWN)
        said = "end" if how == "close" else "reset"
        assert (net.client.outbox, net.client.said, net.server.said) == (b"", said, said)
        assert (net.session.close, net.session.error) == ("fault", "one: TLS is cut")


@pytest.mark.parametrize("first", [b"GET / HTTP/1.1\r\n", b"\x16", b"\x17\x03\x03", b"\x00\x16\x03"])
def test_other_protocols_pass(first: bytes) -> None:
    """Whatever they begin with."""
    net = Net(tls_cut("reset", "one"))
    net.send(first)
    net.send(b"answer", direction=DOWN)
    net.send(HELLO, end=True)
    net.send(b"more", end=True, direction=DOWN)
    assert (net.server.outbox, net.client.outbox) == (first + HELLO, b"answermore")
    assert net.session.error is None


def test_a_destination_that_speaks_first() -> None:
    """As that of a mail client, which begins with TLS later: it passes."""
    net = Net(tls_cut("reset", "one"))
    net.send(b"220 ready\r\n", direction=DOWN)
    net.send(HELLO)
    net.send(b"answer", direction=DOWN)
    assert net.client.outbox == b"220 ready\r\nanswer"


def test_put_on_a_running_connection() -> None:
    """It has no handshake any more: what looks like one is payload."""
    net = Net([(UP, Latency(0.0))])
    net.send(b"octets")
    for direction, stage in tls_cut("reset", "one"):
        net.relay.add_stage(direction, stage)
    net.send(HELLO)
    net.send(b"answer", direction=DOWN)
    assert (net.server.outbox, net.client.outbox) == (b"octets" + HELLO, b"answer")


def test_put_on_before_the_first_octet() -> None:
    """Of a connection that runs and has said nothing yet."""
    net = Net()
    for direction, stage in tls_cut("close", "one"):
        net.relay.add_stage(direction, stage)
    net.send(HELLO)
    net.send(b"answer", direction=DOWN)
    assert net.session.close == "fault"


def test_an_end_in_place_of_an_answer() -> None:
    """It is one."""
    net = Net(tls_cut("reset", "one"))
    net.send(HELLO, end=True)
    net.send(end=True, direction=DOWN)
    assert (net.session.close, net.session.error) == ("client", None)
