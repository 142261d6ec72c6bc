"""Upgrade in place: the supervisor executes the program anew, with its listening sockets, and drains once that serves.

The two processes have a channel. The new one says ``{"ready": {"files": [PATH]}}`` when its clients are accepted, with
the unix sockets that are its own now, or ``{"failed": TEXT}``. Then the old one stops to accept. When its control
process has made room, the new one is told ``{"go": true}``, and says ``{"named": true}`` when it has the name of the
control socket. Later it passes on that it was told to stop at once: ``{"stop": true}``.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from tabi.net.kernel import open_memory
from tabi.server.channel import Channel, close_all, make_channel
from tabi.server.child import describe_end
from tabi.server.predecessor import VARIABLE, Predecessor, State

log = logging.getLogger("tabi")

Answer = Callable[[Mapping[str, Any]], object]

START = 30.0
"""Seconds that the new program has until it serves."""

NAMING = 3.0
"""Seconds that the control processes of both have to exchange the name of their sockets."""

HELD = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""They end a program by default, and the new one sees to them with its first line."""


class Upgrade:
    """A new program on its way to serve, and then the one that does.

    Args:
        command: the program, and its arguments.
        state: what it is told.
        numbers: descriptors that it gets, beside the standard streams.

    Raises:
        OSError: it cannot be executed.
    """

    def __init__(self, command: list[str], state: State, numbers: Collection[int]) -> None:
        self.deadline = time.monotonic() + START
        self.channel, theirs = make_channel()
        memory = open_memory("tabi-upgrade")
        try:
            with os.fdopen(os.dup(memory), "wb") as file:
                file.write(msgspec.json.encode(state))
            given = (theirs.fileno(), memory)
            environ = {**os.environ, VARIABLE: ":".join(map(str, given))}
            self.pid = spawn(command, environ, (*numbers, *given))
        except BaseException:
            self.channel.close()
            raise
        finally:
            theirs.close()
            os.close(memory)
        self.channel.interrupt()
        self.serves = False
        self.ended: str | None = None
        """How its process has ended, if it has."""

    def poll(self) -> None:
        """Take note of its end."""
        if self.ended is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.ended = describe_end(status)

    def kill(self) -> None:
        """End a program that does not serve."""
        if self.ended is None:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self.ended = "was killed"
        self.channel.close()


