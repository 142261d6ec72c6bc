"""The files of a configuration: tabi.toml with those that it includes as one, and the paths in them.

Tables of several files are merged, and tables in an array (``[[rule]]``) stand one behind the other: those of a file in
front of those that it includes, files in the order of the patterns and of their names.
"""

from __future__ import annotations

import glob
import os
import re
import stat
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tabi.config.mistakes import TABLES, is_within
from tabi.errors import ConfigError

MAX_DEPTH = 8
"""Files that may include one another in a row."""
MAX_FILES = 1000
"""Files of a configuration."""

WATCHED = (
    "auth.users_file",
    *(f"{table}.{key}" for table in ("rule", "intercept", "distort") for key in ("hosts_file", "networks_file")),
    *(f"listen.tls.{key}" for key in ("certificate", "key", "client_ca")),
    "egress.*.ca",
)
"""Keys with paths of files that a reload reads again; ``*`` is any name."""

PATHS = (
    *WATCHED,
    *(f"intercept.{key}" for key in ("trust", "certificate", "key", "har", "scripts")),
    *(f"distort.{key}" for key in ("map_local", "body")),
    *(f"egress.*.ssh.{key}" for key in ("known_hosts", "key")),
    *(f"ca.{key}" for key in ("certificate", "key")),
    *(f"admin.{key}" for key in ("token_file", "read_token_file", "tls.certificate", "tls.key")),
    "quotas.path",
    "resolver.ca",
)
"""Keys with paths that are relative to the folder of their file."""


class Files:
    """The files of a configuration as one.

    Args:
        path: of tabi.toml.
        check: is called with the path of each file before that is read, and may raise ConfigError.
    """

    def __init__(self, path: str | Path, check: Callable[[Path], object] = lambda _: None) -> None:
        self.path = str(path)
        self.check = check
        self.parts: list[tuple[str, dict[str, Any]]] = []
        """Each file and what it says, with absolute paths."""
        self.names: list[str] = []
        """Those that were read, or tried."""
        self.real: set[str] = set()
        """The same without links."""
        self.patterns: list[str] = []
        """What is included, as absolute patterns."""

    def load(self) -> dict[str, Any]:
        """Read them all. Returns what they say together. Raises ConfigError, whose message begins with the name of the
        file that cannot be read or included."""
        self.read(self.path, ())
        return self.merged()

    def merged(self) -> dict[str, Any]:
        """What they say together. Raises ConfigError where two say the same."""
        if len(self.parts) == 1:
            return self.parts[0][1]
        found: dict[str, Any] = {}
        for name, part in self.parts:
            try:
                self.merge(found, part, "", name)
            except RecursionError:
                raise ConfigError("nested too deeply", name) from None
        return found

    def read(self, name: str, above: Sequence[str]) -> None:
        """Add a file and those that it includes; ``above`` are the ones that include it. Raises ConfigError."""
        self.check(Path(name))
        self.names.append(name)
        self.real.add(os.path.realpath(name))
        found = read_toml(name, bool(above))
        folder = os.path.dirname(os.path.abspath(name))
        for path in PATHS:
            found = changed(found, path.split("."), lambda text: os.path.join(folder, text))
        patterns = found.pop("include", [])
        self.parts.append((name, found))
        if not isinstance(patterns, list) or not all(map(is_path, patterns)):
            raise ConfigError('include: expected a list of patterns such as "conf.d/*.toml"', name)
        above = (*above, os.path.realpath(name))
        for pattern in patterns:
            self.patterns.append(os.path.join(glob.escape(folder), pattern))
            for other in sorted(glob.glob(self.patterns[-1])) or literal(folder, pattern):
                real = os.path.realpath(other)
                if real in above:
                    raise ConfigError(f"include: {other} includes this file, or is it", name)
                if real in self.real:
                    raise ConfigError(f"include: {other} is included already", name)
                if len(above) > MAX_DEPTH:
                    raise ConfigError(f"include: {other} is more than {MAX_DEPTH} files deep", name)
                if len(self.names) > MAX_FILES:
                    raise ConfigError(f"include: more than {MAX_FILES} files", name)
                self.read(other, above)

    def merge(self, data: dict[str, Any], found: dict[str, Any], path: str, name: str) -> None:
        """Add what a file says to the tables of others, at a path of keys. Raises ConfigError."""
        for key, value in found.items():
            below = f"{path}.{key}" if path else key
            before = data.get(key)
            if isinstance(value, dict) and isinstance(before, dict | None):
                self.merge(data.setdefault(key, {}), value, below, name)
            elif not path and key in TABLES and isinstance(value, list) and isinstance(before, list | None):
                data[key] = [*(before or ()), *value]
            elif key in data:
                raise ConfigError(f"{below}: {self.place_of(below)[0]} says it already", name)
            else:
                data[key] = value

    def named(self) -> set[str]:
        """The files that they name and that a reload reads, apart from those that they include."""
        found: dict[str, str] = {}
        for _, part in self.parts:
            for path in WATCHED:
                changed(part, path.split("."), lambda text: found.setdefault(text, text))
        return set(found)

    def place_of(self, path: str) -> tuple[str, str]:
        """The file that says what stands at a path, and the path there."""
        found = re.match(r"(\w+)\[(\d+)\]", path)
        left = int(found[2]) if found else 0
        for name, part in self.parts if found else ():
            entries = part.get(found[1]) if found else None
            count = len(entries) if isinstance(entries, list) else 0
            if found and left < count:
                return name, f"{found[1]}[{left}]{path[found.end() :]}"
            left -= count
        return max(self.parts, key=lambda part: known(path, part[1]), default=(self.path, {}))[0], path


