"""Requests as curl commands: a shell runs curl with the request, and nothing else."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows import make_record
from origin import origin
from processes import PATIENCE, need
from tabi.errors import TabiError
from tabi.intercept.curl import as_curl


def test_a_plain_request() -> None:
    """Host and what curl writes itself are left out."""
    fields = [(b"Host", b"example.com"), (b"Accept", b"*/*"), (b"Connection", b"close"), (b"X-Empty", b"")]
    assert as_curl(make_record(request_fields=fields)) == (
        "curl 'https://example.com/a?b=1' -H 'Accept: */*' -H 'X-Empty;'"
    )


@pytest.mark.parametrize(
    ("more", "option"),
    [
        ({"method": "HEAD"}, " -I"),
        ({"method": "DELETE"}, " -X DELETE"),
        ({"method": "GET", "request_body": b"a"}, " -X GET"),
        ({"url": "https://h/[1]{a}"}, " --globoff"),
        ({"url": "https://h/../a"}, " --path-as-is"),
        ({"request_fields": [(b"Host", b"other")]}, " -H 'Host: other'"),
        ({"request_fields": [(b"Accept-Encoding", b"gzip")]}, " --compressed -H 'Accept-Encoding: gzip'"),
        ({"request_body": b"a", "method": "POST"}, " -H Content-Type: --data-raw a"),
        ({"request_body": b"@/etc/passwd", "method": "POST"}, " --data-raw @/etc/passwd"),
        ({"request_body": b"it's", "method": "POST"}, """ --data-raw 'it'"'"'s'"""),
        ({"request_body": b"a\nb\xff", "method": "POST"}, r" --data-raw $'a\nb\377'"),
        ({"url": "https://h/\x1b[2J\u202e'"}, r"$'https://h/\033[2J\342\200\256\''"),
        ({"url": "wss://h/"}, "curl https://h/"),
    ],
)
def test_what_makes_a_request_special(more: dict[str, Any], option: str) -> None:
    """Each needs an option of curl, or quotes."""
    assert option in as_curl(make_record(**{"request_fields": [], **more}))


def test_octets_that_no_argument_can_hold_come_by_a_pipe() -> None:
    """NUL, in a way that every shell has."""
    record = make_record(method="POST", request_body=b"-%\0'\\", request_fields=[(b"Content-Type", b"a/b")])
    assert as_curl(record) == (
        r"printf '\055%%\000\047\134' | curl 'https://example.com/a?b=1' -H 'Content-Type: a/b' --data-binary @-"
    )


def test_fields_that_would_be_read_otherwise_are_left_out() -> None:
    """A file's name, or a second line; the coding of a body that is without it."""
    fields = [(b"@/etc/passwd", b"a"), (b"A", b"b\r\nC: d"), (b"Content-Encoding", b"gzip"), (b"E", b"f")]
    command = as_curl(make_record(request_fields=fields, decoded=True))
    assert command == "curl 'https://example.com/a?b=1' -H 'E: f'"
    assert "Content-Encoding" in as_curl(make_record(request_fields=fields))


@pytest.mark.parametrize("url", ["", "/a", "file:///etc/passwd", "-o/tmp/x", "https:a", "https"])
def test_other_urls_are_refused(url: str) -> None:
    """curl could read files by them, or take them for options."""
    with pytest.raises(TabiError, match="not a URL of http"):
        as_curl(make_record(url))


def arguments_of(command: str) -> list[bytes]:
    """What a shell would call curl with, and what comes by its pipe."""
    script = f"curl() {{ printf '%s\\0' \"$@\"; case $* in *@-) cat;; esac; }}\n{command}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, timeout=PATIENCE)
    assert not done.stderr
    return done.stdout.split(b"\0")


TEXT = st.text(alphabet="ab'\"\\$`!;&|<>()*?[]{}#~%\n\t\x1b\x85\u202eé \r-@", max_size=12)


@given(TEXT, TEXT, st.binary(max_size=12).filter(lambda body: b"\0" not in body))
def test_no_shell_finds_a_command_in_it(path: str, value: str, body: bytes) -> None:
    """Every word comes out as the octets that it was."""
    url = f"https://h/{path}"
    fields = [(b"A", value.encode()), (b"Content-Type", b"a/b")]
    first, *rest = arguments_of(as_curl(make_record(url, method="PUT", request_fields=fields, request_body=body)))
    assert first == url.encode()
    if body:
        assert rest[-3:] == [b"--data-raw", body, b""]
    if value.strip() and not {"\r", "\n"} & set(value):
        assert b"A: " + value.strip().encode() in rest


@pytest.mark.interop
def test_curl_sends_the_request(tmp_path: Path) -> None:
    """Method, path, fields and body arrive, by a plain shell where there are no control characters."""
    need("curl")
    with origin() as server:
        for body, shell in ((b"it's \xc3\xa9 & more", "sh"), (b"\0\x01%s\xff", "sh"), (b"a\nb\xff", "bash")):
            record = make_record(
                server.url("/a/../b?c=$HOME"),
                method="PUT",
                request_fields=[(b"Host", b"127.0.0.1"), (b"X-A", b"`id` \xc3\xa9"), (b"Content-Length", b"3")],
                request_body=body,
            )
            done = subprocess.run([shell, "-c", as_curl(record)], capture_output=True, timeout=PATIENCE)
            assert done.returncode == 0
            asked = server.asked[-1]
            assert (asked.method, asked.path, asked.body) == ("PUT", "/a/../b?c=$HOME", body)
            assert asked.fields["x-a"].encode("latin-1") == b"`id` \xc3\xa9"
            assert "content-type" not in asked.fields
