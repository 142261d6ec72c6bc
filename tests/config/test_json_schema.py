"""The schema for editors: it takes what tabi takes, and marks what a schema can know to be wrong."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from datetime import date, datetime, time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from config import test_config, test_distort
from config.test_schema import STRUCTS
from tabi.config import json_schema
from tabi.config.distort import DistortConfig, FaultConfig
from tabi.config.json_schema import FIELDS, SPECIALS, TABLES, make_schema
from tabi.config.load import SPECIAL, parse_config
from tabi.config.schema import Config
from tabi.policy.guard import PRIVATE
from tabi.policy.quantities import OCTETS

ROOT = Path(__file__).resolve().parent.parent.parent
SCHEMA = make_schema()
VALIDATOR = Draft202012Validator(SCHEMA)


def as_json(value: Any) -> Any:
    """A value of TOML as an editor hands it to a schema: dates and times are text."""
    if isinstance(value, dict):
        return {key: as_json(below) for key, below in value.items()}
    if isinstance(value, list):
        return [as_json(below) for below in value]
    return value.isoformat() if isinstance(value, date | time) else value


def mistakes(text: str) -> list[str]:
    """What the schema has against a file."""
    return [f"{error.json_path}: {error.message}" for error in VALIDATOR.iter_errors(as_json(tomllib.loads(text)))]


def test_it_is_a_schema() -> None:
    """Of the dialect that it names."""
    assert SCHEMA["$schema"] == Draft202012Validator.META_SCHEMA["$id"]
    Draft202012Validator.check_schema(SCHEMA)


def files() -> Iterator[tuple[str, str]]:
    """Every tabi.toml of the repository, and every block of TOML of a page, each with where it is."""
    for path in (*ROOT.glob("examples/*.toml"), *ROOT.glob("packaging/**/*.toml")):
        yield path.name, path.read_text()
    for path in (*ROOT.glob("docs/**/*.md"), ROOT / "README.md"):
        for number, text in enumerate(re.findall(r"^```toml\n(.*?)^```$", path.read_text(), re.M | re.S)):
            yield f"{path.name}-{number}", text
    yield "everything", test_config.EVERYTHING
    yield "molding", test_distort.WHOLE


@pytest.mark.parametrize("text", [pytest.param(text, id=name) for name, text in files()])
def test_a_right_file_is_right(text: str) -> None:
    """Examples, pages, and a file with all keys that there are."""
    assert mistakes(text) == []


BEYOND = re.compile(
    r"there (is|are) no (\[egress|source|proxy|SSH|members|users)|the same |leads to itself|has host bits set"
    r"|direct leads from this machine|chain\[1\]: 'b'|isolate: |expected balance = "
    r"|send_proxy_protocol: (it begins|an SSH)|listeners\[0\]|users\.alice\.password: missing|\"required\", but"
    r"|a password has 1 to 255 octets|no server has tls|more than max_ttl"
)
"""What a schema cannot know: whether something is there that a key names, and what follows from other tables."""


def wrong() -> Iterator[tuple[str, str]]:
    """Each file with a mistake that the tests of the configuration have, with the message."""
    for mark in test_config.test_a_mistake_names_its_key.pytestmark:  # type: ignore[attr-defined]
        yield from mark.args[1]
    for mark in test_config.test_a_mistake_about_names_names_its_key.pytestmark:  # type: ignore[attr-defined]
        yield from ((f"[resolver]\n{text}", f"resolver.{message}") for text, message in mark.args[1])


@pytest.mark.parametrize(("text", "message"), [*wrong()])
def test_a_wrong_file_is_wrong(text: str, message: str) -> None:
    """Unless it takes more than a schema to know."""
    assert BEYOND.search(message) or mistakes(text), message


def test_the_place_of_a_mistake_is_that_of_tabi() -> None:
    """An editor marks the very key."""
    assert [line.partition(":")[0] for line in mistakes("[timeouts]\nidle = 'soon'")] == ["$.timeouts.idle"]
    assert mistakes("[[listen]]\nurll = 'x'")[0].startswith("$.listen[0]: Additional properties")


# --- it does not drift ---


def test_every_key_is_there_with_its_text() -> None:
    """Of each struct, as it is written in the file; what it says is what the source says."""
    parts = {**SCHEMA["$defs"], "Config": SCHEMA}
    kinds: list[type[msgspec.Struct]] = [*STRUCTS, DistortConfig, FaultConfig]
    for kind in kinds:
        properties = parts[kind.__name__]["properties"]
        assert list(properties) == [field.encode_name for field in msgspec.structs.fields(kind)]
        assert all(schema["description"] for schema in properties.values()), kind
        assert parts[kind.__name__]["additionalProperties"] is False


def test_defaults_are_those_of_the_structs() -> None:
    """With the units of the file; what has no plain value has none here."""
    timeouts = SCHEMA["$defs"]["Timeouts"]["properties"]
    assert (timeouts["idle"]["default"], timeouts["handshake"]["default"]) == (300, 10)
    assert SCHEMA["properties"]["workers"]["default"] == 1
    assert SCHEMA["$defs"]["PerClient"]["properties"]["unauthenticated"]["default"] == "25%"
    assert SCHEMA["$defs"]["GuardConfig"]["properties"]["deny"]["default"] == [PRIVATE]
    assert "default" not in SCHEMA["properties"]["listen"]
    assert "default" not in SCHEMA["properties"]["decide"]


def test_what_is_said_of_keys_is_said_of_some_that_exist() -> None:
    """A key that is renamed takes its bounds along."""
    for kind, key in FIELDS:
        assert key in kind.__struct_fields__, (kind, key)
    for kind in TABLES:
        assert kind.__name__ in SCHEMA["$defs"]
    assert SPECIALS.keys() == SPECIAL.keys()


numbers = st.integers(-5, 5) | st.floats(-2, 2e12) | st.sampled_from([0, 1, 1_000_000, 1_000_001, 1e9, 1e-7])
units = st.sampled_from(
    [*OCTETS, "ms", "s", "min", "h", "d", "%", "/s", "MB/s", "Mbit/s", "/h", "GB/month", "kB/day", ""]
)
texts = st.builds(
    "{}{}{}{}".format, st.sampled_from(["", " "]), st.sampled_from(["0", "1", "0.0", "0.5", "25", "100"]), units, units
)
moments = st.datetimes().map(datetime.isoformat) | st.dates().map(date.isoformat) | st.times().map(time.isoformat)
others = st.sampled_from(
    ["never", "22:00 Europe/Berlin", "30 s good, 5 s gone", "1s good,2ms gone", "50 GB / month Asia/Tokyo"]
)


@pytest.mark.parametrize("kind", SPECIAL, ids=lambda kind: str(kind.__name__))
@given(value=numbers | texts | moments | others | st.booleans() | st.text(max_size=5))
@example("10 mib")
@example("2027-W01-1")
@example("20270101T120000Z")
@example(" 0.5% ")
def test_what_tabi_reads_the_schema_takes(kind: type, value: object) -> None:
    """Of every type with units: an editor never marks what is right."""
    try:
        SPECIAL[kind](value)
    except ValueError:
        return
    assert Draft202012Validator(SPECIALS[kind]).is_valid(value), value


def test_words_of_any_case_are_units() -> None:
    """As tabi reads them."""
    assert re.fullmatch(json_schema.any_of(["kib", "socks5+tls"]), "KiB")
    assert not re.fullmatch(json_schema.any_of(["socks5+tls"]), "socks55tls")


@pytest.mark.parametrize(
    "text",
    [
        "[[listen]]\nurl = 'SOCKS5://127.0.0.1:1'",
        "[[listen]]\nurl = 'unix:/run/x'",
        "[[listen]]\nurl = 'fd://'",
        "[[listen]]\nurl = 'unix:///x?protocol=mixed&owner=a%40b'",
        "[egress.a]\nurl = 'Http://u:p@[::1]:3128/'",
        "[egress.a]\nchain = ['b', 'ssh://u@h']\n[egress.b]",
        "[guard]\ndeny = []\nallow = [' 10.0.0.0/255.0.0.0', '[::1]']",
        "[resolver]\nservers = ['[::1]:53', '192.0.2.1:5353', '::1', 'TLS://dns.example']",
        "[[rule]]\naction = 'deny'\nsniff = false\nports = [0, '1-2']",
        "[users.a]\npassword = 'x'\nplain = true\nexpires = 2027-01-01T00:00:00",
        "[timeouts]\nidle = 0",
        "[[distort]]\nfault = 'mine'\n[profile.mine]\nrefuse = 'Connection Refused'",
    ],
)
def test_odd_files_that_are_right(text: str) -> None:
    """What tabi takes although few write it so."""
    parse_config(text)
    assert mistakes(text) == []


def test_a_file_for_every_table_of_faults() -> None:
    """Faults are tables of the schema, with what they have of both directions."""
    assert SCHEMA["$defs"]["FaultConfig"]["properties"]["up"]["$ref"] == "#/$defs/LineConfig"
    assert mistakes("[profile.x]\nlatency = '0 ms'") != []
    assert mistakes("[profile.x]\nburst = 0.5\nloss = 0.1") != []
    assert Config.__name__ not in SCHEMA["$defs"]
