"""What a client offers to a SOCKS5 proxy: methods in its order, and only what it can do."""

from __future__ import annotations

from tabi.egress.client_methods import client_methods
from tabi.wire.socks5 import Credentials


def test_what_a_client_offers() -> None:
    """Without credentials only method 00: a proxy must not ask for what is not there. With them the proxy chooses."""
    assert [method.method for method in client_methods(None)] == [0]
    assert [method.method for method in client_methods(Credentials(b"alice", b"secret"))] == [0, 2]
