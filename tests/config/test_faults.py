"""Faults: what their words mean for each direction, the profiles, and what is wrong, key by key."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tabi.config import make_config, parse_config
from tabi.config.compile import make_distorts
from tabi.config.distort import FaultConfig, LineConfig
from tabi.config.faults import (
    LINE_KEYS,
    PROFILES,
    REPLIES,
    fault_errors,
    find_fault,
    keys,
    make_fault,
    make_schedule,
    reply_of,
)
from tabi.config.load import decode_special
from tabi.errors import ConfigError
from tabi.policy.faults import CLEAR, Fault, Line
from tabi.policy.schedule import ALWAYS, Cycle, Schedule

CHOICES = ", ".join(keys())
REPLY = "expected a reply: 1 (general failure), 2 (not allowed), 3 (network unreachable), "
MEMBERS = "3g, 4g, cable, dsl, edge, lossy-wifi, offline, satellite, slow-3g"
ZONE = "fault.until: its zone is UTC, expected that of from: Europe/Berlin"
NOTHING = f"fault: it changes nothing: expected one of {CHOICES}"


def read(text: str) -> FaultConfig:
    """The table of a fault."""
    return msgspec.convert(msgspec.toml.decode(f"x = {{ {text} }}")["x"], FaultConfig, dec_hook=decode_special)


def errors(text: str) -> list[str]:
    """What is wrong with a fault, as `tabi check` says it."""
    try:
        parse_config(f"[[distort]]\nfault = {{ {text} }}")
    except ConfigError as exc:
        return [str(error).removeprefix("distort[0].") for error in exc.errors]
    return []


# --- directions ---


@pytest.mark.parametrize(
    ("text", "up", "down"),
    [
        ("latency = '100ms'", Line(latency=0.1), Line(latency=0.1)),
        ("latency = 1, direction = 'both'", Line(latency=1), Line(latency=1)),
        ("latency = 1, direction = 'up'", Line(latency=1), CLEAR),
        ("latency = 1, direction = 'down'", CLEAR, Line(latency=1)),
        ("rtt = '300ms'", Line(latency=0.15), Line(latency=0.15)),
        ("rtt = 2, up = { latency = 5 }", Line(latency=5), Line(latency=1)),
        (
            "bandwidth = '1 MB/s', loss = '1%', up = { bandwidth = 1000 }",
            Line(bandwidth=1000, loss=0.01),
            Line(bandwidth=1e6, loss=0.01),
        ),
        ("latency = 1, direction = 'up', down = { stall = true }", Line(latency=1), Line(stall=0)),
        (
            "loss = 0.1, up = { burst = 3 }, down = { limit = '1 kB' }",
            Line(loss=0.1, burst=3),
            Line(loss=0.1, limit=1000),
        ),
        ("latency = 1, jitter = 1, distribution = 'normal', up = { distribution = 'uniform' }",
         Line(latency=1, jitter=1), Line(latency=1, jitter=1, distribution="normal")),
        ("blackhole = false, up = { blackhole = true }", Line(blackhole=True), CLEAR),
    ],
)  # fmt: skip
def test_figures_of_both_directions_and_of_one(text: str, up: Line, down: Line) -> None:
    """``up`` and ``down`` have their own figures in place of those for both; ``direction`` says where these hold."""
    assert errors(text) == []
    fault = make_fault(read(text))
    assert (fault.up, fault.down) == (up, down)


def test_figures_are_plain_numbers() -> None:
    """So that they go from process to process, and a chunk costs no method of ours."""
    fault = make_fault(
        read("latency = 1, bandwidth = 2, loss = 0.5, limit = 3, stall = true, slice = 1, dial_delay = 1")
    )
    found = [getattr(fault.up, key) for key in LINE_KEYS] + [getattr(fault, key) for key in Fault.__struct_fields__[2:]]
    assert {type(value) for value in found} <= {int, float, str, bool, type(None)}


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("refuse = 5", Fault(refuse=5)),
        ("refuse = ' Connection Refused '", Fault(refuse=5)),
        ("refuse = 3, dial_delay = '2s'", Fault(refuse=3, dial_delay=2)),
        ("resolve = 4", Fault(resolve=4)),
        ("resolve = 'host unreachable'", Fault(resolve=4)),
        ("resolve = '200ms'", Fault(resolve_delay=0.2)),
        ("reset_after = 1, tls_cut = 'close'", Fault(reset_after=1, tls_cut="close")),
        ("close_after = 1, blackhole = true", Fault(Line(blackhole=True), Line(blackhole=True), close_after=1)),
        ("limit = 1, then = 'reset'", Fault(Line(limit=1), Line(limit=1), then="reset")),
        ("bandwidth = 1, shared = true", Fault(Line(bandwidth=1), Line(bandwidth=1), shared=True)),
        ("status = 503, answer_delay = 1", Fault(status=503, answer_delay=1)),
        ("truncate = '1 kB'", Fault(truncate=1000)),
        ("loss = 0.9", Fault(Line(loss=0.9), Line(loss=0.9))),
        ("loss = 1, burst = 3", Fault(Line(loss=1, burst=3), Line(loss=1, burst=3))),
        ("loss = 0, latency = 1", Fault(Line(latency=1), Line(latency=1))),
        ("mtu = 65527", Fault(Line(mtu=65527), Line(mtu=65527))),
    ],
)
def test_what_a_fault_says(text: str, fault: Fault) -> None:
    """Replies by number or words, times in any unit, and what goes together."""
    assert errors(text) == []
    assert make_fault(read(text)) == fault


def test_schedules_are_those_of_the_words() -> None:
    """``from``, ``until`` and ``every``; none of them is always."""
    assert make_schedule(read("latency = 1")) == ALWAYS
    found = make_schedule(
        read("latency = 1, from = 2027-01-01T12:00:00Z, until = '2027-01-02', every = '1s good, 2s gone'")
    )
    assert found == Schedule(1798804800.0, 1798848000.0, Cycle.parse("1s good, 2s gone"))


# --- profiles ---


@pytest.mark.parametrize(
    ("name", "down", "up", "rtt"),
    [
        ("3g", 1600, 768, 300),
        ("slow-3g", 780, 330, 200),
        ("4g", 12000, 12000, 70),
        ("edge", 240, 200, 840),
        ("dsl", 1500, 384, 50),
        ("cable", 5000, 1000, 28),
        ("satellite", 20000, 2000, 600),
        ("lossy-wifi", 20000, 10000, 20),
    ],
)
def test_profiles_have_the_published_figures(name: str, down: int, up: int, rtt: int) -> None:
    """kbit/s, and milliseconds of a round trip, of which each direction has half."""
    fault = make_fault(PROFILES[name])
    assert (fault.down.bandwidth * 8, fault.up.bandwidth * 8) == (down * 1000, up * 1000)
    assert fault.down.latency == fault.up.latency == pytest.approx(rtt / 2000)


def test_offline_refuses_what_is_new_and_holds_what_runs() -> None:
    """Nothing of a connection is thrown away, so that it can go on afterwards; a stall loses datagrams."""
    assert make_fault(PROFILES["offline"]) == Fault(Line(stall=0.0), Line(stall=0.0), refuse=3)


@pytest.mark.parametrize("name", PROFILES)
def test_nothing_is_wrong_with_a_profile(name: str) -> None:
    """As if it stood in a file."""
    assert list(fault_errors(PROFILES[name], "x")) == []
    make_config({"distort": [{"fault": name}]})


def test_a_profile_of_the_file_takes_the_place_of_ours() -> None:
    """Whoever has better figures for 3g gives them that name. One that nobody uses is checked all the same."""
    config = parse_config("[[distort]]\nfault = '3g'\n[profile.3g]\nrtt = 1\n[profile.'my own']\nloss = '1%'")
    (entry,) = make_distorts(config)
    assert entry.fault == Fault(Line(latency=0.5), Line(latency=0.5))
    assert find_fault("my own", config.profile).loss == 0.01
    for name, text in (("a", "latency = 1, rtt = 1"), ("'b c'", "burst = 2"), ("3g", "loss = 2")):
        with pytest.raises(ConfigError, match=f"profile.{name.strip(chr(39))}."):
            parse_config(f"[profile.{name}]\n{text}".replace(", ", "\n"))


@pytest.mark.parametrize("name", ["", "a\\nb", "\\u0000"])
def test_a_profile_has_a_name_that_can_be_printed(name: str) -> None:
    """It stands in logs and in answers."""
    with pytest.raises(ConfigError, match="expected a name that can be printed"):
        parse_config(f'[profile."{name}"]\nlatency = 1')


def test_an_unknown_profile_is_told_with_those_that_are_there() -> None:
    """The own ones too."""
    text = f"distort[0].fault: '5g', expected a table or a profile: {MEMBERS.replace('cable', 'bad, cable')}"
    with pytest.raises(ConfigError) as caught:
        parse_config("[[distort]]\nfault = '5g'\n[profile.bad]\nlatency = 1")
    assert str(caught.value) == text


# --- what is wrong ---

BAD: list[tuple[str, list[str]]] = [
    ("", [NOTHING]),
    ("loss = 0", [NOTHING]),
    ("blackhole = false", [NOTHING]),
    ("from = '22:00'", [NOTHING]),
    ("up = {}", [NOTHING]),
    # each figure alone
    ("latency = '2h'", ["fault.latency: 7200 s, expected 3600 s at most"]),
    ("down = { latency = 3601 }", ["fault.down.latency: 3601 s, expected 3600 s at most"]),
    ("slow_close = 3601, stall = 3601", ["fault.slow_close: 3601 s, expected 3600 s at most",
                                         "fault.stall: 3601 s, expected 3600 s at most"]),
    ("rtt = 3601", ["fault.rtt: 3601 s, expected 3600 s at most"]),
    ("dial_delay = '61 min'", ["fault.dial_delay: 3660 s, expected 3600 s at most"]),
    ("resolve = '2h'", ["fault.resolve: 7200 s, expected 3600 s at most"]),
    ("resolve = '0 s'", ["fault.resolve: a duration is more than 0 and less than 1e9 seconds, this one is 0.0"]),
    ("loss = 0.1, burst = 0.5", ["fault.burst: 0.5, expected 1 to 1000"]),
    ("loss = 0.1, burst = 1001", ["fault.burst: 1001.0, expected 1 to 1000"]),
    ("loss = 0.1, burst = nan", ["fault.burst: nan, expected 1 to 1000"]),
    ("loss = 0.1, up = { burst = inf }", ["fault.up.burst: inf, expected 1 to 1000"]),
    ("mtu = 65528", ["fault.mtu: 65528, expected 65527 at most: there are no larger datagrams"]),
    ("status = 199", ["fault.status: 199, expected 200 to 599"]),
    ("status = -503", ["fault.status: -503, expected 200 to 599"]),
    # what contradicts another key
    ("reset_after = 1, close_after = 1", ["fault.reset_after: it contradicts close_after: expected one of both"]),
    ("status = 503, truncate = 1",
     ["fault.truncate: it contradicts status: there is no answer of the destination"]),
    ("latency = 1, rtt = 1", ["fault.latency: it contradicts rtt: expected one of both"]),
    ("rtt = 1, direction = 'up'", ["fault.direction: it contradicts rtt, which is for both: expected latency"]),
    ("blackhole = true, bandwidth = 1",
     ["fault.bandwidth: it contradicts blackhole, which lets nothing through"]),
    ("up = { blackhole = true, limit = 1, stall = true }",
     ["fault.up.limit: it contradicts blackhole, which lets nothing through",
      "fault.up.stall: it contradicts blackhole, which lets nothing through"]),
    ("blackhole = true, up = { latency = 1 }",
     ["fault.up.latency: it contradicts blackhole, which lets nothing through"]),
    ("blackhole = true, tls_cut = 'close'", ["fault.tls_cut: it contradicts blackhole, which lets nothing through"]),
    ("blackhole = true, direction = 'down', status = 503",
     ["fault.status: it contradicts blackhole, which lets nothing through"]),
    ("loss = 0.9, burst = 3", ["fault.loss: with bursts of 3 the loss is 0.75 at most, or 1"]),
    ("loss = 0.9, up = { burst = 3 }", ["fault.loss: with bursts of 3 the loss is 0.75 at most, or 1"]),
    ("slice = 10, slice_variation = 10", ["fault.slice_variation: 10, expected less than slice (10)"]),
    # what does nothing
    ("jitter = 1", ["fault.jitter: it has no effect without latency"]),
    ("latency = 1, distribution = 'normal'", ["fault.distribution: it has no effect without jitter"]),
    ("latency = 1, burst = 2", ["fault.burst: it has no effect without loss"]),
    ("latency = 1, slice_variation = 2, slice_gap = 1", ["fault.slice_variation: it has no effect without slice",
                                                         "fault.slice_gap: it has no effect without slice"]),
    ("latency = 1, queue = 2", ["fault.queue: it has no effect without bandwidth"]),
    ("up = { latency = 1, queue = 2 }", ["fault.up.queue: it has no effect without bandwidth"]),
    ("latency = 1, then = 'reset'", ["fault.then: it has no effect without limit"]),
    ("latency = 1, shared = true", ["fault.shared: it has no effect without bandwidth"]),
    ("reset_after = 1, direction = 'up'",
     ["fault.direction: it has no effect without a figure that has a direction"]),
    ("latency = 1, up = { latency = 2 }, down = { latency = 3 }",
     ["fault.latency: it has no effect, since up or down has its own"]),
    ("rtt = 1, up = { latency = 2 }, down = { latency = 3 }",
     ["fault.rtt: it has no effect, since up or down has its own"]),
    ("latency = 1, direction = 'up', up = { latency = 2 }",
     ["fault.latency: it has no effect, since up or down has its own"]),
    # times
    ("loss = 1, from = '08:00', until = 2027-01-01", ["fault.until: expected two times, or two times of day"]),
    ("loss = 1, from = 2027-01-02, until = 2027-01-01",
     ["fault.until: 2027-01-01T00:00:00Z, expected a time after 2027-01-02T00:00:00Z"]),
    ("loss = 1, from = 2027-01-01, until = 2027-01-01",
     ["fault.until: 2027-01-01T00:00:00Z, expected a time after 2027-01-01T00:00:00Z"]),
    ("loss = 1, from = '08:00', until = 08:00:00", ["fault.until: 08:00:00, expected another time than 08:00"]),
    ("loss = 1, from = '22:00 Europe/Berlin', until = '06:00'", [ZONE]),
    ("loss = 1, until = '00:00 Europe/Berlin'",
     ["fault.until: 00:00 Europe/Berlin, expected a later time of day: it holds from midnight on"]),
]  # fmt: skip


@pytest.mark.parametrize(("text", "messages"), BAD)
def test_what_does_not_go_together(text: str, messages: list[str]) -> None:
    """Each mistake is told once, at its key, also where a key holds for both directions."""
    assert errors(text) == messages


@pytest.mark.parametrize("key", ["refuse", "resolve"])
@pytest.mark.parametrize("value", ["0", "9", "255", "-1", "'0'", "''", "'4'", "'refused'", "99999999999999999999"])
def test_a_reply_is_one_that_refuses(key: str, value: str) -> None:
    """1 to 8, or its words; ``resolve`` has a time too, which has a unit, since a number is a reply."""
    (message,) = errors(f"{key} = {value}")
    assert message.startswith(f"fault.{key}: {value}, {REPLY}")
    assert message.endswith(', or a time such as "200ms"') is (key == "resolve")


@pytest.mark.parametrize(("words", "code"), REPLIES.items())
def test_replies_by_words(words: str, code: int) -> None:
    """All that RFC 1928 has, but success."""
    assert reply_of(words) == reply_of(words.upper()) == reply_of(code) == code
    assert 1 <= code <= 8
    with pytest.raises(ValueError, match="expected a reply"):
        reply_of(True)


LENGTHS = (
    "latency",
    "jitter",
    "slice_gap",
    "slow_close",
    "rtt",
    "reset_after",
    "close_after",
    "dial_delay",
    "answer_delay",
)
SIZES = ("queue", "mtu", "slice", "slice_variation", "limit", "truncate")
SHARES = ("loss", "duplicate", "reorder", "corrupt")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(
            (key, value)
            for key in LENGTHS
            for value in ("0", "-1", "nan", "inf", "1e400", "'-1s'", "true", "'x'", "1e10")
        ),
        *((key, value) for key in SIZES for value in ("0", "-1", "nan", "inf", "1.5", "true", "'10 XB'", "9" * 30)),
        *((key, value) for key in SHARES for value in ("-0.1", "1.1", "nan", "inf", "true", "'101%'", "'x'", "9" * 30)),
        *(("bandwidth", value) for value in ("0", "-1", "nan", "inf", "true", "'0 MB/s'", "'10 MB'", "9" * 400)),
        *(("stall", value) for value in ("false", "-1", "nan", "inf", "'x'")),
        *(("burst", value) for value in ("0", "-1", "nan", "inf", "true", "'2'", "9" * 400)),
        *(
            (key, "'x'")
            for key in ("direction", "distribution", "then", "tls_cut", "up", "down", "shared", "blackhole")
        ),
        *(("every", value) for value in ("5", "'x'", "'0 s good, 1 s gone'", "'nan s good, 1 s gone'")),
        *(
            (key, value)
            for key in ("from", "until")
            for value in ("'24:00'", "'x'", "true", "nan", "'08:00 Mars/Base'")
        ),
        *(("status", value) for value in ("0", "600", "true", "'503'", "nan", "9" * 400)),
        *((key, value) for key in ("refuse", "resolve") for value in ("true", "1.5", "[]")),
        ("latencyy", "1"),
        ("up", "{ direction = 'up' }"),
        ("up", "{ loss = nan }"),
        ("fault", "1"),
    ],
)
def test_a_value_that_means_nothing_is_an_error_of_one_line(key: str, value: str) -> None:
    """Of its key, and of nothing else; also in a profile, and in one direction where it may stand there."""
    for table in ("fault", "profile"):
        text = f"[[distort]]\nfault = {{ {key} = {value} }}" if table == "fault" else f"[profile.x]\n{key} = {value}"
        place = f"distort[0].fault.{key}" if table == "fault" else f"profile.x.{key}"
        with pytest.raises(ConfigError) as caught:
            parse_config(text)
        for error in caught.value.errors:
            assert str(error.path).startswith(place) or "it changes nothing" in error.message
            assert "\n" not in str(error)
    if key in LINE_KEYS:
        with pytest.raises(ConfigError) as caught:
            parse_config(f"[[distort]]\nfault.up.{key} = {value}")
        assert any(str(error.path) == f"distort[0].fault.up.{key}" for error in caught.value.errors)


def values(key: str) -> st.SearchStrategy[Any]:
    """Some values for a key of a direction, most of them right."""
    if key in SIZES:
        return st.sampled_from([1, 1500, "1 MB", 0])
    if key in SHARES:
        return st.sampled_from([0, 0.3, "50%", 1])
    other: dict[str, list[Any]] = {
        "burst": [1, 3.0],
        "bandwidth": [1000, "1 MB/s"],
        "distribution": ["normal", "uniform"],
        "stall": [True, 0, 5],
        "blackhole": [True, False],
    }
    return st.sampled_from(other.get(key, [0.1, "200ms", "2 h"]))


LINES = st.lists(st.sampled_from(LINE_KEYS), max_size=4, unique=True).flatmap(
    lambda names: st.fixed_dictionaries({name: values(name) for name in names})
)


@given(
    LINES,
    st.none() | LINES,
    st.none() | LINES,
    st.sampled_from([None, "up", "down", "both"]),
    st.sampled_from([{}, {"rtt": 1}, {"then": "reset"}, {"shared": True}, {"tls_cut": "close"}]),
)
def test_any_fault_is_compiled_or_told_wrong(
    line: dict[str, Any],
    up: dict[str, Any] | None,
    down: dict[str, Any] | None,
    direction: str | None,
    more: dict[str, Any],
) -> None:
    """With errors that name a key that is there, each once; what has none does something in each of its figures."""
    given = {**line, **more, "up": up, "down": down, "direction": direction}
    given = {key: value for key, value in given.items() if value is not None}
    try:
        config = make_config({"distort": [{"fault": given}]})
    except ConfigError as exc:
        paths = [(str(error.path), error.message) for error in exc.errors]
        assert len(set(paths)) == len(paths)
        for path, _ in paths:
            where: Any = given
            for part in path.removeprefix("distort[0].fault").split(".")[1:]:
                where = where[part]
    else:
        fault = make_fault(config.distort[0].fault)  # type: ignore[arg-type]
        assert fault.on_octets
        if fault.up.blackhole:
            assert msgspec.structs.replace(fault.up, blackhole=False).is_nothing or fault.up != fault.down


def test_the_keys_of_a_direction_are_those_of_a_line() -> None:
    """What the file may say and what a fault has are the same."""
    assert set(LINE_KEYS) == set(Line.__struct_fields__) == set(LineConfig.__struct_fields__)
    assert "from" in keys()
