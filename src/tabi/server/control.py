"""The control socket: where commands ask the running server. A process of its own has it, which asks the supervisor.

It lies in ``$XDG_RUNTIME_DIR/tabi/`` or ``/run/tabi/``, and is for root and for the user that the server runs as. A
request is ``{"command": NAME, ...}``, its answer ``{"ok": {...}}`` or ``{"error": TEXT}``; see `tabi.server.frames`.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import itertools
import logging
import os
import socket
import stat
import struct
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tabi.errors import ConfigError, TabiError
from tabi.net.listen import bind_unix
from tabi.net.privileges import Identity
from tabi.net.reactor import make_loop
from tabi.server.asker import PATIENCE as LONGEST
from tabi.server.asker import Asker, patience_for
from tabi.server.channel import Channel, Message
from tabi.server.frames import MAX_ANSWER, MAX_REQUEST, encode_frame, read_frame, receive_frame
from tabi.url import UnixSocket

log = logging.getLogger("tabi")

NAME, NAME_OF_FURTHER, NAME_OF_DRAINING = "control.sock", "control-{}.sock", "draining-{}.sock"
"""The socket of a server, and those of further ones that run at the same time, by the pids of their supervisors; and
that of one that another process has taken over from. A client does not look for these by itself."""

RUN = "/run"
"""The folder of sockets for which the environment names none."""

PATIENCE = 2 * LONGEST
"""Seconds that a client may take for a request or an answer."""

LAST_ANSWERS = 0.5
"""Seconds for clients to take their answers when the server ends."""

LOCK_PATIENCE = 0.5
"""Seconds that another server may take to open or remove its socket."""

MAX_CLIENTS = 16
"""Connections at a time."""

CREDENTIALS = struct.Struct("3i")
"""pid, uid and gid of the client (SO_PEERCRED, unix(7))."""


def folders(environ: Mapping[str, str]) -> list[Path]:
    """Where sockets may lie; a server takes the first one."""
    runtime = environ.get("XDG_RUNTIME_DIR")
    return [Path(folder, "tabi") for folder in (runtime, RUN) if folder]


# --- the process ---


class Control:
    """Answers what is asked through the socket.

    Args:
        folder: where the socket lies; it is made if its parent is there.
        version: of the program, which ``status`` tells.
        before: the pid of the supervisor that ours takes over from.
    """

    def __init__(self, folder: Path, version: str, before: int | None = None) -> None:
        self.folder = folder
        self.version = version
        self.before = before
        self.clients: set[asyncio.Task[Any]] = set()
        self.answering: set[asyncio.Task[Any]] = set()

    def run(self, channel: Channel) -> None:
        """What the process does, until the supervisor closes the channel."""
        with asyncio.Runner(loop_factory=make_loop) as runner:
            runner.run(self.serve(channel))

    async def serve(self, channel: Channel) -> None:
        """Open the socket, tell the supervisor where it is or why it is not, and answer."""
        self.over = asyncio.Event()
        self.asker = Asker(channel, self.version)
        self.path: Path | None = None
        channel.watch(asyncio.get_running_loop(), self.heard, self.over.set)
        try:
            self.path, sock = open_socket(self.folder, os.getppid(), self.before)
        except OSError as exc:
            log.info("no control socket: %s: %s", exc.filename or self.folder, exc.strerror)
            channel.send({"ready": None})
            await self.over.wait()
            return
        channel.send({"ready": str(self.path)})
        found = os.stat(self.path)
        try:
            server = await asyncio.start_unix_server(self.serve_client, sock=sock)
            await self.over.wait()
            server.close()
            await self.end()
        finally:
            with contextlib.suppress(OSError), locked(self.folder):
                if os.path.samestat(os.stat(self.path), found):
                    self.path.unlink()

    async def end(self) -> None:
        """End all connections, those that are being answered when that is done."""
        self.asker.end()
        if self.answering:
            await asyncio.wait(self.answering, timeout=LAST_ANSWERS)
        if self.clients:
            for task in self.clients:
                task.cancel()
            await asyncio.wait(self.clients)

    def heard(self, message: Message) -> None:
        """Give an answer of the supervisor to whom it is for, or rename the socket."""
        if "aside" in message.body or "take" in message.body:
            self.rename(message.body)
        else:
            self.asker.heard(message)

    def rename(self, told: Mapping[str, Any]) -> None:
        """Another process takes over, or this one does (``take``, from a supervisor with that pid): the old socket gets
        a second name, and the new one takes the place of its first. So there is one under that name at any time."""
        if self.path is not None:
            move, pid = (step_aside, told["aside"]) if "aside" in told else (take, told["take"])
            try:
                with locked(self.folder):
                    self.path = move(self.path, pid)
            except OSError as exc:
                log.warning("control socket: %s: %s", exc.filename or self.folder, exc.strerror)
        self.asker.channel.send({"aside": True} if "aside" in told else {"taken": True})

    async def serve_client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of one connection, one after the other."""
        task = asyncio.current_task()
        assert task is not None
        self.clients.add(task)
        try:
            async with asyncio.timeout(None) as patience:
                loop = asyncio.get_running_loop()
                going_on = True
                while going_on:
                    patience.reschedule(loop.time() + PATIENCE)
                    refused = self.refuse(writer)
                    answer, going_on = (
                        ({"error": refused}, False) if refused else await self.answer_next(reader, patience)
                    )
                    if answer is None:
                        break
                    patience.reschedule(loop.time() + PATIENCE)
                    writer.write(encode_frame(answer))
                    await writer.drain()
                    self.answering.discard(task)
                writer.close()
                await writer.wait_closed()
        except (TimeoutError, EOFError, OSError):
            pass  # a slow client, or one that is gone
        finally:
            self.clients.remove(task)
            self.answering.discard(task)
            writer.transport.abort()

    def refuse(self, writer: asyncio.StreamWriter) -> str | None:
        """Why a client is not answered, or None."""
        if len(self.clients) > MAX_CLIENTS:
            return "too many clients, try again later"
        sock = writer.get_extra_info("socket")
        _, uid, _ = CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size))
        return None if uid in (0, os.geteuid()) else f"not for user {uid}"

    async def answer_next(
        self, reader: asyncio.StreamReader, patience: asyncio.Timeout
    ) -> tuple[dict[str, Any] | None, bool]:
        """The answer for the next request, None if there is no request, and whether the connection goes on."""
        try:
            request = await read_frame(reader, MAX_REQUEST)
        except ValueError as exc:
            return {"error": f"not a request: {exc}"}, False
        if request is None:
            return None, False
        task = asyncio.current_task()
        assert task is not None
        self.answering.add(task)
        patience.reschedule(asyncio.get_running_loop().time() + PATIENCE + patience_for(request))
        return await self.asker.ask(request), True


