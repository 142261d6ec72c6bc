"""Feed the decoders of the DNS with whatever a fuzzer invents: of answers an answer, None or ValueError, nothing else;
of messages that pass by a message or None.

The first octet chooses the question. The head and the question of an answer go before the rest, so that the fuzzer does
not have to guess them.
"""

from __future__ import annotations

import sys

from tabi.wire.dns import AAAA, MAX_RECORDS, PTR, A, decode_answer, encode_question
from tabi.wire.dns_message import MAX_ANSWERS, decode_message

QUESTIONS = (
    encode_question("name.test", A),
    encode_question("name.test", AAAA),
    encode_question("1.2.0.192.in-addr.arpa", PTR),
)


def fuzz_one(data: bytes) -> None:
    """One answer, and the octets by themselves. Raises what the decoder must not raise."""
    if len(data) < 10:
        return
    question = QUESTIONS[data[0] % len(QUESTIONS)]
    answer = b"\0\1" + bytes([data[1] | 0x80]) + data[2:3] + b"\0\1" + data[3:9] + question + data[9:]
    for octets in (answer, data):
        passing = decode_message(octets)
        assert passing is None or len(passing.answers) <= MAX_ANSWERS
        try:
            found = decode_answer(octets, question)
        except ValueError:
            continue
        assert found is None or len(found.values) <= MAX_RECORDS


if __name__ == "__main__":
    import atheris

    atheris.instrument_all()
    atheris.Setup(sys.argv, fuzz_one)
    atheris.Fuzz()
