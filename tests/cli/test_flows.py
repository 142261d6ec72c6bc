"""`tabi flows`: lists, filters, shows and exports what a HAR file has, and controls no terminal by it."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from flows import STARTED, make_record
from processes import PATIENCE, TABI, environment, failure, run_here
from tabi.intercept.har import encode_entry, make_entry
from tabi.intercept.har_file import HarFile
from tabi.intercept.masking import prepare
from tabi.intercept.record import Record, WebSocketMessage

HOSTILE = "a\x1b[2J\r\n\x85\u202e"


def records() -> list[Record]:
    """One of each kind."""
    form = [(b"Content-Type", b"application/x-www-form-urlencoded")]
    answer = [(b"Content-Type", b"application/json")]
    messages = [WebSocketMessage("send", STARTED, 1, b'{"a":1}'), WebSocketMessage("receive", STARTED + 1, 2, b"\xff")]
    return [
        make_record(tags=["slow"], user="alice", rule="intercept[0]", sni="example.com", tls=0.01,
                    sent_ja3="e7d7", sent_ja4="t13d", sent_http2="3:1|00|0|m,s,a,p", fingerprint="mirror",
                    fingerprint_differs="ciphers"),
        make_record("http://h/form", b'{"b":[1,"\xc3\xa9"]}', method="POST", request_fields=form, request_body=b"a=b",
                    request_size=3, status=404, reason="Not Found", response_fields=answer),
        make_record("https://gone/", status=0, response_fields=[], body=b"", error="connection reset"),
        make_record("wss://h/ws", b"", status=101, response_fields=[(b"Upgrade", b"websocket")], messages=messages),
        make_record(f"https://h/{HOSTILE}", HOSTILE.encode(), method=HOSTILE, tags=[HOSTILE], error=HOSTILE,
                    response_fields=[(HOSTILE.encode(), HOSTILE.encode()), (b"Content-Type", b"text/plain")]),
        make_record("https://h/image", b"\x89PNG\xff", response_fields=[(b"Content-Type", b"image/png")]),
        make_record("https://h/large", b"begin", response_size=5_000_000),
        make_record("https://h/none", response_body=b"", response_size=1234),
    ]  # fmt: skip


@pytest.fixture
def har(tmp_path: Path) -> Path:
    """A file that tabi wrote."""
    path = tmp_path / "out.har"
    file = HarFile(str(path))
    for one in records():
        file.append(encode_entry(prepare(one, 1_000_000)))
    file.close()
    return path


def flows(*arguments: str | Path) -> list[str]:
    """The lines that it prints."""
    done = run_here("flows", *arguments)
    assert (done.returncode, done.stderr) == (0, b"")
    return done.stdout.decode().splitlines()


def numbers(*arguments: str | Path) -> list[int]:
    """The numbers of the flows that it lists."""
    return [int(line.split()[0]) for line in flows(*arguments)[1:]]


def test_it_lists_all_flows(har: Path) -> None:
    """A line each, with what is special at its end; no colours where it is no terminal."""
    lines = flows(har)
    assert re.sub(" +", " ", lines[0]).strip() == "# method status size time type URL"
    assert re.sub(" +", " ", lines[1]).strip() == "1 GET 200 5 B 34 ms text/plain https://example.com/a?b=1 [slow]"
    assert re.sub(" +", " ", lines[2]).strip() == "2 POST 404 14 B 24 ms application/json http://h/form"
    assert re.sub(" +", " ", lines[3]).strip() == "3 GET - - 24 ms https://gone/ connection reset"
    assert lines[4].endswith("wss://h/ws WebSocket: 2 messages")
    assert len(lines) == 9
    assert len({line.index("https:") for line in lines[3:] if "https:" in line}) == 1


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["host:h"], [2, 4, 5, 6, 7, 8]),
        (["host:h", "not", "url:/form"], [4, 5, 6, 7, 8]),
        (["status:4xx or ws"], [2, 4]),
        (["error and host:gone"], [3]),
        (["body:png"], [6]),
        (["tag:slow"], [1]),
        (["status:500"], []),
    ],
)
def test_it_filters(har: Path, arguments: list[str], found: list[int]) -> None:
    """By one argument or by several, with the numbers that the flows have in the file."""
    assert numbers(har, *arguments) == found


def test_a_wrong_filter_or_number_says_so(har: Path, tmp_path: Path) -> None:
    """Exit code 2, one line."""
    assert "at character 12: status:200 »foo" in failure(run_here("flows", har, "status:200 foo"), 2)
    assert "--show: there is no flow 9: the last one is 8" in failure(run_here("flows", har, "--show", "9"), 2)
    assert "there is no flow 1: nothing was found" in failure(run_here("flows", har, "tag:x", "--curl", "1"), 2)
    assert "only one of" in failure(run_here("flows", har, "--show", "1", "--curl", "1"), 2)
    failure(run_here("flows", har, "--show", "0"), 2)
    assert "none.har" in failure(run_here("flows", tmp_path / "none.har"), 1)


def test_what_is_no_har_is_an_error(tmp_path: Path) -> None:
    """Exit code 1; a FIFO does not hold it up."""
    path = tmp_path / "a.har"
    for data in (b"", b"hello", b"{}", b"[1]"):
        path.write_bytes(data)
        assert "a.har: not a HAR file" in failure(run_here("flows", path), 1)
    path.unlink()
    os.mkfifo(path)
    assert "a.har: not a file" in failure(run_here("flows", path), 1)
    assert "not a file" in failure(run_here("flows", tmp_path), 1)
    missing = run_here("flows", tmp_path / "missing.har")
    assert (missing.stdout, missing.returncode) == (b"", 1)
    assert missing.stderr.decode() == f"tabi: {tmp_path / 'missing.har'}: no such file or directory\n"


def test_a_torn_file_is_read_up_to_its_end(har: Path) -> None:
    """And it is said."""
    har.write_bytes(har.read_bytes()[:-300])
    done = run_here("flows", har)
    assert done.returncode == 0
    assert done.stdout.decode().count("\n") == 8
    assert b"does not end as it should" in done.stderr


def test_an_entry_that_is_not_json_is_left_out(tmp_path: Path) -> None:
    """The others are listed."""
    path = tmp_path / "a.har"
    path.write_text('{"log":{"entries":[{"a":1,},{"request":{"url":"https://h/"}},{"b":' + "9" * 5000 + "}]}}")
    done = run_here("flows", path)
    assert done.returncode == 0
    assert [line.split()[0] for line in done.stdout.decode().splitlines()[1:]] == ["2"]
    assert b"a.har: entry 1: not JSON" in done.stderr
    assert b"a.har: entry 3: not JSON" in done.stderr


def test_it_shows_a_flow(har: Path) -> None:
    """Heads, bodies, times, and who it was."""
    text = "\n".join(flows(har, "--show", "1"))
    for part in (
        *("flow 1: GET https://example.com/a?b=1", "started   2026-01-01T00:00:00.000Z", "user      alice"),
        *("time      34 ms (connect 0.0, tls 10.0, send 1.0, wait 20.0, receive 3.0 ms)", "tags      slow"),
        *("GET https://example.com/a?b=1 HTTP/1.1\nHost: example.com\nAccept: */*\n", "HTTP/1.1 200 OK\n", "\n\nhello"),
        *("server    192.0.2.1", "TLS       example.com", "client    127.0.0.1:5000"),
        "shown     mirror\nbut not   ciphers\nsent      t13d e7d7\nHTTP/2    3:1|00|0|m,s,a,p\n",
    ):
        assert part in text
    text = "\n".join(flows(har, "--show", "2"))
    assert "\n\na=b\n" in text
    assert '{\n  "b": [\n    1,\n    "é"\n  ]\n}' in text
    text = "\n".join(flows(har, "--show", "3"))
    assert "error     connection reset" in text
    assert text.endswith("\nno answer")
    text = "\n".join(flows(har, "--show", "4"))
    assert 'client, 00:00:00.000, text of 7 B\n{\n  "a": 1\n}' in text
    assert "server, 00:00:01.000, binary of 1 B\n(1 B that are not text)" in text
    assert flows(har, "--show", "6")[-1] == "(5 B that are not text)"
    assert flows(har, "--show", "7")[-2:] == ["begin", "(not all of it was recorded)"]
    assert flows(har, "--show", "8")[-1] == "(1.2 kB, not recorded)"


def test_nothing_that_is_printed_controls_the_terminal(har: Path) -> None:
    """Neither in the list, nor in a flow, nor as JSON, nor as a command."""
    for arguments in ((), ("--show", "5"), ("--json",), ("--show", "5", "--json"), ("--curl", "5")):
        done = run_here("flows", har, *arguments)
        text = done.stdout.decode()
        assert all(character == "\n" or character.isprintable() for character in text)
        assert "2J" in text


def test_it_prints_json(har: Path) -> None:
    """A list of what was found, or the entry as it stands in the file."""
    found = json.loads(run_here("flows", har, "--json").stdout)
    assert [one["number"] for one in found] == list(range(1, 9))
    assert found[1] == {
        "number": 2, "started": "2026-01-01T00:00:00.000Z", "method": "POST", "url": "http://h/form", "status": 404,
        "size": 14, "ms": 24.0, "type": "application/json", "error": None, "tags": [], "messages": 0,
    }  # fmt: skip
    assert found[2]["status"] is None
    assert json.loads(run_here("flows", har, "--json", "tag:none").stdout) == []
    entry = json.loads(run_here("flows", har, "--json", "--show", "2").stdout)
    assert entry == json.loads(har.read_bytes())["log"]["entries"][1]


def test_it_prints_a_curl_command(har: Path) -> None:
    """The request, ready for a shell."""
    assert flows(har, "--curl", "1") == ["curl 'https://example.com/a?b=1' -H 'Accept: */*'"]
    assert flows(har, "--curl", "2") == [
        "curl http://h/form -H 'Content-Type: application/x-www-form-urlencoded' --data-raw a=b"
    ]


def test_files_of_browsers_are_read(tmp_path: Path) -> None:
    """What Chrome writes, on lines of its own, with pages and keys of its own."""
    entry: dict[str, Any] = make_entry(prepare(make_record(), 1_000_000))
    del entry["connection"], entry["serverIPAddress"]
    entry |= {"_initiator": {"type": "other"}, "_priority": "High", "pageref": "p"}
    entry["response"] |= {"_transferSize": 500, "_error": None, "httpVersion": "h2"}
    har = {"log": {"version": "1.2", "creator": {"name": "WebInspector"}, "pages": [{"id": "p"}], "entries": [entry]}}
    path = tmp_path / "a.har"
    path.write_text(json.dumps(har, indent=2))
    assert numbers(path) == [1]
    assert "HTTP/2 200 OK" in flows(path, "--show", "1")


def test_a_terminal_gets_colours_and_lines_that_fit(har: Path) -> None:
    """Cut in the middle of the URL."""
    ours, theirs = pty.openpty()
    env = environment() | {"COLUMNS": "90", "TERM": "xterm"}
    process = subprocess.Popen([*TABI, "flows", har, "tag:slow or host:gone"], stdout=theirs, env=env)
    os.close(theirs)
    data = b""
    try:
        while part := os.read(ours, 65536):
            data += part
    except OSError:  # its end
        pass
    assert process.wait(PATIENCE) == 0
    os.close(ours)
    text = data.decode()
    assert "\x1b[32m" in text
    assert "\x1b[31m" in text
    assert len(re.sub(r"\x1b\[\d+m", "", text).splitlines()[0]) <= 90
