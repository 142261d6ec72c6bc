"""Files with authorities for a program whose connections are intercepted, in the forms that programs read.

No trust store of the machine is touched.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import re
import ssl
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from tabi.errors import ConfigError
from tabi.launch.environment import STORE_PASSWORD, TrustFiles, added_authorities, named_authorities

log = logging.getLogger("tabi")

CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----\s*([A-Za-z0-9+/=\s]+?)-----END CERTIFICATE-----")

SYSTEM = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, Arch, Alpine
    "/etc/pki/tls/certs/ca-bundle.crt",  # Fedora
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/ca-bundle.pem",  # openSUSE
    "/etc/ssl/cert.pem",
)
"""Where systems have their authorities in one file."""

LARGEST = 16 << 20
"""Octets of one file that are read."""

MOST = 5_000
"""Files of one folder that are read, and authorities of a bundle."""

WGETRC = "ca_certificate = {bundle}\nuse_proxy = on\nhttp_proxy = {url}\nhttps_proxy = {url}\nno_proxy =\n"
"""What stands behind the user's settings of wget; the last of two settings counts."""

PHP_INI = 'openssl.cafile="{bundle}"\ncurl.cainfo="{bundle}"\n'


def write_trust(folder: Path, ours: bytes, inherited: Mapping[str, str], url: str) -> TrustFiles:
    """Write the files into a folder that only this user can read.

    Args:
        ours: our authority, as PEM.
        inherited: the variables of the program; what they name is trusted further on.
        url: the proxy's, for the settings of wget.

    Raises:
        ConfigError: the extra is not installed.
        OSError: a file cannot be written.
    """
    system = unique(system_authorities())
    if not system:
        log.warning("no authorities of the system were found: a program may trust intercepted hosts only")
    own = unique((ours,))
    bundle = unique((as_pem(system), *read_all(named_authorities(inherited)), ours))
    added = unique((*read_all(added_authorities(inherited)), ours))
    php = folder / "php"
    php.mkdir(mode=0o700)
    files = TrustFiles(
        bundle=str(folder / "bundle.pem"),
        added=str(folder / "added.pem"),
        java=str(folder / "trust.p12"),
        wgetrc=str(folder / "wgetrc"),
        php=str(php),
    )
    Path(files.bundle).write_bytes(as_pem(bundle))
    Path(files.added).write_bytes(as_pem(added))
    Path(files.java).write_bytes(java_store(itertools.chain(own, bundle)))
    settings = "".join(f"{text}\n" for text in read_wgetrc(inherited))
    private = os.open(files.wgetrc, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)  # it may hold a password
    with open(private, "w", errors="surrogateescape") as file:
        file.write(settings + WGETRC.format(bundle=files.bundle, url=url))
    (php / "tabi.ini").write_text(PHP_INI.format(bundle=files.bundle))
    return files


def system_authorities() -> Iterator[bytes]:
    """PEM texts with the system's authorities: of one file, or else of OpenSSL's folder."""
    paths = ssl.get_default_verify_paths()
    for path in (*SYSTEM, paths.openssl_cafile):
        if text := read(path):
            yield text
            return
    yield from read_all((paths.openssl_capath,))


def read_all(paths: Iterable[str]) -> Iterator[bytes]:
    """The texts of files, and of the files in folders. What cannot be read is left out, as the program would."""
    for path in dict.fromkeys(paths):
        if os.path.isdir(path):
            with contextlib.suppress(OSError), os.scandir(path) as entries:
                yield from map(read, sorted(entry.path for entry in itertools.islice(entries, MOST)))
        else:
            yield read(path)


def read(path: str) -> bytes:
    """The text of a file, empty if there is none."""
    with contextlib.suppress(OSError, ValueError):
        if os.path.isfile(path):  # not a pipe, which would wait
            with open(path, "rb") as file:
                return file.read(LARGEST)
    return b""


def read_wgetrc(inherited: Mapping[str, str]) -> Iterator[str]:
    """The user's settings of wget: of the file that WGETRC names, or else of the usual one."""
    path = inherited.get("WGETRC") or os.path.join(inherited.get("HOME") or os.path.expanduser("~"), ".wgetrc")
    yield read(path).decode(errors="surrogateescape")


def unique(texts: Iterable[bytes]) -> dict[bytes, None]:
    """The certificates of PEM texts as base64 without spaces, each once, in their order."""
    found: dict[bytes, None] = {}
    for text in texts:
        for match in CERTIFICATE.finditer(text):
            found[b"".join(match[1].split())] = None
            if len(found) >= MOST:
                return found
    return found


def as_pem(certificates: Iterable[bytes]) -> bytes:
    """PEM of what `unique` has found."""
    lines = []
    for one in certificates:
        lines.append(b"-----BEGIN CERTIFICATE-----")
        lines += [one[start : start + 64] for start in range(0, len(one), 64)]
        lines.append(b"-----END CERTIFICATE-----\n")
    return b"\n".join(lines)


def java_store(certificates: Iterable[bytes]) -> bytes:
    """A trust store for Java, as PKCS12; a PEM file it does not take. What is not a certificate is left out.

    Raises:
        ConfigError: the extra is not installed.
    """
    try:
        from cryptography import x509
        from cryptography.hazmat.primitives.serialization import BestAvailableEncryption
        from cryptography.hazmat.primitives.serialization.pkcs12 import PKCS12Certificate, serialize_java_truststore
    except ImportError as exc:
        raise ConfigError("interception needs more packages: pip install 'tabi[intercept]'") from exc
    found = []
    for number, one in enumerate(dict.fromkeys(certificates)):
        with contextlib.suppress(ValueError), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what an authority has against the rules
            found.append(PKCS12Certificate(x509.load_pem_x509_certificate(as_pem((one,))), b"%d" % number))
    return serialize_java_truststore(found, BestAvailableEncryption(STORE_PASSWORD.encode()))
