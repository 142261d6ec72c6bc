"""The documents: what can be checked of them is."""

from __future__ import annotations

import ast
import asyncio
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import httpx
import msgspec
import pytest

import tabi
import tabi.parts
import tabi.testing
import tabi.wire
from conftest import Run
from support import closed_port, datagram_target, target
from tabi.client import Proxy
from tabi.config import FaultConfig, LineConfig, parse_config
from tabi.config.load import PARTS
from tabi.net.resolve import ThreadResolver
from tabi.observe.exposition import METRICS
from tabi.observe.log_record import AssociationRecord, Record, SniffedRecord
from tabi.server.server import Server
from tabi.session import Close, Drop
from tabi.wire.socks5 import ReplyCode

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted((*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")))

BLOCK = re.compile(r"(?:^<!-- run: (?P<run>\w+) -->\n)?^```(?P<kind>\w*)\n(?P<text>.*?)^```$", re.M | re.S)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)|<(?:img|source)[^>]* (?:src|srcset)=\"([^\"]+)\"")


def page_id(path: Path) -> str:
    """A page as its path from the root."""
    return str(path.relative_to(ROOT))


def blocks(path: Path) -> Iterator[tuple[str | None, str, str]]:
    """The code blocks of a page: how they are marked to be run, their language and their text."""
    for found in BLOCK.finditer(path.read_text()):
        yield found["run"], found["kind"], found["text"]


def runnable(name: str) -> str:
    """The code block of README.md that is marked ``<!-- run: name -->``."""
    (text,) = (text for run, _, text in blocks(ROOT / "README.md") if run == name)
    return text


def anchors(path: Path) -> set[str]:
    """The anchors that GitHub gives to a page's headings."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", PAGES, ids=page_id)
def test_links_inside_the_repository_lead_somewhere(path: Path) -> None:
    """Every relative link has a file, and every anchor a heading."""
    prose = re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.M | re.S)
    for found in LINK.finditer(prose):
        link = found[1] or found[2]
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        there = (path.parent / name).resolve() if name else path
        assert there.exists(), f"{page_id(path)}: {link}"
        assert not anchor or anchor in anchors(there), f"{page_id(path)}: {link}: no such heading"


@pytest.mark.parametrize("path", PAGES, ids=page_id)
def test_files_of_tests_that_a_page_names_are_there(path: Path) -> None:
    """A page says what is tested where."""
    for name in re.findall(r"`(tests/[\w/]+\.py)`", path.read_text()):
        assert (ROOT / name).exists(), f"{page_id(path)}: {name}"


@pytest.mark.parametrize("path", PAGES, ids=page_id)
def test_code_on_the_pages_is_well_formed(path: Path) -> None:
    """Python parses (await may stand outside of functions), and TOML is a configuration that tabi accepts."""
    for _, kind, text in blocks(path):
        if kind == "python":
            compile(text, page_id(path), "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT | ast.PyCF_ONLY_AST)
        elif kind == "toml":
            parse_config(text)


def keys_of(part: type[msgspec.Struct]) -> list[str]:
    """The keys of a part, as they are written."""
    return [field.encode_name for field in msgspec.structs.fields(part)]


@pytest.mark.parametrize("name", PARTS)
def test_the_configuration_page_describes_every_key(name: str) -> None:
    """Each key of each part has a row in the table of that part, with the default that the code has."""
    part = PARTS[name]
    page = (ROOT / "docs" / "configuration.md").read_text()
    heading = re.compile(
        rf".*`\[+(listen\.|egress\.NAME\.|limits\.|distort\.(fault\.)?)?{name}(\.NAME)?\]" if name else "Top level"
    )
    (section,) = (text for text in re.split(r"^## ", page, flags=re.M) if heading.match(text))
    rows = dict(re.findall(r"^\| `(\w+)` \|(.*)\|$", section, re.M))
    elsewhere = set(PARTS) if not name else {key for key in keys_of(LineConfig) if issubclass(part, FaultConfig)}
    assert set(rows) == set(keys_of(part)) - elsewhere
    for field in msgspec.structs.fields(part):
        default = field.default
        row = rows.get(field.encode_name)
        if row is not None and isinstance(default, bool | str | int | float):
            text = f"{default:g}" if isinstance(default, float) else str(default).lower()
            assert f"`{text}`" in row, f"{field.name}: default {text}"


def test_the_access_log_page_describes_every_key_and_every_word() -> None:
    """Whoever reads the log finds each of its words explained."""
    page = (ROOT / "docs" / "access-log.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \|", page, re.M)
    sniffed = SniffedRecord.__struct_fields__[len(Record.__struct_fields__) :]
    token, association = "session_token", list(AssociationRecord.__struct_fields__)
    association.remove(token)
    assert rows == [*association, token, *sniffed, "faults", *get_args(Close), *get_args(Drop)]


def test_the_page_on_metrics_describes_every_metric() -> None:
    """In the order in which they are shown, with the kind and the help of each."""
    page = (ROOT / "docs" / "metrics.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| (.*?) ?\| (.*) \|$", page, re.M)
    assert [(name, kind, text) for name, kind, _, text in rows] == [
        (name, metric.kind, metric.text) for name, metric in METRICS.items()
    ]


def test_the_page_on_refusals_describes_every_reply_code() -> None:
    """Each REP of RFC 1928 has its section."""
    page = (ROOT / "docs" / "why-was-it-refused.md").read_text()
    for code in ReplyCode:
        assert code == ReplyCode.SUCCEEDED or re.search(rf"^### Reply {code:02}\b", page, re.M), code


def test_the_readme_has_one_place_for_the_measured_results() -> None:
    """The benchmark's table is put between two marker lines, once."""
    lines = (ROOT / "README.md").read_text().splitlines()
    assert lines.count("<!-- results -->") == lines.count("<!-- /results -->") == 1
    assert lines.index("<!-- results -->") < lines.index("<!-- /results -->")


