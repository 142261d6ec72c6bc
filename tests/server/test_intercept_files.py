"""The files of interception: where they are, and what is missing before anything listens."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from authorities import write_server
from tabi.config import Ca, Config, make_config
from tabi.config.compile import make_distort
from tabi.errors import ConfigError
from tabi.intercept.authority import Authority
from tabi.server.compiled import Compiled, compile_config
from tabi.server.intercept_files import authority_paths, check_fault, load_authority


def test_the_authority_is_in_the_users_data_directory() -> None:
    """As XDG has it, a relative path there counts for nothing; the configuration may name other files."""
    assert authority_paths(Config(), {"XDG_DATA_HOME": "/data"}) == ("/data/tabi/ca.crt", "/data/tabi/ca.key")
    home = str(Path.home() / ".local" / "share" / "tabi")
    for environment in ({}, {"XDG_DATA_HOME": ""}, {"XDG_DATA_HOME": "data"}):
        assert authority_paths(Config(), environment) == (f"{home}/ca.crt", f"{home}/ca.key")
    assert authority_paths(Config(ca=Ca("/c", "/k")), {}) == ("/c", "/k")


def compiled(tmp_path: Path, entry: dict[str, Any], **parts: Any) -> Compiled:
    """A configuration with one entry."""
    return compile_config(make_config({"intercept": [entry], **parts}))


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's data directory."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    return tmp_path / "data" / "tabi"


def test_an_authority_is_needed_for_tls_alone(tmp_path: Path, data: Path) -> None:
    """Without one nothing that opens TLS is served, and the error names the command that makes one."""
    assert compiled(tmp_path, {"tls": False}).intercepts is not None
    assert compiled(tmp_path, {"action": "pass"}).intercepts is not None
    with pytest.raises(ConfigError) as caught:
        compiled(tmp_path, {})
    assert str(caught.value) == f"ca: there is no authority at {data}/ca.crt: `tabi ca init` makes one"
    Authority.make(str(data))
    assert compiled(tmp_path, {}).intercepts is not None
    (data / "ca.key").chmod(0o644)
    with pytest.raises(ConfigError, match=r"^ca: .*/ca\.key: others can read it"):
        compiled(tmp_path, {})
    with pytest.raises(ConfigError, match=r"^ca: /nowhere\.crt: "):
        compiled(tmp_path, {}, ca={"certificate": "/nowhere.crt", "key": "/nowhere.key"})
    chosen = {"certificate": str(data / "ca.crt"), "key": str(data / "ca.key")}
    (data / "ca.key").chmod(0o600)
    assert load_authority(make_config({"ca": chosen})).certificate_pem == (data / "ca.crt").read_bytes()


def test_files_that_cannot_be_used_are_found_before_anything_listens(tmp_path: Path) -> None:
    """Each by its key: authorities, our own certificate, scripts and records."""
    (tmp_path / "broken.py").write_text("class Hook:\n    def request(self\n")
    (tmp_path / "zero.py").write_bytes(b"a\0b")
    (tmp_path / "deep.py").write_text("(" * 100_000)
    (tmp_path / "large.py").write_bytes(b"#" * ((10 << 20) + 1))
    (tmp_path / "text.pem").write_text("hello")
    (tmp_path / "link.har").symlink_to("other.har")
    write_server(tmp_path, "server")
    ours = {"certificate": f"{tmp_path}/server.pem", "key": f"{tmp_path}/server.key"}
    for entry, message in (
        ({"trust": f"{tmp_path}/none.pem"}, r"trust: .*none\.pem: no such file"),
        ({"trust": f"{tmp_path}/text.pem"}, r"trust: .*text\.pem: no certificates in PEM"),
        ({"trust": str(tmp_path)}, r"trust: .*: not a file"),
        (ours | {"key": f"{tmp_path}/none.key"}, r"key: .*none\.key: No such file"),
        (ours | {"certificate": f"{tmp_path}/text.pem"}, r"certificate: .*text\.pem: no certificates in PEM"),
        ({"scripts": [f"{tmp_path}/none.py"]}, r"scripts\[0\]: .*none\.py: No such file"),
        ({"scripts": [str(tmp_path)]}, r"scripts\[0\]: .*: Is a directory"),
        ({"scripts": [f"{tmp_path}/broken.py"]}, r"scripts\[0\]: .*broken\.py:2: SyntaxError: "),
        ({"scripts": [f"{tmp_path}/zero.py"]}, r"scripts\[0\]: .*zero\.py: .*null bytes"),
        ({"scripts": [f"{tmp_path}/deep.py"]}, r"scripts\[0\]: .*deep\.py:1: "),
        ({"scripts": [f"{tmp_path}/large.py"]}, r"scripts\[0\]: .*large\.py: more than 4194304 octets"),
        ({"har": f"{tmp_path}/link.har"}, r"har: .*link\.har: a symbolic link"),
        ({"har": str(tmp_path)}, r"har: .*: not a regular file"),
        ({"har": f"{tmp_path}/none/x.har"}, r"har: .*x\.har: there is no folder .*/none$"),
    ):
        with pytest.raises(ConfigError, match=rf"^intercept\[0\]\.{message}"):
            compiled(tmp_path, {"tls": False, **entry})
    good = ours | {"trust": f"{tmp_path}/server.pem", "har": f"{tmp_path}/x.har"}
    assert compiled(tmp_path, {"tls": False, **good}).intercepts is not None
    assert not (tmp_path / "x.har").exists()


def test_a_record_in_a_folder_that_is_closed_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As access(2) says of this user."""
    monkeypatch.setattr(os, "access", lambda *args: False)
    with pytest.raises(ConfigError, match=r"^intercept\[0\]\.har: .*permission denied$"):
        compiled(tmp_path, {"tls": False, "har": f"{tmp_path}/x.har"})


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (
            {"tls": "chrome:1"},
            r"^distort\[1\]\.tls: 'chrome:1' is unknown, expected mirror, chrome:131, .* or chrome",
        ),
        ({"tls": "mirror", "profile": "mirror"}, r"^distort\[1\]\.profile: 'mirror' is unknown, expected chrome:131, "),
        ({"profile": "firefox:144"}, r"^distort\[1\]\.profile: 'firefox:144' is unknown, "),
    ],
)
def test_fingerprints_have_names_that_there_are(entry: dict[str, Any], message: str) -> None:
    """Of `tls` and of `profile`; the error says which."""
    with pytest.raises(ConfigError, match=message):
        compile_config(make_config({"distort": [{"tls": "mirror"}, entry]}))
    assert compile_config(make_config({"distort": [{"tls": "chrome:stable", "profile": "chrome:stable"}]})).distorts


