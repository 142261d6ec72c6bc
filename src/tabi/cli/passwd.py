"""`tabi passwd`."""

from __future__ import annotations

import json
import sys
from getpass import getpass

import click

from tabi.cli.help import Command
from tabi.errors import ConfigError
from tabi.policy.users import make_hash


@click.command(cls=Command)
@click.argument("name", metavar="[NAME]", required=False, help="Print it as this user's part of tabi.toml.")
def passwd(name: str | None) -> None:
    """Ask for a password twice and print its scrypt hash for the configuration.

    Without a terminal the password is the first line of standard input.

    Example:  pass show proxy | tabi passwd alice
    """
    if sys.stdin.isatty():
        text = getpass("Password: ")
        if getpass("Again: ") != text:
            raise ConfigError("the two passwords are not the same")
        password = text.encode(errors="surrogateescape")
    else:
        password = sys.stdin.buffer.readline().rstrip(b"\r\n")
    if name is not None and not 0 < len(name.encode()) <= 255:
        raise ConfigError("a user name has 1 to 255 octets (RFC 1929)")
    if not 0 < len(password) <= 255:
        raise ConfigError("a password has 1 to 255 octets (RFC 1929)")
    text = make_hash(password)
    if name is None:
        print(text)
    else:
        key = (
            name
            if name.replace("-", "").replace("_", "").isalnum() and name.isascii()
            else json.dumps(name, ensure_ascii=False)
        )
        print(f'[users.{key}]\npassword = "{text}"')
