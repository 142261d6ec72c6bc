"""The PROXY header toward destinations, or the first proxy: they learn who the client is (wire/proxy_protocol.py)."""

from __future__ import annotations

import errno

from tabi.egress.base import Around, Egress
from tabi.errors import TabiError
from tabi.net.dial import AddressFilter
from tabi.net.failures import connect_error
from tabi.net.stream import Stream
from tabi.net.udp_path import UdpPath
from tabi.session import Session
from tabi.wire.address import Address, from_sockaddr
from tabi.wire.proxy_protocol import encode_v1, encode_v2


class SendProxyHeader(Around):
    """Sends the header in front of everything else, over another egress.

    Args:
        below: opens the destination.
        version: of the header, 1 or 2.
        named: say who the client is; else the header is only about this machine.
    """

    def __init__(self, below: Egress, version: int, named: bool = True) -> None:
        super().__init__(below)
        self.named = named
        self.version = version

    async def open(self, destination: Address, address_filter: AddressFilter, session: Session | None = None) -> Stream:
        """See `Egress`."""
        stream = await self.below.open(destination, address_filter, session)
        try:
            # The address that was dialled: a name in the header would cost the client's address too.
            who = session if self.named else None
            header = encode_header(self.version, who, from_sockaddr(stream.sock.getpeername()))
            await stream.send_all(header)  # an empty send buffer takes it at once
        except BaseException as exc:
            stream.close()
            if isinstance(exc, OSError) and not isinstance(exc, TabiError):  # reset since it was opened
                raise connect_error(exc.errno or errno.EIO, destination) from exc
            raise
        return stream

    async def associate(self, session: Session | None = None) -> UdpPath:
        """See `Egress`. A proxy takes the datagrams of a control connection from the address that this comes from: they
        come from this machine, not from the client's address."""
        path = await self.below.associate(session)
        path.egress = SendProxyHeader(self.below, self.version, named=False)
        return path


def encode_header(version: int, session: Session | None, destination: Address) -> bytes:
    """The header for a session. For a client without an IP address it says UNKNOWN, or LOCAL in version 2."""
    client = session.client if session is not None and not isinstance(session.client.host, str) else None
    if version == 1:
        return encode_v1(client, destination)
    return encode_v2(client, destination, local=client is None)
