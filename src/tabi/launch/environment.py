"""The environment of a program behind a proxy: which variables programs read, and what each of them gets.

Who reads what, and from which version on, was tried with the programs themselves; docs/run.md has the table.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import NamedTuple

PROXY = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
"""The URL of the proxy, in upper and in lower case: curl reads no HTTP_PROXY, wget reads lower case only. It is
``http://`` in ALL_PROXY too: requests, pip and httpx fail on ``socks5h://`` without packages that are often missing."""

NO_PROXY = "NO_PROXY"
"""Empty, in both cases: what it had would be hidden from the proxy."""

OWN_PROXY = (
    *("WS_PROXY", "WSS_PROXY", "GRPC_PROXY", "PIP_PROXY", "CARGO_HTTP_PROXY"),
    *("NPM_CONFIG_PROXY", "NPM_CONFIG_HTTP_PROXY", "NPM_CONFIG_HTTPS_PROXY"),
    *("GLOBAL_AGENT_HTTP_PROXY", "GLOBAL_AGENT_HTTPS_PROXY"),
)
"""Variables of one program that win over those of all: replaced where they are set, in the case in which they are."""

OWN_NO_PROXY = ("NO_GRPC_PROXY", "NPM_CONFIG_NOPROXY", "GLOBAL_AGENT_NO_PROXY")
"""The same of what is not to go through a proxy: emptied where they are set."""

BUNDLE = (
    *("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO", "PIP_CERT", "AWS_CA_BUNDLE"),
    *("CARGO_HTTP_CAINFO", "CLOUDSDK_CORE_CUSTOM_CA_CERTS_FILE", "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH"),
    *("HTTPLIB2_CA_CERTS", "NIX_SSL_CERT_FILE", "PERL_LWP_SSL_CA_FILE", "HTTPS_CA_FILE", "npm_config_cafile"),
)
"""They name the only authorities that a program knows then."""

ADDED = ("NODE_EXTRA_CA_CERTS", "DENO_CERT")
"""They name authorities beside those that a program has built in."""

CERTIFICATE_DIR = "SSL_CERT_DIR"
"""Folders of authorities, separated by colons. Who reads it beside SSL_CERT_FILE goes on doing so; some stop."""

JAVA = ("JAVA_TOOL_OPTIONS", "JDK_JAVA_OPTIONS", "_JAVA_OPTIONS")
"""Options of Java: the first is for all of its programs, the others win over it where they are set."""

STORE_PASSWORD = "changeit"  # noqa: S105 - Java's own default; there is nothing secret in the store
"""The password of the trust store for Java."""


class TrustFiles(NamedTuple):
    """The files that variables name where connections are intercepted."""

    bundle: str
    """The system's authorities, those that inherited variables name, and ours, as PEM."""
    added: str
    """Ours, and those that inherited variables of `ADDED` name, as PEM."""
    java: str
    """The authorities of the bundle, as PKCS12 that Java takes for a trust store."""
    wgetrc: str
    """The settings of wget, which reads no variable for this."""
    php: str
    """A folder of settings of PHP."""


def make_environment(
    inherited: Mapping[str, str], host: str, port: int, trust: TrustFiles | None = None
) -> dict[str, str]:
    """The environment of a program that is to go through the HTTP proxy at ``host`` and ``port``.

    What is inherited stays, except for what would lead past the proxy. With ``trust`` the variables for authorities are
    set too.
    """
    url = f"http://{host}:{port}"
    environ = dict(inherited)
    for name in PROXY:
        environ[name] = environ[name.lower()] = url
    environ[NO_PROXY] = environ[NO_PROXY.lower()] = ""
    for name in inherited:
        if name.upper() in OWN_PROXY:
            environ[name] = url
        elif name.upper() in OWN_NO_PROXY:
            environ[name] = ""
    environ["NODE_USE_ENV_PROXY"] = "1"
    java = [f"-D{scheme}.proxy{what}" for scheme in ("http", "https") for what in (f"Host={host}", f"Port={port}")]
    java.append("-Dhttp.nonProxyHosts=")  # by default loopback is not asked of a proxy
    if trust is not None:
        java += java_trust(trust.java)
        set_trust(environ, trust)
    for name in JAVA:
        if name == JAVA[0] or name in inherited:
            environ[name] = " ".join(filter(None, (inherited.get(name), *java)))
    return environ


def inherited_proxy(inherited: Mapping[str, str]) -> str | None:
    """The name of a variable that names another proxy, which is not used."""
    names = (spelling for name in PROXY for spelling in (name, name.lower()))
    return next((name for name in names if inherited.get(name)), None)


def java_trust(path: str) -> list[str]:
    """Options of Java for a trust store. They stand in a list that is split at spaces, unless these are quoted."""
    quote = "'" if '"' in path else '"'
    store = f"-Djavax.net.ssl.trustStore={path}"
    return [
        f"{quote}{store}{quote}" if any(letter.isspace() or letter in "'\"" for letter in path) else store,
        "-Djavax.net.ssl.trustStoreType=PKCS12",
        f"-Djavax.net.ssl.trustStorePassword={STORE_PASSWORD}",
    ]


def set_trust(environ: dict[str, str], trust: TrustFiles) -> None:
    """Set the variables for authorities."""
    for name in [name for name in environ if name.lower() == "npm_config_cafile"]:
        del environ[name]  # npm reads it in any case, and takes one of them
    environ.update(dict.fromkeys(BUNDLE, trust.bundle))
    environ.update(dict.fromkeys(ADDED, trust.added))
    environ["WGETRC"] = trust.wgetrc
    environ["PHP_INI_SCAN_DIR"] = f"{environ.get('PHP_INI_SCAN_DIR', '')}{os.pathsep}{trust.php}"


def named_authorities(inherited: Mapping[str, str]) -> Iterator[str]:
    """The paths of files and folders that inherited variables name, the same ones perhaps several times: what a company
    has put there is trusted further on."""
    for name, value in inherited.items():
        if value and (name in BUNDLE or name in ADDED or name.lower() == "npm_config_cafile"):
            yield value
    yield from filter(None, inherited.get(CERTIFICATE_DIR, "").split(os.pathsep))


def added_authorities(inherited: Mapping[str, str]) -> Iterator[str]:
    """The paths of files that inherited variables of `ADDED` name."""
    return filter(None, (inherited.get(name, "") for name in ADDED))
