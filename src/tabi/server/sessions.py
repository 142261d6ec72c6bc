"""The sessions of a server: each is accepted, runs as a task until a relay has it, and is reported when it is over."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from math import inf
from time import monotonic
from typing import Any

import msgspec

from tabi.errors import LimitExceeded, RemoteProtocolError
from tabi.ingress.conversation import Ingress
from tabi.ingress.gate import Gate
from tabi.ingress.proxy_header import ProxyHeaderIngress
from tabi.net.handshakes import Handshakes
from tabi.net.listen import unix_client
from tabi.net.reactor import BROKEN, Reactor
from tabi.net.stream import Stream
from tabi.observe.access_log import AccessLog
from tabi.observe.metrics import Metrics
from tabi.observe.observers import SessionObserver, Watch, methods_of, say_failed, tell
from tabi.relay.associations import Associations
from tabi.relay.carrier import Carried, Carrier
from tabi.server.arrivals import Admitted, Arrival, Arrivals
from tabi.server.clients import Clients
from tabi.session import Session
from tabi.wire.address import Address, from_sockaddr

log = logging.getLogger("tabi")

REFUSED = ("denied", "limit", "kicked")
"""Ends that stay as they are when the task is cancelled: only the client lingers."""


class SessionInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One session as it was when `Server.sessions` was called. The names are those of the access log."""

    id: int
    """Its number, as in the access log after the hyphen, there in hexadecimal digits."""
    listener: str
    client: Address
    protocol: str | None
    command: str | None
    user: str | None
    destination: Address | None
    address: Address | None
    """What was dialled."""
    rule: str | None
    via: str | None
    up: int
    """Octets of payload so far, from the client."""
    down: int
    seconds: float
    """Seconds since it began."""
    kick: Callable[[], None]

    def __repr__(self) -> str:
        return f"<SessionInfo {self.id:x} {self.client} {self.destination}>"

    def end(self) -> None:
        """End the session, as ``kicked``. Any thread may call it, even twice; a session that is over stays as it is."""
        self.kick()


