"""Who we are to an SSH server, and which host keys it may have. asyncssh is loaded only if it is needed."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, NamedTuple

from tabi.errors import ConfigError
from tabi.wire.address import Address

if TYPE_CHECKING:
    from asyncssh.known_hosts import SSHKnownHosts

DEFAULT_KNOWN_HOSTS = "~/.ssh/known_hosts"
SSH_PORT = 22


class SshKeys(NamedTuple):
    """Where our keys and those of servers are; a password is in the URL."""

    known_hosts: str | None = None
    """A file of known_hosts; None is the user's own."""
    key: str | None = None
    """A file with our private key. None: those of ~/.ssh, if there is no password."""
    agent: bool = True
    """Whether the user's agent is asked too, where there is neither a password nor ``key``."""

    def options(self, password: str | None) -> dict[str, Any]:
        """The options for asyncssh. It reads nothing in ~/.ssh that is not wanted."""
        if self.key is not None or password is not None:
            # None are no keys, and no agent; () are those of ~/.ssh.
            keys: Any = None if self.key is None else [self.key]
            return {"client_keys": keys, "agent_path": None, "password": password}
        return {"client_keys": (), "agent_path": () if self.agent else None}

    def describe(self, password: str | None) -> str:
        """The keys that are offered to a server, without secrets."""
        offered = ["the password"] if password is not None else []
        if self.key is not None:
            offered.append(f"the key {self.key}")
        if not offered:
            offered = ["the keys of the agent", "those in ~/.ssh"] if self.agent else ["the keys in ~/.ssh"]
        return " and ".join(offered)

    @property
    def known_hosts_path(self) -> str:
        """Where servers are looked up."""
        return os.path.expanduser(DEFAULT_KNOWN_HOSTS) if self.known_hosts is None else self.known_hosts

    def read_known_hosts(self) -> SSHKnownHosts:
        """Read the file. Raises OSError and ValueError; the user's own may be missing, and is empty then."""
        import asyncssh

        try:
            return asyncssh.read_known_hosts(self.known_hosts_path)
        except FileNotFoundError:
            if self.known_hosts is not None:
                raise
            return asyncssh.import_known_hosts("")

    def find_host(self, server: Address) -> tuple[Any, ...]:
        """What is known of a server, by its name alone: keys, authorities, what is revoked, and the same of X.509.

        The address at the other end of the connection is not part of it. It may be that of a proxy in between, and then
        its host key would be accepted for any server behind it. Errors as `read_known_hosts`.
        """
        import asyncssh

        port = None if server.port == SSH_PORT else server.port
        return tuple(asyncssh.match_known_hosts(self.read_known_hosts(), str(server.host), "", port))

    def check(self) -> None:
        """Look at the files. Raises ConfigError, whose path is the key."""
        import asyncssh

        try:
            self.read_known_hosts()
        except OSError as exc:
            raise ConfigError(f"{self.known_hosts_path}: {exc.strerror or exc}", "known_hosts") from exc
        except ValueError as exc:
            raise ConfigError(f"{self.known_hosts_path}: not a known_hosts file", "known_hosts") from exc
        if self.key is None:
            return
        try:
            asyncssh.read_private_key(self.key)
        except OSError as exc:
            raise ConfigError(f"{self.key}: {exc.strerror or exc}", "key") from exc
        except ValueError as exc:
            why = "no private key that can be used"
            if "passphrase" in str(exc).lower():
                why = "encrypted, expected a plain one; the agent can have such a key"
            raise ConfigError(f"{self.key}: {why}", "key") from exc


def need_asyncssh(server: object, path: str | None = None) -> None:
    """Raise ConfigError if the package that speaks SSH is not installed."""
    try:
        import asyncssh  # noqa: F401
    except ImportError as exc:
        raise ConfigError(f"{server} needs {exc.name}: pip install 'tabi[ssh]'", path) from exc
