"""What lines for people share: colours, and octets and times in few digits."""

from __future__ import annotations

import os
from collections.abc import Mapping

RED, GREEN, YELLOW, CYAN, BOLD, DIM = 31, 32, 33, 36, 1, 2
"""Parameters of SGR (ECMA-48 section 8.3.117)."""


def painted(text: str, code: int | None, colour: bool) -> str:
    """A text in a colour."""
    return f"\x1b[{code}m{text}\x1b[0m" if colour and code is not None else text


def wants_colour(fd: int, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether a descriptor is a terminal, and colours are not switched off."""
    return os.isatty(fd) and not environment.get("NO_COLOR") and environment.get("TERM") != "dumb"


def shown_size(octets: int) -> str:
    """Octets for people, as ``1.2 kB`` or ``18 kB``."""
    if octets < 1000:
        return f"{octets} B"
    value, unit = octets / 1e3, "kB"
    for larger in ("MB", "GB"):
        if value >= 999.5:
            value, unit = value / 1e3, larger
    return f"{value:.1f} {unit}" if value < 9.95 else f"{value:.0f} {unit}"


def shown_time(seconds: float) -> str:
    """A time for people, as ``35 ms``, ``1.2 s``, ``12 min`` or ``3.4 h``."""
    if seconds < 99.95:
        return f"{seconds * 1000:.0f} ms" if seconds < 0.9995 else f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5970 else f"{seconds / 3600:.1f} h"
