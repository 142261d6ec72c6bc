"""Root given up: another user for the processes that meet clients, few capabilities for the one that stays root."""

from __future__ import annotations

import contextlib
import ctypes
import grp
import os
import pwd
from collections.abc import Iterator
from typing import NamedTuple

from tabi.errors import ConfigError

PR_SET_NO_NEW_PRIVS, PR_CAPBSET_DROP, PR_CAP_AMBIENT, AMBIENT_CLEAR_ALL = 38, 24, 47, 4
"""linux/prctl.h."""

VERSION_3 = 0x20080522
"""Of capset(2): sets of 64 bits."""

LAST = 63

CHOWN, DAC_OVERRIDE, DAC_READ_SEARCH, FOWNER, KILL, SETGID, SETUID, NET_BIND_SERVICE = 0, 1, 2, 3, 5, 6, 7, 10
KEPT = (CHOWN, DAC_OVERRIDE, DAC_READ_SEARCH, FOWNER, KILL, SETGID, SETUID, NET_BIND_SERVICE)
"""Capabilities (capabilities(7)) of the supervisor: to bind ports and unix sockets and to read keys again at the next
upgrade, to start workers as another user, and to signal them."""


class Identity(NamedTuple):
    """Who a process is."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    """Further groups."""


def find_identity(text: str) -> Identity:
    """The user ``NAME`` with its groups, or ``NAME:GROUP`` with that group alone. Numbers will do, too.

    Raises:
        ConfigError: there is no such user or group, or the user is root.
    """
    name, _, group = text.partition(":")
    try:
        found = pwd.getpwuid(int(name)) if is_number(name) else pwd.getpwnam(name)
        name, uid, gid = found.pw_name, found.pw_uid, found.pw_gid
        groups = tuple(os.getgrouplist(name, gid))
    except (KeyError, OverflowError):
        if not is_number(name) or not group:
            raise ConfigError(f"there is no user {name!r}", "user") from None
        uid, gid, groups = int(name), 0, ()
    if group:
        try:
            gid = grp.getgrgid(int(group)).gr_gid if is_number(group) else grp.getgrnam(group).gr_gid
        except (KeyError, OverflowError):
            if not is_number(group):
                raise ConfigError(f"there is no group {group!r}", "user") from None
            gid = int(group)
        groups = (gid,)
    if uid == 0:
        raise ConfigError(f"{text!r} is root, expected another user", "user")
    return Identity(name, uid, gid, groups)


def is_number(text: str) -> bool:
    """Whether a name is a number of a user or a group; it has at most 9 digits."""
    return text.isascii() and text.isdecimal() and len(text) < 10


def identity_of(user: str | None) -> Identity | None:
    """Who the processes that meet clients become; None if they stay who they are.

    Raises:
        ConfigError: there is no such user, or this process may not become it.
    """
    if user is None:
        return None
    found = find_identity(user)
    if os.geteuid() == found.uid:
        return None
    if os.geteuid() != 0:
        raise ConfigError(f"only root can become {found.name}, and this is user {os.geteuid()}", "user")
    return found


def become(identity: Identity) -> None:
    """Become another user for ever: there is no way back, and no program that is executed gets more. Raises OSError."""
    os.setgroups(identity.groups)
    os.setresgid(identity.gid, identity.gid, identity.gid)
    os.setresuid(identity.uid, identity.uid, identity.uid)
    prctl(PR_SET_NO_NEW_PRIVS, 1)


@contextlib.contextmanager
def acting_as(identity: Identity | None) -> Iterator[None]:
    """Open files as another user, in a process without other threads. Raises OSError."""
    if identity is None:
        yield
        return
    groups, gid = os.getgroups(), os.getegid()
    os.setgroups(identity.groups)
    try:
        os.setegid(identity.gid)
        os.seteuid(identity.uid)
        yield
    finally:
        os.seteuid(0)
        os.setegid(gid)
        os.setgroups(groups)


def keep_few() -> None:
    """Keep the capabilities of `KEPT` alone, for this process and all that it executes."""
    if hasattr(os, "splice"):  # Linux, which alone has capabilities
        for capability in range(LAST + 1):
            if capability not in KEPT:
                prctl(PR_CAPBSET_DROP, capability)  # this system may have fewer, or have taken them already
        prctl(PR_CAP_AMBIENT, AMBIENT_CLEAR_ALL)
        kept = sum(1 << capability for capability in KEPT) & permitted()
        header = (ctypes.c_uint32 * 2)(VERSION_3, 0)
        sets = (ctypes.c_uint32 * 6)(kept, kept, 0, 0, 0, 0)  # effective, permitted, inheritable; twice
        if ctypes.CDLL(None, use_errno=True).capset(header, sets):
            number = ctypes.get_errno()
            raise OSError(number, f"capset: {os.strerror(number)}")


def permitted() -> int:
    """The capabilities that this process may use, a bit for each."""
    with open("/proc/self/status") as file:
        return next((int(line.split()[1], 16) for line in file if line.startswith("CapPrm:")), 0)


def prctl(option: int, value: int) -> bool:
    """Call prctl(2); whether it worked."""
    return not ctypes.CDLL(None, use_errno=True).prctl(option, ctypes.c_ulong(value), 0, 0, 0)
