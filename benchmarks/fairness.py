"""What one client costs the others: the round trips of a tunnel while somebody attacks the same tabi, or another one.

    .venv/bin/python benchmarks/fairness.py [--seconds 5] [ATTACK]...

For each attack two tabi are started. A tunnel through the first one sends an octet and waits for its echo, again and
again; the attack goes to the second one, which only takes CPU from it, and then to the first. The bar: its p99 stays
under 25 ms and three times the p99 of the first case. Exit code: 0 all stay under it, 1 one does not.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import random
import select
import signal
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from process import free_port, running

BAR, TIMES = 0.025, 3.0
PAUSE = 0.005
LOOPBACK = "127.0.0.1"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def address(port: int) -> bytes:
    """A destination on loopback, as SOCKS5 says it."""
    return b"\1\x7f\0\0\1" + struct.pack("!H", port)


def socks(proxy: int, destination: bytes, command: int = 1) -> tuple[socket.socket, int]:
    """A connection through a proxy, and the port of its reply."""
    sock = socket.create_connection((LOOPBACK, proxy), 30)
    sock.sendall(b"\5\1\0")
    exactly(sock, 2)
    sock.sendall(b"\5%c\0%b" % (command, destination))
    reply = exactly(sock, 10)
    if reply[1]:
        raise ConnectionError(f"reply {reply[1]}")
    return sock, int.from_bytes(reply[8:])


def exactly(sock: socket.socket, count: int) -> bytes:
    """So many octets."""
    data = b""
    while len(data) < count:
        piece = sock.recv(count - len(data))
        if not piece:
            raise ConnectionError("ended")
        data += piece
    return data


def swallow(sock: socket.socket) -> None:
    """Read to the end."""
    buffer = bytearray(1 << 20)
    with contextlib.suppress(OSError):
        while sock.recv_into(buffer):
            pass


def serve(work: Callable[[socket.socket], None]) -> int:
    """Serve each connection in a thread; returns the port."""
    listener = socket.create_server((LOOPBACK, 0), backlog=1000)

    def accept() -> None:
        while True:
            sock = listener.accept()[0]
            threading.Thread(target=quiet, args=(work, sock), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    return int(listener.getsockname()[1])


def quiet(work: Callable[[socket.socket], None], *args: socket.socket) -> None:
    """Work until the peer has gone."""
    with contextlib.suppress(OSError):
        work(*args)


def echo(sock: socket.socket) -> None:
    """Send back what comes."""
    while data := sock.recv(1 << 16):
        sock.sendall(data)


def flood(sock: socket.socket) -> None:
    """Send without end."""
    block = bytes(1 << 20)
    while True:
        sock.sendall(block)


# --- attacks: each works until its process is ended ---


def answers_in_chunks(proxy: int, block: bytes, connections: int = 1, version: bytes = b"1.1") -> None:
    """An origin that answers in such chunks, to so many clients."""

    def origin(sock: socket.socket) -> None:
        sock.recv(9999)
        sock.sendall(CHUNKED)
        while True:
            sock.sendall(block)

    port = serve(origin)
    for _ in range(connections):
        sock = socket.create_connection((LOOPBACK, proxy))
        sock.sendall(b"GET http://127.0.0.1:%d/ HTTP/%b\r\nHost: x\r\n\r\n" % (port, version))
        threading.Thread(target=swallow, args=(sock,), daemon=True).start()
    signal.pause()


def uploads_in_chunks(proxy: int, block: bytes) -> None:
    """A client that uploads in such chunks."""
    port = serve(swallow)
    sock = socket.create_connection((LOOPBACK, proxy))
    head = b"POST http://127.0.0.1:%d/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    sock.sendall(head % port)
    while True:
        sock.sendall(block)


def pipelined(proxy: int, request: bytes, connections: int = 8) -> None:
    """Clients that send requests without waiting for the answers."""
    block = request * (1 + (1 << 18) // len(request))

    def client() -> None:
        while True:
            with contextlib.suppress(OSError):
                sock = socket.create_connection((LOOPBACK, proxy))
                threading.Thread(target=swallow, args=(sock,), daemon=True).start()
                while True:
                    sock.sendall(block)

    for _ in range(connections):
        threading.Thread(target=client, daemon=True).start()
    signal.pause()


def connections_that_end(proxy: int, octets: bytes = b"", reset: bool = False) -> None:
    """Connections that end at once, perhaps with a few octets, perhaps with a reset."""
    while True:
        socks = [socket.socket() for _ in range(100)]
        for sock in socks:
            with contextlib.suppress(OSError):
                sock.connect((LOOPBACK, proxy))
                if octets:
                    sock.send(octets)
                if reset:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.close()


def hellos(proxy: int, stay: bool) -> None:
    """ClientHellos of clients that have gone, or that wait for an answer and say no more."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing, server_hostname="localhost").do_handshake()
    hello = outgoing.read()
    kept: list[socket.socket] = []
    while True:
        with contextlib.suppress(OSError):
            sock = socket.create_connection((LOOPBACK, proxy))
            sock.send(hello)
            if stay:
                kept.append(sock)
                if len(kept) >= 200:
                    kept.pop(0).close()
                continue
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.close()


