"""What a process begins with that takes over from another one."""

from __future__ import annotations

import os
import socket

import msgspec
import pytest

from tabi.errors import ConfigError
from tabi.net.kernel import open_memory
from tabi.net.passed import Group
from tabi.server.channel import make_channel
from tabi.server.predecessor import VARIABLE, Predecessor, State, take_predecessor


def test_no_process_before() -> None:
    """Then there is none, and an empty variable says the same."""
    assert take_predecessor({}) is None
    assert take_predecessor({VARIABLE: ""}) is None


@pytest.mark.parametrize("text", ["x", "3", "1:2:3", "9999:9998", "-1:-1", "0:0:", "99999999999:1"])
def test_what_is_not_from_another_process(text: str) -> None:
    """One error, and the variable is gone."""
    environ = {VARIABLE: text}
    with pytest.raises(ConfigError, match="is not from a process that this one takes over from"):
        take_predecessor(environ)
    assert environ == {}


def handed(data: bytes) -> str:
    """The variable for some data; its descriptors belong to whoever reads it."""
    ours, theirs = make_channel()
    ours.close()
    memory = open_memory("test")
    os.write(memory, data)
    return f"{theirs.sock.detach()}:{memory}"


def test_a_state_that_cannot_be_read() -> None:
    """Of a program that is something else."""
    environ = {VARIABLE: handed(b'{"pid": "x"}')}
    with pytest.raises(ConfigError, match="is not from a process"):
        take_predecessor(environ)


def taken(state: State) -> tuple[Predecessor, socket.socket]:
    """A predecessor with a state, and its end of the channel."""
    ours, theirs = make_channel()
    memory = open_memory("test")
    data = msgspec.to_builtins(state) | {"of a later version": True}
    os.write(memory, msgspec.json.encode(data))
    found = take_predecessor({VARIABLE: f"{theirs.sock.detach()}:{memory}"})
    assert found is not None
    return found, ours.sock


def test_what_it_is_told() -> None:
    """Sockets, faults, and whose they are; keys that are not known are ignored."""
    with socket.create_server(("127.0.0.1", 0)) as sock, socket.create_server(("127.0.0.1", 0)) as passed:
        state = State(7, [Group("here", [sock.fileno()], [])], {passed.fileno(): "web"}, {"slow": {"given": {}}})
        os.set_inheritable(passed.fileno(), True)
        before, end = taken(state)
        with end:
            found = before.inherited.take("here")
            assert found is not None
            assert found[0][0].detach() == sock.fileno()
            assert (before.pid, before.passed.names, before.faults) == (7, state.passed, state.faults)
            assert not os.get_inheritable(passed.fileno())
            before.channel.close()


def test_it_is_told_why_this_one_does_not_start() -> None:
    """In one message, whatever the error was; it goes on its way."""
    before, end = taken(State(7, []))
    with end:
        for error, text in ((ConfigError("it is wrong", "key"), "key: it is wrong"), (RuntimeError(), "RuntimeError")):
            with pytest.raises(type(error)), before.told_of_failure():
                raise error
            assert msgspec.json.decode(end.recv(1000)) == {"failed": text}
        before.channel.close()
