"""Scripts: Python files with classes of hooks, loaded once in each worker, and again when they change."""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import re
import stat
import sys
import threading
import zlib
from collections.abc import Sequence
from types import ModuleType
from typing import NamedTuple

from tabi.errors import ConfigError
from tabi.intercept.hooks import EVENTS, Hooks, check_method, methods_of

log = logging.getLogger("tabi")

LOOK_EVERY = 1.0
"""Seconds between two looks at the files."""

SIZE_LIMIT = 1 << 22
"""Octets of a script."""

TEXT_LIMIT = 500
"""Characters of an error's own text."""

Stamp = tuple[int, int, int, int] | None
"""Device, inode, size and time of change of a file: it is another one when they differ. None: it cannot be read."""


class Loaded(NamedTuple):
    """One version of a script."""

    stamp: Stamp
    objects: tuple[object, ...]


def load_script(path: str) -> Loaded:
    """Read and run a script, and make one object of each class in it that has hooks.

    Raises:
        ConfigError: it cannot be read or run, or has no hooks, or one takes other arguments. It names file and line.
    """
    stamp, source = read_script(path)
    name = module_name(path)
    module = ModuleType(name)
    module.__file__ = os.path.abspath(path)
    before = sys.modules.get(name)
    try:
        code = compile(source, path, "exec", dont_inherit=True)
        sys.modules[name] = module  # dataclasses look there
        exec(code, module.__dict__)  # noqa: S102  that is what scripts are for
        objects = tuple(make_objects(path, module))
    except BaseException as exc:
        if before is None:
            sys.modules.pop(name, None)
        else:
            sys.modules[name] = before
        if isinstance(exc, ConfigError | KeyboardInterrupt):
            raise
        raise ConfigError(describe(exc, path)) from exc
    return Loaded(stamp, objects)


def read_script(path: str) -> tuple[Stamp, bytes]:
    """What a file has, and its stamp. Raises ConfigError."""
    try:
        number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe would let us wait
        with open(number, "rb") as file:
            found = os.fstat(number)
            if not stat.S_ISREG(found.st_mode):
                raise ConfigError(f"{path}: not a file")
            source = file.read(SIZE_LIMIT + 1)
    except (OSError, ValueError) as exc:
        raise ConfigError(f"{path}: {getattr(exc, 'strerror', None) or exc}") from None
    if len(source) > SIZE_LIMIT:
        raise ConfigError(f"{path}: more than {SIZE_LIMIT} octets")
    return stamp_of(found), source


def stamp_of(found: os.stat_result) -> Stamp:
    """What of a file changes when it is written or replaced."""
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def look_at(path: str) -> Stamp:
    """The stamp of a file, None if there is none."""
    try:
        return stamp_of(os.stat(path))
    except (OSError, ValueError):
        return None


def module_name(path: str) -> str:
    """The name of a script's module, the same for each version: ``tabi_script_hooks_1a2b3c4d`` for ``hooks.py``."""
    path = os.path.abspath(path)
    stem = re.sub(r"\W", "_", os.path.splitext(os.path.basename(path))[0], flags=re.ASCII)
    return f"tabi_script_{stem}_{zlib.crc32(os.fsencode(path)):08x}"


def make_objects(path: str, module: ModuleType) -> list[object]:
    """One object of each class that the file itself defines and that has hooks, in the order of the file."""
    classes = {
        found: None
        for found in vars(module).values()
        if isinstance(found, type)
        and found.__module__ == module.__name__
        and methods_of(found)
        and not inspect.isabstract(found)
    }
    if not classes:
        raise ConfigError(f"{path}: no class in it has one of the methods {', '.join(EVENTS)}")
    objects = []
    for found in classes:
        one = found()
        for event in methods_of(one):
            try:
                check_method(one, event)
            except TypeError as exc:
                code = getattr(inspect.unwrap(getattr(found, event)), "__code__", None)
                place = path if code is None else f"{path}:{code.co_firstlineno}"
                raise ConfigError(f"{place}: {exc}") from None
        objects.append(one)
    return objects


def describe(exc: BaseException, path: str) -> str:
    """Say in one line what is wrong with a script, and where."""
    if isinstance(exc, SyntaxError) and exc.filename == path:
        return f"{path}:{exc.lineno}: {type(exc).__name__}: {exc.msg}"
    line, trace = None, exc.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == path:
            line = trace.tb_lineno
        trace = trace.tb_next
    place = path if line is None else f"{path}:{line}"
    return f"{place}: {type(exc).__name__}: {str(exc)[:TEXT_LIMIT]}"