def records_of_an_octet(proxy: int, connections: int = 4) -> None:
    """Clients inside TLS that put each octet into a record of its own, and send thousands of them at a time."""
    destination = address(serve(swallow))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE

    def client() -> None:
        sock = socket.create_connection((LOOPBACK, proxy))
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = context.wrap_bio(incoming, outgoing)
        while True:
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                sock.sendall(outgoing.read())
                incoming.write(sock.recv(1 << 16))
        tls.write(b"\5\1\0\5\1\0" + destination)
        while True:
            sock.sendall(outgoing.read())
            for _ in range(2000):
                tls.write(b"x")

    for _ in range(connections):
        threading.Thread(target=client, daemon=True).start()
    signal.pause()


def answered(proxy: int, answer: bytes) -> None:
    """Pipelined requests to an origin that answers each like this."""

    def origin(sock: socket.socket) -> None:
        while data := sock.recv(1 << 16):
            sock.sendall(answer * data.count(b"\r\n\r\n"))

    pipelined(proxy, b"GET http://127.0.0.1:%d/ HTTP/1.1\r\nHost: x\r\n\r\n" % serve(origin))


def requests_in_waves(proxy: int, count: int = 500) -> None:
    """Hundreds of clients that send their requests in the same moment."""
    destination = address(serve(swallow))
    while True:
        socks = []
        for _ in range(count):
            sock = socket.create_connection((LOOPBACK, proxy))
            sock.sendall(b"\5\1\0")
            socks.append(sock)
        for sock in socks:
            exactly(sock, 2)
        for sock in socks:
            sock.sendall(b"\5\1\0" + destination)
        for sock in socks:
            exactly(sock, 10)
            sock.close()


def datagrams(proxy: int, make: Callable[[], bytes], associations: int = 4) -> None:
    """Datagrams of several associations, as fast as they can be sent."""
    kept = [socks(proxy, b"\1" + bytes(6), 3) for _ in range(associations)]
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    while True:
        for _, port in kept:
            with contextlib.suppress(OSError):
                sock.sendto(make(), (LOOPBACK, port))


def new_name() -> bytes:
    """A datagram to a name that was not there before."""
    name = f"x{random.getrandbits(60):x}.invalid".encode()
    return b"\0\0\0\3%c%b\0\x35hello" % (len(name), name)


def new_unicode_name() -> bytes:
    """The same with octets beyond ASCII."""
    name = f"\u00fc\u4e2d{random.getrandbits(60):x}.invalid".encode()
    return b"\0\0\0\3%c%b\0\x35hello" % (len(name), name)


def new_destination() -> bytes:
    """A datagram to an address and port that were not there before."""
    return b"\0\0\0\1\x7f" + random.randbytes(5) + b"hello"


def fragment() -> bytes:
    """A fragment in any order."""
    return b"\0\0%c\1\x7f\0\0\1\0\x35hello" % random.randrange(1, 256)


