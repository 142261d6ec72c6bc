"""From a file to a configuration: paths, names of keys, and what is wrong before anything is checked."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from tabi.config import Config, Listen, Seconds, Timeouts, load_config, parse_config
from tabi.config.load import PARTS, check_types
from tabi.errors import ConfigError


def write(folder: Path, octets: bytes) -> Path:
    """A file."""
    path = folder / "tabi.toml"
    path.write_bytes(octets)
    return path


@pytest.mark.parametrize(
    ("octets", "message"),
    [
        (b"listen = [", "tabi.toml: "),
        (b"\xff\xfe", "tabi.toml: no UTF-8 text at octet 0"),
        (b"workers = 1\nworker = 1", "tabi.toml: worker: "),
        (b"workers = -1", "tabi.toml: workers: -1, expected 0 to 1024"),
        (b"x = " + b"[" * 5000 + b"]" * 5000, "tabi.toml: nested too deeply"),
        (b"workers = " + b"1" * 5000, "tabi.toml: Exceeds the limit"),
    ],
)
def test_a_mistake_begins_with_the_name_of_the_file(tmp_path: Path, octets: bytes, message: str) -> None:
    """Whether it is no text, no TOML, no key of ours or no value; and it is one line."""
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, octets))
    assert str(caught.value).startswith(f"{tmp_path}/{message}")
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    """Its name, and what the system says."""
    with pytest.raises(ConfigError, match=r"/none\.toml: No such file or directory$"):
        load_config(tmp_path / "none.toml")


def test_a_byte_order_mark_is_no_mistake(tmp_path: Path) -> None:
    """Some editors write one."""
    assert load_config(write(tmp_path, b"\xef\xbb\xbfworkers = 3")).workers == 3


PATHS = """
listen = [{ url = "mixed://127.0.0.1:0", tls = { certificate = "a/cert.pem", key = "/abs/key.pem", client_ca = "ca" } }]
quotas = { path = "q.sqlite" }
resolver = { servers = ["tls://192.0.2.1"], ca = "dns.pem" }
[egress.jump]
url = "ssh://alice@192.0.2.2:22"
ssh = { known_hosts = "hosts", key = "id" }
[egress.secure]
url = "https://192.0.2.3:443"
ca = "up.pem"
"""


def test_paths_are_relative_to_the_files_folder(tmp_path: Path) -> None:
    """All of them, so that it does not matter where the server was started; those that are absolute stay."""
    config = load_config(write(tmp_path, PATHS.encode()))
    tls = config.listen[0].tls
    assert tls is not None
    assert (tls.certificate, tls.key, tls.client_ca) == (f"{tmp_path}/a/cert.pem", "/abs/key.pem", f"{tmp_path}/ca")
    assert (config.quotas.path, config.resolver.ca) == (f"{tmp_path}/q.sqlite", f"{tmp_path}/dns.pem")
    ssh = config.egress["jump"].ssh
    assert (ssh.known_hosts, ssh.key) == (f"{tmp_path}/hosts", f"{tmp_path}/id")
    assert config.egress["secure"].ca == f"{tmp_path}/up.pem"


def test_what_names_no_path_stays_as_it_is(tmp_path: Path) -> None:
    """None is a default of its own, not the folder."""
    config = load_config(write(tmp_path, b'[egress.a]\nurl = "socks5://192.0.2.1:1"'))
    assert (config.quotas.path, config.resolver.ca, config.egress["a"].ca) == (None, None, None)
    assert (config.egress["a"].ssh.known_hosts, config.listen[0].tls) == (None, None)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("listen = [{ nope = 1 }]", "url"),
        ("listen = [{}, { udp = { nope = 1 } }]", "advertise"),
        ("listen = [{ tls = { nope = 1 } }]", "certificate"),
        ("[users.alice]\nnope = 1", "password"),
        ("[users.'a.b'.limits]\nnope = 1", "quota"),
        ("[[clients]]\nnetworks = []\nlimits = { nope = 1 }", "quota"),
        ("[egress.a]\nnope = 1", "url"),
        ("[egress.a]\nmembers = ['direct', { nope = 1 }]", "weight"),
        ("[egress.a.sticky]\nnope = 1", "by"),
        ("[egress.a.check]\nnope = 1", "http"),
        ("[timeouts]\nnope = 1", "idle"),
    ],
)
def test_the_keys_that_a_part_may_have(text: str, key: str) -> None:
    """What a mistake offers for a key that is unknown is of the same part."""
    with pytest.raises(ConfigError) as caught:
        parse_config(text)
    wrong = next(error for error in caught.value.errors if error.path and error.path.endswith(".nope"))
    offered = wrong.message.removeprefix("unknown key, expected one of: ").split(", ")
    assert key in offered


def test_every_part_of_the_schema_is_known() -> None:
    """Each struct: else a key that is none in it would be a KeyError."""
    config = Config()
    structs = {name for name in Config.__struct_fields__ if isinstance(getattr(config, name), msgspec.Struct)}
    assert structs
    assert structs <= set(PARTS)


def test_what_was_made_in_python_is_checked_like_a_file() -> None:
    """A value of another type is a mistake that names its key, though no type checker has seen it."""
    good = Config(listen=[Listen("mixed://127.0.0.1:0")], timeouts=Timeouts(idle=Seconds(5)))
    assert check_types(good) == good
    for wrong, message in (
        (Config(workers="two"), r"^workers: expected integer, got string"),  # type: ignore[arg-type]
        (Config(listen=[Listen(5)]), r"^listen\[0\]\.url: expected string, got integer"),  # type: ignore[arg-type]
        (Config(timeouts=Timeouts(idle=b"5")), r"^bytes as a value|^timeouts\.idle: "),  # type: ignore[arg-type]
    ):
        with pytest.raises(ConfigError, match=message):
            check_types(wrong)


def test_files_of_molding_are_beside_the_file(tmp_path: Path) -> None:
    """As all paths are; what is absolute stays."""
    text = b"[[distort]]\nmap_local = 'files'\n[[distort]]\nbody = '/abs/body'\n[[distort]]\nfault = '3g'"
    found = load_config(write(tmp_path, text)).distort
    assert [entry.map_local for entry in found] == [str(tmp_path / "files"), None, None]
    assert [entry.body for entry in found] == [None, "/abs/body", None]
