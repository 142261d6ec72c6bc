"""The channel: messages that arrive whole and in order, an end that reads nothing, an end that is gone."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator

import pytest

from conftest import Run
from tabi.server.channel import MAX_FILES, MAX_MESSAGE, MAX_WAITING, Channel, Message, make_channel


@pytest.fixture
def ends() -> Iterator[tuple[Channel, Channel]]:
    """Both ends."""
    one, other = make_channel()
    yield one, other
    one.close()
    other.close()


Ends = tuple[Channel, Channel]


def fill(channel: Channel) -> int:
    """Send until no more is taken; gives how many messages were."""
    count = 0
    while channel.send({"number": count}):
        count += 1
    return count


def test_messages_arrive_whole_and_in_order(ends: Ends) -> None:
    """Whatever their size, up to the bound, and in both directions."""
    one, other = ends
    largest = "x" * (MAX_MESSAGE - len('{"text":""}'))
    for text in ("", "hello", largest, "end"):
        assert one.send({"text": text})
    for text in ("", "hello", largest, "end"):
        assert other.receive() == Message({"text": text}, [])
    assert other.receive() is None
    assert other.send({"back": [1, None]})
    assert one.receive() == Message({"back": [1, None]}, [])


def test_what_is_too_large_is_refused(ends: Ends) -> None:
    """The sender hears it, and nothing of it is sent."""
    one, other = ends
    with pytest.raises(ValueError, match=f"expected at most {MAX_MESSAGE} and {MAX_FILES}"):
        one.send({"text": "x" * MAX_MESSAGE})
    with pytest.raises(ValueError, match="17 files"):
        one.send({}, [0] * (MAX_FILES + 1))
    assert other.receive() is None


def test_an_end_that_does_not_read_holds_up_nobody(ends: Ends) -> None:
    """What the kernel does not hold waits, up to a bound; then messages are refused, and those before come in order."""
    one, other = ends
    count = fill(one)
    assert len(one.waiting) == MAX_WAITING
    assert count > MAX_WAITING
    numbers: list[int] = []
    while len(numbers) < count:
        one.flush()
        while (body := other.next_body()) is not None:
            numbers.append(body["number"])
    assert numbers == list(range(count))
    assert one.send({"number": count})
    assert other.next_body() == {"number": count}


def test_an_end_that_is_gone(ends: Ends) -> None:
    """A send says that nobody takes it, a receive that nothing will come; what had come before is still read."""
    one, other = ends
    assert other.send({"last": True})
    other.close()
    assert not one.send({"lost": True})
    assert one.next_body() == {"last": True}
    with pytest.raises(EOFError):
        one.receive()
    assert one.next_body() is None


def test_what_waits_for_an_end_that_goes_is_given_up(ends: Ends) -> None:
    """Descriptors that waited are closed with the channel, or when the other end is found gone."""
    one, other = ends
    fill(one)
    one.waiting.pop()
    reading, writing = os.pipe()
    with open(reading, "rb"):
        assert one.send({}, [writing])
        os.close(writing)
        other.close()
        one.flush()
        assert not one.waiting
        assert os.read(reading, 1) == b"", "the descriptor that waited is still open"


def test_open_files_go_with_a_message(ends: Ends) -> None:
    """The receiver gets descriptors of its own, also where the message had to wait; the sender keeps its own."""
    one, other = ends
    count = fill(one)
    one.waiting.pop()
    fd = os.memfd_create("test")
    try:
        os.write(fd, b"large")
        assert one.send({"file": True}, [fd])
        for _ in range(count - 1):
            assert other.next_body() is not None
            one.flush()
        message = other.receive()
        assert message is not None
        (received,) = message.fds
        assert message.body == {"file": True}
        assert received != fd
        assert not os.get_inheritable(received)
        assert os.pread(received, 10, 0) == b"large"
        os.close(received)
    finally:
        os.close(fd)


@pytest.mark.parametrize("data", [b"\xff", b"[1]", b"{", b'{"a":1}{'])
def test_octets_that_are_no_message(ends: Ends, data: bytes) -> None:
    """They are a ValueError; descriptors that came with them are closed (the fixtures look for those)."""
    one, other = ends
    reading, writing = os.pipe()
    with open(reading, "rb"), open(writing, "wb"):
        os.set_blocking(writing, False)
        one.sock.sendmsg([data], [(1, 1, writing.to_bytes(4, "little"))])
        with pytest.raises(ValueError, match=r"JSON|Expected|truncated"):
            other.receive()
    one.sock.send(b"x" * (MAX_MESSAGE + 1))
    with pytest.raises(ValueError, match="lost octets"):
        other.receive()


def test_receive_within_has_a_deadline(ends: Ends) -> None:
    """It gives what is there, waits for what comes, and no longer than told."""
    one, other = ends
    assert other.receive_within(0.01) is None
    one.send({"a": 1})
    assert other.receive_within(20) == Message({"a": 1}, [])


def test_in_a_loop(ends: Ends, run: Run) -> None:
    """Each message is handed on, what waits is sent as soon as there is room, and the end is told once."""
    one, other = ends

    async def main() -> None:
        loop = asyncio.get_running_loop()
        ended, found, whole = asyncio.Event(), [], asyncio.Event()

        def handle(message: Message) -> None:
            found.append(message.body["number"])
            if len(found) == count:
                whole.set()

        one.watch(loop, lambda _: None, lambda: None)
        count = fill(one)
        other.watch(loop, handle, ended.set)
        await whole.wait()
        assert found == list(range(count))
        assert not one.waiting
        one.close()
        await ended.wait()
        other.close()

    run(main)


def test_octets_that_are_no_message_end_a_watch(ends: Ends, run_once: Run) -> None:
    """Nothing is handed on behind them."""
    one, other = ends

    async def main() -> None:
        ended = asyncio.Event()
        found: list[Message] = []
        other.watch(asyncio.get_running_loop(), found.append, ended.set)
        one.sock.send(b"?")
        one.send({"a": 1})
        await ended.wait()
        await asyncio.sleep(0)
        assert not found

    run_once(main)


def test_a_process_without_a_loop_is_interrupted(ends: Ends) -> None:
    """SIGIO comes for a message, for room where something waits, and for the end; sigtimedwait takes it."""
    one, other = ends
    one.interrupt()
    assert signal.sigtimedwait({signal.SIGIO}, 0) is None
    other.send({"a": 1})
    assert signal.sigtimedwait({signal.SIGIO}, 20) is not None
    assert one.next_body() == {"a": 1}
    fill(one)
    signal.sigtimedwait({signal.SIGIO}, 0)
    while other.next_body() is not None:
        pass
    assert signal.sigtimedwait({signal.SIGIO}, 20) is not None
    one.flush()
    assert not one.waiting
    signal.sigtimedwait({signal.SIGIO}, 0)
    other.close()
    assert signal.sigtimedwait({signal.SIGIO}, 20) is not None
    one.close()
