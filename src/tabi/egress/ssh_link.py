"""One connection to an SSH server, from its first octet to its last: logging in, opening channels, ending.

Errors are told in our own words. The text of a server may hold anything, even the password that was sent to it.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any

import asyncssh

from tabi.egress.ssh_channel import WINDOW, Channel
from tabi.egress.ssh_keys import SshKeys
from tabi.errors import AuthError, EgressError, ProxyError, ProxyTimeout, RemoteProtocolError, TabiError
from tabi.net.failures import is_deadline, local_error
from tabi.net.pair import open_pair
from tabi.net.reactor import Reactor
from tabi.net.stream import Stream
from tabi.wire.address import Address
from tabi.wire.socks5 import ReplyCode

KEEPALIVE = 10.0
"""Seconds without an octet until a server is asked whether it is still there."""

UNANSWERED = 2
"""Questions that may stay without an answer: at the next one the connection is given up."""

MAX_CHANNELS = 4096
"""Channels of one connection, with those that are still being opened or closed."""

LINGER = 30.0
"""Seconds that the server has to close the last channels of a connection that is to end."""

CIPHERS = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "chacha20-poly1305@openssh.com", "aes256-ctr")
"""AES-GCM first: with the processor's help it is three times as fast as ChaCha20 here."""

REPLY_BY_CODE: dict[int, int] = {
    asyncssh.OPEN_ADMINISTRATIVELY_PROHIBITED: ReplyCode.NOT_ALLOWED,
    asyncssh.OPEN_UNKNOWN_CHANNEL_TYPE: ReplyCode.COMMAND_NOT_SUPPORTED,
    asyncssh.OPEN_RESOURCE_SHORTAGE: ReplyCode.GENERAL_FAILURE,
}

TEXT_BY_CODE: dict[int, str] = {
    asyncssh.OPEN_ADMINISTRATIVELY_PROHIBITED: "the SSH server does not allow it",
    asyncssh.OPEN_UNKNOWN_CHANNEL_TYPE: "the SSH server does not forward connections",
    asyncssh.OPEN_RESOURCE_SHORTAGE: "the SSH server opens no more channels",
}

REPLY_BY_WORDS: tuple[tuple[str, int, str], ...] = (
    ("refused", ReplyCode.CONNECTION_REFUSED, "connection refused"),
    ("errno 111]", ReplyCode.CONNECTION_REFUSED, "connection refused"),  # of servers in Python
    ("errno 113]", ReplyCode.HOST_UNREACHABLE, "no route to host"),
    ("network is unreachable", ReplyCode.NETWORK_UNREACHABLE, "network is unreachable"),
    ("unreachable", ReplyCode.HOST_UNREACHABLE, "host is unreachable"),
    ("no route", ReplyCode.HOST_UNREACHABLE, "no route to host"),
    ("timed out", ReplyCode.HOST_UNREACHABLE, "timed out"),
    ("timeout", ReplyCode.HOST_UNREACHABLE, "timed out"),
    ("not known", ReplyCode.HOST_UNREACHABLE, "no such name"),
    ("no such host", ReplyCode.HOST_UNREACHABLE, "no such name"),
    ("no address", ReplyCode.HOST_UNREACHABLE, "no such name"),
    ("name resolution", ReplyCode.HOST_UNREACHABLE, "name not resolved"),
    ("resolve", ReplyCode.HOST_UNREACHABLE, "name not resolved"),
)
"""What a server says of a connection that failed is text (RFC 4254 section 5.1 has one code for all): a part of that
text in lower case, its reply code, and our own text."""


