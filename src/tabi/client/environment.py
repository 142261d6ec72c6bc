"""The proxy that environment variables name, as curl and other programs read them: ALL_PROXY and NO_PROXY.

If a variable is set in lower case and in upper case, the lower case counts. NO_PROXY is a list, separated by commas or
spaces, of what is reached directly: ``*`` for everything; a name, which stands for its subdomains too, with or without
a leading dot; an address; a network such as ``10.0.0.0/8``. A port may follow: ``example.com:8443``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

from tabi.policy.networks import Network, parse_network
from tabi.url import ProxyURL, parse_url
from tabi.wire.address import Address, read_number


def all_proxy(environ: Mapping[str, str]) -> ProxyURL | None:
    """The proxy that ALL_PROXY names, or None.

    A value without a scheme is an HTTP proxy, as for curl.

    Raises:
        ValueError: the value is not the URL of a proxy. The text, which may have a password, is not in the message.
    """
    name, value = read(environ, "all_proxy")
    if not value:
        return None
    try:
        return parse_url(value if "://" in value else f"http://{value}")
    except ValueError as exc:
        raise ValueError(f"{name}: {exc}") from None


def no_proxy(environ: Mapping[str, str]) -> Callable[[Address], bool]:
    """A function that says whether NO_PROXY names a destination. Parts that cannot be read match nothing, as
    elsewhere."""
    _, value = read(environ, "no_proxy")
    parts = [part for word in re.split(r"[\s,]+", value) if (part := parse_part(word)) is not None]
    return lambda destination: any(part.has(destination) for part in parts)


def read(environ: Mapping[str, str], name: str) -> tuple[str, str]:
    """The variable's name as it is written in the environment, and its value, empty if there is none."""
    for spelling in (name, name.upper()):
        if spelling in environ:
            return spelling, environ[spelling].strip()
    return name, ""


class Part(NamedTuple):
    """One word of NO_PROXY: a name or a network; if both are None it stands for everything."""

    name: str | None
    network: Network | None
    port: int | None

    def has(self, destination: Address) -> bool:
        """Whether a destination is one of those that the word stands for."""
        host, port = destination
        if self.port not in (None, port):
            return False
        if self.name is None and self.network is None:
            return True
        number = read_address(host) if isinstance(host, str) else host
        if number is not None:
            return self.network is not None and number in self.network
        name = str(host).lower().removesuffix(".")
        return self.name is not None and (name == self.name or name.endswith(f".{self.name}"))


def parse_part(word: str) -> Part | None:
    """Read one word; None for an empty one, or one that nothing can match."""
    if not word:
        return None
    found = re.fullmatch(r"(\[[^\]]+\]|[^:]+)(?::(\d{1,5}))?", word)
    text, port = (found[1], None if found[2] is None else int(found[2])) if found else (word, None)
    text = text.strip("[]").lower().removeprefix("*").strip(".")
    if not text:
        return Part(None, None, port)
    try:
        return Part(None, parse_network(text), port)
    except ValueError:
        return Part(text, None, port) if ":" not in text and "/" not in text else None


def read_address(host: str) -> object | None:
    """The address that a name which is a number stands for."""
    try:
        return read_number(host)
    except ValueError:
        return None
