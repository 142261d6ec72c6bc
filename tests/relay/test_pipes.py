"""Pipes: a pool that never fails, but says when there is none."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator

import pytest

from tabi.relay.pipes import KEPT, PIPE_SIZE, Carriers, Pipe


@pytest.fixture
def carriers() -> Iterator[Carriers]:
    """A pool of two pipes."""
    carriers = Carriers(2)
    yield carriers
    carriers.close()


def take(carriers: Carriers) -> Pipe:
    """Take a pipe that is known to be there."""
    pipe = carriers.take()
    assert pipe is not None
    return pipe


def test_a_pipe_carries_and_does_not_block(carriers: Carriers) -> None:
    """What goes in at one end comes out at the other, and neither end ever blocks or is inherited."""
    pipe = take(carriers)
    os.write(pipe.write_end, b"octets")
    assert os.read(pipe.read_end, 100) == b"octets"
    with pytest.raises(BlockingIOError):
        os.read(pipe.read_end, 1)
    assert not os.get_blocking(pipe.write_end)
    assert not os.get_inheritable(pipe.read_end)
    assert not os.get_inheritable(pipe.write_end)
    carriers.give(pipe)


def test_a_pipe_has_the_size_asked_for(carriers: Carriers) -> None:
    """One system call moves up to PIPE_SIZE octets."""
    pipe = take(carriers)
    assert fcntl.fcntl(pipe.write_end, fcntl.F_GETPIPE_SZ) == PIPE_SIZE
    carriers.give(pipe)


def test_no_more_than_the_limit_exist(carriers: Carriers) -> None:
    """Over the limit there is None, and a pipe again as soon as one was given back."""
    first, second = take(carriers), take(carriers)
    assert carriers.take() is None
    carriers.give(first)
    assert carriers.take() is first
    carriers.give(first)
    carriers.give(second)


def test_a_limit_of_zero_gives_none() -> None:
    """Without pipes every flow copies."""
    assert Carriers(0).take() is None


def test_without_splice_there_are_no_pipes(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a platform without splice(2) a pipe would carry nothing."""
    monkeypatch.delattr(os, "splice")
    assert Carriers(8).take() is None


def test_a_pipe_that_was_given_back_is_used_again(carriers: Carriers) -> None:
    """Making a pipe costs three system calls: an empty one is kept."""
    pipe = take(carriers)
    carriers.give(pipe)
    assert carriers.take() is pipe
    carriers.give(pipe)


def test_a_pipe_with_octets_in_it_is_not_used_again(carriers: Carriers) -> None:
    """Octets of one relay never reach another."""
    pipe = take(carriers)
    os.write(pipe.write_end, b"secret")
    pipe.held = 6
    carriers.give(pipe)
    assert carriers.idle == []
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(pipe.read_end)
    other = take(carriers)
    with pytest.raises(BlockingIOError):
        os.read(other.read_end, 1)
    carriers.give(other)


def test_only_so_many_idle_pipes_are_kept() -> None:
    """After a rush the pool gives descriptors and kernel memory back."""
    carriers = Carriers(KEPT + 3)
    lent = [take(carriers) for _ in range(KEPT + 3)]
    for pipe in lent:
        carriers.give(pipe)
    assert len(carriers.idle) == KEPT
    assert carriers.lent == 0
    carriers.close()
    assert carriers.idle == []


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE])
def test_without_descriptors_there_is_none(carriers: Carriers, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """No descriptor left is no failure, and not remembered as a pipe that is lent."""

    def refuse(flags: int) -> tuple[int, int]:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, "pipe2", refuse)
        assert carriers.take() is None
    assert carriers.lent == 0
    first, second = take(carriers), take(carriers)
    carriers.give(first)
    carriers.give(second)


def test_a_refused_size_gives_a_pipe_of_the_usual_size(carriers: Carriers, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over pipe-user-pages-soft the size is refused with EPERM: the pipe works all the same."""

    def refuse(fd: int, command: int, argument: int = 0) -> int:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "fcntl", refuse)
        pipe = take(carriers)
    os.write(pipe.write_end, b"octets")
    assert os.read(pipe.read_end, 100) == b"octets"
    carriers.give(pipe)
