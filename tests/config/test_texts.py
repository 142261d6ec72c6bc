"""The texts behind the keys of the structs."""

from __future__ import annotations

import inspect

import pytest

from tabi.config.distort import FaultConfig, LineConfig
from tabi.config.schema import Timeouts
from tabi.config.texts import in_one_line, texts_of, texts_of_module


def test_a_text_is_what_stands_behind_the_field() -> None:
    """In one line, with the quotes of Markdown."""
    found = texts_of(Timeouts)
    assert list(found) == list(Timeouts.__struct_fields__)
    assert found["idle"] == 'Time without an octet in either direction; 0 or `"never"` for any time. Default: 300.'
    assert in_one_line("a ``b``\n    c") == "a `b` c"


def test_a_struct_has_the_texts_of_its_base() -> None:
    """A fault is a line with more."""
    assert texts_of(LineConfig).items() <= texts_of(FaultConfig).items()
    assert "refuse" in texts_of(FaultConfig)


def test_without_the_source_there_is_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a program that was packed without it."""

    def missing(module: object) -> str:
        raise OSError("could not get source code")

    monkeypatch.setattr(inspect, "getsource", missing)
    texts_of_module.cache_clear()
    try:
        assert texts_of(Timeouts) == {}
    finally:
        texts_of_module.cache_clear()
