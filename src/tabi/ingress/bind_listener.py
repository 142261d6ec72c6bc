"""The peers that call for a BIND, up to the expected one: on this machine, or at the last proxy of an egress."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

from tabi.egress.bind import Listener
from tabi.errors import PolicyDenied, ProxyError, TabiError
from tabi.net.dial import IP
from tabi.net.listen import Acceptor
from tabi.net.reactor import Reactor
from tabi.net.stream import RESET, Stream
from tabi.policy.policy import DestinationPolicy, Pending
from tabi.wire.address import Address, from_sockaddr, unmap

CALLERS_A_TURN = 16
"""Callers that are looked at in one turn of the reactor, however many there are: others have their turn too."""


FOREVER = 1e8
"""Seconds: the task that waits sets the deadline."""


class BindListener:
    """The peers that call on the listening socket of one BIND, up to the expected one; the others are reset.

    Args:
        reactor: on which it listens.
        sock: listens already; it is closed by `close`.
        bound: the address that the client is told.
        client: its reader is woken when the peer has called.
        expected: the addresses of the peer; if empty, any peer may call that ``destination_policy`` lets through.
        port: the port that the client has named.
    """

    def __init__(
        self,
        reactor: Reactor,
        sock: socket.socket,
        bound: Address,
        client: Stream,
        expected: list[IP],
        destination_policy: DestinationPolicy | None,
        port: int,
    ) -> None:
        self.reactor = reactor
        self.sock = sock
        self.bound = bound
        self.client = client
        self.expected = expected
        self.destination_policy = destination_policy
        self.port = port
        self.waiting = True
        self.refused = 0
        self.last_refused: Address | None = None
        self.peer: tuple[Address, Any] | None = None
        self.judging: dict[asyncio.Task[None], Any] = {}
        """The callers whose verdict takes time, and their sockets."""
        self.acceptor = Acceptor(reactor, sock, self.on_caller, lambda: CALLERS_A_TURN)
        self.acceptor.start()

    @property
    def over(self) -> bool:
        """Whether the wait is over: the peer has called."""
        return self.peer is not None

    @property
    def others(self) -> str:
        """The callers that were refused, for the error."""
        return f"; callers refused: {self.refused}, the last from {self.last_refused}" if self.refused else ""

    def on_caller(self, sock: Any, sockaddr: Any) -> None:
        """Keep the expected peer, reset any other. Called by the acceptor."""
        caller = from_sockaddr(sockaddr)
        verdict = self.waiting and self.may_call(caller.host)
        if isinstance(verdict, Pending):
            if len(self.judging) < CALLERS_A_TURN:
                self.judge_later(caller, sock, verdict)
                return
            verdict = False
        if self.keeps(caller, sock, verdict) and self.client.reader is not None:
            self.client.reader.wake()

    def keeps(self, caller: Address, sock: Any, verdict: bool) -> bool:
        """Keep a caller, or reset it."""
        if verdict and self.waiting:
            self.waiting = False  # the acceptor may have more callers in hand
            self.peer = caller, sock
            self.acceptor.stop()
            return True
        self.refused += 1
        self.last_refused = caller
        reset(sock)
        return False

    def judge_later(self, caller: Address, sock: Any, pending: Pending) -> None:
        """Have a task wait for the verdict on a caller."""
        task = self.reactor.loop.create_task(self.wait_for_verdict(caller, sock, pending))
        self.judging[task] = sock
        task.add_done_callback(self.judged)

    async def wait_for_verdict(self, caller: Address, sock: Any, pending: Pending) -> None:
        """Wait for the verdict on a caller. The task that waits for the peer sets the deadline."""
        await pending
        if self.keeps(caller, sock, self.may_call(caller.host) is True) and self.client.reader is not None:
            self.client.reader.wake_soon()

    def judged(self, task: asyncio.Task[None]) -> None:
        """A caller has its verdict, or no task waits for it any more."""
        sock = self.judging.pop(task)
        if task.cancelled():
            reset(sock)

    def may_call(self, host: Any) -> bool | Pending:
        """Whether it is the peer. Its port is not looked at: servers call from others than those they listen on."""
        if self.destination_policy is None:
            return host in self.expected
        try:
            # A peer that is reached by another egress would not call here.
            verdict = self.destination_policy(Address(host, self.port), [host])
        except PolicyDenied:
            return False
        return verdict if isinstance(verdict, Pending) else verdict is None

    def take(self) -> tuple[Address, Stream]:
        """The peer that has called, and its stream, which the caller closes."""
        assert self.peer is not None
        caller, sock = self.peer
        stream = Stream(self.reactor, sock)
        self.peer = None
        return caller, stream

    def close(self) -> None:
        """Stop listening, and close a peer that was not taken."""
        self.acceptor.stop()
        self.waiting = False
        for task in self.judging:
            task.cancel()
        self.reactor.close(self.sock)
        if self.peer is not None:
            reset(self.peer[1])


class UpstreamBindListener:
    """The peer that calls the last proxy of an egress, which decides whether that is the expected one.

    Args:
        listener: at the proxy; closed by `close`.
        client: its reader is woken when the wait is over.
        destination_policy: asked for the caller, if any peer may call.
        port: the port that the client has named.
    """

    others = ""

    def __init__(
        self, listener: Listener, client: Stream, destination_policy: DestinationPolicy | None, port: int
    ) -> None:
        self.listener = listener
        self.bound = listener.address
        self.client = client
        self.destination_policy = destination_policy
        self.port = port
        self.taken = False
        self.accepting = client.reactor.loop.create_task(self.accept())
        self.accepting.add_done_callback(self.wake)

    @property
    def over(self) -> bool:
        """Whether the wait is over: the peer has called, or the proxy has given up."""
        return self.accepting.done()

    def wake(self, accepting: asyncio.Task[Stream]) -> None:
        """Wake the task that waits on the client."""
        if not accepting.cancelled():
            accepting.exception()  # perhaps no task asks for it any more
        if self.client.reader is not None:
            self.client.reader.wake_soon()

    async def accept(self) -> Stream:
        """The stream of the peer. The task that waits sets the deadline.

        Raises:
            ProxyError, RemoteProtocolError: no peer has called, as the proxy says, or the proxy is gone.
            PolicyDenied: the peer that has called must not call.
        """
        try:
            stream = await self.listener.accept(FOREVER)
        except TabiError:
            raise
        except OSError as exc:
            text = (exc.strerror or str(exc)).lower()
            raise ProxyError(f"{self.bound}: the connection to the proxy broke: {text}") from exc
        assert self.listener.peer is not None
        host = self.listener.peer.host
        try:
            if self.destination_policy is not None:
                caller, addresses = Address(host, self.port), None if isinstance(host, str) else [host]
                verdict = self.destination_policy(caller, addresses)
                if isinstance(verdict, Pending):
                    await verdict
                    self.destination_policy(caller, addresses)
        except BaseException:
            stream.reset()
            raise
        return stream

    def take(self) -> tuple[Address, Stream]:
        """The peer that has called, and its stream, which the caller closes. Raises as `accept`."""
        stream = self.accepting.result()
        assert self.listener.peer is not None
        self.taken = True
        return unmap(self.listener.peer), stream

    def close(self) -> None:
        """Stop waiting, and close a peer that was not taken."""
        self.listener.close()
        accepting = self.accepting
        if not accepting.done():
            accepting.cancel()
        elif not self.taken and not accepting.cancelled() and accepting.exception() is None:
            accepting.result().reset()


def reset(sock: Any) -> None:
    """Close with a reset, so that the peer does not take it for an orderly end."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    sock.close()