def give_folder(folder: Path, identity: Identity) -> None:
    """Make the folder of sockets another user's, for the process that has the socket; as root. A failure is that of
    `open_socket`."""
    with contextlib.suppress(OSError):
        with contextlib.suppress(FileExistsError):
            os.mkdir(folder, 0o700)
        found = os.lstat(folder)
        if stat.S_ISDIR(found.st_mode) and found.st_uid == 0:
            os.chown(folder, identity.uid, identity.gid, follow_symlinks=False)


def open_socket(folder: Path, pid: int, before: int | None = None) -> tuple[Path, socket.socket]:
    """Listen in a folder, under the usual name or, if another server has that, one with the pid of ours. The socket of
    a server that is gone is replaced, and no two servers do so at once. ``before`` is the pid of a supervisor that ours
    takes over from: it has the usual name.

    Raises:
        OSError: it cannot be done, or other users could write there.
    """
    with contextlib.suppress(FileExistsError):
        os.mkdir(folder, 0o700)
    with locked(folder) as fd:
        found = os.fstat(fd)
        if found.st_uid not in (0, os.geteuid()) or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise OSError(errno.EPERM, "others than the user of this server may write there", str(folder))
        further = (folder.glob(name.format("*")) for name in (NAME_OF_FURTHER, NAME_OF_DRAINING))
        for stale in itertools.chain(*further):
            with contextlib.suppress(OSError):
                bind_unix(UnixSocket(str(stale), mode=0o600)).close()
                stale.unlink()
        path = folder / NAME
        try:
            return path, bind_unix(UnixSocket(str(path), mode=0o600))
        except OSError as exc:
            if exc.errno not in (errno.EADDRINUSE, errno.EEXIST):
                raise OSError(exc.errno, exc.strerror, str(path)) from exc
        path = folder / NAME_OF_FURTHER.format(pid)
        sock = bind_unix(UnixSocket(str(path), mode=0o600))
        if before is None:
            log.info("control socket: %s, since another server has %s", path, NAME)
        return path, sock


def step_aside(path: Path, pid: int) -> Path:
    """Give the socket of a supervisor another name; another socket may take the one that it has. Raises OSError."""
    aside = path.with_name(NAME_OF_DRAINING.format(pid))
    os.link(path, aside)
    return aside


def take(path: Path, pid: int) -> Path:
    """Move a socket to the place of that of another supervisor, which has stepped aside or ended. Raises OSError."""
    aside, first = path.with_name(NAME_OF_DRAINING.format(pid)), path.with_name(NAME)
    for place in (first, path.with_name(NAME_OF_FURTHER.format(pid))):
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.stat(place), os.stat(aside)):
                os.rename(path, place)
                return place
    if path != first and not first.exists():
        os.rename(path, first)
        return first
    return path


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[int]:
    """Lock a folder against other servers. Raises OSError; BlockingIOError if another process keeps it locked."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        deadline = time.monotonic() + LOCK_PATIENCE
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(0.01)
        yield fd
    finally:
        os.close(fd)


# --- the client ---


def find_socket(environ: Mapping[str, str]) -> Path:
    """The control socket of the server that runs. Raises TabiError if there is none, or more than one."""
    alive = []
    for folder in folders(environ):
        for path in sorted(folder.glob("control*.sock")):
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
                sock.settimeout(PATIENCE)
                sock.connect(str(path))
                alive.append(path)
    if len(alive) > 1:
        raise TabiError(f"several servers run, say which one is meant: {', '.join(map(str, alive))}")
    if not alive:
        raise TabiError(
            f"no server runs that this user may ask: no socket in {' or '.join(map(str, folders(environ)))}"
        )
    return alive[0]


def ask_server(path: Path, command: str, timeout: float = PATIENCE, **arguments: Any) -> dict[str, Any]:
    """Have the running server do a command, and return what it answers. It may take ``timeout`` seconds.

    Raises:
        ConfigError: what was asked for is wrong; it names the key.
        TabiError: the server cannot or will not do it, or does not answer.
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(timeout)
            sock.connect(str(path))
            with contextlib.suppress(BrokenPipeError):  # it has refused already, and its answer says why
                sock.sendall(encode_frame({"command": command, **arguments}))
            answer = receive_frame(sock, MAX_ANSWER)
    except (OSError, EOFError, ValueError) as exc:
        raise TabiError(f"{path}: {getattr(exc, 'strerror', None) or exc}") from exc
    if "path" in answer:
        raise ConfigError(str(answer.get("error")), answer["path"])
    if "error" in answer:
        raise TabiError(str(answer["error"]))
    found: dict[str, Any] = answer.get("ok", {})
    return found
