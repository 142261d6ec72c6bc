"""The options of `tabi fault`, which are made of the schema."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click
import msgspec
import pytest

from processes import run_here
from tabi.cli.fault import add, change
from tabi.cli.fault_options import MATCHERS, fault_options, given_by, in_options, option_of
from tabi.config import FaultConfig
from tabi.config.live_faults import CHOOSING
from tabi.config.texts import texts_of_module
from tabi.errors import ConfigError
from tabi.policy.rules import FILES


def given(*arguments: str) -> dict[str, Any]:
    """The keys that options give."""
    found: dict[str, Any] = {}

    @click.command()
    @fault_options
    def command(**options: Any) -> None:
        found.update(given_by(options))

    command.main(list(arguments), standalone_mode=False)
    return found


@pytest.mark.parametrize("command", [add, change], ids=["add", "change"])
def test_every_key_has_an_option_with_its_help(command: click.Command) -> None:
    """In the words of the schema, and without the marks of its docstrings."""
    options = {name: one for one in command.params for name in one.opts}
    for field in msgspec.structs.fields(FaultConfig):
        text = getattr(options[option_of(field.encode_name)], "help", None)
        assert text, field.name
        assert "``" not in text
        assert "\n" not in text
    for key in set(CHOOSING) - set(FILES):
        assert getattr(options[MATCHERS.get(key, option_of(key))], "help", None)
    latency = options["--latency"]
    assert isinstance(latency, click.Option)
    assert latency.help == "Seconds that each octet or datagram is late. Default: 0."
    assert latency.metavar == "TIME"


def test_values_are_as_toml_has_them() -> None:
    """Numbers, words and lists; text that only looks like a number stays text."""
    assert given() == {}
    assert given("--latency", "200ms", "--jitter", "0.05", "--slice", "1000", "--loss", "1%", "--burst", "3") == {
        "latency": "200ms",
        "jitter": 0.05,
        "slice": 1000,
        "loss": "1%",
        "burst": 3,
    }
    assert given("--host", "a", "--host", "5", "--port", "443", "--port", "80-90", "--hours", "5") == {
        "hosts": ["a", "5"],
        "ports": [443, "80-90"],
        "hours": "5",
    }
    assert given("--stall", "true", "--blackhole", "--no-shared", "--refuse", "5", "--resolve", "200ms") == {
        "stall": True,
        "blackhole": True,
        "shared": False,
        "refuse": 5,
        "resolve": "200ms",
    }
    assert given("--up", "latency=1s", "--up", "slow-close=2", "--down", "blackhole", "--from", "22:00") == {
        "up": {"latency": "1s", "slow_close": 2},
        "down": {"blackhole": True},
        "from": "22:00",
    }
    assert given("--latency", "-1", "--burst", "NaN", "--seed", "9" * 30) == {
        "latency": -1,
        "burst": "NaN",
        "seed": "9" * 30,
    }
    assert given("--loss", "1e-3", "--latency", "1E+2", "--seed", "-7") == {"loss": 0.001, "latency": 100.0, "seed": -7}


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (("=5",), "--up: '=5', expected KEY=VALUE"),
        (("latency",), "--up: 'latency', expected KEY=VALUE"),
        (("loss=1%", "slice-gap=1", "slice_gap=2"), "--up: slice_gap is there twice"),
    ],
)
def test_a_figure_of_one_direction_that_cannot_be_read(texts: tuple[str, ...], message: str) -> None:
    """One that is no switch has a value, and only one."""
    with pytest.raises(ConfigError) as found:
        given(*(part for text in texts for part in ("--up", text)))
    assert str(found.value) == message


ERRORS: list[tuple[str | None, str]] = [
    ("slow_close", "--slow-close: wrong"),
    ("hosts[1]", "--host: wrong"),
    ("hours", "--hours: wrong"),
    ("up.latency", "--up: latency: wrong"),
    ("for", "--for: wrong"),
    (None, "wrong"),
]


@pytest.mark.parametrize(("path", "text"), ERRORS)
def test_an_error_names_the_option(path: str | None, text: str) -> None:
    """In place of the key."""
    assert str(in_options(ConfigError("wrong", path))) == text


def test_without_the_source_of_the_schema(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where only compiled files are installed: the help says where to look."""

    def no_source(module: object) -> str:
        raise OSError("could not get source code")

    monkeypatch.setattr("inspect.getsource", no_source)
    texts_of_module.cache_clear()
    taken: list[Callable[..., Any]] = [fault_options(click.command()(lambda **_: None))]
    assert taken
    made = click.Command("x")
    fault_options(made)
    texts_of_module.cache_clear()
    assert {getattr(one, "help", None) for one in made.params} >= {"See docs/faults.md.", "Which sessions."}


@pytest.mark.parametrize("command", ["list", "add", "change", "remove"])
def test_each_command_has_help(command: str) -> None:
    """With an example, and each argument and option explained."""
    done = run_here("fault", command, "-h")
    assert done.returncode == 0
    assert done.stdout.decode().count(f"tabi fault {command}") > 1
