"""The authority's certificate for clients of every kind."""

from __future__ import annotations

import shlex
import ssl
import subprocess
from pathlib import Path

import pytest

from destinations import make_authority
from processes import need
from tabi.intercept.authority import Authority
from tabi.intercept.export import ALIAS, FORMS, PASSWORD, fingerprint, ways_to_trust


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """A new one."""
    return make_authority(tmp_path / "it's here")


def test_pem_and_der_are_the_certificate(authority: Authority, tmp_path: Path) -> None:
    """As OpenSSL reads it, and with the fingerprint that it shows."""
    assert FORMS["pem"](authority.certificate) == authority.certificate_pem
    assert ssl.DER_cert_to_PEM_cert(FORMS["der"](authority.certificate)).encode() == authority.certificate_pem
    (tmp_path / "ca.der").write_bytes(FORMS["der"](authority.certificate))
    command = [
        "openssl",
        "x509",
        "-inform",
        "der",
        "-in",
        str(tmp_path / "ca.der"),
        "-noout",
        "-fingerprint",
        "-sha256",
    ]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert shown.strip() == f"sha256 Fingerprint={fingerprint(authority.certificate)}"


@pytest.mark.parametrize("form", FORMS)
def test_the_key_is_in_no_form(form: str, authority: Authority, tmp_path: Path) -> None:
    """What is given to others lets nobody sign."""
    octets = FORMS[form](authority.certificate)
    assert b"PRIVATE" not in octets
    if form == "p12":
        (tmp_path / "ca.p12").write_bytes(octets)
        command = ["openssl", "pkcs12", "-in", str(tmp_path / "ca.p12"), "-passin", f"pass:{PASSWORD}", "-noenc"]
        shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert "BEGIN CERTIFICATE" in shown
        assert "PRIVATE" not in shown


@pytest.mark.interop
def test_java_reads_the_trust_store(authority: Authority, tmp_path: Path) -> None:
    """keytool lists one certificate that is trusted, ours."""
    path = tmp_path / "trust.p12"
    path.write_bytes(FORMS["p12"](authority.certificate))
    command = [need("keytool"), "-list", "-v", "-keystore", str(path), "-storepass", PASSWORD]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert f"Alias name: {ALIAS}\n" in shown
    assert "Entry type: trustedCertEntry" in shown
    assert fingerprint(authority.certificate) in shown


@pytest.mark.interop
def test_keytool_takes_the_certificate(authority: Authority, tmp_path: Path) -> None:
    """The command that is shown works, with a store of our own in place of the machine's."""
    command = dict(ways_to_trust(str(tmp_path / "it's here" / "ca.crt")))["Java"]
    store = f"-keystore {tmp_path / 'store.p12'}"
    need("keytool")
    subprocess.run(command.replace("-cacerts", store), shell=True, check=True, capture_output=True)
    listed = subprocess.run(
        shlex.split(f"keytool -list {store} -storepass changeit"), capture_output=True, text=True, check=True
    )
    assert "trustedCertEntry" in listed.stdout


def test_each_command_survives_an_odd_path() -> None:
    """It is quoted for a shell, wherever it stands."""
    path = "/tmp/it's $HOME"
    ways = ways_to_trust(path)
    assert [who for who, _ in ways] == [
        "Debian, Ubuntu",
        "Fedora",
        "macOS",
        "Windows",
        "Firefox",
        "Chromium",
        "Android",
        "Java",
        "Python",
        "Node",
        "curl",
    ]
    for who, command in ways:
        assert any(word.endswith(path) for word in shlex.split(command, comments=True)), who


@pytest.mark.interop
def test_node_trusts_it(authority: Authority, tmp_path: Path) -> None:
    """The variable that is shown is the one that Node reads."""
    command = dict(ways_to_trust(str(tmp_path / "it's here" / "ca.crt")))["Node"]
    program = (
        "const tls = require('tls'); console.log(process.env.NODE_EXTRA_CA_CERTS, tls.createSecureContext() !== 0)"
    )
    done = subprocess.run(
        f"{command}; {need('node')} -e {shlex.quote(program)}", shell=True, check=True, capture_output=True, text=True
    )
    assert done.stdout == f"{tmp_path}/it's here/ca.crt true\n"
    assert done.stderr == ""
