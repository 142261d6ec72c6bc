"""Origin: answers HTTP, and sends everything else back."""

from __future__ import annotations

import socket

import pytest
import requests

from tabi.testing import Origin, OriginRequest


def test_what_is_not_http_comes_back() -> None:
    """Octets, their end, and datagrams."""
    with Origin() as origin:
        with socket.create_connection(origin.address, 10) as sock:
            for data in (b"echo", b"G", b"GET of something else", b"\r\n\xff"):
                sock.sendall(data)
                assert sock.recv(100, socket.MSG_WAITALL if len(data) == 100 else 0) == data
            sock.shutdown(socket.SHUT_WR)
            assert sock.recv(1) == b""
        with socket.socket(type=socket.SOCK_DGRAM) as sock:
            sock.settimeout(10)
            sock.sendto(b"datagram", origin.udp_address)
            assert sock.recvfrom(100) == (b"datagram", origin.udp_address)


def test_requests_are_answered_and_written_down() -> None:
    """Several on one connection, with a body or without, in chunks too."""
    with Origin() as origin, requests.Session() as session:
        assert session.get(f"{origin.url}/a?b", timeout=10).text == "hello from /a?b"
        assert session.post(origin.url, data=b"body", headers={"X-One": "two"}, timeout=10).content == b"body"
        assert session.post(origin.url, data=iter([b"in ", b"chunks"]), timeout=10).content == b"in chunks"
        assert session.head(origin.url, timeout=10).headers["Content-Length"] == "12"
        came = origin.wait_for_requests(4)
        assert [(one.method, one.target, one.body) for one in came] == [
            ("GET", "/a?b", b""),
            ("POST", "/", b"body"),
            ("POST", "/", b"in chunks"),
            ("HEAD", "/", b""),
        ]
        assert came[1].headers["x-one"] == "two"
        assert len({one.client for one in came}) == 1
        assert origin.requests == came


def test_the_answer_is_the_tests() -> None:
    """A status and a body; what the function raises is read by the client."""

    def answer(request: OriginRequest) -> tuple[int, bytes]:
        if request.target == "/broken":
            raise KeyError("nothing")
        return 503, b"later"

    with Origin(answer) as origin:
        found = requests.get(origin.url, timeout=10)
        assert (found.status_code, found.content) == (503, b"later")
        found = requests.get(f"{origin.url}/broken", timeout=10)
        assert (found.status_code, found.text) == (500, "KeyError: 'nothing'")


@pytest.mark.parametrize(
    ("sent", "begins"),
    [
        (b"GET / HTTP/1.0\r\n\r\n", b"HTTP/1.1 200 OK\r\n"),
        (b"PUT / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 1\r\nConnection: close\r\n\r\nx", b"HTTP/1.1 100"),
    ],
)
def test_it_ends_where_the_client_wants_no_more(sent: bytes, begins: bytes) -> None:
    """HTTP/1.0, and Connection: close; a client that waits for 100 gets it."""
    with Origin() as origin, socket.create_connection(origin.address, 10) as sock:
        sock.sendall(sent)
        data = b""
        while more := sock.recv(1000):
            data += more
        assert data.startswith(begins)


def test_its_end_cuts_what_is_open() -> None:
    """A connection that does nothing does not hold it up; what it is asked for then is an error."""
    with Origin(host="::1") as origin:
        assert origin.url == f"http://[::1]:{origin.port}"
        sock = socket.create_connection(origin.address, 10)
        sock.sendall(b"GET / HTTP/1.1\r\nContent-Length: 9\r\n\r\n")
    with sock:
        try:
            assert sock.recv(1) == b""
        except ConnectionResetError:
            pass
    for name in ("address", "udp_address"):
        with pytest.raises(RuntimeError, match="does not run"):
            getattr(origin, name)
    with pytest.raises(TypeError, match="answer: str, expected a function"):
        Origin("hello")  # type: ignore[arg-type]