class Link(asyncssh.SSHClient):
    """One connection, and its channels.

    Args:
        server: where it leads.
        reactor: that of the running loop.
        idle: called when a channel ends.
    """

    def __init__(self, server: Address, reactor: Reactor, idle: Callable[[], object]) -> None:
        self.server = server
        self.reactor = reactor
        self.idle = idle
        self.conn: asyncssh.SSHClientConnection | None = None
        self.names: tuple[Any, Any] = ((), ())  # ours and the server's address
        self.channels: set[Channel] = set()
        self.running = 0  # of them, those whose socket is open
        self.openings: set[asyncio.Task[Any]] = set()
        self.full = False  # what is to be sent waits for room
        self.known = False  # there are keys for this host
        self.host_key = ""  # the fingerprint of one that is not accepted
        self.asked = False  # the server knows by now who we are
        self.ending: asyncio.TimerHandle | None = None

    @property
    def alive(self) -> bool:
        """Whether channels can be opened. asyncssh forgets its transport as soon as it gives a connection up."""
        return self.conn is not None and self.conn.get_extra_info("socket") is not None

    # --- what asyncssh calls ---

    def connection_made(self, conn: asyncssh.SSHClientConnection) -> None:
        """The connection begins. asyncssh ignores the transport when that reports that there is no room: so we handle
        it."""
        self.conn = conn
        conn.pause_writing = self.pause_writing  # type: ignore[method-assign]
        conn.resume_writing = self.resume_writing  # type: ignore[method-assign]

    def pause_writing(self) -> None:
        """There is no room to send: no channel reads on."""
        self.full = True

    def resume_writing(self) -> None:
        """There is room again."""
        self.full = False
        for channel in self.channels:
            channel.go_on()

    def validate_host_public_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:
        """The server has a key that is not known. asyncssh would ask us."""
        self.host_key = key.get_fingerprint()
        return False

    def begin_auth(self, username: str) -> None:
        """The server has proved who it is, and asks who we are."""
        self.asked = True

    # --- logging in ---

    async def log_in(
        self, sock: socket.socket, username: str, password: str | None, keys: SshKeys, seconds: float
    ) -> None:
        """Begin, on a connected socket, which is closed with the connection, or if this fails.

        Raises:
            AuthError: the server does not accept the user.
            ProxyError: the connection broke, or the server did not answer in time.
            RemoteProtocolError: there is no SSH server, or it has the wrong host key.
            DialError: our side cannot be used: a file of keys, the user name.
        """
        host, port = self.server
        try:
            known = keys.find_host(self.server)
            self.known = any(known[:2])
            async with asyncio.timeout(seconds):
                await asyncssh.connect(
                    str(host),
                    port,
                    sock=sock,
                    tunnel=None,
                    config=None,
                    client_factory=lambda: self,
                    known_hosts=known,
                    x509_trusted_certs=None,
                    x509_trusted_cert_paths=[],
                    gss_host=None,
                    username=username,
                    compression_algs=["none"],  # which could become far more than was sent
                    encryption_algs=CIPHERS,
                    login_timeout=0,
                    keepalive_interval=KEEPALIVE,
                    keepalive_count_max=UNANSWERED,
                    **keys.options(password),
                )
        except BaseException as exc:
            if self.conn is None:  # else the socket belongs to the connection
                sock.close()
            if not isinstance(exc, Exception):
                raise
            raise self.login_error(exc, keys, password, seconds) from exc

    def login_error(self, exc: Exception, keys: SshKeys, password: str | None, seconds: float) -> TabiError:
        """What an error says."""
        server = self.server
        if is_deadline(exc):
            return ProxyTimeout(f"{server}: the SSH server did not answer within {seconds:g} s")
        if self.conn is None:
            text = (exc.strerror or str(exc)).lower() if isinstance(exc, OSError) else str(exc)
            return EgressError(f"{server}: {text}", ReplyCode.GENERAL_FAILURE)
        if isinstance(exc, asyncssh.HostKeyNotVerifiable | asyncssh.KeyExchangeFailed):
            return self.host_key_error(exc, keys)
        if isinstance(exc, asyncssh.ConnectionLost | OSError):
            return ProxyError(f"{server}: the connection to the SSH server broke before it let us in")
        if self.asked and isinstance(exc, asyncssh.DisconnectError):
            return AuthError(f"{server}: the SSH server does not accept the user by {keys.describe(password)}")
        return RemoteProtocolError(f"{server}: this is not an SSH server that tabi can talk to ({type(exc).__name__})")

    def host_key_error(self, exc: Exception, keys: SshKeys) -> RemoteProtocolError:
        """What to do about a host key."""
        (host, port), path = self.server, keys.known_hosts_path
        if isinstance(exc, asyncssh.KeyExchangeFailed) and not (self.known and "host key" in str(exc)):
            return RemoteProtocolError(f"{self.server}: no algorithm that both the SSH server and we have")
        if "revoked" in str(exc):
            return RemoteProtocolError(f"{self.server}: the host key is revoked in {path}")
        key = self.host_key and f" {self.host_key}"
        if self.known:
            return RemoteProtocolError(
                f"{self.server}: the host key{key} is not one of those in {path}: another machine may be in between; "
                "if it was changed, put the new one there"
            )
        return RemoteProtocolError(
            f"{self.server}: the host key{key} is not known: if it is the right one, add it to {path}, "
            f"as ssh-keyscan -p {port} {host} prints it"
        )

    # --- channels ---

    async def open(self, destination: Address, seconds: float) -> Stream:
        """Open a channel to a destination; the stream is the caller's to close.

        Raises:
            ProxyError: the server refused, broke the connection or did not answer in time; ``reply_code`` says how.
            DialError: there is no descriptor left.
            ValueError: the destination cannot be written in the protocol.
        """
        host, port = str(destination.host), destination.port
        host.encode()
        if len(self.channels) >= MAX_CHANNELS:
            raise ProxyError(
                f"{destination}: {MAX_CHANNELS} channels to the SSH server are open", ReplyCode.GENERAL_FAILURE
            )
        assert self.conn is not None
        if self.ending is not None:
            self.ending.cancel()
            self.ending = None
        try:
            ours, theirs = open_pair()
        except OSError as exc:
            raise local_error(exc, destination) from exc
        channel = Channel(self, ours, self.reactor)
        self.channels.add(channel)
        self.running += 1
        # Without a waiting task it goes on, to close a channel that the server may open later.
        opening = asyncio.Task(
            self.conn.create_connection(lambda: channel, host, port, window=WINDOW), loop=self.reactor.loop
        )
        self.openings.add(opening)
        opening.add_done_callback(lambda task: self.opened(task, channel))
        try:
            async with asyncio.timeout(seconds):
                await asyncio.shield(opening)
            return Stream(self.reactor, EndSocket(theirs, self.names))
        except BaseException as exc:
            theirs.close()
            channel.break_off()
            if not isinstance(exc, Exception):
                raise
            raise self.open_error(exc, destination, seconds) from exc

    def opened(self, task: asyncio.Task[Any], channel: Channel) -> None:
        """The server has answered, or never will."""
        self.openings.discard(task)
        if task.cancelled() or task.exception() is not None:
            channel.break_off()
            self.forget(channel)

    def open_error(self, exc: Exception, destination: Address, seconds: float) -> TabiError:
        """What an error says."""
        if isinstance(exc, TimeoutError):
            return ProxyTimeout(f"{destination}: the SSH server did not answer within {seconds:g} s")
        if not self.alive:
            return ProxyError(f"{self.server}: the connection to the SSH server broke")
        if not isinstance(exc, asyncssh.ChannelOpenError):
            return RemoteProtocolError(f"{destination}: the SSH server sent rubbish ({type(exc).__name__})")
        if exc.code in TEXT_BY_CODE:
            return ProxyError(f"{destination}: {TEXT_BY_CODE[exc.code]}", REPLY_BY_CODE[exc.code])
        reason = exc.reason.lower()
        for words, reply_code, text in REPLY_BY_WORDS:
            if words in reason:
                return ProxyError(f"{destination}: the SSH server says {text}", reply_code)
        return ProxyError(f"{destination}: the SSH server could not connect", ReplyCode.GENERAL_FAILURE)

    def forget(self, channel: Channel) -> None:
        """A channel has ended."""
        self.channels.discard(channel)
        self.idle()

    def note_over(self) -> None:
        """A channel's socket is closed."""
        self.running -= 1
        self.idle()

    # --- the end ---

    def end_if_idle(self) -> None:
        """End it if it has no channel. It waits a while for channels that only the server has not closed yet."""
        if self.conn is None or self.running or not self.alive:
            return
        if not self.channels:
            self.conn.close()
        elif self.ending is None:
            self.ending = self.reactor.loop.call_later(LINGER, self.conn.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        """It has ended, and all channels with it."""
        if self.ending is not None:
            self.ending.cancel()

    async def close(self) -> None:
        """End it at once; channels are reset."""
        if self.conn is not None:
            self.conn.abort()
            await self.conn.wait_closed()
        if self.openings:
            await asyncio.wait(self.openings)
        await asyncio.sleep(0)  # the transport closes its socket in the loop's next turn


class EndSocket(socket.socket):
    """The client's end of a pair: a socket like any other, but its addresses are those of the connection to the server,
    which others may see, and not those of a pair within this machine."""

    def __init__(self, sock: socket.socket, names: tuple[Any, Any]) -> None:
        super().__init__(sock.family, sock.type, sock.proto, sock.detach())
        self.setblocking(False)
        self.names = names

    def getsockname(self) -> Any:
        """Our address towards the server."""
        return self.names[0]

    def getpeername(self) -> Any:
        """The server's."""
        return self.names[1]
