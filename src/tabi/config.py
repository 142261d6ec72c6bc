"""The schema of tabi.toml: frozen structs, one for each part. What is not here is an error, never ignored.

Durations are float seconds; the file may also say text such as "200ms" or "5 min".
"""

from __future__ import annotations

import re
import tomllib
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from pathlib import Path
from typing import Any, Literal

import msgspec

from tabi.errors import ConfigError
from tabi.policy.users import PREFIX, Secret, parse_hash, plain_secret
from tabi.url import DEFAULT_PORT, ListenURL, parse_listen_url
from tabi.wire.address import Address, Host, parse_ip

UNITS = {"ms": 0.001, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|min|h|d)?", re.ASCII)

Network = IPv4Network | IPv6Network


class Seconds(float):
    """A duration in seconds, more than 0."""

    @classmethod
    def parse(cls, value: object) -> Seconds:
        """Read a number, or a number with ms, s, min, h or d behind it. Raises ValueError."""
        if isinstance(value, str) and (found := DURATION.fullmatch(value.strip())):
            value = float(found[1]) * UNITS[found[2] or "s"]
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f'{value!r} is no duration, expected seconds such as 10 or text such as "200ms"')
        if not 0 < value < 1e9:
            raise ValueError(f"a duration is more than 0 and less than 1e9 seconds, this one is {value!r}")
        return cls(value)


PORT_RANGE = re.compile(r"(\d{1,5})-(\d{1,5})", re.ASCII)
BROADCAST = "255.255.255.255"


