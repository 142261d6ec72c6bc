"""Whose files are acted by: root acts by none that others can write, and secrets that others can read are told of."""

from __future__ import annotations

import importlib.util
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from tabi.config import Config
from tabi.errors import ConfigError
from tabi.ingress.tls import names_of
from tabi.net.privileges import Identity, acting_as, identity_of
from tabi.wire.address import Address


def user_of(config: Config) -> Identity | None:
    """Who the processes that meet clients become, None if they stay who they are.

    Raises:
        ConfigError: that cannot be done, or they could not do then what the configuration wants.
    """
    found = identity_of(config.user)
    if found is not None:
        for name, egress in config.egress.items():
            if egress.mark is not None:
                raise ConfigError(f"it takes CAP_NET_ADMIN, which {found.name} has not (user)", f"egress.{name}.mark")
        for index, listen in enumerate(config.listen):
            place = listen.parsed.place
            if listen.udp.shared and isinstance(place, Address) and 0 < place.port < unprivileged_port():
                text = f'"shared" at port {place.port}, which {found.name} may not bind (user), expected a range'
                raise ConfigError(text, f"listen[{index}].udp.ports")
    return found


def unprivileged_port() -> int:
    """The first port that any user may bind."""
    try:
        return int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text())
    except (OSError, ValueError):
        return 1024


def contents_for(identity: Identity | None, config: Config) -> dict[str, bytes]:
    """What is in certificates and keys of listeners that another user cannot read, by their paths. Raises OSError."""
    found: dict[str, bytes] = {}
    for listen in config.listen:
        if identity is not None and listen.tls is not None:
            names = names_of(listen.tls)
            with acting_as(identity):
                readable = all(os.access(name, os.R_OK, effective_ids=True) for name in names)
            if not readable:
                found |= {name: Path(name).read_bytes() for name in names}
    return found


def check_file(path: Path) -> None:
    """For root: raise ConfigError if somebody else can write the configuration."""
    if os.geteuid() == 0:
        refuse_writable(path, None)


def check_code(config: Config) -> None:
    """For root: raise ConfigError if somebody else can write a script, or the module of ``decide``. Nothing of them
    has been run then."""
    if os.geteuid() != 0:
        return
    if config.decide is not None:
        for file in files_of_module(config.decide.split(":")[1]):
            refuse_writable(file, "decide")
    for number, intercept in enumerate(config.intercept):
        for index, script in enumerate(intercept.scripts):
            refuse_writable(Path(script), f"intercept[{number}].scripts[{index}]")


def files_of_module(name: str) -> Iterator[Path]:
    """The files that are executed when a module is imported: that of each package before the next is looked for."""
    parts = name.split(".")
    for count in range(1, len(parts) + 1):
        try:
            found = importlib.util.find_spec(".".join(parts[:count]))
        except Exception:  # the import says what is wrong
            return
        if found is None:
            return
        if found.has_location and found.origin is not None:
            yield Path(found.origin)


def refuse_writable(path: Path, key: str | None) -> None:
    """Raise ConfigError if anybody but root can change what is at a path."""
    why = who_can_write(path)
    if why is not None:
        text = f"{why}, so that root would do what they say: change that, or run tabi as another user"
        raise ConfigError(text if key is None else f"{path}: {text}", str(path) if key is None else key)


def who_can_write(path: Path) -> str | None:
    """Who, except root, can change a file or put another one in its place; None if nobody can."""
    places = dict.fromkeys([path.absolute(), path.resolve()])
    for place in places:
        for one in (place, *place.parents):
            try:
                found = one.stat()
            except OSError:
                return None  # whoever opens it says so
            what = "it" if one == place else str(one)
            if found.st_uid != 0:
                return f"user {found.st_uid} owns {what}"
            if found.st_mode & stat.S_ISVTX and one != place:  # others cannot replace what root has there
                continue
            if found.st_mode & stat.S_IWOTH:
                return f"everybody can write {what}"
            if found.st_mode & stat.S_IWGRP and found.st_gid != 0:
                return f"group {found.st_gid} can write {what}"
    return None


# --- secrets ---


def advise_on_secrets(path: Path, config: Config) -> Iterator[str]:
    """Lines about files with secrets that all users of this machine can read."""
    for key, name in secrets_of(path, config):
        with_mode = mode_of(name)
        if with_mode & stat.S_IROTH and all(mode_of(folder) & stat.S_IXOTH for folder in name.absolute().parents):
            subject = f"{key}: {name}" if key else "it has secrets, and"
            yield f"{subject} can be read by every user of this machine: chmod o-r {name}"


def secrets_of(path: Path, config: Config) -> Iterator[tuple[str, Path]]:
    """The files with secrets, and their keys; that of the configuration itself has none."""
    links = [link for egress in config.egress.values() for link in links_of(egress)]
    said = [*(user.password for user in config.users.values()), config.admin.token, config.admin.read_token]
    if any(said) or any("@" in link.partition("://")[2] for link in links):
        yield "", path
    if config.auth.users_file is not None:
        yield "auth.users_file", Path(config.auth.users_file)
    for number, listen in enumerate(config.listen):
        if listen.tls is not None:
            yield f"listen[{number}].tls.key", Path(listen.tls.key)
    for name, egress in config.egress.items():
        if egress.ssh.key is not None:
            yield f"egress.{name}.ssh.key", Path(egress.ssh.key)
    if config.admin.tls is not None:
        yield "admin.tls.key", Path(config.admin.tls.key)
    if config.ca.key is not None:
        yield "ca.key", Path(config.ca.key)
    for number, intercept in enumerate(config.intercept):
        if intercept.key is not None:
            yield f"intercept[{number}].key", Path(intercept.key)


def links_of(egress: object) -> list[str]:
    """The URLs of an egress."""
    members = [one if isinstance(one, str) else one.to for one in getattr(egress, "members", None) or ()]
    return [*getattr(egress, "hops", ()), *members]


def mode_of(path: Path) -> int:
    """The mode of a file, 0 if there is none."""
    try:
        return path.stat().st_mode
    except OSError:
        return 0
