"""Intercept: the carrier that looks into sessions, as a value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tabi.config import Ca, Config, InterceptConfig
from tabi.config.check import raise_all
from tabi.config.check_matchers import intercept_errors
from tabi.config.load import decode_intercept
from tabi.errors import ConfigError
from tabi.parts.base import CarrierPiece, Running
from tabi.relay.carrier import Carrier


@dataclass(frozen=True, repr=False)
class Intercept(CarrierPiece):
    """The carrier that looks into the sessions of chosen hosts, and joins the streams of all others in the kernel::

        tabi.Server("mixed://127.0.0.1:0", carrier=tabi.Intercept("*.example.com", hooks=[Hook()]))

    Args:
        entries: what is looked into, in this order: names of hosts as ``hosts`` has them, `tabi.config.InterceptConfig`
            or mappings with the keys of ``[[intercept]]``. Default: everything.
        hooks: objects with methods of interception, see docs/hooks.md; before those of ``scripts``.
        authority: the files of the certificate and the key that clients' certificates are signed with. None: what
            ``tabi ca init`` made.

    Raises:
        ConfigError: something of this is wrong. Whether files can be used is looked at when the server starts.
        TypeError: an entry is of another type.
    """

    entries: tuple[InterceptConfig, ...]
    hooks: tuple[object, ...] = ()
    authority: tuple[str, str] | None = None

    def __init__(
        self,
        *entries: str | InterceptConfig | Mapping[str, Any],
        hooks: Sequence[object] = (),
        authority: tuple[str, str] | None = None,
    ) -> None:
        made = decode_entries(entries or ({},))
        ca = Ca() if authority is None else Ca(*authority)
        raise_all(intercept_errors(Config(intercept=list(made), ca=ca)))
        self.__dict__.update(entries=made, hooks=check_hooks(hooks), authority=authority)

    def build(self, running: Running) -> Carrier:
        """See `CarrierPiece`."""
        return running.intercept(self)


def decode_entries(given: Sequence[object]) -> tuple[InterceptConfig, ...]:
    """What a program gives as entries. Raises ConfigError and TypeError."""
    if isinstance(given, str | Mapping | InterceptConfig):
        raise TypeError(f"intercept: {type(given).__name__}, expected a list")
    found: list[InterceptConfig] = []
    for number, one in enumerate(given):
        if isinstance(one, str):
            one = InterceptConfig(hosts=[one])
        found.append(decode_intercept(one, f"intercept[{number}]"))
    return tuple(found)


def check_hooks(hooks: Sequence[object]) -> tuple[object, ...]:
    """The objects with hooks, each with one method of interception at least. Raises ConfigError."""
    if not hooks:
        return ()
    from tabi.intercept.hooks import check_hook

    if not isinstance(hooks, Sequence):
        raise ConfigError(f"{type(hooks).__name__}, expected a list of objects", "hooks")
    for number, one in enumerate(hooks):
        try:
            check_hook(one)
        except TypeError as exc:
            raise ConfigError(str(exc), f"hooks[{number}]") from None
    return tuple(hooks)
