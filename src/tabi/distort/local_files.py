"""Local files that answer requests in place of destinations: which file a URL means, and its content."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import re
import stat
from collections.abc import AsyncIterator
from http import HTTPStatus
from mimetypes import MimeTypes
from typing import Self
from urllib.parse import unquote_to_bytes

from tabi.intercept.flow import FlowRequest
from tabi.intercept.headers import to_octets
from tabi.wire.http_fields import Field

log = logging.getLogger("tabi")

SMALL = 1 << 18
"""Octets of a file that is read at once and closed; a larger one stays open, and is read as it is sent."""

PIECE = 1 << 16
"""Octets of a larger file that are read at once."""

INDEX = b"index.html"
KINDS = MimeTypes(filenames=())  # the same everywhere, whatever the machine knows
BODILESS = (204, 304)
RANGE = re.compile(r"bytes=(?:(\d{1,18})-(\d{0,18})|-(\d{1,18}))", re.ASCII | re.IGNORECASE)
READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK  # a pipe would let us wait
NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENXIO, errno.ENODEV)
"""What a path has that a folder does not; ELOOP is a symbolic link, the last two are sockets and devices."""


class NotThere(Exception):
    """A folder has no such file."""


def names_of(target: str) -> list[bytes]:
    """The folders, and the file behind them, that a target of HTTP means below a folder.

    Raises:
        NotThere: it might lead elsewhere.
    """
    path = to_octets(target).partition(b"?")[0].partition(b"#")[0]
    names = []
    for part in path.split(b"/"):
        name = unquote_to_bytes(part)
        if name == b".." or any(octet in name for octet in (b"/", b"\\", b"\0")):
            raise NotThere
        if name not in (b"", b"."):
            names.append(name)
    if path.endswith(b"/"):
        names.append(INDEX)
    return names


def open_file(root: str, target: str) -> tuple[int, bytes]:
    """Open a file, or that of a target below a folder; symbolic links in the folder are not followed.

    Returns:
        its descriptor, and its name.

    Raises:
        NotThere: the folder has no such file.
        OSError: there is no such file or folder, or it cannot be read.
    """
    fd, name = os.open(root, READ), os.fsencode(os.path.basename(root))
    try:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            for name in names_of(target) or (INDEX,):
                fd = descend(fd, name)
            if stat.S_ISDIR(os.fstat(fd).st_mode):
                name = INDEX
                fd = descend(fd, name)
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise NotThere
        elif not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "not a file", root)
    except BaseException:
        os.close(fd)
        raise
    return fd, name


def descend(fd: int, name: bytes) -> int:
    """Open what a folder has, and close the folder; it stays open if that raises. Errors as `open_file`."""
    try:
        found = os.open(name, READ | os.O_NOFOLLOW, dir_fd=fd)
    except OSError as exc:
        if exc.errno in NOT_THERE:
            raise NotThere from None
        raise
    os.close(fd)
    return found


def type_of(name: bytes) -> str:
    """The Content-Type of a file with this name."""
    kind, coding = KINDS.guess_type(os.fsdecode(name))
    if kind is None or coding is not None:
        return "application/octet-stream"
    return f"{kind}; charset=utf-8" if kind.startswith("text/") else kind


class FileContent:
    """The content of a file, up to the size that it had when it was opened.

    Args:
        fd: is closed with it.
        name: of the file.
    """

    __slots__ = ("data", "fd", "name", "size")

    def __init__(self, fd: int, name: bytes) -> None:
        self.fd = fd
        self.name = name
        self.size = os.fstat(fd).st_size
        self.data: bytes | None = None
        if self.size <= SMALL:
            self.data = os.pread(fd, self.size, 0)
            self.size = len(self.data)
            self.close()

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Close the file. Harmless when done twice."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    async def read(self, at: int, end: int) -> bytes:
        """A piece of it that is not empty. Raises OSError: it cannot be read, or has become shorter."""
        if self.data is not None:
            return self.data[at:end]
        piece = await asyncio.to_thread(os.pread, self.fd, min(PIECE, end - at), at)
        if not piece:
            raise OSError(errno.EIO, "a local file has become shorter")
        return piece


class Pieces:
    """The pieces of a file's content. Errors as `FileContent.read`.

    Args:
        file: has them; None where there are none.
        part: which octets of it.
    """

    def __init__(self, file: FileContent | None, part: range = range(0)) -> None:
        self.file = file
        self.at, self.end = part.start, part.stop

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        if self.file is None or self.at >= self.end:
            raise StopAsyncIteration
        piece = await self.file.read(self.at, self.end)
        self.at += len(piece)
        return piece


class FileAnswer:
    """An answer with the content of a file; see `intercept.flow.Fetched`.

    Args:
        file: has the content.
        status: of the answer.
        fields: without those of framing.
        method: of the request: HEAD gets no content.
        part: which octets of the content; None: all.
    """

    def __init__(
        self, file: FileContent, status: int, fields: list[Field], method: str, part: range | None = None
    ) -> None:
        self.file = file
        self.status = status
        self.reason = reason_of(status)
        self.fields = fields
        self.part = range(file.size) if part is None else part
        if status not in BODILESS:
            self.fields = [*fields, (b"Content-Length", b" %d" % len(self.part))]
        if status in BODILESS or method == "HEAD":
            self.part = range(0)

    def content(self) -> AsyncIterator[bytes]:
        """See `Fetched`."""
        return Pieces(self.file, self.part)

    async def aclose(self) -> None:
        """Close the file."""
        self.file.close()


def answer_with(file: FileContent, request: FlowRequest, status: int | None) -> FileAnswer:
    """The answer to a request for a file, or for a part of it; ``status`` is another one than usual."""
    size, part = file.size, None if status is not None else part_of(request, file.size)
    fields = [(b"Content-Type", b" " + type_of(file.name).encode()), (b"Accept-Ranges", b" bytes")]
    if part is None:
        return FileAnswer(file, status or 200, fields, request.method)
    if not part:
        return FileAnswer(file, 416, [(b"Content-Range", b" bytes */%d" % size)], request.method, part)
    fields.append((b"Content-Range", b" bytes %d-%d/%d" % (part.start, part.stop - 1, size)))
    return FileAnswer(file, 206, fields, request.method, part)


def part_of(request: FlowRequest, size: int) -> range | None:
    """The octets of a file that a request asks for (RFC 9110 section 14); empty: it has none of them; None: all.

    All is the answer to several ranges as well, and to If-Range, since a file has no validator.
    """
    headers = request.headers
    found = RANGE.fullmatch(headers.get("Range") or "")
    if found is None or request.method != "GET" or "If-Range" in headers:
        return None
    first, last, suffix = found.groups()
    if suffix is not None:
        return range(max(0, size - int(suffix)), size)
    if last and int(last) < int(first):
        return None
    return range(min(int(first), size), min(int(last) + 1, size) if last else size)


def reason_of(status: int) -> bytes:
    """The usual words for a status; empty where there are none."""
    try:
        return HTTPStatus(status).phrase.encode()
    except ValueError:
        return b""


class LocalFiles:
    """Opens files, in threads. A file that cannot be read is logged once, until it can be read again."""

    def __init__(self) -> None:
        self.lost: set[str] = set()

    async def open(self, root: str, target: str = "/") -> FileContent | None:
        """The content of a file, or of the one that a target means below a folder; None if there is none."""
        try:
            found = await asyncio.to_thread(lambda: FileContent(*open_file(root, target)))
        except NotThere:
            return None
        except OSError as exc:
            if root not in self.lost:
                self.lost.add(root)
                log.error("%s: %s: HTTP goes on without it", root, (exc.strerror or str(exc)).lower())
            return None
        self.lost.discard(root)
        return found