def test_all_python_of_the_readme_is_run_here() -> None:
    """No code block of README.md is there untried."""
    marks = [run for run, kind, _ in blocks(ROOT / "README.md") if kind == "python"]
    assert sorted(marks, key=str) == ["client", "hook", "server"]


def test_the_hook_of_the_readme_marks_and_answers(run_once: Run) -> None:
    """Requests that come to the destination have its mark; others it answers itself."""
    names: dict[str, Any] = {"__name__": "page"}
    exec(compile(runnable("hook"), "README.md", "exec"), names)

    async def main() -> list[str]:
        answers = []
        async with Server("http://127.0.0.1:0", hooks=[names["Mark"]()]) as server, target(answer) as port:
            for path in ("/", "/ads/1"):
                url = f"http://127.0.0.1:{port}{path}"
                async with asyncio.timeout(10):
                    answers.append(await asyncio.to_thread(get, url, server.url))
        return answers

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(head) + head)

    def get(url: str, proxy: str) -> str:
        with httpx.Client(proxy=proxy, trust_env=False) as client:
            answer = client.get(url)
            return f"{answer.status_code} {answer.text}"

    marked, answered = run_once(main)
    assert marked.startswith("200 GET / HTTP/1.1\r\n")
    assert "\r\nX-Debug: 1\r\n" in marked
    assert answered == "404 no advertisements\n"