class Use(NamedTuple):
    """Hooks, and where their objects come from."""

    hooks: Hooks
    objects: tuple[object, ...]
    paths: tuple[str, ...]


class Scripts:
    """The scripts of one worker: each file is loaded once, whoever uses it, and again when it has changed.

    ``LOOK_EVERY`` seconds after a change it is loaded beside the loop, in a thread. A new version that is broken leaves
    the old one in place, and is logged once.
    """

    def __init__(self) -> None:
        self.loaded: dict[str, Loaded] = {}
        self.seen: dict[str, Stamp] = {}  # of the version that was tried last
        self.uses: list[Use] = []
        self.last: tuple[object, ...] = ()  # what sees flows behind all of these
        self.loop: asyncio.AbstractEventLoop | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.loading: threading.Thread | None = None

    def add(self, hooks: Hooks, paths: Sequence[str], objects: Sequence[object] = ()) -> None:
        """Give hooks the objects of a program and those of scripts, in this order, now and when a script changes.

        Raises:
            ConfigError: as `load_script`.
            TypeError: as `hooks.check_hook`, of the program's objects.
        """
        try:
            for path in paths:
                if path not in self.loaded:
                    self.loaded[path] = load_script(path)
                    self.seen[path] = self.loaded[path].stamp
        except ConfigError:
            self.forget(hooks)
            raise
        use = Use(hooks, tuple(objects), tuple(paths))
        self.renew(use)
        self.uses.append(use)

    def forget(self, hooks: Hooks) -> None:
        """Give hooks no other objects any more. A script that nobody else uses is not looked at."""
        self.uses = [use for use in self.uses if use.hooks is not hooks]
        for path in set(self.loaded).difference(*(use.paths for use in self.uses)):
            del self.loaded[path], self.seen[path]

    def renew(self, use: Use) -> None:
        """Give hooks the objects that there are now."""
        scripts = (one for path in use.paths for one in self.loaded[path].objects)
        use.hooks.replace([*use.objects, *scripts, *self.last])

    def set_last(self, objects: tuple[object, ...]) -> None:
        """Give all hooks these objects of the server's own, behind the others."""
        if objects != self.last:
            self.last = objects
            for use in self.uses:
                self.renew(use)

    @property
    def uses_objects(self) -> bool:
        """Whether there are hooks of a program, or scripts."""
        return any(use.objects or use.paths for use in self.uses)

    def start(self) -> None:
        """Look at the files from now on, in the running loop. Without scripts nothing is looked at. It may be called
        again when there are others."""
        if self.loaded and self.timer is None and self.loading is None:
            self.loop = asyncio.get_running_loop()
            self.timer = self.loop.call_later(LOOK_EVERY, self.look)

    def look(self) -> None:
        """Look whether files have changed, and load those that have."""
        if self.loop is None:
            return
        self.timer = None
        changed = [path for path, stamp in self.seen.items() if look_at(path) != stamp]
        if changed:
            self.loading = threading.Thread(target=self.load, args=(self.loop, changed), name="tabi-scripts")
            self.loading.daemon = True
            self.loading.start()
        else:
            self.timer = self.loop.call_later(LOOK_EVERY, self.look)

    def load(self, loop: asyncio.AbstractEventLoop, paths: list[str]) -> None:
        """In a thread: load scripts, and hand them to the loop."""
        found: dict[str, Loaded | ConfigError] = {}
        stamps: dict[str, Stamp] = {}
        for path in paths:
            stamps[path] = look_at(path)  # what changes later is another version
            try:
                found[path] = load_script(path)
            except ConfigError as exc:
                found[path] = exc
            except BaseException as exc:
                found[path] = ConfigError(describe(exc, path))
        try:
            loop.call_soon_threadsafe(self.take, found, stamps)
        except RuntimeError:  # the loop is closed
            pass

    def take(self, found: dict[str, Loaded | ConfigError], stamps: dict[str, Stamp]) -> None:
        """In the loop: put new versions in place, and say what is wrong with others."""
        if self.loop is None:
            return
        self.loading = None
        for path, one in found.items():
            if path not in self.seen:  # nobody uses it any more
                continue
            self.seen[path] = stamps[path]
            if isinstance(one, Loaded):
                self.loaded[path] = one
                log.info("script %s: loaded again", path)
            else:
                log.error("script %s; the version before stays", one)
        for use in self.uses:
            if any(isinstance(found.get(path), Loaded) for path in use.paths):
                self.renew(use)
        self.timer = self.loop.call_later(LOOK_EVERY, self.look)

    def close(self) -> None:
        """Look at nothing any more. A script that is being loaded is not waited for."""
        self.loop = None
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
