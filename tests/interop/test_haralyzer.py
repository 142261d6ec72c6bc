"""haralyzer reads what tabi records: bodies, fields, times, and that a file is one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flows import make_record
from har_schema import check_har
from tabi.intercept.har import encode_entry
from tabi.intercept.har_file import HarFile
from tabi.intercept.masking import prepare

haralyzer = pytest.importorskip("haralyzer", reason="haralyzer is not installed (the group dev of pyproject.toml)")
assets = pytest.importorskip("haralyzer.assets")


def test_a_file_is_read(tmp_path: Path) -> None:
    """As tabi writes it, also continued, with all kinds of flows in it."""
    path = tmp_path / "a.har"
    records = [
        make_record(dns=0.01, connect=0.02, tls=0.03),
        make_record("http://h/?a=1&b=%20c", b"\x89PNG\xff", response_fields=[(b"Content-Type", b"image/png")]),
        make_record("https://h/", method="POST", status=404, request_body=b"a=b", request_size=3,
                    request_fields=[(b"Content-Type", b"application/x-www-form-urlencoded"), (b"Cookie", b"a=b")]),
        make_record("https://h/", b"", status=0, error="reset", response_fields=[]),
    ]  # fmt: skip
    for one in records:
        file = HarFile(str(path))
        file.append(encode_entry(prepare(one, 1_000_000)))
        file.close()
    check_har(json.loads(path.read_bytes()))
    parser = haralyzer.HarParser.from_file(str(path))
    assert parser.creator["name"] == "tabi"
    first, second, third, fourth = (assets.HarEntry(entry) for entry in parser.har_data["entries"])
    assert (first.url, first.status, first.time) == ("https://example.com/a?b=1", 200, 84)
    assert (first.response.text, first.response.mimeType) == ("hello", "text/plain")
    assert first.startTime.isoformat() == "2026-01-01T00:00:00+00:00"
    assert first.serverAddress == "192.0.2.1"
    assert second.request.queryString == [{"name": "a", "value": "1"}, {"name": "b", "value": " c"}]
    assert second.response.textEncoding == "base64"
    assert (third.request.method, third.status) == ("POST", 404)
    assert third.request.cookies == [{"name": "a", "value": "***"}]
    assert fourth.status == 0
    assert parser.match_status_code(parser.har_data["entries"][2], "404", regex=False)
