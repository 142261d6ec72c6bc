"""Local files: which file a URL means, never one outside the folder, and how its content is sent."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import Run
from doubles import until
from h2_net import client as h2_client
from h2_net import origin as h2_origin
from interceptions import OK, origin
from molding import ask, curl, molding
from tabi import Session
from tabi.distort.local_files import (
    PIECE,
    SMALL,
    FileContent,
    LocalFiles,
    NotThere,
    Pieces,
    names_of,
    open_file,
    part_of,
    type_of,
)
from tabi.intercept.flow import FlowRequest
from tabi.intercept.headers import Headers


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with files, beside a file that is none of them."""
    (tmp_path / "outside").write_text("secret")
    site = tmp_path / "site"
    (site / "deep").mkdir(parents=True)
    (site / "index.html").write_text("index")
    (site / "deep" / "index.html").write_text("deep index")
    (site / "deep" / "a b%.txt").write_text("a b")
    (site / "link").symlink_to("../outside")
    (site / "up").symlink_to("..")
    (site / "here").symlink_to("index.html")
    (site / "empty").mkdir()
    os.mkfifo(site / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(site / "socket"))  # the whole path may be too long for it
    return site


def read(root: Path, target: str) -> bytes:
    """The content of what a target means."""
    fd, _ = open_file(str(root), target)
    with os.fdopen(fd, "rb") as file:
        return file.read()


@pytest.mark.parametrize(
    ("target", "content"),
    [
        ("/", b"index"),
        ("", b"index"),
        ("*", None),
        ("/?a=/../outside", b"index"),
        ("/index.html#/../x", b"index"),
        ("//./index.html", b"index"),
        ("/deep", b"deep index"),
        ("/deep/", b"deep index"),
        ("/%64eep/a%20b%25.txt", b"a b"),
        ("/deep/a b%.txt", b"a b"),
        ("/index.html/", None),
        ("/index.html/x", None),
        ("/empty", None),
        ("/none", None),
        ("/pipe", None),
        ("/socket", None),
        ("/here", None),
        ("/link", None),
        ("/up/outside", None),
        ("/../outside", None),
        ("/deep/../../outside", None),
        ("/deep/../index.html", None),
        ("/%2e%2e/outside", None),
        ("/..%2foutside", None),
        ("/..\\outside", None),
        ("/%5c..%5coutside", None),
        ("/index.html%00.png", None),
        ("/" + "a" * 5000, None),
    ],
)
def test_targets(folder: Path, target: str, content: bytes | None) -> None:
    """Files and folders by their path; no way leads out of the folder, nor through a link."""
    if content is None:
        with pytest.raises(NotThere):
            read(folder, target)
    else:
        assert read(folder, target) == content


SEGMENTS = (
    *("..", ".", "", "deep", "up", "link", "here", "outside", "index.html"),
    *("%2e%2e", "%2E.", "..%2f", "%5c", "%00", "\\", "%"),
)
PATHS = st.lists(st.sampled_from(SEGMENTS), max_size=8).map("/".join)
NAMES = st.binary(min_size=1).filter(lambda name: name not in (b".", b"..") and not set(name) & set(b"/\\\0"))


@given(target=st.one_of(PATHS, st.text(max_size=30), st.binary(max_size=20).map(os.fsdecode)))
def test_no_target_leads_out(tmp_path_factory: pytest.TempPathFactory, target: str) -> None:
    """Whatever is asked for, the file is one of the folder's, or there is none."""
    root = tmp_path_factory.getbasetemp() / "never-out"
    if not root.exists():
        (root / "site" / "deep").mkdir(parents=True)
        (root / "outside").write_text("secret")
        (root / "site" / "index.html").write_text("index")
        (root / "site" / "deep" / "index.html").write_text("index")
        (root / "site" / "up").symlink_to("..")
        (root / "site" / "link").symlink_to("../outside")
    try:
        assert read(root / "site", target) == b"index"
    except NotThere:
        pass


@given(names=st.lists(NAMES, min_size=1))
def test_names_of_files_come_back(names: list[bytes]) -> None:
    """A path that was encoded as URLs are is read as it was."""
    assert names_of("/" + "/".join(map(quote, names))) == names


def test_what_is_no_file_or_folder(folder: Path) -> None:
    """A root that is missing or a pipe is an error for the log; a link to a folder may be one."""
    for name in ("none", "pipe"):
        with pytest.raises(OSError, match=r"No such file|not a file"):
            read(folder / name, "/")
    (folder.parent / "root").symlink_to(folder)
    assert read(folder.parent / "root", "/deep") == b"deep index"
    assert read(folder / "here", "/whatever/../x") == b"index"


