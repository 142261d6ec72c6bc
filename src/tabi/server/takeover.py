"""What a reload takes of a new configuration, and what waits for a restart."""

from __future__ import annotations

import msgspec

from tabi.config import Config

AT_START = ("workers", "user", "timeouts", "log", "quotas", "resolver", "ca", "admin")
"""Parts that are used only when a process starts."""


def take_over(old: Config, new: Config) -> tuple[Config, list[str]]:
    """The configuration to go on with, and the keys of ``new`` that are not in it.

    Listeners keep their places: if the places differ, all of ``listen`` waits for a restart; their other keys do not.
    """
    keys = [key for key in AT_START if getattr(old, key) != getattr(new, key)]
    if [listen.url for listen in old.listen] != [listen.url for listen in new.listen]:
        keys.append("listen")
    if keys:
        new = msgspec.structs.replace(new, **{key: getattr(old, key) for key in keys})
    return new, keys