def rubbish() -> bytes:
    """What is not a datagram of RFC 1928."""
    return random.randbytes(40)


def bulk(proxy: int, connections: int) -> None:
    """Downloads as fast as they go."""
    destination = address(serve(flood))
    for _ in range(connections):
        threading.Thread(target=swallow, args=socks(proxy, destination)[:1], daemon=True).start()
    signal.pause()


def pings(proxy: int, connections: int) -> None:
    """Tunnels that send an octet and wait for it, all at the same time."""
    destination = address(serve_echoes())
    tunnels = [socks(proxy, destination)[0] for _ in range(connections)]
    while True:
        for sock in tunnels:
            sock.send(b"x")
        for sock in tunnels:
            sock.recv(1)


def serve_echoes() -> int:
    """An echo server for many connections, in one thread."""
    listener = socket.create_server((LOOPBACK, 0), backlog=2000)
    listener.setblocking(False)

    def loop() -> None:
        poller, known = select.epoll(), {listener.fileno(): listener}
        poller.register(listener.fileno(), select.EPOLLIN)
        while True:
            for fd, _ in poller.poll():
                if fd == listener.fileno():
                    sock = listener.accept()[0]
                    known[sock.fileno()] = sock
                    poller.register(sock.fileno(), select.EPOLLIN)
                    continue
                with contextlib.suppress(OSError):
                    if data := known[fd].recv(1 << 16):
                        known[fd].send(data)
                        continue
                poller.unregister(fd)
                known.pop(fd).close()

    threading.Thread(target=loop, daemon=True).start()
    return int(listener.getsockname()[1])


EMPTY = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n"
SMALL = b"1\r\nx\r\n" * 100_000
ATTACKS: dict[str, Callable[[int], None]] = {
    "chunks-down": lambda proxy: answers_in_chunks(proxy, SMALL),
    "chunks-down-100": lambda proxy: answers_in_chunks(proxy, SMALL, 100),
    "chunks-spaced": lambda proxy: answers_in_chunks(proxy, b"1 \r\nx\r\n" * 100_000, 20),
    "chunks-http-1.0": lambda proxy: answers_in_chunks(proxy, SMALL, 20, b"1.0"),
    "chunks-up": lambda proxy: uploads_in_chunks(proxy, SMALL),
    "chunks-up-extended": lambda proxy: uploads_in_chunks(proxy, b"1;a=b\r\nx\r\n" * 100_000),
    "pipelined-options": lambda proxy: pipelined(
        proxy, b"OPTIONS http://127.0.0.1/ HTTP/1.1\r\nHost: x\r\nMax-Forwards: 0\r\n\r\n"
    ),
    "pipelined-get": lambda proxy: answered(proxy, b"HTTP/1.1 204 No Content\r\n\r\n"),
    "answers-interim": lambda proxy: answered(proxy, b"HTTP/1.1 100 Continue\r\n\r\n" * 30 + EMPTY + b"\r\n"),
    "answers-fields": lambda proxy: answered(proxy, EMPTY + b"a:\r\n" * 490 + b"\r\n"),
    "answers-folded": lambda proxy: answered(proxy, EMPTY + b"X: a" + b"\r\n a" * 16_000 + b"\r\n\r\n"),
    "answers-lengths": lambda proxy: answered(proxy, EMPTY + b"Content-Length: " + b"0, " * 20_000 + b"0\r\n\r\n"),
    "answers-status": lambda proxy: answered(proxy, EMPTY + b"Proxy-Status: " + b'a;x="",' * 7_000 + b"\r\n\r\n"),
    "end-at-once": connections_that_end,
    "reset-at-once": lambda proxy: connections_that_end(proxy, b"\5\1\0", True),
    "half-requests": lambda proxy: connections_that_end(proxy, b"\5\1\0\5\1\0\1\x7f\0\0\1"),
    "hellos-gone": lambda proxy: hellos(proxy, stay=False),
    "hellos-silent": lambda proxy: hellos(proxy, stay=True),
    "records-of-an-octet": records_of_an_octet,
    "requests-in-waves": requests_in_waves,
    "udp-names": lambda proxy: datagrams(proxy, new_name),
    "udp-unicode-names": lambda proxy: datagrams(proxy, new_unicode_name),
    "udp-destinations": lambda proxy: datagrams(proxy, new_destination),
    "udp-fragments": lambda proxy: datagrams(proxy, fragment),
    "udp-rubbish": lambda proxy: datagrams(proxy, rubbish),
    "bulk-8": lambda proxy: bulk(proxy, 8),
    "bulk-100": lambda proxy: bulk(proxy, 100),
    "pings-500": lambda proxy: pings(proxy, 500),
}