class Udp(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``udp`` of a listener: where the sockets of its associations are, and of its BINDs."""

    advertise: str | None = None
    """The IP address that clients are told in place of this machine's own: for a proxy behind NAT or in a container."""
    ports: str | None = None
    """``"40000-40999"``: ports to take, for a firewall. ``"shared"``: one UDP port, the listener's own, for all
    associations. Default: any free port, one for each association."""
    fragments: Literal["reassemble", "drop"] = "reassemble"
    """What becomes of datagrams in fragments (RFC 1928 section 7). Default: reassemble."""
    senders: Literal["contacted", "any"] = "contacted"
    """Whose datagrams reach the client: hosts that it has sent to, or anybody. Default: contacted."""

    @property
    def address(self) -> IPv4Address | IPv6Address | None:
        """``advertise`` as an address. Raises ValueError."""
        if self.advertise is None:
            return None
        expected = f"{self.advertise!r}, expected an IP address that clients can send to"
        try:
            address = parse_ip(self.advertise)
        except ValueError:
            raise ValueError(expected) from None
        if address.is_unspecified or address.is_multicast or "%" in str(address) or str(address) == BROADCAST:
            raise ValueError(expected)
        return address

    def public(self, local: Host) -> Host:
        """What clients are told in place of ``local``, an address of this machine."""
        address = self.address
        return address if address is not None and address.version == getattr(local, "version", 0) else local

    @property
    def shared(self) -> bool:
        """Whether all associations share one port."""
        return self.ports == "shared"

    @property
    def port_range(self) -> range | None:
        """The ports to choose from, or None for any. Raises ValueError."""
        if self.ports is None or self.shared:
            return None
        found = PORT_RANGE.fullmatch(self.ports)
        if found is None:
            raise ValueError(f'{self.ports!r}, expected a range such as "40000-40999", or "shared"')
        first, last = int(found[1]), int(found[2])
        if not 0 < first <= last <= 65535:
            raise ValueError(f"{self.ports!r}, expected the lower port first, 1 to 65535")
        return range(first, last + 1)


class Tls(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``tls`` of a listener: files in PEM, looked at again when they change."""

    certificate: str
    """The server's certificate, and behind it those between it and the authority."""
    key: str
    """Its private key, without a passphrase."""
    client_ca: str | None = None
    """Certificates of the authorities whose clients are users by their own certificate. Default: none is asked for."""
    client_name: Literal["cn", "dns", "email", "uri"] = "cn"
    """What of a client's certificate is the user's name: the subject's CN, or the SAN of a kind. Default: cn."""


class Listen(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[[listen]]``: one place to listen at."""

    url: str = f"mixed://127.0.0.1:{DEFAULT_PORT}"
    """Protocol and place: ``mixed://host:port``, ``unix:///path?protocol=mixed``, ``fd://NAME``; port 0 takes a free
    one. Protocols: mixed, socks5, socks4, http; inside TLS mixed+tls, socks5+tls,
    socks4+tls, https."""
    users: Literal["required", "optional", "none"] | None = None
    """Whether clients must be users. Default: required as soon as there is a user, or a client_ca; else none."""
    udp: Udp = Udp()
    """Addresses and ports of UDP associations and of BIND."""
    tls: Tls | None = None
    """Certificate and key; ``mixed`` takes clients with TLS and without then. Default: no TLS."""
    proxy_protocol: list[str] = []
    """Networks whose connections begin with a PROXY header, such as ``"10.0.0.0/8"``; ``"unix"`` is whoever comes
    through a unix socket. From others it is refused. Default: none."""

    @property
    def parsed(self) -> ListenURL:
        """The URL in its parts, checked when the configuration was loaded."""
        return parse_listen_url(self.url)

    @property
    def proxies(self) -> tuple[Network | None, ...]:
        """``proxy_protocol`` as networks, None for ``"unix"``. Raises ValueError."""
        return tuple(None if text == "unix" else ip_network(text) for text in self.proxy_protocol)


class User(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[users.NAME]``: who may use the proxy."""

    password: str
    """A hash as ``tabi passwd`` prints it; the password itself only with ``plain = true``."""
    plain: bool = False
    """Whether ``password`` is the password itself. Default: false."""

    def __repr__(self) -> str:
        return "User()"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return []

    @property
    def secret(self) -> Secret:
        """What is compared with. Raises ValueError where the hash is none."""
        return plain_secret(self.password) if self.plain else parse_hash(self.password)


class Egress(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[egress.NAME]``: a way out. There is one, ``direct``, whether it is in the file or not."""

    send_proxy_protocol: Literal[0, 1, 2] = 0
    """The version of the PROXY header that every destination of a CONNECT or of a forwarded request
    is sent first; 0 is none. Default: 0."""


class Timeouts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[timeouts]``, in seconds."""

    handshake: Seconds = Seconds(10)
    """From accept to the whole request. Default: 10."""
    connect: Seconds = Seconds(10)
    """Resolving and connecting together. Default: 10."""
    idle: Seconds = Seconds(300)
    """Without an octet in either direction. Default: 300."""
    half_closed: Seconds = Seconds(60)
    """The same, once one side has ended. Default: 60."""
    bind: Seconds = Seconds(120)
    """From the first reply to BIND until the peer has connected. Default: 120."""
    udp_idle: Seconds = Seconds(120)
    """Without a datagram in either direction. Default: 120."""
    drain: Seconds = Seconds(30)
    """For running sessions after SIGTERM or Ctrl-C. Default: 30."""


class Log(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[log]``."""

    access: str = "stdout"
    """Where the access log goes: stdout, stderr, syslog, none, or a path. Default: stdout."""
    level: Literal["debug", "info", "warning", "error"] = "info"
    """The least important message that is shown on stderr. Default: info."""


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """tabi.toml."""

    workers: int = 1
    """Processes; 0 is one for each CPU. Default: 1."""
    listen: list[Listen] = msgspec.field(default_factory=lambda: [Listen()])
    """Places to listen at. Default: mixed://127.0.0.1:1080."""
    users: dict[str, User] = {}
    """Who may use the proxy. Default: nobody, which means anybody on loopback."""
    egress: dict[str, Egress] = {}
    """Ways out, by name. Default: ``direct``."""
    timeouts: Timeouts = Timeouts()
    """Deadlines."""
    log: Log = Log()
    """What is written down, and where."""


def load_config(path: str | Path) -> Config:
    """Read and check a file. Paths in it are relative to its folder, and absolute in what is returned.

    Raises:
        ConfigError: it cannot be read, or something in it is wrong; the message begins with the file's name.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as exc:
        raise ConfigError(f"no UTF-8 text at octet {exc.start}", str(path)) from exc
    except OSError as exc:
        raise ConfigError(exc.strerror or str(exc), str(path)) from exc
    try:
        return resolve_paths(parse_config(text), Path(path).absolute().parent)
    except ConfigError as exc:
        raise ConfigError(str(exc), str(path)) from exc


def resolve_paths(config: Config, folder: Path) -> Config:
    """Make paths absolute that are relative to a folder."""

    def absolute(listen: Listen) -> Listen:
        tls = listen.tls
        if tls is None:
            return listen
        files = {key: str(folder / name) for key in ("certificate", "key", "client_ca") if (name := getattr(tls, key))}
        return msgspec.structs.replace(listen, tls=msgspec.structs.replace(tls, **files))

    return msgspec.structs.replace(config, listen=[absolute(listen) for listen in config.listen])


def parse_config(text: str) -> Config:
    """Read and check the text of a tabi.toml. Raises ConfigError, which names the key."""
    try:
        data = tomllib.loads(text)
    except RecursionError:
        raise ConfigError("nested too deeply") from None
    except ValueError as exc:  # TOMLDecodeError is one; a number of 5,000 digits is another
        raise ConfigError(str(exc).partition(";")[0]) from exc
    return make_config(data)


def make_config(data: dict[str, Any]) -> Config:
    """Check a tabi.toml that was parsed already. Raises ConfigError, which names the key."""
    try:
        config = msgspec.convert(data, Config, dec_hook=decode_special)
    except msgspec.ValidationError as exc:
        raise explain(str(exc), data) from None
    check_values(config)
    return config


def decode_special(kind: type, value: object) -> object:
    """msgspec's hook for the types that TOML does not have."""
    if kind is Seconds:
        return Seconds.parse(value)
    raise NotImplementedError(kind)


def explain(message: str, data: dict[str, Any]) -> ConfigError:
    """Turn msgspec's message into one that names the key in tabi.toml's own words."""
    text, _, place = message.partition(" - at `")
    path = name_key(place.rstrip("`").removeprefix("$").removeprefix("."), data)
    unknown = re.fullmatch(r"Object contains unknown field `(.*)`", text, re.DOTALL)
    if unknown:
        known = ", ".join(known_keys(path))
        return ConfigError(f"unknown key, expected one of: {known}", f"{path}.{unknown[1]}".lstrip("."))
    missing = re.fullmatch(r"Object missing required field `(.*)`", text)
    if missing:
        return ConfigError("missing", f"{path}.{missing[1]}".lstrip("."))
    key = re.split(r"[.\]]", path)[-1]
    if text.startswith("Invalid enum value") and key in CHOICES:
        text += f", expected {CHOICES[key]}"
    text = text.replace(" | null`", "`")  # TOML has none
    text = re.sub(r"`(\w+)`", lambda found: TOML_TYPES.get(found[1], found[1]), text)
    if path == "listen":
        text = f"{text.replace('xpected array', 'xpected array of tables')}: write [[listen]]"
    return ConfigError(text[:1].lower() + text[1:], path or None)


def name_key(path: str, data: dict[str, Any]) -> str:
    """msgspec writes ``users[...]`` for any key of a table: find out which one it was."""
    head, any_key, tail = path.partition("[...]")
    if any_key:
        for key, value in data[head].items():
            try:
                msgspec.convert(value, PARTS[head], dec_hook=decode_special)
            except msgspec.ValidationError:
                return f"{head}.{key}{tail}"
    return path


PARTS: dict[str, type[msgspec.Struct]] = {
    "": Config,
    "listen": Listen,
    "udp": Udp,
    "tls": Tls,
    "users": User,
    "egress": Egress,
    "timeouts": Timeouts,
    "log": Log,
}


TOML_TYPES = {"object": "table", "str": "string", "int": "integer", "bool": "boolean"}
"""The words of TOML for those of msgspec; the others are the same."""

CHOICES = {
    "users": "required, optional or none",
    "level": "debug, info, warning or error",
    "fragments": "reassemble or drop",
    "senders": "contacted or any",
    "client_name": "cn, dns, email or uri",
    "send_proxy_protocol": "1 or 2, or 0 for none",
}


def known_keys(path: str) -> tuple[str, ...]:
    """The keys of the part that a path leads to."""
    below = re.fullmatch(r"listen\[\d+\]\.(udp|tls)", path)
    return PARTS[below[1] if below else re.split(r"[.\[]", path)[0]].__struct_fields__


def check_types(config: Config) -> Config:
    """Check a configuration that was made in Python as if it came from a file. Raises ConfigError."""

    def to_toml(value: object) -> float:
        if isinstance(value, float):
            return float(value)
        raise ConfigError(f"{type(value).__name__} as a value, expected a type of TOML")

    data = msgspec.to_builtins(config, enc_hook=to_toml)
    try:
        return msgspec.convert(data, Config, dec_hook=decode_special)
    except msgspec.ValidationError as exc:
        raise explain(str(exc), data) from None


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
