"""What is wrong with an ``[[intercept]]``, with ``[ca]`` and with a ``[[distort]]``: each mistake by its key."""

from __future__ import annotations

from pathlib import Path

import pytest

from tabi.config import InterceptConfig, load_config, make_config, parse_config
from tabi.config.check_matchers import intercept_errors
from tabi.errors import ConfigError

KEYS = ", ".join(InterceptConfig.__struct_fields__)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[intercept]\nhosts = ['a']", "intercept: expected array of tables, got table: write [[intercept]]"),
        ("[[intercept]]\nhost = ['a']", f"intercept[0].host: unknown key, expected one of: {KEYS}"),
        ("[ca]\ncert = 'a'", "ca.cert: unknown key, expected one of: certificate, key"),
        ("[ca]\ncertificate = 'a'", "ca.key: missing, expected both certificate and key"),
        ("[ca]\nkey = 'a'", "ca.certificate: missing, expected both certificate and key"),
        ("[ca]\nkey = ''\ncertificate = 'a'", "ca.key: expected the path of a file"),
        ("[[intercept]]\nkey = 'a'", "intercept[0].certificate: missing, expected both certificate and key"),
        (
            "[[intercept]]\naction = 'deny'",
            "intercept[0].action: invalid enum value 'deny', expected intercept or pass",
        ),
        (
            "[[intercept]]\non_pinning = 'x'",
            "intercept[0].on_pinning: invalid enum value 'x', expected pass or refuse",
        ),
        (
            "[[intercept]]\non_invalid = 'x'",
            "intercept[0].on_invalid: invalid enum value 'x', expected mirror or alert",
        ),
        ("[[intercept]]\non_error = 'x'", "intercept[0].on_error: invalid enum value 'x', expected pass or close"),
        ("[[intercept]]\nmismatch = 'x'", "intercept[0].mismatch: invalid enum value 'x', expected log or deny"),
        ("[[intercept]]\nquic = 'x'", "intercept[0].quic: invalid enum value 'x', expected pass or refuse"),
        ("[[intercept]]\n[[intercept]]\nhosts = ['a*b']", "intercept[1].hosts[0]: 'a*b' has a star within"),
        ("[[intercept]]\nhosts = []", "intercept[0].hosts: empty, expected one or more"),
        ("[[intercept]]\nhosts = ['a', '10.0.0.1/8']", "intercept[0].hosts[1]: '10.0.0.1/8' has host bits set"),
        (
            "[[intercept]]\ncommands = ['connect', 'bind']",
            "intercept[0].commands[1]: 'bind', expected one of: connect, forward, associate",
        ),
        ("[[intercept]]\n[users.a]\npassword = 'p'", "users.a.password: expected $scrypt$"),
        ("[[intercept]]\nhours = 'never'", "intercept[0].hours: 'never' is neither days nor times"),
        ("[[intercept]]\nlisteners = ['x']", "intercept[0].listeners[0]: 'x', expected one of: mixed://127.0.0.1:1080"),
        ("[[intercept]]\nname = ''", "intercept[0].name: '', expected a name that can be printed"),
        ("[[intercept]]\ntrust = ''", "intercept[0].trust: expected the path of a file"),
        ('[[intercept]]\nhar = "a\\u0000b"', "intercept[0].har: expected the path of a file"),
        ("[[intercept]]\nscripts = ['a', '']", "intercept[0].scripts[1]: expected the path of a file"),
        ("[[intercept]]\nmask = ['a', '']", "intercept[0].mask[1]: '', expected the name of a field or a key"),
        ("[[intercept]]\nbody_limit = 0", "intercept[0].body_limit: a size is more than 0"),
        ("[[intercept]]\nbody_limit = '2 GB'", "intercept[0].body_limit: 2000000000, expected at most 1000000000"),
        ("[[intercept]]\nhook_timeout = 0", "intercept[0].hook_timeout: a duration is more than 0"),
        (
            "[[intercept]]\naction = 'pass'\nhosts = ['a']\nhar = 'x'",
            "intercept[0].har: a setting for what is not looked into: action is pass",
        ),
        (
            "[[intercept]]\naction = 'pass'\nscripts = ['x']",
            "intercept[0].scripts: a setting for what is not looked into: action is pass",
        ),
    ],
)
def test_a_mistake_names_its_key(text: str, message: str) -> None:
    """What is unknown, of a wrong type, or has a value that means nothing."""
    with pytest.raises(ConfigError) as caught:
        parse_config(text)
    assert str(caught.value).startswith(message)


def test_all_mistakes_are_told() -> None:
    """Those of all entries at once, each word of a matcher by itself."""
    entries = [
        {"hosts": ["a*b", "a.example", "b*c"], "body_limit": 2 * 10**9},
        {"action": "pass", "ports": ["x"], "secrets": True},
    ]
    with pytest.raises(ConfigError) as caught:
        make_config({"intercept": entries})
    assert [error.path for error in caught.value.errors] == [
        "intercept[0].hosts[0]",
        "intercept[0].hosts[2]",
        "intercept[0].body_limit",
        "intercept[1].ports[0]",
        "intercept[1].secrets",
    ]


