"""Rewrite: what is changed in HTTP that is looked into. Pure data; `distort.rewrites` does it."""

from __future__ import annotations

from typing import Any

import msgspec

Pairs = tuple[tuple[str, str], ...]


class FieldChanges(msgspec.Struct, frozen=True, omit_defaults=True):
    """What becomes of the fields of a head: removed first, then set, appended, ordered. Names are sent in the very case
    that is given here."""

    remove: tuple[str, ...] = ()
    set: Pairs = ()
    """In place of all fields with that name, at the place of the first of them; at the end if there is none."""
    append: Pairs = ()
    order: tuple[str, ...] = ()
    """Names of those that come first, in this order; the others follow as they are."""

    def __repr__(self) -> str:
        return "FieldChanges()"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return []  # values may be secret


NO_CHANGES = FieldChanges()


class Rewrite(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is changed in requests and answers."""

    request: FieldChanges = NO_CHANGES
    response: FieldChanges = NO_CHANGES
    strip_cookies: bool = False
    """Whether ``Cookie`` and ``Set-Cookie`` are removed."""
    map_remote: str | None = None
    """``http://`` or ``https://`` URL that is asked in place of the destination; the rest of the path follows it."""
    map_local: str | None = None
    """A file, or a folder with files, that answers in place of the destination. Absolute."""
    status: int | None = None
    """The status of answers, in place of theirs."""
    body: str | None = None
    """A file whose content answers have, in place of theirs. Absolute."""
    profile: str | None = None
    """Whose fields a request has, and in which order: a name of ``tabi ua list``."""

    def __repr__(self) -> str:
        return "Rewrite()"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return []  # URLs may hold passwords
