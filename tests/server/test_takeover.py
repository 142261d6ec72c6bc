"""What a reload takes of a new configuration, and what waits for a restart."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec

from tabi.config import Config, Listen, make_config
from tabi.server.takeover import AT_START, take_over


def test_what_waits_for_a_restart_is_named_and_stays() -> None:
    """Workers, deadlines, log, quotas' place and resolver are used at the start; all else is new at once."""
    old = make_config({"rule": [{"action": "deny"}]})
    parts: dict[str, Any] = {"timeouts": {"idle": 5}, "log": {"access": "none"}, "resolver": {"cache": 0}}
    new = make_config(parts | {"workers": 3, "quotas": {"path": "/q"}, "limits": {}})
    found, keys = take_over(old, new)
    assert keys == ["workers", "timeouts", "log", "quotas", "resolver"]
    assert found == msgspec.structs.replace(old, rule=[])


def test_listeners_keep_their_places_and_may_change_otherwise() -> None:
    """The same URLs: who must be a user is another from now on. Other URLs: all of it waits."""
    old = Config(listen=[Listen("socks5://127.0.0.1:1", "none")])
    other = Config(listen=[Listen("socks5://127.0.0.1:1", "optional")])
    elsewhere = Config(listen=[Listen("socks5://127.0.0.1:2")])
    assert take_over(old, other) == (other, [])
    assert take_over(old, elsewhere) == (old, ["listen"])


def test_the_pages_name_all_that_waits_for_a_restart() -> None:
    """Where the file and where a reload is explained."""
    for page in ("configuration.md", "tune-and-operate.md"):
        text = Path(__file__).parents[2].joinpath("docs", page).read_text()
        (sentence,) = re.findall(r"`workers`, `\[timeouts\]`[^.]*\.", text)
        assert [key for key in AT_START if f"`{key}`" not in sentence and f"`[{key}]`" not in sentence] == []
