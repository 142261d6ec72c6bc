"""Presets: names of browsers, and what stands behind each: a hello of TLS, fields of HTTP, the beginning of HTTP/2.

All of it is copied from what browsers send, nothing is put together: the hellos and fields are those of `utls`, what
HTTP/2 begins with that of curl-impersonate's signatures of Chrome, which is the same from 131 on. So there is no
profile of a browser whose hello cannot be shown.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from tabi.distort.fingerprint.packages import need_utls
from tabi.errors import ConfigError

MIRROR = "mirror"
"""The name of the client's own fingerprint."""

Field = tuple[bytes, bytes]


class Http2Profile(NamedTuple):
    """How a browser begins HTTP/2.

    Attributes:
        settings: identifiers and values, in their order.
        window: what the window of the connection grows by, in octets.
        pseudo: names of the pseudo-header fields of a request, in their order.
    """

    settings: tuple[tuple[int, int], ...]
    window: int
    pseudo: tuple[bytes, ...]

    @property
    def text(self) -> str:
        """The fingerprint; see `intercept.sent`."""
        settings = ";".join(f"{setting}:{value}" for setting, value in self.settings)
        return f"{settings}|{self.window}|0|{','.join(chr(name[1]) for name in self.pseudo)}"


CHROME = Http2Profile(
    ((1, 65536), (2, 0), (4, 6291456), (6, 262144)), 15663105, (b":method", b":authority", b":scheme", b":path")
)


class Profile(NamedTuple):
    """What a browser's requests look like.

    Attributes:
        name: its preset.
        fields: names and values that the browser sends, in its order and case. Host is the first of HTTP/1.
        http2: how it begins HTTP/2.
    """

    name: str
    fields: tuple[Field, ...]
    http2: Http2Profile


def names() -> list[str]:
    """The presets, oldest first. Raises ConfigError: utls is missing."""
    need_utls("a fingerprint")
    import utls

    return sorted(utls.presets(), key=lambda name: (not name[-1].isdigit(), len(name), name))


def check_name(name: str, path: str, mirror: bool = True) -> None:
    """Raise ConfigError if this is not the name of a preset, or ``mirror`` where that can be."""
    need_utls(path.rpartition(".")[2], path)
    known = names()
    if name in known or (mirror and name == MIRROR):
        return
    words = [MIRROR, *known] if mirror else known
    raise ConfigError(f"{name!r} is unknown, expected {', '.join(words[:-1])} or {words[-1]}", path)


def find_profile(name: str) -> Profile:
    """The profile of a preset. Raises ConfigError if there is no such preset, or utls is missing."""
    check_name(name, "profile", mirror=False)
    import utls

    fields = utls.Fingerprint.from_preset(name).http_headers
    return Profile(name, tuple((key.encode(), value.encode()) for key, value in fields.items()), CHROME)


def describe(name: str) -> dict[str, Any]:
    """What a preset sets, for people: the fingerprints that destinations see, and the fields.

    Raises:
        ConfigError: as `find_profile`.
    """
    from tabi.distort.fingerprint.boring import preset_context, probe
    from tabi.wire.client_hello import decode_client_hello

    profile = find_profile(name)
    hello = decode_client_hello(probe(preset_context(name), "example.com"))
    assert hello is not None
    return {
        "name": name,
        "ja4": hello.ja4,
        "http2": profile.http2.text,
        "fields": [[key.decode(), value.decode()] for key, value in profile.fields],
    }
