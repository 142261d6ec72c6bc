"""The structs of ``[[distort]]``: each key says what it is, nothing unknown is taken, a whole entry is read back."""

from __future__ import annotations

import inspect
import json
import re
from typing import Any

import msgspec
import pytest
from rich.pretty import pretty_repr

from tabi.config import make_config, parse_config
from tabi.config.compile import make_rewrite
from tabi.config.distort import DistortConfig, FaultConfig, HeadersConfig, LineConfig
from tabi.config.load import check_types, encode_special
from tabi.config.schema import InterceptConfig, RuleConfig
from tabi.policy.rules import Texts

STRUCTS = (LineConfig, FaultConfig, HeadersConfig, DistortConfig)

WHOLE = """
[[distort]]
name = "everything"
hosts = ["*.example.com"]
ports = [443, "8000-8999"]
users = ["@dev"]
clients = ["10.0.0.0/8", "unix"]
commands = ["connect"]
protocols = ["socks5"]
hours = "Mon-Fri 08:00-18:00 Europe/Berlin"
probability = "10%"
seed = 7
status = 503
strip_cookies = true
tls = "mirror"
hosts_file = "/etc/tabi/hosts"
networks_file = ["/etc/tabi/networks"]
profile = "chrome:stable"
[distort.headers]
remove = ["Via"]
set = { "User-Agent" = "x" }
append = { "X-A" = ["1", "2"] }
order = ["Host"]
[distort.fault]
direction = "up"
latency = "200ms"
jitter = 0.05
distribution = "normal"
limit = "10 MB"
then = "reset"
loss = "1%"
burst = 3
refuse = "connection refused"
resolve = "200ms"
down = { bandwidth = "1 MB/s", stall = true, blackhole = false }
from = "22:00 Europe/Berlin"
until = "06:00 Europe/Berlin"
every = "30 s good, 5 s gone"
[[distort]]
fault = "3g"
listeners = ["mixed://127.0.0.1:1080"]
map_remote = "http://127.0.0.1:8000"
response_headers = { remove = ["Server"] }
body = "/srv/body"
[[distort]]
map_local = "/srv/files"
fault = { status = 503, answer_delay = 1, close_after = "1 min", tls_cut = "reset" }
[profile.3g]
rtt = "300ms"
bandwidth = "1 MB/s"
queue = "64 KiB"
shared = true
dial_delay = 1
truncate = "1 kB"
reset_after = "1 min"
up = { duplicate = 0.1, reorder = 0.1, mtu = 1200, corrupt = 0.1, slow_close = 1 }
slice = 100
slice_variation = 50
slice_gap = "10ms"
from = 2027-01-01T12:00:00+01:00
"""


@pytest.mark.parametrize("kind", STRUCTS)
def test_every_part_refuses_what_it_does_not_know_and_never_changes(kind: type[msgspec.Struct]) -> None:
    """A typing error in a key is an error, and what was checked stays as it was."""
    assert kind.__struct_config__.frozen
    assert kind.__struct_config__.forbid_unknown_fields


@pytest.mark.parametrize("kind", STRUCTS)
def test_every_key_says_what_it_is(kind: type[msgspec.Struct]) -> None:
    """Each field has a text behind it, with its default."""
    source = inspect.getsource(kind)
    for field in kind.__annotations__:
        text = source.partition(f"\n    {field}: ")[2]
        assert text.partition("\n")[2].startswith('    """'), field
        matcher = field in Texts._fields
        assert matcher or "Default: " in text.split('"""')[1].replace("\n", " "), field


def test_the_matchers_are_those_of_rules() -> None:
    """Whoever knows one table knows all."""
    for kind in (RuleConfig, InterceptConfig, DistortConfig):
        assert set(Texts._fields) <= set(kind.__struct_fields__)


def test_everything_is_read_back() -> None:
    """What `tabi check --json` prints is the same configuration, and so is one that was made in Python."""
    for kind in STRUCTS:
        for field in msgspec.structs.fields(kind):
            assert re.search(rf"(^|[{{ .]){field.encode_name}( = |\]$)", WHOLE, re.M), field.name
    config = parse_config(WHOLE)
    data: dict[str, Any] = msgspec.to_builtins(config, enc_hook=encode_special)
    assert make_config(json.loads(json.dumps(data))) == config
    assert check_types(config) == config


def test_numbers_of_a_program_are_read() -> None:
    """In Python the quantities are plain numbers."""
    config = DistortConfig(probability=0.5, fault=FaultConfig(latency=0.1, stall=0, up=LineConfig(loss=0.1)))
    assert isinstance(config.fault, FaultConfig)
    assert config.fault.latency == 0.1


def test_values_of_fields_are_in_no_repr() -> None:
    """They may be secret, and a repr is in tracebacks and logs."""
    headers = HeadersConfig(set={"Authorization": "hunter2"}, append={"X-Token": ["hunter2"]}, remove=["Via"])
    entry = DistortConfig(headers=headers, response_headers=headers, map_remote="http://user:hunter2@a.example/")
    rewrite = make_rewrite(entry)
    assert rewrite is not None
    for part in (headers, entry, rewrite, rewrite.request):
        assert "hunter2" not in f"{part!r} {part} {pretty_repr(part)}"
