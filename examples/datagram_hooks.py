"""Hooks for datagrams that tabi looks into: they log who asks for which names, and answer for some of them nothing.

Run it: tabi serve --intercept '*' --script examples/datagram_hooks.py
Use it: echo hello | tabi udp --via socks5://127.0.0.1:1080 192.0.2.53:53      (or any client that sends DNS by SOCKS5)
"""

from __future__ import annotations

import logging

import tabi

log = logging.getLogger("datagrams")

BLOCKED = ("ads.example", "tracker.example")
"""Names that nobody is to reach, and all below them."""

HTTPS = 65
"""The type of records that say that a server has QUIC, and how its hello is encrypted (RFC 9460)."""


class Names:
    """Sees each message of DNS, both ways."""

    def udp_data(self, datagram: tabi.DatagramInfo) -> None:
        message = datagram.dns
        if message is None:
            return
        if any(message.name == name or message.name.endswith(f".{name}") for name in BLOCKED):
            datagram.drop()
        elif message.type == HTTPS:
            datagram.drop()  # browsers go on with addresses alone
        elif message.is_response:
            log.warning("%s: %s is %s", datagram.connection.client[0], message.name, ", ".join(message.addresses))


class Quic:
    """Sees where connections of QUIC begin."""

    def udp_data(self, datagram: tabi.DatagramInfo) -> None:
        if datagram.quic is not None:
            log.warning("%s: QUIC to %s", datagram.connection.client[0], datagram.quic.sni)
