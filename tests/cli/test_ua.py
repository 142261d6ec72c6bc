"""`tabi ua list`: the fingerprints, and what each sets."""

from __future__ import annotations

import json
import sys

import pytest
import utls

from processes import failure, run_here


def test_the_table() -> None:
    """A line for each, and one for the client's own."""
    done = run_here("ua", "list")
    assert (done.returncode, done.stderr) == (0, b"")
    lines = done.stdout.decode().splitlines()
    assert lines[0].split() == ["name", "JA4", "HTTP/2", "User-Agent"]
    assert lines[1].split()[0] == "mirror"
    assert sorted(line.split()[0] for line in lines[2:]) == sorted(utls.presets())
    cells = lines[2].split()
    assert cells[1:3] == ["t13d1516h2_8daaf6152771_02713d6af862", "1:65536;2:0;4:6291456;6:262144|15663105|0|m,a,s,p"]


def test_json() -> None:
    """All that each sets: with the fields of its requests."""
    found = json.loads(run_here("ua", "list", "--json").stdout)
    assert found[0] == {"name": "mirror", "ja4": None, "http2": None, "fields": []}
    last = found[-1]
    assert (last["name"], last["ja4"]) == ("chrome:stable", utls.Fingerprint.from_preset("chrome:stable").ja4_hash)
    assert dict(last["fields"]) == utls.Fingerprint.from_preset("chrome:stable").http_headers


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """It says what to install; the help is there."""
    monkeypatch.setitem(sys.modules, "utls", None)
    assert failure(run_here("ua", "list"), 2) == "tabi: tabi ua needs utls: pip install 'tabi[fingerprint]'\n"
    assert run_here("ua", "list", "-h").returncode == 0
    assert run_here("ua").returncode == 2
