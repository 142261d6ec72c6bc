"""Pipes: a pool that never fails, but says when there is none."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator

import pytest

from tabi.relay.pipes import KEPT, PIPE_SIZE, Pipe, PipePool


@pytest.fixture
def pool() -> Iterator[PipePool]:
    """A pool of two pipes."""
    pool = PipePool(2)
    yield pool
    pool.close()


def take(pool: PipePool) -> Pipe:
    """Take a pipe that is known to be there."""
    pipe = pool.take()
    assert pipe is not None
    return pipe


def test_a_pipe_carries_and_does_not_block(pool: PipePool) -> None:
    """What goes in at one end comes out at the other, and neither end ever blocks or is inherited."""
    pipe = take(pool)
    os.write(pipe.write_end, b"octets")
    assert os.read(pipe.read_end, 100) == b"octets"
    with pytest.raises(BlockingIOError):
        os.read(pipe.read_end, 1)
    assert not os.get_blocking(pipe.write_end)
    assert not os.get_inheritable(pipe.read_end)
    assert not os.get_inheritable(pipe.write_end)
    pool.give(pipe)


def test_a_pipe_has_the_size_asked_for(pool: PipePool) -> None:
    """One system call moves up to PIPE_SIZE octets."""
    pipe = take(pool)
    assert fcntl.fcntl(pipe.write_end, fcntl.F_GETPIPE_SZ) == PIPE_SIZE
    pool.give(pipe)


def test_no_more_than_the_limit_exist(pool: PipePool) -> None:
    """Over the limit there is None, and a pipe again as soon as one was given back."""
    first, second = take(pool), take(pool)
    assert pool.take() is None
    pool.give(first)
    assert pool.take() is first
    pool.give(first)
    pool.give(second)


def test_a_limit_of_zero_gives_none() -> None:
    """Without pipes every flow copies."""
    assert PipePool(0).take() is None


@pytest.mark.usefixtures("asked_anew")
def test_without_splice_there_are_no_pipes(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a platform without splice(2) a pipe would carry nothing."""
    monkeypatch.delattr(os, "splice")
    assert PipePool(8).take() is None


def test_a_pipe_that_was_given_back_is_used_again(pool: PipePool) -> None:
    """Making a pipe costs three system calls: an empty one is kept."""
    pipe = take(pool)
    pool.give(pipe)
    assert pool.take() is pipe
    pool.give(pipe)


def test_a_pipe_with_octets_in_it_is_not_used_again(pool: PipePool) -> None:
    """Octets of one relay never reach another."""
    pipe = take(pool)
    os.write(pipe.write_end, b"secret")
    pipe.held = 6
    pool.give(pipe)
    assert pool.idle == []
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(pipe.read_end)
    other = take(pool)
    with pytest.raises(BlockingIOError):
        os.read(other.read_end, 1)
    pool.give(other)


def test_only_so_many_idle_pipes_are_kept() -> None:
    """After a rush the pool gives descriptors and kernel memory back."""
    pool = PipePool(KEPT + 3)
    lent = [take(pool) for _ in range(KEPT + 3)]
    for pipe in lent:
        pool.give(pipe)
    assert len(pool.idle) == KEPT
    assert pool.lent == 0
    pool.close()
    assert pool.idle == []


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE])
def test_without_descriptors_there_is_none(pool: PipePool, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """No descriptor left is no failure, and not remembered as a pipe that is lent."""

    def refuse(flags: int) -> tuple[int, int]:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, "pipe2", refuse)
        assert pool.take() is None
    assert pool.lent == 0
    first, second = take(pool), take(pool)
    pool.give(first)
    pool.give(second)


def test_a_refused_size_gives_a_pipe_of_the_usual_size(pool: PipePool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over pipe-user-pages-soft the size is refused with EPERM: the pipe works all the same."""

    def refuse(fd: int, command: int, argument: int = 0) -> int:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "fcntl", refuse)
        pipe = take(pool)
    os.write(pipe.write_end, b"octets")
    assert os.read(pipe.read_end, 100) == b"octets"
    pool.give(pipe)
