"""Checks of what chooses sessions: the matchers of rules and of interception, and what an ``[[intercept]]`` says."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import msgspec

from tabi.config.compile import make_entries, make_rewrite, texts_of
from tabi.config.distort import DistortConfig, FaultConfig
from tabi.config.faults import fault_errors, find_fault
from tabi.config.lists import files_of
from tabi.config.rewrites import rewrite_errors
from tabi.config.schema import Ca, Config, InterceptConfig, RuleConfig
from tabi.errors import ConfigError
from tabi.policy.rules import FILES, Texts, make_rule

LONGEST_NAME = 60
"""Letters of the name of a fault: it is in each line of the log that the fault has to do with."""

MAX_BODY = 1_000_000_000
"""Octets of a body that are recorded at most: it is in memory until its exchange is over."""


def matcher_errors(
    rule: RuleConfig | InterceptConfig | DistortConfig,
    path: str,
    make: Callable[[Texts], object] = lambda texts: make_rule(0, "deny", texts),
) -> Iterator[ConfigError]:
    """What is wrong with the matchers of a rule: each of their words is compiled alone, by ``make``."""
    for key, words in zip(Texts._fields, texts_of(rule), strict=True):
        alone: list[Any] = [(word,) for word in words] if isinstance(words, tuple) and words else [words]
        for index, word in enumerate(alone):
            try:
                make(Texts(**{key: word}))
            except ConfigError as exc:
                place = str(exc.path).replace("[0]", f"[{index}]")
                yield ConfigError(exc.message, f"{path}.{place}")


def word_errors(
    rule: RuleConfig | InterceptConfig | DistortConfig, path: str, listeners: set[str]
) -> Iterator[ConfigError]:
    """What is wrong with the name of a rule, and with the listeners and the files that it names."""
    if rule.name is not None and not (rule.name and rule.name.isprintable()):
        yield ConfigError(f"{rule.name!r}, expected a name that can be printed", f"{path}.name")
    elif rule.name is not None and isinstance(rule, DistortConfig) and len(rule.name) > LONGEST_NAME:
        yield ConfigError(f"{len(rule.name)} letters, expected {LONGEST_NAME} at most", f"{path}.name")
    for number, url in enumerate(rule.listeners or ()):
        if url not in listeners:
            text = f"{url!r}, expected one of: {', '.join(sorted(listeners))}"
            yield ConfigError(text, f"{path}.listeners[{number}]")
    for key in FILES:
        for place, text in files_of(getattr(rule, key), f"{path}.{key}"):
            yield from path_error(text, place)


def intercept_errors(config: Config) -> Iterator[ConfigError]:
    """What is wrong with interception; whether its files can be used is looked at later."""
    yield from pair_errors(config.ca, "ca")
    if not config.intercept:
        return
    from tabi.policy.intercepts import InterceptRule, make_matcher

    listeners = {listen.url for listen in config.listen}
    try:
        make_entries(config)
    except ConfigError:
        for index, intercept in enumerate(config.intercept):
            yield from matcher_errors(intercept, f"intercept[{index}]", partial(make_matcher, InterceptRule()))
    for index, intercept in enumerate(config.intercept):
        yield from word_errors(intercept, f"intercept[{index}]", listeners)
        yield from setting_errors(intercept, f"intercept[{index}]")


def setting_errors(intercept: InterceptConfig, path: str) -> Iterator[ConfigError]:
    """What is wrong with an ``[[intercept]]``, apart from its matchers."""
    yield from pair_errors(intercept, path)
    for key in ("trust", "har"):
        yield from path_error(getattr(intercept, key), f"{path}.{key}")
    for number, script in enumerate(intercept.scripts):
        yield from path_error(script, f"{path}.scripts[{number}]")
    for number, name in enumerate(intercept.mask):
        if not name or not name.isprintable():
            yield ConfigError(f"{name!r}, expected the name of a field or a key", f"{path}.mask[{number}]")
    if intercept.body_limit > MAX_BODY:
        yield ConfigError(f"{intercept.body_limit}, expected at most {MAX_BODY} octets", f"{path}.body_limit")
    if intercept.action == "pass":
        for field in msgspec.structs.fields(InterceptConfig):
            if field.name in Texts._fields or field.name in ("action", "name"):
                continue
            default = [] if field.default is msgspec.NODEFAULT else field.default
            if getattr(intercept, field.name) != default:
                yield ConfigError("a setting for what is not looked into: action is pass", f"{path}.{field.name}")


def distort_errors(config: Config) -> Iterator[ConfigError]:
    """What is wrong with molding; whether its files can be used is looked at later."""
    for name, fault in config.profile.items():
        if not name or not name.isprintable():
            yield ConfigError(f"{name!r}, expected a name that can be printed", f"profile.{name}")
        yield from fault_errors(fault, f"profile.{name}")
    listeners = {listen.url for listen in config.listen}
    for index, distort in enumerate(config.distort):
        path = f"distort[{index}]"
        yield from matcher_errors(distort, path)
        yield from word_errors(distort, path, listeners)
        yield from molding_errors(distort, path, config.profile)
        if distort.seed is not None and config.workers != 1:
            yield ConfigError("sessions are drawn by each worker for itself: expected workers = 1", f"{path}.seed")


def molding_errors(distort: DistortConfig, path: str, profiles: Mapping[str, FaultConfig]) -> Iterator[ConfigError]:
    """What is wrong with a ``[[distort]]``, apart from its matchers."""
    if isinstance(distort.fault, FaultConfig):
        yield from fault_errors(distort.fault, f"{path}.fault")
    elif distort.fault is not None:
        try:
            find_fault(distort.fault, profiles)
        except ConfigError as exc:
            yield ConfigError(exc.message, f"{path}.fault")
    for key in ("map_local", "body"):
        yield from path_error(getattr(distort, key), f"{path}.{key}")
    yield from rewrite_errors(distort, path)
    if distort.fault is None and distort.tls is None and make_rewrite(distort) is None:
        yield ConfigError(
            "it changes nothing: expected fault, headers, tls or another key that changes something", path
        )


def pair_errors(part: Ca | InterceptConfig, path: str) -> Iterator[ConfigError]:
    """What is wrong with a certificate and its key: both are there, or none."""
    for key, other in (("certificate", part.key), ("key", part.certificate)):
        text = getattr(part, key)
        yield from path_error(text, f"{path}.{key}")
        if text is None and other is not None:
            yield ConfigError("missing, expected both certificate and key", f"{path}.{key}")


def path_error(text: str | None, path: str) -> Iterator[ConfigError]:
    """The reason if a text cannot be the path of a file."""
    if text is not None and (not text or "\0" in text):
        yield ConfigError("expected the path of a file", path)