def test_fingerprints_need_their_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other entries do not."""
    monkeypatch.setitem(sys.modules, "utls", None)
    assert compile_config(make_config({"distort": [{"strip_cookies": True}]})).distorts
    for key in ("tls", "profile"):
        with pytest.raises(
            ConfigError, match=rf"^distort\[0\]\.{key}: {key} needs utls: pip install 'tabi\[fingerprint\]'$"
        ):
            compile_config(make_config({"distort": [{key: "chrome:stable"}]}))


def test_files_that_answer_are_checked(tmp_path: Path) -> None:
    """A folder can have files for `map_local`, and is none for `body`; a link to a file is one."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("content")
    (tmp_path / "link").symlink_to("file")
    os.mkfifo(tmp_path / "pipe")
    for key, name, why in (
        ("map_local", "folder", None),
        ("map_local", "file", None),
        ("body", "link", None),
        ("body", "folder", "not a file"),
        ("map_local", "pipe", "not a file, nor a folder"),
        ("body", "none", "no such file"),
        ("map_local", "none", "no such file"),
    ):
        path = str(tmp_path / name)
        config = make_config({"distort": [{"fault": "3g"}, {key: path}]})
        if why is None:
            assert compile_config(config).distorts
        else:
            with pytest.raises(ConfigError) as caught:
                compile_config(config)
            assert str(caught.value) == f"distort[1].{key}: {path}: {why}"


def test_faults_of_http_need_the_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those in a file, and those that are set while tabi runs; others do not."""
    late, status = ({"distort": [{"fault": fault}]} for fault in ({"latency": 1}, {"status": 503}))
    check_fault(make_distort(make_config(status).distort[0], 0))
    monkeypatch.setitem(sys.modules, "cryptography", None)
    compile_config(make_config(late))
    check_fault(make_distort(make_config(late).distort[0], 0))
    with pytest.raises(ConfigError, match=r"distort: \[\[distort\]\] of HTTP needs cryptography: pip install"):
        compile_config(make_config(status))
    with pytest.raises(ConfigError, match="a fault of HTTP needs cryptography: pip install"):
        check_fault(make_distort(make_config(status).distort[0], 0))