# --- measuring ---


def percentile(times: list[float], part: float) -> float:
    """Of measured times."""
    return sorted(times)[min(len(times) - 1, int(len(times) * part))]


def round_trips(tunnel: socket.socket, seconds: float) -> list[float]:
    """Seconds of each round trip of an octet."""
    times, end = [], time.monotonic() + seconds
    while (begin := time.monotonic()) < end:
        tunnel.sendall(b"x")
        exactly(tunnel, 1)
        times.append(time.monotonic() - begin)
        time.sleep(PAUSE)
    return times


@contextlib.contextmanager
def attacking(attack: Callable[[int], None], proxy: int) -> Iterator[None]:
    """Have a process of its own attack a proxy."""
    process = multiprocessing.get_context("fork").Process(target=attack, args=(proxy,), daemon=True)
    process.start()
    try:
        time.sleep(1)
        yield
    finally:
        process.kill()
        process.join()


@contextlib.contextmanager
def tabi(folder: Path, port: int) -> Iterator[int]:
    """A tabi for everything: all protocols on one port, with TLS."""
    settings = folder / f"{port}.toml"
    settings.write_text(
        f'[[listen]]\nurl = "mixed://{LOOPBACK}:{port}"\n'
        f'tls = {{ certificate = "{folder}/cert.pem", key = "{folder}/key.pem" }}\n[log]\naccess = "none"\n'
    )
    with running(
        [str(Path(sys.executable).parent / "tabi"), "serve", "-c", str(settings)], port, folder / f"{port}.log"
    ):
        yield port


def main() -> int:
    """Run the attacks that were named, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5, help="of each measurement (default: 5)")
    parser.add_argument("attacks", nargs="*", metavar="ATTACK", help=", ".join(ATTACKS))
    options = parser.parse_args()
    unknown = set(options.attacks) - set(ATTACKS)
    if unknown:
        parser.error(f"there is no attack {', '.join(sorted(unknown))}")
    failed = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        certificate = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=localhost -days 2"
        files = ["-keyout", f"{folder}/key.pem", "-out", f"{folder}/cert.pem"]
        subprocess.run(["openssl", *certificate.split(), *files], check=True, capture_output=True)
        print(f"{'attack':22}{'p50':>8}{'p99':>8}   on another{'':4}{'p50':>8}{'p99':>8}{'most':>8}   ms")
        for attack in options.attacks or ATTACKS:
            with tabi(folder, free_port()) as here, tabi(folder, free_port()) as there:
                tunnel = socks(here, address(serve_echoes()))[0]
                with attacking(ATTACKS[attack], there):
                    before = round_trips(tunnel, options.seconds)
                with attacking(ATTACKS[attack], here):
                    during = round_trips(tunnel, options.seconds)
                tunnel.close()
            low, high = percentile(before, 0.99), percentile(during, 0.99)
            held = high < BAR + TIMES * low
            failed += not held
            figures = [percentile(before, 0.5), low, percentile(during, 0.5), high, max(during)]
            first, second, *others = (f"{1000 * figure:8.2f}" for figure in figures)
            verdict = "" if held else "   over the bar"
            print(f"{attack:22}{first}{second}{'':17}{''.join(others)}{verdict}", flush=True)
    return failed > 0


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    sys.exit(main())
