"""What the types of the schema alone do not say."""

from __future__ import annotations

from tabi.config.schema import Config, Listen, Udp
from tabi.errors import ConfigError
from tabi.policy.users import PREFIX
from tabi.url import ListenURL
from tabi.wire.address import Address


def check_values(config: Config) -> None:
    """Check what types alone do not say. Raises ConfigError."""
    if not 0 <= config.workers <= 1024:
        raise ConfigError(f"{config.workers}, expected 0 to 1024", "workers")
    if not config.listen:
        raise ConfigError("empty, expected one or more", "listen")
    if not config.log.access or "\0" in config.log.access:
        raise ConfigError("expected stdout, stderr, syslog, none or a path", "log.access")
    for index, listen in enumerate(config.listen):
        try:
            url = listen.parsed
        except ValueError as exc:
            raise ConfigError(str(exc), f"listen[{index}].url") from None
        same = next(i for i, other in enumerate(config.listen) if other.parsed.place == url.place)
        if same < index and not (isinstance(url.place, Address) and url.place.port == 0):
            raise ConfigError(f"the same address as listen[{same}].url", f"listen[{index}].url")
        check_tls(listen, url, f"listen[{index}].tls")
        try:
            _ = listen.proxies
        except ValueError as exc:
            raise ConfigError(
                f"{exc}, expected networks such as 10.0.0.0/8", f"listen[{index}].proxy_protocol"
            ) from None
        check_udp(listen.udp, config.workers, f"listen[{index}].udp")
        by_certificate = listen.tls is not None and listen.tls.client_ca is not None
        if listen.users == "required" and not config.users and not by_certificate:
            raise ConfigError('"required", but there are no users', f"listen[{index}].users")
    for name in config.egress:
        if name != "direct":
            raise ConfigError("unknown, expected direct: this version has no other way out", f"egress.{name}")
    for name, user in config.users.items():
        if not 0 < len(name.encode()) <= 255:
            raise ConfigError("a user name has 1 to 255 octets (RFC 1929)", f"users.{name}")
        if user.plain and user.password.startswith(PREFIX):
            raise ConfigError("begins as a hash does: leave plain = true out", f"users.{name}.password")
        try:
            secret = user.secret
        except ValueError as exc:
            hint = "; for the password itself say plain = true" if not user.password.startswith("$") else ""
            raise ConfigError(f"{exc}{hint}", f"users.{name}.password") from None
        if not secret.is_hash and not 0 < len(secret.key) <= 255:
            raise ConfigError("a password has 1 to 255 octets (RFC 1929)", f"users.{name}.password")


def check_tls(listen: Listen, url: ListenURL, path: str) -> None:
    """Check that TLS is there where it is asked for, and nowhere else. Raises ConfigError."""
    if url.tls and listen.tls is None:
        raise ConfigError('missing, expected { certificate = "…", key = "…" }', path)
    if listen.tls is not None and not url.tls and url.protocol != "mixed":
        schemes = "https" if url.protocol == "http" else f"{url.protocol}+tls, mixed or mixed+tls"
        raise ConfigError(f"{url.scheme} is without TLS, expected a URL with {schemes}", path)


def check_udp(udp: Udp, workers: int, path: str) -> None:
    """Check where datagrams are to be. Raises ConfigError."""
    for key, read in (("advertise", lambda: udp.address), ("ports", lambda: udp.port_range)):
        try:
            read()
        except ValueError as exc:
            raise ConfigError(str(exc), f"{path}.{key}") from None
    if udp.shared and workers != 1:
        raise ConfigError(
            f'"shared" with workers = {workers}, expected workers = 1 or a range of ports', f"{path}.ports"
        )