def literal(folder: str, pattern: str) -> list[str]:
    """The file that a pattern without wildcards names, there or not."""
    return [] if re.search(r"[*?[]", pattern) else [os.path.join(folder, pattern)]


def is_path(value: object) -> bool:
    """Whether a value may be the path of a file."""
    return isinstance(value, str) and bool(value) and "\0" not in value


def known(path: str, data: Any) -> int:
    """How many characters of a path of keys a table knows."""
    keys = [key for key in data if is_within(path, key)] if isinstance(data, dict) else []
    if not keys:
        return 0
    key = max(keys, key=len)
    return len(key) + known(path[len(key) :].removeprefix("."), data[key])


def read_toml(name: str, included: bool = False) -> dict[str, Any]:
    """Read a file; one that is included must be a regular one. Raises ConfigError, whose message begins with its
    name."""
    try:
        if included and not stat.S_ISREG(os.stat(name).st_mode):
            raise ConfigError("not a regular file", name)
        text = Path(name).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as exc:
        raise ConfigError(f"no UTF-8 text at octet {exc.start}", name) from exc
    except OSError as exc:
        raise ConfigError(exc.strerror or str(exc), name) from exc
    try:
        return parse_toml(text)
    except ConfigError as exc:
        raise ConfigError(str(exc), name) from exc


def parse_toml(text: str) -> dict[str, Any]:
    """Parse TOML. Raises ConfigError."""
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ConfigError("nested too deeply") from None
    except ValueError as exc:  # such as TOMLDecodeError, and a number of 5,000 digits
        raise ConfigError(str(exc).partition(";")[0]) from exc


def changed(value: Any, keys: Sequence[str], change: Callable[[str], str]) -> Any:
    """A value with other texts at a path of keys, if it has any; ``*`` is any key, and arrays are gone through."""
    if isinstance(value, list):
        return [changed(one, keys, change) for one in value]
    if not keys:
        return change(value) if is_path(value) else value
    names = [key for key in value if keys[0] in ("*", key)] if isinstance(value, dict) else []
    if not names:
        return value
    return value | {name: changed(value[name], keys[1:], change) for name in names}


def in_files(error: ConfigError, files: Files) -> ConfigError:
    """An error of a configuration with the name of its file: the first, how many more there are and how they are shown.
    Its ``errors`` are all of them, each with its file."""
    found = []
    for one in error.errors:
        name, key = files.place_of(one.path or "")
        found.append(ConfigError(str(ConfigError(one.message, key or None)), name))
    hint = f" (and {len(found) - 1} more: tabi check {files.path})" if len(found) > 1 else ""
    return ConfigError(f"{found[0].message}{hint}", found[0].path, tuple(found))