def test_what_is_right_has_no_errors() -> None:
    """Nor has a configuration without interception; an exemption may have a name and every matcher."""
    assert list(intercept_errors(make_config({}))) == []
    entry = {"action": "pass", "name": "x", "hosts": ["a"], "ports": [1], "users": ["b"], "hours": "Mon"}
    assert list(intercept_errors(make_config({"intercept": [entry, {}]}))) == []


def test_files_are_relative_to_the_folder_of_the_file(tmp_path: Path) -> None:
    """All of them, and absolute afterwards."""
    path = tmp_path / "tabi.toml"
    path.write_text(
        "[ca]\ncertificate = 'c'\nkey = 'k'\n[[intercept]]\ntrust = 't'\ncertificate = 'd'\nkey = 'l'\nhar = 'h'\n"
        "scripts = ['s', '/s']\n[[intercept]]\n"
    )
    config = load_config(path)
    assert (config.ca.certificate, config.ca.key) == (f"{tmp_path}/c", f"{tmp_path}/k")
    first, second = config.intercept
    assert [first.trust, first.certificate, first.key, first.har, *first.scripts] == [
        *(f"{tmp_path}/{name}" for name in "tdlhs"),
        "/s",
    ]
    assert second == InterceptConfig()


MOLDING = "it changes nothing: expected fault, headers, tls or another key that changes something"
WORKERS = "distort[0].seed: sessions are drawn by each worker for itself: expected workers = 1"


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        ("[distort]\nhosts = ['a']", ["distort: expected array of tables, got table: write [[distort]]"]),
        ("[[distort]]", [f"distort[0]: {MOLDING}"]),
        ("[[distort]]\nhosts = ['a']\nports = [443]\nprobability = 0.5", [f"distort[0]: {MOLDING}"]),
        ("[[distort]]\nheaders = {}\nresponse_headers = {}", [f"distort[0]: {MOLDING}"]),
        ("[[distort]]\nfault = 5", ["distort[0].fault: expected string or table, got integer"]),
        ("[[distort]]\nfault = ''", ["distort[0].fault: '', expected a table or a profile: 3g, "]),
        ("[[distort]]\nfault = '3g'\nprobability = -1", ["distort[0].probability: -1, expected a number from 0 to 1"]),
        ("[[distort]]\nfault = '3g'\nprobability = nan", ["distort[0].probability: nan, expected a number"]),
        ("[[distort]]\nfault = '3g'\nseed = 'x'", ["distort[0].seed: expected integer, got string"]),
        ("workers = 0\n[[distort]]\nfault = '3g'\nseed = 1", [WORKERS]),
        ("workers = 2\n[[distort]]\nfault = '3g'\nseed = 1", [WORKERS]),
        ("[[distort]]\nstatus = 99", ["distort[0].status: 99, expected 200 to 599"]),
        (
            "[[distort]]\nstatus = 500\nfault = { status = 500 }",
            ["distort[0].status: it contradicts fault.status: expected one of both"],
        ),
        ("[[distort]]\nmap_local = ''", ["distort[0].map_local: expected the path of a file"]),
        ("[[distort]]\nbody = ''", ["distort[0].body: expected the path of a file"]),
        ("[[distort]]\nheaders = { set = { a = 5 } }", ["distort[0].headers.set.a: expected string, got integer"]),
        (
            "[[distort]]\nfault = '3g'\nhosts = ['a', 'b*c']\ncommands = ['x']\nlisteners = ['y']\nname = ''",
            [
                "distort[0].hosts[1]: 'b*c' has a star within",
                "distort[0].commands[0]: 'x', expected one of: connect, bind, associate, forward, resolve",
                "distort[0].listeners[0]: 'y', expected one of: mixed://127.0.0.1:1080",
                "distort[0].name: '', expected a name that can be printed",
            ],
        ),
        (f"[[distort]]\nfault = '3g'\nname = '{'x' * 61}'", ["distort[0].name: 61 letters, expected 60 at most"]),
        ("[[distort]]\nfault = '3g'\nhosts = []", ["distort[0].hosts: empty, expected one or more"]),
        ("[profile]\nx = 5", ["profile.x: expected table, got integer"]),
        ("[profile.x]", ["profile.x: it changes nothing: expected one of latency, jitter, "]),
    ],
)  # fmt: skip
def test_a_mistake_of_molding_names_its_key(text: str, messages: list[str]) -> None:
    """All of an entry, each once, in the order of the file."""
    with pytest.raises(ConfigError) as caught:
        parse_config(text)
    assert len(caught.value.errors) == len(messages)
    for error, message in zip(caught.value.errors, messages, strict=True):
        assert str(error).startswith(message)


@pytest.mark.parametrize(
    "text",
    [
        "[[distort]]\nfault = '3g'\nseed = 0",
        "[[distort]]\nfault = '3g'\nseed = -99999999999999999999999\nprobability = 0",
        "workers = 0\n[[distort]]\nfault = '3g'",
        "[[distort]]\nstrip_cookies = true",
        "[[distort]]\ntls = 'mirror'",
        "[profile.unused]\nlatency = 1",
        "[[distort]]\nfault = { bandwidth = 1000, shared = true }\nclients = ['unix']",
    ],
)
def test_what_is_right_about_molding(text: str) -> None:
    """One worker may draw by a seed, and a profile need not be used."""
    parse_config(text)
