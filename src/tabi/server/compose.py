"""The policy, composed from a configuration; and the functions of a program that may be called."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

from tabi.config import Config
from tabi.config.compile import make_guard, make_limits, make_rule_set
from tabi.config.users import UserTable
from tabi.errors import ConfigError
from tabi.policy.guard import LocalAddresses
from tabi.policy.hook import DecideHook
from tabi.policy.ledger import Ledger
from tabi.policy.policy import Policy
from tabi.policy.rules import NO_LISTS, Lists


def make_policy(
    config: Config,
    ledger: Ledger,
    own: LocalAddresses,
    decide_hook: DecideHook | None,
    users: UserTable,
    lists: Lists = NO_LISTS,
) -> Policy:
    """Compose the policy; ``lists`` as in `make_rule`. Raises ConfigError."""
    if decide_hook is None and config.decide is not None:
        decide_hook = load_callable(config.decide, "decide")
    limits = make_limits(config, ledger, users)
    return Policy(make_rule_set(config, users, lists=lists), make_guard(config, own), limits, decide_hook)


def load_callable(text: str, path: str) -> Any:
    """What ``python:module:function`` names. Raises ConfigError."""
    _, module, name = text.split(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except Exception as exc:  # of the module, which may do anything
        raise ConfigError(f"{text}: {type(exc).__name__}: {exc}", path) from exc
    check_decide_hook(found, path, f"{text}: ")
    return found


def check_callback(found: object, path: str) -> None:
    """Raise ConfigError if something cannot be called with sessions."""
    if not callable(found):
        raise ConfigError(f"{found!r}, expected a function of one argument, a tabi.Session", path)
    try:
        inspect.signature(found).bind(None)
    except TypeError:
        raise ConfigError("expected a function of one argument, a tabi.Session", path) from None
    except ValueError:  # the signature is unknown, as for some functions of extension modules
        pass


def check_decide_hook(found: object, path: str, text: str = "") -> None:
    """Raise ConfigError if something cannot be called."""
    if not callable(found):
        raise ConfigError(f"{text}{found!r}, expected a function, with async or without", path)
