"""The files of interception: where the authority is, and what has to be there before anything listens.

Nothing of the room `intercept` is imported unless a configuration has something to look into.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from tabi.config import Config
from tabi.errors import ConfigError
from tabi.net.tls import load_certificate

if TYPE_CHECKING:
    from tabi.intercept.authority import Authority
    from tabi.policy.distorts import Distort, Distorts
    from tabi.policy.intercepts import Intercepts


def authority_paths(config: Config, environment: Mapping[str, str] = os.environ) -> tuple[str, str]:
    """The files of the authority's certificate and key: those of ``[ca]``, or else what ``tabi ca init`` makes."""
    if config.ca.certificate is not None and config.ca.key is not None:
        return config.ca.certificate, config.ca.key
    home = environment.get("XDG_DATA_HOME", "")
    folder = (Path(home) if home.startswith("/") else Path.home() / ".local" / "share") / "tabi"
    return str(folder / "ca.crt"), str(folder / "ca.key")


def load_authority(config: Config) -> Authority:
    """The authority of a configuration. Raises ConfigError."""
    from tabi.intercept.authority import Authority

    certificate, key = authority_paths(config)
    if config.ca.certificate is None and not os.path.exists(certificate):
        raise ConfigError(f"there is no authority at {certificate}: `tabi ca init` makes one", "ca")
    try:
        return Authority.load(certificate, key)
    except ConfigError as exc:
        raise ConfigError(str(exc), "ca") from None


def check_interception(config: Config, intercepts: Intercepts) -> None:
    """Check all files that interception needs, and its packages. Raises ConfigError."""
    from tabi.intercept.packages import need_packages

    if config.intercept:
        need_packages("[[intercept]]", "intercept")
    else:
        need_packages("[[distort]] of HTTP", "distort")
    if intercepts.need_authority:
        load_authority(config)
    for rule in intercepts:
        path = f"intercept[{rule.number}]"
        if rule.trust is not None:
            check_authorities(rule.trust, f"{path}.trust")
        if rule.certificate is not None and rule.key is not None:
            check_authorities(rule.certificate, f"{path}.certificate")
            try:
                load_certificate(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), rule.certificate, rule.key)
            except ConfigError as exc:
                raise ConfigError(exc.message, f"{path}.{exc.path}") from None
        for number, script in enumerate(rule.scripts):
            check_script(script, f"{path}.scripts[{number}]")
        if rule.har is not None:
            check_har(rule.har, f"{path}.har")


def check_fingerprints(config: Config) -> None:
    """Check the names of fingerprints, and that their package is there. Raises ConfigError."""
    wanted = [one for one in enumerate(config.distort) if one[1].tls is not None or one[1].profile is not None]
    if not wanted:
        return
    from tabi.distort.fingerprint.presets import check_name

    for number, distort in wanted:
        if distort.tls is not None:
            check_name(distort.tls, f"distort[{number}].tls")
        if distort.profile is not None:
            check_name(distort.profile, f"distort[{number}].profile", mirror=False)


def check_distorts(distorts: Distorts) -> None:
    """Check the files that HTTP is answered with. Raises ConfigError."""
    for distort in distorts:
        rewrite = distort.rewrite
        if rewrite is None:
            continue
        for key in ("map_local", "body"):
            name: str | None = getattr(rewrite, key)
            if name is not None:
                check_content(name, f"distort[{distort.number}].{key}", folder=key == "map_local")


def check_fault(distort: Distort) -> None:
    """Check that HTTP can be looked into, if a fault that is set while tabi runs acts on it. Raises ConfigError."""
    if distort.on_http:
        from tabi.intercept.packages import need_packages

        need_packages("a fault of HTTP")


def check_content(name: str, path: str, folder: bool) -> None:
    """Raise ConfigError if there is no file that can be read, nor, where that may be, a folder."""
    fault = None
    if not os.path.exists(name):
        fault = "no such file"
    elif not os.path.isfile(name) and not (folder and os.path.isdir(name)):
        fault = "not a file, nor a folder" if folder else "not a file"
    elif not os.access(name, os.R_OK | os.X_OK if os.path.isdir(name) else os.R_OK):
        fault = "permission denied"
    if fault is not None:
        raise ConfigError(f"{name}: {fault}", path)


def check_authorities(name: str, path: str) -> None:
    """Raise ConfigError if a file has no authorities to trust."""
    if os.path.exists(name) and not os.path.isfile(name):
        raise ConfigError(f"{name}: not a file", path)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(name)
    except ssl.SSLError:
        raise ConfigError(f"{name}: no certificates in PEM", path) from None
    except OSError as exc:
        raise ConfigError(f"{name}: {(exc.strerror or str(exc)).lower()}", path) from None


def check_script(name: str, path: str) -> None:
    """Raise ConfigError if a file is not Python. It is not run."""
    from tabi.intercept.scripts import describe, read_script

    try:
        _, source = read_script(name)
        compile(source, name, "exec", dont_inherit=True)
    except ConfigError as exc:
        raise ConfigError(str(exc), path) from None
    except (SyntaxError, ValueError, RecursionError, MemoryError) as exc:
        raise ConfigError(describe(exc, name), path) from None


def check_har(name: str, path: str) -> None:
    """Raise ConfigError if a record cannot be written to a file; it is not made."""
    from tabi.intercept.har_file import check_file
    from tabi.intercept.har_reader import HarError

    folder = os.path.dirname(name)
    fault = None
    if not os.path.isdir(folder):
        fault = f"there is no folder {folder}"
    elif not os.access(name if os.path.exists(name) else folder, os.W_OK):
        fault = "permission denied"
    elif os.path.lexists(name):
        try:
            check_file(name)
        except (HarError, OSError) as exc:
            fault = str(exc) if isinstance(exc, HarError) else (exc.strerror or str(exc)).lower()
    if fault is not None:
        raise ConfigError(f"{name}: {fault}", path)
