"""A program that goes through proxies."""

import asyncio
import socket
import ssl
from ipaddress import IPv4Address, IPv6Address

import tabi


async def connect(context: ssl.SSLContext) -> bytes:
    """Connections, in all the ways that there are to open one."""
    chain = tabi.Proxy("socks5://192.0.2.1:1080", "http://192.0.2.2:3128", timeout=5, ca="ca.pem")
    proxy = tabi.Proxy.from_environment({"ALL_PROXY": "https://192.0.2.1"}, ssl=context)
    async with chain.connect("example.com", 80) as stream:
        await stream.send_all(b"GET / HTTP/1.0\r\n\r\n")
        stream.send_eof()
        async for data in stream:
            print(len(data))
    opening: tabi.Opening[tabi.Stream] = proxy.connect(IPv4Address("192.0.2.1"), 25)
    task: asyncio.Task[tabi.Stream] = asyncio.get_running_loop().create_task(opening)
    other: tabi.Stream = await task
    line: bytes = await other.receive_exactly(10)
    await other.start_tls(context, "example.com")
    print(other.bound, other.get_extra_info("cipher"))
    await other.aclose()
    reader, writer = await proxy.open_connection("example.com", 443, ssl=True)
    writer.write(line)
    sock: socket.socket = await proxy.open_socket("example.com", 22)
    sock.close()
    return await reader.read()


async def bind(proxy: tabi.Proxy) -> None:
    """BIND."""
    async with proxy.bind(peer="192.0.2.9") as listener:
        waiting: tabi.Listener = listener
        print(waiting.address.host, waiting.address.port, waiting.peer)
        async with await listener.accept(timeout=10) as stream:
            print(await stream.receive(100))


async def datagrams(proxy: tabi.Proxy) -> None:
    """UDP."""
    async with proxy.associate() as association:
        kept: tabi.Association = association
        await kept.send(memoryview(b"question"), ("example.com", 53))
        data, address = await association.receive()
        async for payload, sender in association:
            print(payload + data, sender.host, address.port, association.dropped)


async def names(proxy: tabi.Proxy) -> tuple[IPv4Address | IPv6Address, str]:
    """Tor's questions."""
    return await proxy.resolve("example.com"), await proxy.resolve_ptr("192.0.2.1")


def blocking() -> bytes:
    """Without asyncio."""
    with tabi.create_connection(
        ("example.com", 80), via=["socks5://192.0.2.1", "http://192.0.2.2"], timeout=10
    ) as sock:
        sock.sendall(b"hello")
        return sock.recv(100)


async def errors(proxy: tabi.Proxy) -> str | int | None:
    """What may be caught, and what it has."""
    try:
        await proxy.connect("example.com", 80)
    except tabi.ConnectTimeout as exc:
        return exc.errno
    except tabi.DialError as exc:
        return exc.reply_code
    except tabi.ProxyTimeout:
        return "timeout"
    except tabi.ProxyError as exc:
        return exc.reply_code
    except tabi.LimitExceeded as exc:
        return exc.limit
    except tabi.PolicyDenied as exc:
        return exc.action
    except (tabi.AuthError, tabi.RemoteProtocolError, tabi.LocalProtocolError):
        raise
    except tabi.ProtocolError as exc:
        return exc.reply_code
    except tabi.errors.TabiError as exc:
        error: tabi.TabiError = exc
        return str(error)
    return None


class Watching:
    """What a carrier of the server has of a session, for those who wrap one."""

    def __init__(self, carried: tabi.Carried) -> None:
        self.carried = carried

    def stop(self) -> int:
        """End it."""
        up, down = self.carried.counts
        self.carried.cut("too much")
        return up + down