def test_the_server_of_the_readme_serves(run_once: Run) -> None:
    """The program prints its URL, and that URL works as it stands."""
    command = [sys.executable, "-u", "-c", runnable("server")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()

            async def main() -> bytes:
                async with target() as port, Proxy(url).connect("127.0.0.1", port) as stream:
                    await stream.send_all(b"through the README")
                    stream.send_eof()
                    return await stream.receive()

            assert run_once(main) == b"through the README"
        finally:
            process.send_signal(signal.SIGKILL)


def test_the_client_of_the_readme_connects(run_once: Run) -> None:
    """The program fetches a page, once its proxy and its destination are those of this test."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.0 204 No Content\r\n\r\n")
        await writer.drain()

    async def main() -> str:
        async with target(answer) as port, Server("socks5://127.0.0.1:0", resolver=ThreadResolver()) as server:
            text = runnable("client")
            for old, new in (("socks5://127.0.0.1:1080", server.url), ('"example.com", 80', f'"localhost", {port}')):
                assert text.count(old) == 1
                text = text.replace(old, new)
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-W", "error", "-c", text, cwd=ROOT, stdout=asyncio.subprocess.PIPE
            )
            output, _ = await process.communicate()
            assert process.returncode == 0
            return output.decode()

    assert "204 No Content" in run_once(main)


@pytest.mark.parametrize(
    "module", [tabi, tabi.config, tabi.parts, tabi.testing, tabi.wire], ids=lambda module: module.__name__
)
def test_the_page_on_the_library_has_every_public_name(module: ModuleType) -> None:
    """The first column of a module's tables names all of ``__all__``, each once, and nothing else."""
    page = (ROOT / "docs" / "library.md").read_text()
    (section,) = (text for text in re.split(r"^## ", page, flags=re.M) if text.startswith(f"{module.__name__}\n"))
    rows = re.findall(r"^\| (`.*?) \|", section, re.M)
    if module is tabi:
        rows += re.findall(r"^(`config`, .*) are the modules\.$", section, re.M)
    assert sorted(re.findall(r"`(\w+)`", " ".join(rows))) == sorted(module.__all__)


def test_the_client_of_the_page_on_the_library_is_served(run_once: Run) -> None:
    """The function that speaks by a machine gets what the destination says, and tells a refusal."""
    (text,) = marked("library.md", "machines")
    names: dict[str, Any] = {"__name__": "page"}
    exec(compile(text, "library.md", "exec"), names)

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello")
        await reader.read()

    def use(proxy: tuple[str, int], port: int) -> bytes:
        with socket.create_connection(proxy, 10) as sock:
            data = names["ask"](sock, "127.0.0.1", port)
            while len(data) < 5:
                data += sock.recv(5)
            return bytes(data)

    async def main() -> bytes:
        async with target(greet) as port, Server("socks5://127.0.0.1:0") as server:
            proxy = (str(server.addresses[0].host), server.addresses[0].port)
            data = await asyncio.to_thread(use, proxy, port)
            with closed_port() as port, pytest.raises(OSError, match="refused"):
                await asyncio.to_thread(use, proxy, port)
            return data

    assert run_once(main) == b"hello"


def marked(page: str, mark: str) -> list[str]:
    """The code blocks of a page of docs/ that are marked ``<!-- run: mark -->``."""
    return [text for run, _, text in blocks(ROOT / "docs" / page) if run == mark]


def made(page: str, mark: str) -> Server:
    """The server that the one block of this mark makes."""
    (text,) = marked(page, mark)
    names: dict[str, Any] = {"__name__": "page"}
    exec(compile(text, page, "exec"), names)
    server = names["server"]
    assert isinstance(server, Server)
    return server


def test_servers_of_the_page_on_embedding_are_accepted(run_once: Run) -> None:
    """What can stand alone there is run: a server that is made accepts all that it is given, and starts."""

    async def main() -> int:
        started = 0
        for text in marked("embed-a-server.md", "made"):
            names: dict[str, Any] = {"__name__": "page"}
            exec(compile(text, "embed-a-server.md", "exec"), names)
            if "server" in names:
                async with names["server"] as server:
                    started += bool(server.urls)
        return started

    assert run_once(main) == 5


@pytest.mark.parametrize(
    ("page", "mark", "sent", "there", "back"),
    [
        ("carry-it-yourself.md", "greeting", b"HELO", b"HELO", b"welcome you"),
        ("carry-it-yourself.md", "pump", b"HELO", b"HELO", b"hello you"),
        ("carry-it-yourself.md", "stage", b"helo", b"HELO", b"hello you"),
    ],
)
def test_carriers_of_the_page_carry(
    run_once: Run, page: str, mark: str, sent: bytes, there: bytes, back: bytes
) -> None:
    """Each program of the page does what it says, and both directions come to their end."""
    got: list[bytes] = []

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello you")
        got.append(await reader.read())
        writer.write_eof()

    async def main() -> bytes:
        async with (
            target(greet) as port,
            made(page, mark) as server,
            Proxy(server.url).connect("127.0.0.1", port) as stream,
        ):
            await stream.send_all(sent)
            stream.send_eof()
            return b"".join([data async for data in stream])

    assert run_once(main) == back
    assert got == [there]


@pytest.mark.parametrize(
    ("mark", "expected"),
    [("inspect", [b"ONE", b"TWO", b"THREE", b"FOUR"]), ("each", [b"one", b"two"])],
)
def test_inspectors_of_the_page_look_at_datagrams(run_once: Run, mark: str, expected: list[bytes]) -> None:
    """Each program of the page does what it says: the first shouts, the second loses every third datagram."""

    async def main() -> list[bytes]:
        received: list[bytes] = []
        words = [b"one", b"two", b"three", b"four"] if mark == "inspect" else [b"one", b"lost", b"two"]
        async with (
            datagram_target() as port,
            made("inspect-datagrams.md", mark) as server,
            Proxy(server.url).associate() as association,
            asyncio.timeout(10),
        ):
            for word in words:
                await association.send(word, ("127.0.0.1", port))
                if word != b"lost":
                    received.append((await association.receive())[0])
        return received

    assert run_once(main) == expected
