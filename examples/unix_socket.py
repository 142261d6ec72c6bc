"""Listen at a unix socket: for the programs of this user only, without a password, and without an open port.

Run it: python examples/unix_socket.py
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from pathlib import Path

import tabi
from tabi.wire import NEED_DATA, Address, ClientMachine, Command, Greeting, Method, Request


async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """The destination of this example: a server that says hello and ends."""
    writer.write(b"hello from the destination\n")
    await writer.drain()
    writer.close()


async def ask(
    machine: ClientMachine, message: Greeting | Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> object:
    """Send a message of SOCKS5 and return the answer."""
    writer.write(machine.send(message))
    while (answer := machine.next_event()) is NEED_DATA:
        machine.receive_data(await reader.read(500))
    return answer


async def main() -> None:
    """Start both, and open a connection through the proxy; its client's SOCKS5 is spoken by a machine of tabi.wire."""
    destination = await asyncio.start_server(greet, "127.0.0.1", 0)
    host, port = destination.sockets[0].getsockname()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tabi.sock"
        async with destination, tabi.Server(f"unix://{path}?mode=0600", on_close=lambda s: print("client", s.client)):
            print(f"rights {path.stat().st_mode & 0o777:o}")
            reader, writer = await asyncio.open_unix_connection(path)
            machine = ClientMachine()
            await ask(machine, Greeting(bytes([Method.NO_AUTHENTICATION])), reader, writer)
            await ask(machine, Request(Command.CONNECT, Address(host, port)), reader, writer)
            received = machine.trailing_data or await reader.readline()
            print("received:", bytes(received).decode().strip())
            writer.close()
            await writer.wait_closed()
        print("left behind:", os.listdir(folder))


asyncio.run(main())
