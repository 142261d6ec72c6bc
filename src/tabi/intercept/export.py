"""The authority's certificate in the forms that clients take, and how each is told to trust it. Never the key."""

from __future__ import annotations

from collections.abc import Callable
from shlex import quote

from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, pkcs12

PASSWORD = "changeit"  # noqa: S105 - no secret: what Java's own trust store has, and there is no key in ours
ALIAS = "tabi"

FORMS: dict[str, Callable[[x509.Certificate], bytes]] = {
    "pem": lambda certificate: certificate.public_bytes(Encoding.PEM),
    "der": lambda certificate: certificate.public_bytes(Encoding.DER),
    "p12": lambda certificate: pkcs12.serialize_java_truststore(
        [pkcs12.PKCS12Certificate(certificate, ALIAS.encode())], BestAvailableEncryption(PASSWORD.encode())
    ),
}
"""By name: PEM, DER, and a trust store of Java in PKCS #12 (Java 8u301 and later), whose password is `PASSWORD`."""

COMMANDS = (
    (
        "Debian, Ubuntu",
        "sudo cp {path} /usr/local/share/ca-certificates/tabi.crt && sudo update-ca-certificates",
    ),
    ("Fedora", "sudo trust anchor {path}"),
    ("macOS", "sudo security add-trusted-cert -d -r trustRoot -k /Library/Keychains/System.keychain {path}"),
    ("Windows", "certutil -user -addstore Root {path}"),
    ("Firefox", "certutil -A -n tabi -t C,, -i {path} -d sql:PROFILE     # the profile folder of about:support"),
    ("Chromium", "certutil -A -n tabi -t C,, -i {path} -d sql:$HOME/.pki/nssdb     # Linux"),
    ("Android", "adb push {path} /sdcard/Download/tabi.crt     # then Settings, Security, Install a CA certificate"),
    ("Java", "keytool -importcert -noprompt -cacerts -storepass changeit -alias tabi -file {path}"),
    ("Python", "export SSL_CERT_FILE={path} REQUESTS_CA_BUNDLE={path}     # in place of all others"),
    ("Node", "export NODE_EXTRA_CA_CERTS={path}"),
    ("curl", "curl --cacert {path} https://example.com/"),
)
"""By system or program: the command that has it trust the certificate in a file. certutil(1) of Linux is in
libnss3-tools."""


def ways_to_trust(path: str) -> list[tuple[str, str]]:
    """Each system or program, and its command for the certificate in this file."""
    return [(who, command.format(path=quote(path))) for who, command in COMMANDS]


def fingerprint(certificate: x509.Certificate) -> str:
    """SHA-256 of the certificate, as browsers and `openssl x509 -fingerprint` show it."""
    return certificate.fingerprint(SHA256()).hex(":").upper()