class Sessions:
    """All running sessions.

    Args:
        reactor: hears of their sockets.
        handshake: seconds until a client must have asked for something.
        observers: are told of each.
    """

    gate: Gate
    clients: Clients
    arrivals: Arrivals
    associations: Associations

    def __init__(self, reactor: Reactor, handshake: float, observers: Sequence[SessionObserver]) -> None:
        self.reactor = reactor
        self.handshake = Handshakes(reactor.loop, handshake)
        self.running: dict[Session, asyncio.Task[None] | None] = {}
        """The task of each, None if a relay has it."""
        self.numbers = itertools.count(1)
        self.empty: asyncio.Event | None = None
        self.held: set[object] = set()
        """What still has octets for the clients of sessions that are over."""
        self.carriers: list[Carrier] = []
        """All carriers that may have a session."""
        self.began = methods_of(observers, "began")
        self.ended = methods_of(observers, "ended")
        self.watch = Watch(observers) or None
        self.copies = any(
            not isinstance(one, AccessLog | Metrics) for one in observers
        )  # an observer that gets one may keep it

    def accepting(self, ingress: Ingress, listener: str) -> Callable[[Any, Any], None]:
        """What a listener does with each new connection."""
        reactor, running, handshake = self.reactor, self.running, self.handshake
        loop, watch, began, clients = reactor.loop, self.watch, self.began, self.clients
        admit, arrivals = clients.admit, self.arrivals
        # A proxy has the connections of its clients. These count when its header has named them.
        is_proxy = ingress.trusts if isinstance(ingress, ProxyHeaderIngress) else None

        def accepted(sock: Any, sockaddr: Any) -> None:
            admitted = None
            if isinstance(sockaddr, tuple):
                peer = from_sockaddr(sockaddr)
                if is_proxy is None or not is_proxy(peer.host):
                    try:
                        admitted = admit(peer.host)  # type: ignore[arg-type]
                    except LimitExceeded as exc:
                        clients.refuse(sock, peer, exc)
                        return
            else:  # a path, if a client of a unix socket has one: it does not identify the client
                peer = unix_client(sock)
            if not arrivals.lines and arrivals.may_begin():
                begin(sock, peer, admitted)
            else:
                arrivals.add(Arrival(begin, sock, peer, admitted, monotonic()))

        def begin(sock: Any, peer: Address, admitted: Admitted | None) -> None:
            session = Session(next(self.numbers), listener, peer, monotonic())
            if watch is not None:
                session.watch = watch
            client = Stream(reactor, sock)
            handshake.start(client)
            if admitted is not None:
                clients.begin(client, session, *admitted)
            running[session] = asyncio.Task(self.run(ingress, client, session), loop=loop)
            if began:
                tell(began, session)

        return accepted

    async def run(self, ingress: Ingress, client: Stream, session: Session) -> None:
        """One session's task: it ends when a relay has taken over, or the session is over."""
        # From its first step on: cancelled before that, it would not come to its `finally`.
        client.on_gone = self.running[session].cancel  # type: ignore[union-attr]
        try:
            await ingress.serve(client, session)
        except asyncio.CancelledError:
            if session.close not in REFUSED:
                session.close = "shutdown"
                if client.events & BROKEN:  # by the stream
                    session.error, session.close = session.error or "the client has gone", "reset"
            raise
        except TimeoutError:
            session.error = f"handshake: not done within {self.handshake.seconds:g} s"
        except RemoteProtocolError as exc:
            session.error = str(exc)
        except LimitExceeded as exc:
            session.error, session.close = str(exc), "limit"
        except OSError as exc:
            session.error = (exc.strerror or str(exc)).lower()
            session.close = "reset" if isinstance(exc, ConnectionError) else "error"
        except Exception as exc:
            session.error = f"internal error: {type(exc).__name__}"
            log.exception("session %x failed", session.number)
        finally:
            client.on_gone = None  # it refers to this task: a circle
            if client.fd >= 0:
                self.handshake.stop(client)
                client.close()
                self.finished(session)
            elif session in self.running:
                self.running[session] = None

    def finished(self, session: Session) -> None:
        """A session is over: write its line, and wake the task that waits for the last session."""
        del self.running[session]
        if self.clients.rows:
            self.clients.ended(session)
        if session.lease is not None:
            self.gate.leave(session.lease)
        if session.ended is not None:
            session.over()
        for ended in self.ended:  # as `tell`, for every connection
            try:
                ended(session)
            except Exception:
                say_failed(ended)
        if self.empty is not None:
            self.look_if_empty()

    def look_if_empty(self) -> None:
        """Wake the task that waits for the last session, if that was it."""
        if self.empty is not None and not (self.running or self.arrivals.count or self.held):
            self.empty.set()

    def holding(self, thing: object, holds: bool) -> None:
        """Say that something still has octets for the client of a session that is over, or no longer."""
        if holds:
            self.held.add(thing)
        else:
            self.held.discard(thing)
            self.look_if_empty()

    def request_over(self, session: Session) -> None:
        """A request is over, and its connection goes on: write its line, and begin the session anew."""
        if session.lease is not None:
            self.gate.leave(session.lease)
        if session.ended is not None:
            session.over()
        tell(self.ended, session.copy() if self.copies else session)
        session.begin(next(self.numbers), monotonic())
        if self.began:
            tell(self.began, session)

    async def drained(self, seconds: float) -> None:
        """Wait until no session runs, for so many seconds at most."""
        if self.running or self.arrivals.count or self.held:
            self.empty = asyncio.Event()
            with suppress(TimeoutError):
                await asyncio.wait_for(self.empty.wait(), None if seconds == inf else seconds)

    async def cancel(self) -> None:
        """End the sessions that no relay has, and those that have not begun."""
        self.arrivals.close()
        try:
            await asyncio.sleep(0)  # a task that is cancelled before its first step never comes to its `finally`
        finally:
            tasks = [task for task in self.running.values() if task is not None]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    # --- from outside ---

    def infos(self) -> list[SessionInfo]:
        """All running sessions, as they are now."""
        now = monotonic()
        return [self.info(session, now) for session in self.running]

    def carried(self, session: Session) -> Carried | None:
        """The carrier of a session; None for an association, and if no carrier has it yet."""
        return next((found for carrier in self.carriers if (found := carrier.get(session)) is not None), None)

    def info(self, session: Session, now: float) -> SessionInfo:
        """One running session."""
        number = session.number
        carried = self.carried(session)
        up, down = (session.up, session.down) if carried is None else carried.counts
        return SessionInfo(
            id=number,
            listener=session.listener,
            client=session.client,
            protocol=session.protocol,
            command=session.command,
            user=session.user,
            destination=session.destination,
            address=session.address,
            rule=session.rule,
            via=session.via,
            up=up,
            down=down,
            seconds=now - session.started,
            kick=lambda: self.kick_soon(session, number),
        )

    def kick_soon(self, session: Session, number: int) -> None:
        """End a session from any thread, if it is still that one."""
        with suppress(RuntimeError):  # the loop is closed, and so is the session
            self.reactor.loop.call_soon_threadsafe(self.kick, session, number)

    def kick(self, session: Session, number: int) -> None:
        """End the session."""
        if session not in self.running or session.number != number:
            return
        task = self.running[session]
        if task is not None:
            session.close = "kicked"
            task.cancel()
            return
        carried = self.carried(session)
        if carried is not None:
            carried.cut("ended from outside", "kicked")
        else:
            self.associations.end(session, "kicked", "ended from outside")
