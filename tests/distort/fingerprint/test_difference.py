"""Two hellos side by side: what is not the same is named, and what changes each time is not."""

from __future__ import annotations

import pytest

from hellos import body, client_hello, extension, hello, numbers, records, vector
from tabi.distort.fingerprint.boring import preset_context, probe
from tabi.distort.fingerprint.difference import differences, distance, read_hello

GREASE = 0x1A1A


def made(
    *,
    ciphers: tuple[int, ...] = (0x1301, 0xC02B),
    groups: tuple[int, ...] = (0x1D, 0x17),
    shares: tuple[int, ...] = (0x1D,),
    algorithms: tuple[int, ...] = (0x0403, 0x0804),
    versions: tuple[int, ...] = (0x0304, 0x0303),
    points: bytes = b"\0",
    alpn: tuple[bytes, ...] = (b"h2",),
    more: tuple[bytes, ...] = (),
    first: tuple[bytes, ...] = (),
) -> bytes:
    """A hello in records."""
    return hello(
        *first,
        extension(10, vector(2, numbers(*groups))),
        extension(11, vector(1, points)),
        extension(13, vector(2, numbers(*algorithms))),
        extension(16, vector(2, b"".join(vector(1, name) for name in alpn))),
        extension(43, vector(1, numbers(*versions))),
        extension(51, vector(2, b"".join(numbers(group) + vector(2, bytes(32)) for group in shares))),
        *more,
        ciphers=numbers(*ciphers),
    )


def words(one: bytes, other: bytes) -> str:
    """What differs."""
    return "; ".join(differences(read_hello(one), read_hello(other)))


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({}, ""),
        ({"ciphers": (0x1301, 0xC02C)}, "ciphers"),
        ({"ciphers": (0xC02B, 0x1301)}, "order of ciphers"),
        ({"ciphers": (GREASE, 0x1301, 0xC02B)}, "GREASE"),
        ({"groups": (0x17, 0x1D)}, "order of groups"),
        ({"groups": (0x17,)}, "groups"),
        ({"groups": (GREASE, 0x1D, 0x17)}, ""),
        ({"shares": (0x1D, 0x17)}, "key shares"),
        ({"shares": ()}, "key shares"),
        ({"algorithms": (0x0804, 0x0403)}, "order of signature algorithms"),
        ({"algorithms": (0x0403,)}, "signature algorithms"),
        ({"versions": (0x0304,)}, "versions"),
        ({"points": b"\0\1"}, "contents of the extensions 11"),
        ({"alpn": (b"h2", b"x")}, "ALPN"),
        ({"more": (extension(35, b""),)}, "with the extensions 35"),
        ({"more": (extension(35, b""), extension(5, b""))}, "with the extensions 5, 35"),
        ({"more": (extension(41, b"\0\0\0\0"),)}, ""),
        ({"more": (extension(GREASE, b""),)}, ""),
    ],
)
def test_what_differs_is_named(other: dict[str, tuple[int, ...]], said: str) -> None:
    """One difference at a time. GREASE and resumption are none but where ciphers have GREASE."""
    assert words(made(), made(**other)) == said  # type: ignore[arg-type]
    far = distance(read_hello(made()), read_hello(made(**other)))  # type: ignore[arg-type]
    assert far[1] == bool(said)


def test_the_order_and_contents_of_extensions() -> None:
    """Of a client without GREASE the order counts; contents do, but for keys, tickets and padding."""
    tail, psk = extension(35, b"ticket"), extension(45, b"\1\1")
    assert words(made(more=(tail, psk)), made(more=(psk, tail))) == "order of extensions"
    assert words(made(more=(psk,)), made(more=(extension(45, b"\1\0"),))) == "contents of the extensions 45"
    assert words(made(more=(tail, extension(21, b"\0"))), made(more=(extension(35, b""), extension(21, b"")))) == ""
    assert words(made(more=(tail,)), made()) == "without the extensions 35"
    assert words(made(first=(tail,)), made(more=(tail,))) == "order of extensions"


def test_what_cannot_be_offered_is_said() -> None:
    """Versions below TLS 1.2 are left out, in the extension or as the hello's own."""
    assert words(made(versions=(0x0304, 0x0303, 0x0302)), made()) == "versions below TLS 1.2"
    old = records(b"\1" + vector(3, body(version=0x0301)))
    assert words(old, hello()) == "versions"
    assert words(hello(), hello(extension(43, vector(1, numbers(0x0303))))).startswith("versions")


def test_a_browser_is_the_same_each_time() -> None:
    """Its extensions come in another order, its GREASE and keys are others."""
    one, other = (probe(preset_context("chrome:152"), "a.example") for _ in range(2))
    assert one != other
    assert words(one, other) == ""
    assert read_hello(one).kind == read_hello(other).kind


def test_the_nearest_has_the_same_ja4() -> None:
    """Before anything else; then few differences, then few ciphers and extensions."""
    wanted = read_hello(made())
    same, near, far = (read_hello(one) for one in (made(shares=()), made(ciphers=(0x1301,)), client_hello()))
    assert distance(wanted, wanted) == (False, 0, 0)
    assert distance(wanted, same) < distance(wanted, near) < distance(wanted, far)


def test_key_shares_that_are_cut_off() -> None:
    """What comes from a client may be anything."""
    broken = hello(extension(51, b"\0\5" + numbers(0x1D, 0x20)[:4] + b"x"))
    with pytest.raises(Exception, match="length"):
        _ = read_hello(broken).key_shares
