"""The page as a destination within the process: by itself, and through a whole server with curl."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from conftest import Run
from destinations import make_authority
from doubles import FakeResolver
from processes import in_thread, need
from tabi import Server
from tabi.config import Config, make_config
from tabi.intercept.authority import Authority
from tabi.intercept.page import PAGE, Page
from tabi.intercept.page_egress import MAX_REST, PageEgress
from tabi.net.stream import Stream
from tabi.policy.guard import allow_any_address

REQUEST = b"GET /ca.crt HTTP/1.1\r\nHost: tabi.invalid\r\n\r\n"

pytestmark = pytest.mark.every_hosting


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the authority is."""
    return tmp_path_factory.mktemp("ca")


@pytest.fixture(scope="module")
def authority(folder: Path) -> Authority:
    """The proxy's."""
    return make_authority(folder)


@contextlib.asynccontextmanager
async def opened(authority: Authority) -> AsyncIterator[tuple[PageEgress, Stream]]:
    """An egress, and a connection through it."""
    egress = PageEgress(Page(authority.certificate))
    try:
        async with await egress.open(PAGE, allow_any_address) as stream:
            yield egress, stream
    finally:
        egress.close()


async def read_all(stream: Stream) -> bytes:
    """Up to the end."""
    return b"".join([part async for part in stream])


async def gone(egress: PageEgress) -> None:
    """Wait until the page's ends are closed."""
    while egress.connections:
        await asyncio.sleep(0)


@pytest.mark.parametrize("pieces", [1, 7, len(REQUEST)])
def test_it_answers_and_ends(run: Run, authority: Authority, pieces: int) -> None:
    """However the request comes. Our end is closed with the client's."""

    async def main() -> None:
        async with opened(authority) as (egress, stream):
            size = -(-len(REQUEST) // pieces)
            for at in range(0, len(REQUEST), size):
                await stream.send_all(REQUEST[at : at + size])
                await asyncio.sleep(0)
            assert (await read_all(stream)).endswith(b"\r\n\r\n" + authority.certificate_pem)
            assert len(egress.connections) == 1
            stream.close()
            await gone(egress)

    run(main)


def test_a_client_that_goes_early(run: Run, authority: Authority) -> None:
    """In the middle of its request, or before it has read the answer: nothing is left."""

    async def main() -> None:
        before = len(os.listdir("/proc/self/fd"))
        for sent in (b"", REQUEST[:9], REQUEST):
            async with opened(authority) as (egress, stream):
                await stream.send_all(sent)
                stream.close()
                await gone(egress)
        await asyncio.sleep(0)
        assert len(os.listdir("/proc/self/fd")) == before

    run(main)


def test_a_client_that_goes_on_sending_is_closed(run: Run, authority: Authority) -> None:
    """There is nobody who would read it."""

    async def main() -> None:
        async with opened(authority) as (egress, stream):
            await stream.send_all(REQUEST)
            with pytest.raises(OSError, match=r"Broken pipe|reset"):
                await stream.send_all(bytes(4 * MAX_REST))
            assert not egress.connections

    run(main)


def test_closing_ends_what_is_open(run: Run, authority: Authority) -> None:
    """A server that stops leaves no descriptor."""

    async def main() -> None:
        async with opened(authority) as (egress, stream):
            egress.close()
            assert await stream.receive() == b""

    run(main)


def test_without_descriptors_it_cannot_be_reached(
    run_once: Run, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is an error as of any destination, which the client gets as a reply."""

    def full(*_: object) -> None:
        raise OSError(24, "Too many open files")

    async def main() -> None:
        monkeypatch.setattr(socket, "socketpair", full)
        with pytest.raises(OSError, match=r"tabi\.invalid:80: too many open files"):
            await PageEgress(Page(authority.certificate)).open(PAGE, allow_any_address)

    run_once(main)


# --- through a server ---


def serving(folder: Path, resolver: FakeResolver, host: str = "*", **keys: object) -> Server:
    """A server that looks into a host, with the authority of a folder."""
    ca = {"certificate": str(folder / "ca.crt"), "key": str(folder / "ca.key")}
    given = {"listen": [{"url": "mixed://127.0.0.1:0"}], "log": {"access": "none"}, "ca": ca, **keys}
    config: Config = make_config({**given, "intercept": [{"hosts": [host]}]})
    return Server(config=config, resolver=resolver)


CURL = ("--silent", "--show-error", "--max-time", "15", "--noproxy", "")
WAYS = [("http", ()), ("http", ("--proxytunnel",)), ("socks5h", ()), ("socks4a", ())]


@pytest.mark.interop
@pytest.mark.parametrize("host", ["*", "other.example"])
@pytest.mark.parametrize(("scheme", "options"), WAYS)
def test_curl_gets_the_certificate_whatever_it_speaks(
    run_once: Run, folder: Path, authority: Authority, scheme: str, options: tuple[str, ...], host: str
) -> None:
    """By forwarding and through a tunnel, whatever is looked into. No name server is asked, and no rule: they may
    forbid all."""
    resolver = FakeResolver()
    rules = {"rule": [{"hosts": ["10.0.0.0/8"], "action": "allow"}, {"action": "deny"}]}

    async def main() -> None:
        async with serving(folder, resolver, host, **rules) as server:
            via = f"{scheme}://127.0.0.1:{server.addresses[0].port}"
            command = [need("curl"), "-q", *CURL, "-x", via, *options]
            for url in ("http://tabi.invalid/ca.crt", "http://TABI.invalid:80/ca.crt"):
                done = await in_thread([*command, url])
                assert (done.stderr, done.stdout) == (b"", authority.certificate_pem)
            done = await in_thread(
                [*command, "-H", "Accept: text/html", "http://tabi.invalid/", "http://tabi.invalid/x"]
            )
            assert b"<!doctype html>" in done.stdout
            assert b"404 Not Found" in done.stdout
            refused = await in_thread([*command, "--fail", "http://tabi.invalid:81/"])
            assert refused.returncode != 0
        assert resolver.asked == ["tabi.invalid"]  # for the other port, by a rule

    run_once(main)


@pytest.mark.interop
@pytest.mark.parametrize(("scheme", "options"), WAYS[:3])
def test_only_users_get_it(
    run_once: Run, folder: Path, authority: Authority, scheme: str, options: tuple[str, ...]
) -> None:
    """Where clients must be users."""
    users = {"alice": {"password": "secret", "plain": True}}

    async def main() -> None:
        async with serving(folder, FakeResolver(), users=users) as server:
            for login, code in (("alice:secret@", 0), ("", None), ("alice:wrong@", None)):
                via = f"{scheme}://{login}127.0.0.1:{server.addresses[0].port}"
                command = [need("curl"), "-q", *CURL, "--fail", "-x", via, *options, "http://tabi.invalid/ca.crt"]
                done = await in_thread(command)
                assert (done.returncode == 0) is (code == 0)
                assert (done.stdout == authority.certificate_pem) is (code == 0)

    run_once(main)


@pytest.mark.interop
def test_without_interception_the_name_is_like_any_other(run_once: Run, tmp_path: Path) -> None:
    """It is asked for, and does not exist."""
    resolver = FakeResolver()

    async def main() -> None:
        async with Server("mixed://127.0.0.1:0", resolver=resolver) as server:
            for scheme in ("http", "socks5h"):
                via = f"{scheme}://127.0.0.1:{server.addresses[0].port}"
                done = await in_thread([need("curl"), "-q", *CURL, "--fail", "-x", via, "http://tabi.invalid/"])
                assert done.returncode != 0
        assert resolver.asked == ["tabi.invalid"] * 2

    run_once(main)
