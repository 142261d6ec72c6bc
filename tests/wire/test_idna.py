"""International names: exactly what Python's own codec makes of them, but quickly."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tabi.wire.idna import encode_label, encode_name, punycode


def expected(text: str) -> str | None:
    """What the codec says; None where it fails."""
    try:
        return text.encode("idna").decode("ascii")
    except UnicodeError:
        return None


@given(
    st.text(
        st.one_of(
            st.characters(max_codepoint=0x24F),
            st.characters(min_codepoint=0x590, max_codepoint=0x7FF),
            st.characters(exclude_categories=["Cs"]),
            st.sampled_from(".\u3002\uff0e\uff61-x1\u00ad\u200d\ufdfa\u2024"),
        ),
        max_size=40,
    )
)
@example("bücher.example")
@example("Bücher.Example.")
@example("faß.de")
@example("例え。テスト")
@example("مثال.إختبار")
@example("a\u0627")
@example("\u06271")
@example("xn--ü")
@example("ü" * 64)
@example("\u00ad")
@example("ü..a")
@example("\u2126.example")
@example("\u0378\ue000")
def test_the_codec_says_the_same(text: str) -> None:
    """Of any text that is not ASCII alone, in the same letters; what the codec refuses is a ValueError."""
    if text.isascii():
        return
    wanted = expected(text)
    if wanted is None:
        with pytest.raises(ValueError, match="is not a valid international name"):
            encode_name(text)
    else:
        assert encode_name(text) == wanted


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40))
@example("Pročprostěnemluvíčesky")
@example("他们为什么不说中文")
@example("3年B組金八先生")
def test_punycode(label: str) -> None:
    """As the codec of that name has it, for any order of characters."""
    if not label.isascii():
        assert punycode(label) == label.encode("punycode").decode("ascii")


def test_labels_are_remembered() -> None:
    """Those that fail too: whoever asks for a name again, or for another one with the same label, pays little."""
    encode_label.cache_clear()
    for name in ("a.bücher.example", "b.bücher.example"):
        assert encode_name(name) == f"{name[0]}.xn--bcher-kva.example"
    for name in ("a.a\u0627", "b.a\u0627"):
        with pytest.raises(ValueError, match="international"):
            encode_name(name)
    assert encode_label.cache_info().misses == len({"a", "b", "bücher", "example", "a\u0627"})
    assert encode_label.cache_info().maxsize == 4096