def test_types() -> None:
    """By the name; what is compressed is not called what is inside."""
    assert type_of(b"a.html") == "text/html; charset=utf-8"
    assert type_of(b"a.json") == "application/json"
    assert type_of(b"a.tar.gz") == type_of(b"a") == type_of(b"\xff") == "application/octet-stream"


def test_large_files_are_read_in_pieces(run_once: Run, tmp_path: Path) -> None:
    """A small file is closed at once; a large one is read as it is sent, and says so if it has become shorter."""
    path = tmp_path / "file"

    async def main() -> None:
        path.write_bytes(b"x" * SMALL)
        small = await LocalFiles().open(str(path))
        assert small is not None
        assert small.fd < 0
        assert [len(piece) async for piece in Pieces(small, range(SMALL))] == [SMALL]
        assert [len(piece) async for piece in Pieces(small, range(5, 12))] == [7]
        path.write_bytes(b"x" * (SMALL + 1))
        large = await LocalFiles().open(str(path))
        assert large is not None
        assert [len(piece) async for piece in Pieces(large, range(large.size))] == [PIECE] * (SMALL // PIECE) + [1]
        assert [len(piece) async for piece in Pieces(large, range(5, PIECE + 7))] == [PIECE, 2]
        path.write_bytes(b"x" * PIECE)
        with pytest.raises(OSError, match="shorter"):
            [piece async for piece in Pieces(large, range(large.size))]
        large.close()
        large.close()

    run_once(main)


@pytest.mark.parametrize("forwarded", [False, True], ids=["tunnel", "forwarded"])
def test_a_file_that_becomes_shorter_ends_the_connection(
    run_once: Run, folder: Path, forwarded: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """The client sees that its answer is not whole, the session says why, and no traceback is in the log."""
    path = folder / "large"

    async def main() -> None:
        path.write_bytes(bytes(30_000_000))
        over: list[Session] = []
        async with (
            origin(OK, plain=True) as one,
            molding(folder.parent, {"map_local": "site"}, over=over) as server,
        ):
            address = server.addresses[0]
            reader, writer = await asyncio.open_connection(str(address.host), address.port)
            url = f"http://localhost:{one.port}/large" if forwarded else "/large"
            if not forwarded:
                writer.write(b"CONNECT localhost:%d HTTP/1.1\r\nHost: localhost:%d\r\n\r\n" % (one.port, one.port))
                await reader.readuntil(b"\r\n\r\n")
            writer.write(f"GET {url} HTTP/1.1\r\nHost: localhost:{one.port}\r\n\r\n".encode())
            await reader.readuntil(b"\r\n\r\n")
            os.truncate(path, 1)
            with pytest.raises(OSError, match="reset"):
                await reader.read()
            writer.close()
            await until(lambda: bool(over))
            assert over[-1].error == "a local file has become shorter"

    run_once(main)
    assert not [record for record in caplog.records if record.name == "tabi"]


def test_a_file_that_is_left_is_closed(tmp_path: Path) -> None:
    """Whoever forgets an answer leaves no descriptor."""
    path = tmp_path / "file"
    path.write_bytes(b"x" * (SMALL + 1))
    content = FileContent(*open_file(str(path), "/"))
    fd = content.fd
    os.fstat(fd)
    del content
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("bytes=0-0", range(1)),
        ("bytes=2-4", range(2, 5)),
        ("Bytes=8-", range(8, 10)),
        ("bytes=8-99", range(8, 10)),
        ("bytes=-3", range(7, 10)),
        ("bytes=-99", range(10)),
        ("bytes=10-", range(10, 10)),
        ("bytes=-0", range(10, 10)),
        ("bytes=4-3", None),
        ("bytes=0-1,3-4", None),
        ("bytes=-", None),
        ("bytes=1", None),
        ("bytes=\u0661-", None),
        ("lines=1-2", None),
        ("bytes=" + "9" * 30 + "-", None),
    ],
)
def test_parts_of_a_file(asked: str, expected: range | None) -> None:
    """One range, as RFC 9110 section 14 has it; whatever else is said, all of it is sent."""
    request = FlowRequest("GET", "http", "a.test", "/", "HTTP/1.1", Headers([("Range", asked)]))
    assert part_of(request, 10) == expected
    request.headers.add("If-Range", '"a"')
    assert part_of(request, 10) is None
    request.headers.remove("If-Range")
    request.method = "POST"
    assert part_of(request, 10) is None


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "h2"])
def test_a_part_is_sent(run_once: Run, folder: Path, secure: bool) -> None:
    """curl goes on with a download, and is told when there is nothing left; a status of the entry's own is for all."""
    large = os.urandom(1_000_000)
    (folder / "large").write_bytes(large)

    async def main() -> None:
        intercept = [{"hosts": ["localhost"]}]
        async with origin(plain=True) as one, h2_origin() as port:
            url = f"https://localhost:{port}/large" if secure else f"http://localhost:{one.port}/large"
            for more, status, body, size in (
                ({}, b" 206", large[900_000:], b"content-range: bytes 900000-999999/1000000"),
                ({"status": 404}, b" 404", large, b"content-length: 1000000"),
            ):
                entry = {"map_local": "site", **more}
                async with molding(folder.parent, entry, intercept=intercept) as server:
                    done = await curl(server, url, "-r", "900000-", folder=folder.parent)
                    assert (done.code, done.body == body) == (0, True)
                    assert status in done.head.partition(b"\r\n")[0]
                    assert size in done.head.lower()
                    if status == b" 206":
                        done = await curl(server, url, "-r", "1000000-", folder=folder.parent)
                        assert b" 416" in done.head.partition(b"\r\n")[0]
                        assert b"content-range: bytes */1000000" in done.head.lower()
                        assert done.body == b""

    run_once(main)


