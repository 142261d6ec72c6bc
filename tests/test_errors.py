"""The exceptions: what code that was written for sockets catches of them."""

from __future__ import annotations

import asyncio

import pytest

import tabi
from conftest import Run
from sockets import silent_port
from support import closed_port
from tabi.errors import ConnectTimeout, DialError, ProxyError, ProxyTimeout


@pytest.mark.parametrize(
    ("error", "caught"),
    [
        (DialError("a:1: refused", 5, 111), OSError),
        (ConnectTimeout("a:1: no answer", 4, 110), TimeoutError),
        (ProxyError("a:1: the proxy says no", 2), OSError),
        (ProxyTimeout("a:1: the proxy did not answer"), TimeoutError),
    ],
)
def test_an_error_of_a_connection_is_an_oserror(error: DialError | ProxyError, caught: type[Exception]) -> None:
    """Its text and its numbers are what they were given; what ran out of time is a TimeoutError."""
    with pytest.raises(caught):
        raise error
    assert str(error).startswith("a:1: ")
    assert (error.strerror, error.filename) == (None, None)
    assert (error.reply_code, error.errno) == {
        DialError: (5, 111),
        ConnectTimeout: (4, 110),
        ProxyError: (2, None),
        ProxyTimeout: (None, None),
    }[type(error)]


def test_code_for_sockets_keeps_catching(run_once: Run) -> None:
    """``except OSError`` and ``except TimeoutError``, as around `asyncio.open_connection`, see what a proxy does."""

    async def main() -> None:
        async with tabi.Server("socks5://127.0.0.1:0") as server:
            with closed_port() as port, pytest.raises(OSError, match="connection refused"):
                await tabi.Proxy(server.url).open_connection("127.0.0.1", port)
        with closed_port() as port, pytest.raises(OSError, match="connection refused"):
            await tabi.Proxy(f"socks5://127.0.0.1:{port}").open_connection("127.0.0.1", 1)
        with silent_port() as port, pytest.raises(TimeoutError, match="no answer within"):
            await tabi.Proxy(f"socks5://127.0.0.1:{port}", timeout=0.1).open_connection("127.0.0.1", 1)

    run_once(main)


def test_a_silent_proxy_is_a_time_out(run_once: Run) -> None:
    """A proxy that accepts and says nothing ran out of its time."""

    async def main() -> None:
        async def be_silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read()
            writer.close()

        silent = await asyncio.start_server(be_silent, "127.0.0.1", 0)
        async with silent:
            port = silent.sockets[0].getsockname()[1]
            with pytest.raises(TimeoutError, match=r"did not answer within 0.1 s"):
                await tabi.Proxy(f"socks5://127.0.0.1:{port}", timeout=0.1).connect("127.0.0.1", 1)
            while len(asyncio.all_tasks()) > 1:
                await asyncio.sleep(0)

    run_once(main)