class Succession:
    """What a supervisor has to do with the process before it, and with the one after it.

    Args:
        predecessor: the one before, None if there is none.
        describe: what the one after is told, and the descriptors that it gets.
        hand_over: called when the one after serves, with the files that it has taken: drain.
        stop: called when the one after passes on that it was told to stop.
        tell_control: sends a message to the control process; False if there is none.
        orphaned: called when the one before has ended.
        notify: tells the service manager.
    """

    def __init__(
        self,
        predecessor: Predecessor | None,
        describe: Callable[[], tuple[State, Sequence[int]]],
        hand_over: Callable[[Collection[str]], object],
        stop: Callable[[], object],
        tell_control: Callable[[Mapping[str, Any]], bool],
        orphaned: Callable[[], object],
        notify: Callable[[str], object],
    ) -> None:
        self.predecessor = predecessor
        self.describe = describe
        self.hand_over = hand_over
        self.stop = stop
        self.tell_control = tell_control
        self.orphaned = orphaned
        self.notify = notify
        self.command = command_line()  # now: another program may lie there later
        self.next: Upgrade | None = None
        self.answer: Answer | None = None
        """For the client that has asked for the upgrade under way."""

    @property
    def handed_over(self) -> bool:
        """Whether another process serves in place of this one."""
        return self.next is not None and self.next.serves

    @property
    def waits(self) -> bool:
        """Whether this process has to stay: a client waits for its answer, or the one before has sessions."""
        return self.answer is not None or self.predecessor is not None

    # --- the one after ---

    def begin(self, answer: Answer = lambda _: None) -> None:
        """Start the new program. While it starts, or once it serves, there is no second one."""
        if os.getpid() == 1:
            why = "process 1 of a container cannot be replaced, since all others end with it: start another container"
        elif self.handed_over:
            assert self.next is not None
            why = f"process {self.next.pid} has taken over already"
        elif self.next is not None:
            why = f"process {self.next.pid} is about to take over already"
        else:
            try:
                self.next = Upgrade(self.command, *self.describe())
            except OSError as exc:
                why = f"the program cannot be executed: {exc.strerror or exc}"
            else:
                self.answer = answer
                log.info("upgrade: process %d starts", self.next.pid)
                return
        log.error("not upgraded, this process goes on: %s", why)
        answer({"error": f"not upgraded: {why}"})

    def fail(self, why: str) -> None:
        """Give the new program up."""
        assert self.next is not None
        self.next.kill()
        self.next = None
        log.error("not upgraded, this process goes on: %s", why)
        self.tell({"error": f"not upgraded, the server goes on as before: {why}"})

    def tell(self, found: Mapping[str, Any]) -> None:
        """Answer the client that has asked."""
        answer, self.answer = self.answer, None
        if answer is not None:
            answer(found)

    def heard(self, upgrade: Upgrade, body: Mapping[str, Any]) -> None:
        """Take a message of the new program."""
        if "ready" in body and not upgrade.serves:
            upgrade.serves = True
            upgrade.deadline = time.monotonic() + NAMING
            self.notify(f"MAINPID={upgrade.pid}")
            log.info("upgraded: process %d serves, this one drains", upgrade.pid)
            self.hand_over(body["ready"]["files"])
            if not self.tell_control({"aside": os.getpid()}):
                self.made_room()
        elif "failed" in body and not upgrade.serves:
            self.fail(str(body["failed"]))
        elif "named" in body:
            self.tell({"ok": {"pid": upgrade.pid, "before": os.getpid()}})
        elif "stop" in body:
            self.stop()

    def made_room(self) -> None:
        """Our control socket has another name now."""
        if self.next is not None:
            self.next.channel.send({"go": True})

    def stopped(self, at_once: bool) -> None:
        """This process was told to stop: so are the others."""
        if self.next is not None and not self.next.serves:
            self.fail("the server is stopping")
        if at_once and self.predecessor is not None:
            self.predecessor.channel.send({"stop": True})

    # --- the one before ---

    def ready(self, files: Collection[str]) -> None:
        """This process serves: say so to the one before, or else to the service manager."""
        if self.predecessor is None:
            self.notify("READY=1")
        else:
            self.predecessor.channel.send({"ready": {"files": list(files)}})

    def named(self) -> None:
        """Our control socket has the usual name now."""
        if self.predecessor is not None:
            self.predecessor.channel.send({"named": True})

    # --- both ---

    def look(self, now: float) -> None:
        """Take what has come through the channels, and see whether a time is over."""
        upgrade, before = self.next, self.predecessor
        if before is not None:
            while (body := next_body(before.channel)) is not None:
                if not body:
                    before.channel.close()
                    self.predecessor = None
                    self.tell_control({"take": before.pid})
                    self.orphaned()
                    break
                if "go" in body and not self.tell_control({"take": before.pid}):
                    self.named()
        if upgrade is None:
            return
        upgrade.poll()
        while self.next is upgrade and (body := next_body(upgrade.channel)):
            self.heard(upgrade, body)
        if self.next is not upgrade:
            return
        if upgrade.serves:
            if self.answer is not None and (now >= upgrade.deadline or upgrade.ended is not None):
                self.tell({"ok": {"pid": upgrade.pid, "before": os.getpid()}})
        elif upgrade.ended is not None:
            self.fail(f"process {upgrade.pid} {upgrade.ended}")
        elif now >= upgrade.deadline:
            self.fail(f"process {upgrade.pid} does not serve after {START:g} s")

    def due(self, now: float) -> float | None:
        """Seconds until a time is over; None if nothing is waited for."""
        upgrade = self.next
        if upgrade is None or (upgrade.serves and self.answer is None):
            return None
        return upgrade.deadline - now

    def channels(self) -> list[Channel]:
        """Those to other programs: processes that this one forks close them."""
        found = [one.channel for one in (self.predecessor, self.next) if one is not None]
        return [channel for channel in found if channel.fileno() >= 0]

    def close(self) -> None:
        """Close them."""
        for channel in self.channels():
            channel.close()


def next_body(channel: Channel) -> dict[str, Any] | None:
    """What the next message says; None if none has come, and nothing in it if the other end is gone."""
    channel.flush()
    try:
        message = channel.receive()
    except (EOFError, OSError):
        return {}
    except ValueError:
        return None
    if message is None:
        return None
    close_all(message.fds)
    return message.body


# --- the program ---


def command_line(orig: Sequence[str] | None = None, argv: Sequence[str] | None = None) -> list[str]:
    """The command that has started this program, to be executed again: another version may lie there by then.

    A script whose first line names its interpreter is executed itself, so that the line of the new one counts.
    """
    interpreter, *rest = sys.orig_argv if orig is None else orig
    script = (sys.argv if argv is None else argv)[0]
    if rest[:1] == [script] and first_line(script) == f"#!{interpreter}":
        return rest
    return [sys.executable or interpreter, *rest]


def first_line(path: str) -> str:
    """The first line of a file, as far as it can be read."""
    try:
        with Path(path).open("rb") as file:
            return file.readline(4096).decode(errors="replace").rstrip()
    except OSError:
        return ""


def spawn(command: list[str], environ: Mapping[str, str], numbers: Collection[int]) -> int:
    """Execute a program in a process of its own, with these descriptors. Returns its pid. Raises OSError."""
    try:
        for number in numbers:
            os.set_inheritable(number, True)
        return os.posix_spawn(command[0], command, environ, setsigmask=HELD)
    finally:
        for number in numbers:
            os.set_inheritable(number, False)
