"""Files with authorities for programs whose connections are intercepted."""

from __future__ import annotations

import os
import ssl
import stat
import sys
from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives.serialization.pkcs12 import load_pkcs12

from authorities import authority, stranger
from tabi.errors import ConfigError
from tabi.launch import trust as module
from tabi.launch.environment import STORE_PASSWORD
from tabi.launch.trust import as_pem, java_store, read, system_authorities, unique, write_trust

URL = "http://127.0.0.1:4000"


def pem(issuer: trustme.CA) -> bytes:
    """Its certificate."""
    return issuer.cert_pem.bytes()


@pytest.fixture(scope="module")
def company() -> bytes:
    """An authority that a company has set for its programs."""
    return pem(trustme.CA(organization_name="company"))


@pytest.fixture(autouse=True)
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A system with one authority."""
    path = tmp_path / "system.crt"
    path.write_bytes(pem(stranger()))
    monkeypatch.setattr(module, "SYSTEM", (str(tmp_path / "nothing"), str(path)))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """For the files."""
    path = tmp_path / "folder"
    path.mkdir()
    return path


def test_two_files(folder: Path, company: bytes, tmp_path: Path) -> None:
    """The bundle has the system's, those that variables name, and ours; the other one only what is added."""
    for name in ("company.pem", "added.pem"):
        (tmp_path / name).write_bytes(b"text before\n" + company)
    ours = pem(authority())
    files = write_trust(folder, ours, {"PIP_CERT": str(tmp_path / "company.pem")}, URL)
    assert list(unique((Path(files.bundle).read_bytes(),))) == list(unique((pem(stranger()), company, ours)))
    assert list(unique((Path(files.added).read_bytes(),))) == list(unique((ours,)))


def test_what_was_added_before_is_added_further_on(folder: Path, company: bytes, tmp_path: Path) -> None:
    """NODE_EXTRA_CA_CERTS may name the company's."""
    (tmp_path / "company.pem").write_bytes(company)
    ours = pem(authority())
    files = write_trust(folder, ours, {"NODE_EXTRA_CA_CERTS": str(tmp_path / "company.pem")}, URL)
    assert list(unique((Path(files.added).read_bytes(),))) == list(unique((company, ours)))


def test_openssl_takes_the_bundle(folder: Path) -> None:
    """As a program gives it to it."""
    files = write_trust(folder, pem(authority()), {}, URL)
    context = ssl.create_default_context(cafile=files.bundle)
    assert len(context.get_ca_certs()) >= 2


def test_java_takes_the_store(folder: Path) -> None:
    """It is PKCS12 with a password, and has all of the bundle."""
    files = write_trust(folder, pem(authority()), {}, URL)
    store = load_pkcs12(Path(files.java).read_bytes(), STORE_PASSWORD.encode())
    assert store.key is None
    assert len(store.additional_certs) == 2


def test_settings_of_wget_are_kept(folder: Path, tmp_path: Path) -> None:
    """Ours follow, where they win. The file may hold a password: nobody else reads it."""
    (tmp_path / ".wgetrc").write_bytes(b"user = alice\npassword = \xff\nhttps_proxy = company\n")
    files = write_trust(folder, pem(authority()), {"HOME": str(tmp_path)}, URL)
    text = Path(files.wgetrc).read_bytes()
    assert text.startswith(b"user = alice\npassword = \xff\nhttps_proxy = company\n")
    assert text.index(b"https_proxy = company") < text.index(f"https_proxy = {URL}".encode())
    assert f"ca_certificate = {files.bundle}".encode() in text
    assert stat.S_IMODE(os.stat(files.wgetrc).st_mode) == 0o600
    (tmp_path / "other").write_text("quiet = on\n")
    again = tmp_path / "again"
    again.mkdir()
    files = write_trust(again, pem(authority()), {"HOME": str(tmp_path), "WGETRC": str(tmp_path / "other")}, URL)
    assert Path(files.wgetrc).read_text().startswith("quiet = on\n")


def test_settings_of_php(folder: Path) -> None:
    """A folder with one file."""
    files = write_trust(folder, pem(authority()), {}, URL)
    assert f'curl.cainfo="{files.bundle}"' in (Path(files.php) / "tabi.ini").read_text()


def test_a_folder_of_authorities(company: bytes, folder: Path, tmp_path: Path) -> None:
    """SSL_CERT_DIR: every file of it, each certificate once."""
    for name in ("one.0", "two.0"):
        (tmp_path / "certs").mkdir(exist_ok=True)
        (tmp_path / "certs" / name).write_bytes(company)
    (tmp_path / "certs" / "sub").mkdir()
    files = write_trust(folder, pem(authority()), {"SSL_CERT_DIR": str(tmp_path / "certs")}, URL)
    assert len(unique((Path(files.bundle).read_bytes(),))) == 3


def test_no_authorities_of_the_system(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is said, since what is not intercepted may not be trusted then."""
    monkeypatch.setattr(module, "SYSTEM", ())
    monkeypatch.setattr(ssl, "get_default_verify_paths", lambda: ssl.DefaultVerifyPaths(*([""] * 6)))
    write_trust(folder, pem(authority()), {}, URL)
    assert "no authorities of the system" in caplog.text


def test_openssl_s_folder_where_there_is_no_file(
    company: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a system that none of the usual files is on."""
    (tmp_path / "certs").mkdir()
    (tmp_path / "certs" / "one.0").write_bytes(company)
    paths = ssl.DefaultVerifyPaths("", "", "", "", "", str(tmp_path / "certs"))
    monkeypatch.setattr(module, "SYSTEM", ())
    monkeypatch.setattr(ssl, "get_default_verify_paths", lambda: paths)
    assert list(system_authorities()) == [company]


def test_what_cannot_be_read_is_empty(tmp_path: Path) -> None:
    """A missing file, a folder, a pipe, which would wait, and a path that is none."""
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "missing", tmp_path, tmp_path / "pipe", "a\0b"):
        assert read(str(path)) == b""


def test_what_is_not_a_certificate_is_not_for_java(company: bytes) -> None:
    """One that OpenSSL reads and others do not must not end the run."""
    store = load_pkcs12(java_store(unique((company, as_pem((b"AAAA",))))), STORE_PASSWORD.encode())
    assert len(store.additional_certs) == 1


def test_the_number_of_authorities_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many a file has."""
    monkeypatch.setattr(module, "MOST", 2)
    assert list(unique((as_pem((b"AAAA", b"BBBB", b"CCCC")),))) == [b"AAAA", b"BBBB"]


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says what to install."""
    monkeypatch.setitem(sys.modules, "cryptography", None)
    with pytest.raises(ConfigError, match=r"pip install 'tabi\[intercept\]'"):
        java_store(())


def test_pem_is_whole(company: bytes) -> None:
    """What is written is what was read."""
    assert ssl.PEM_cert_to_DER_cert(as_pem(unique((company,))).decode()) == ssl.PEM_cert_to_DER_cert(company.decode())
