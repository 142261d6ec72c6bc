"""DNS through associations: our client and PySocks ask a server made with dnspython."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import dns.flags
import dns.message
import dns.rdatatype
import dns.rrset
import pytest
import socks

from conftest import Run
from processes import PATIENCE, serve
from support import datagram_target
from tabi import Proxy
from tabi.wire.address import parse_address

pytestmark = pytest.mark.interop

NAME = "service.example."


def answer(data: bytes) -> bytes:
    """An authoritative server that knows one name's address."""
    query = dns.message.from_wire(data)
    response = dns.message.make_response(query)
    response.flags |= dns.flags.AA
    question = query.question[0]
    if str(question.name) == NAME and question.rdtype == dns.rdatatype.A:
        response.answer.append(dns.rrset.from_text(NAME, 60, "IN", "A", "192.0.2.7"))
    return response.to_wire()


def addresses(data: bytes, query: dns.message.Message) -> list[str]:
    """What a response to a query says."""
    response = dns.message.from_wire(data)
    assert query.is_response(response)
    return [str(record) for rrset in response.answer for record in rrset]


def test_our_client(run: Run, tmp_path: Path) -> None:
    """Query and response through `tabi serve`."""

    async def main() -> None:
        query = dns.message.make_query(NAME, "A")
        async with datagram_target(answer) as port, Proxy(proxy.url).associate() as association:
            await association.send(query.to_wire(), ("127.0.0.1", port))
            data, address = await association.receive()
        assert addresses(data, query) == ["192.0.2.7"]
        assert address == parse_address(f"127.0.0.1:{port}")

    with serve(tmp_path) as proxy:
        run(main)


def test_pysocks(run_once: Run, tmp_path: Path) -> None:
    """A client of others, with a user: dnspython sends and receives on its UDP socket."""

    def ask(proxy_port: int, port: int) -> list[str]:
        query = dns.message.make_query(NAME, "A")
        with socks.socksocket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.set_proxy(socks.SOCKS5, "127.0.0.1", proxy_port, True, "alice", "secret")
            sock.settimeout(PATIENCE)
            sock.sendto(query.to_wire(), ("127.0.0.1", port))
            data, source = sock.recvfrom(65536)
        assert source == ("127.0.0.1", port)
        return addresses(data, query)

    async def main() -> None:
        async with datagram_target(answer) as port:
            assert await asyncio.to_thread(ask, proxy.address.port, port) == ["192.0.2.7"]

    with serve(tmp_path, "-u", "alice:secret") as proxy:
        run_once(main)
        (session,) = proxy.sessions(1)
        assert (session["user"], session["command"]) == ("alice", "associate")
