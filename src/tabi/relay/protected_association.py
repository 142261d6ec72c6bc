"""Associations whose client wraps each datagram, as the authentication method has agreed (RFC 1961 section 4, GSSAPI).

The header of RFC 1928 section 7 is inside the wrapping, so that each datagram is taken apart alone.
"""

from __future__ import annotations

from typing import Any

from tabi.net.sockaddr import python_sockaddr
from tabi.relay.datagram import Association
from tabi.relay.limited_association import LimitedAssociation
from tabi.session import DatagramProtection
from tabi.wire.datagram import MAX_DATAGRAM


class ProtectedAssociation(Association):
    """An association that unwraps what the client sends, and wraps what the client gets."""

    __slots__ = ()

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.look_into(None)

    @property
    def protection(self) -> DatagramProtection:
        """How datagrams are wrapped."""
        protection = self.session.protection
        assert protection is not None
        return protection

    def up_one(self, data: bytes) -> None:
        """See `Association.up_one`."""
        try:
            plain = self.protection.unwrap(data)
        except ValueError:
            self.drop("malformed")
            return
        super().up_one(plain)

    def send_down(self, header: bytes, payload: bytes) -> None:
        """See `Association.send_down`."""
        data = self.protection.wrap(header + payload)
        if len(data) > MAX_DATAGRAM:
            self.drop("too_large")
            return
        try:
            self.port.sock.sendmsg((data,), (), 0, python_sockaddr(self.client))
        except OSError:
            self.drop("unsent")
            return
        self.session.datagrams_down += 1
        self.session.down += len(payload)


class LimitedProtectedAssociation(ProtectedAssociation, LimitedAssociation):
    """One whose session has a lease that counts octets."""

    __slots__ = ()
