"""`tabi passwd`."""

from __future__ import annotations

import sys
from getpass import getpass
from typing import Annotated

import typer

from tabi.errors import ConfigError
from tabi.policy.users import make_hash


def passwd(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Print it as this user's part of tabi.toml.")
    ] = None,
) -> None:
    """Ask for a password twice and print its scrypt hash for the configuration.

    Without a terminal the password is the first line of standard input: `pass show proxy | tabi passwd alice`.
    """
    if sys.stdin.isatty():
        password = getpass("Password: ")
        if getpass("Again: ") != password:
            raise ConfigError("the two are not the same")
    else:
        password = sys.stdin.readline().rstrip("\r\n")
    if not 0 < len(password.encode()) <= 255:
        raise ConfigError("a password has 1 to 255 octets (RFC 1929)")
    text = make_hash(password.encode())
    if name is None:
        print(text)
    else:
        key = name if name.replace("-", "").replace("_", "").isalnum() and name.isascii() else f'"{name}"'
        print(f'[users.{key}]\npassword = "{text}"')
