"""What resolvers have in common: numbers as names, names of addresses, and what a program gives as a resolver."""

from __future__ import annotations

import asyncio
import socket
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest

from conftest import Run
from tabi import Server
from tabi.errors import DialError
from tabi.net import resolve
from tabi.net.resolve import ThreadResolver, pointer_of
from tabi.wire.socks5 import ReplyCode


def test_the_c_library_resolves_for_clients(run_once: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Addresses in its order; what it does not know is reply 04."""

    async def main() -> None:
        resolver = ThreadResolver()
        assert all(address.is_loopback for address in await resolver.resolve("localhost"))

        async def unknown(*_: object, **__: object) -> None:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

        with monkeypatch.context() as patch:
            patch.setattr(asyncio.get_running_loop(), "getaddrinfo", unknown)
            with pytest.raises(DialError, match=r"^name\.test: name or service not known$") as caught:
                await resolver.resolve("name.test")
        assert caught.value.reply_code == ReplyCode.HOST_UNREACHABLE
        await resolver.close()

    run_once(main)


def test_the_name_that_an_address_has_in_the_reverse_zones() -> None:
    """A zone of this machine means nothing to name servers."""
    assert pointer_of(IPv4Address("192.0.2.1")) == "1.2.0.192.in-addr.arpa"
    assert pointer_of(IPv6Address("fe80::1%1")) == pointer_of(IPv6Address("fe80::1"))


@pytest.mark.parametrize(
    ("name", "address"),
    [
        ("127.1", "127.0.0.1"),
        ("0x7f.1", "127.0.0.1"),
        ("0x7F000001", "127.0.0.1"),
        ("0177.0.0.1", "127.0.0.1"),
        ("2130706433", "127.0.0.1"),
        ("10.0.258", "10.0.1.2"),
    ],
)
def test_numbers_as_names_are_read_as_the_c_library_reads_them(name: str, address: str) -> None:
    """What a client means by them is what every other program means: the guard sees the address that is dialled."""
    assert resolve.find_number(name) == ip_address(address)


@pytest.mark.parametrize("name", ["example.com", "a1", "1a", "x0x7f", "localhost.", "1.2.3.4.example"])
def test_names_are_no_numbers(name: str) -> None:
    """Only the last label decides: no top-level domain is a number."""
    assert resolve.find_number(name) is None


@pytest.mark.parametrize("name", ["256.256.256.256", "1.2.3.4.5", "08.1", "99999999999", "0xfg", "example.1"])
def test_what_ends_in_a_number_but_is_no_address_is_unknown(name: str) -> None:
    """It is asked of no resolver, and gets reply 04."""
    with pytest.raises(DialError) as caught:
        resolve.find_number(name)
    assert caught.value.reply_code == 4


def test_of_several_names_the_first_that_is_one() -> None:
    """A name that nobody can use stands in the way of none that can be used."""
    assert resolve.make_named(["a b.test", b"caf\xe9.test", b"good.test."], 7) == resolve.Named("good.test", 7)
    assert resolve.make_named([], 7) == resolve.Named(None, 7, "no name")


class WithoutClose:
    """Half a resolver."""

    async def resolve(self, name: str) -> list[IPv4Address | IPv6Address]:
        """Find nothing."""
        return []


@pytest.mark.parametrize(
    ("resolver", "message"),
    [
        (1, r"^resolver: int does not have `async def resolve`$"),
        (WithoutClose, r"^resolver: the class WithoutClose itself, expected WithoutClose\(\)$"),
        (WithoutClose(), r"^resolver: WithoutClose does not have `async def close`$"),
    ],
)
def test_what_is_not_a_resolver_is_told_at_the_start(resolver: object, message: str) -> None:
    """A server that could not resolve a name, or not close, is not even made."""
    with pytest.raises(TypeError, match=message):
        Server("socks5://127.0.0.1:0", resolver=resolver)  # type: ignore[arg-type]