def test_a_folder_answers(run_once: Run, folder: Path) -> None:
    """By HTTP/1.1 and by HTTP/2: type and length, HEAD, large files; what the folder does not have, the destination
    says."""
    large = os.urandom(1_500_000)
    (folder / "large").write_bytes(large)

    async def main() -> None:
        entry = {"map_local": "site", "response_headers": {"set": {"X-Local": "1"}}}
        async with (
            origin(OK, OK, OK, plain=True) as one,
            h2_origin() as port,
            molding(folder.parent, entry, intercept=[{"hosts": ["localhost"]}]) as server,
        ):
            for url in (f"http://localhost:{one.port}", f"https://localhost:{port}"):
                done = await curl(server, f"{url}/deep/a%20b%25.txt?x", folder=folder.parent)
                assert (done.code, done.body) == (0, b"a b"), done
                head = done.head.lower()
                assert b" 200" in head.partition(b"\r\n")[0]
                assert b"content-type: text/plain; charset=utf-8" in head
                assert b"content-length: 3" in head
                assert b"x-local: 1" in head
                assert b"date: " in head
                done = await curl(server, f"{url}/large", folder=folder.parent)
                assert (done.code, done.body == large) == (0, True)
                done = await curl(server, f"{url}/large", "-I", folder=folder.parent)
                assert (done.code, done.body) == (0, b"")
                assert b"content-length: 1500000" in done.head.lower()
                done = await curl(server, f"{url}/deep/", "-d", "posted", folder=folder.parent)
                assert (done.code, done.body) == (0, b"deep index")
            assert one.heads == []
            for path in ("/none", "/link", "/%2e%2e/outside"):
                done = await curl(server, f"http://localhost:{one.port}{path}", "--path-as-is")
                assert done.body == b"hello"
            assert [head.split()[1] for head in one.heads] == [b"/none", b"/link", b"/%2e%2e/outside"]

    run_once(main)


def test_kept_connections_go_on(run_once: Run, folder: Path) -> None:
    """Behind a local answer the destination is asked on the same connection, by HTTP/1.1 in a tunnel and by HTTP/2 with
    many at once."""
    octets = b"".join(
        b"GET /%b HTTP/1.1\r\nHost: localhost\r\n\r\n" % path for path in (b"", b"none", b"deep", b"none", b"empty")
    )

    async def main() -> None:
        entry = {"map_local": "site"}
        intercept = [{"hosts": ["localhost"]}]
        async with origin(OK, OK, OK, plain=True) as one, molding(folder.parent, entry) as server:
            answer = await ask(server, octets, one.port)
            bodies = [part.partition(b"\r\n\r\n")[2] for part in answer.split(b"HTTP/1.1 200 OK")[1:]]
            assert bodies == [b"index", b"hello", b"deep index", b"hello", b"hello"]
            assert one.connections == 1
        async with h2_origin() as port, molding(folder.parent, entry, intercept=intercept) as server:
            async with h2_client(server.url, port) as one_client, asyncio.TaskGroup() as group:
                paths = ["/", "/deep/", "/none", "/index.html"] * 25
                asked = [group.create_task(one_client.ask(path)) for path in paths]
            bodies = [task.result().body for task in asked]
            assert bodies == [b"index", b"deep index", b"", b"index"] * 25

    run_once(main)
