"""The Huffman code of HPACK and QPACK: RFC 7541 section 5.2 and appendix B. No I/O.

The code is canonical: in the order of length and octet each code is the one before, plus one, so that the lengths say
all. Decoding goes an octet at a time: a *state* is what is left of a code that has begun, and for each octet it has the
text that ends in it and the state that follows.
"""

from __future__ import annotations

from tabi.errors import H2Error

LENGTHS = bytes.fromhex(
    "0d171c1c1c1c1c1c1c181e1c1c1e1c1c1c1c1c1c1c1c1e1c1c1c1c1c1c1c1c1c060a0a0c0d06080b0a0a080b08060606"
    "0505050606060606060607080f060c0a0d06070707070707070707070707070707070707070707070807080d130d0e06"
    "0f05060506050606060507070606060506070605050607070707070f0b0e0d1c14161414161616171617171717171817"
    "181816171817171717151617161717181615141616171715171616181516171715151615171617171416161617161617"
    "1a1a1413161716191a1a1a1b1b1a181913151a1b1b1a1b1815151a1a1c1b1b1b14181415161515171616191918181a17"
    "1a1b1a1a1b1b1b1b1b1c1b1b1b1b1b1a1e"
)
"""Bits of the code of each octet, and at last of EOS."""

COMPRESSION_ERROR = 9  # RFC 9113 section 7
EOS = 256
WRONG = "wrong"


def make_codes() -> list[str]:
    """The code of each octet and of EOS, as text of 0 and 1."""
    codes = [""] * len(LENGTHS)
    code = before = 0
    for length, symbol in sorted((length, symbol) for symbol, length in enumerate(LENGTHS)):
        code <<= length - before
        codes[symbol] = format(code, f"0{length}b")
        code += 1
        before = length
    return codes


CODES = make_codes()
get_code = CODES.__getitem__


class State:
    """What is left of a code that has begun: for each octet that may come, the text that ends in it, and what follows.

    ``final`` says that a string may end here: with nothing left, or with less than an octet of EOS (section 5.2).
    """

    __slots__ = ("final", "following", "texts")

    def __init__(self) -> None:
        self.final = False
        self.texts: list[bytes] = []
        self.following: list[State] = []


def take_bits(begun: str, bits: str, symbols: dict[str, int]) -> tuple[bytes, str]:
    """The text that ends in some bits, and what is left of a code then; WRONG if EOS is among them."""
    text = b""
    for bit in bits:
        begun += bit
        symbol = symbols.get(begun)
        if symbol == EOS:
            return b"", WRONG
        if symbol is not None:
            text += bytes((symbol,))
            begun = ""
    return text, begun


def make_states() -> State:
    """Make all states; returns the one in which a string begins. An octet is two steps of four bits."""
    symbols = {code: symbol for symbol, code in enumerate(CODES)}
    states = {code[:size]: State() for code in CODES for size in range(len(code))}
    halves = {begun: [take_bits(begun, format(bits, "04b"), symbols) for bits in range(16)] for begun in states}
    states[WRONG], halves[WRONG] = State(), [(b"", WRONG)] * 16
    texts = {begun: [text for text, _ in half] for begun, half in halves.items()}
    following = {begun: [states[left] for _, left in half] for begun, half in halves.items()}
    kept: dict[bytes, bytes] = {}  # each text once
    for begun, state in states.items():
        state.final = len(begun) < 8 and begun == "1" * len(begun)
        for text, left in halves[begun]:
            state.texts += [kept.setdefault(whole, whole) for whole in [text + other for other in texts[left]]]
            state.following += following[left]
    return states[""]


BEGIN = make_states()


def decode_huffman(octets: bytes) -> bytes:
    """Decode a string.

    Raises:
        H2Error: it holds EOS, or its padding is not the beginning of EOS, or an octet or more of that.
    """
    state = BEGIN
    found = []
    for octet in octets:
        found.append(state.texts[octet])
        state = state.following[octet]
    if not state.final:
        raise H2Error("a Huffman string with EOS or a wrong padding", COMPRESSION_ERROR)
    return b"".join(found)


def encode_huffman(text: bytes) -> bytes:
    """Encode a string, padded with the beginning of EOS."""
    bits = "".join(map(get_code, text))
    size = len(bits) + 7 >> 3
    return int(bits + "1" * (size * 8 - len(bits)), 2).to_bytes(size, "big") if size else b""
