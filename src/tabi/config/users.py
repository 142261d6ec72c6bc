"""Users as one table: those of tabi.toml and those of ``auth.users_file``, checked once and read one by one.

There may be 100,000 of them. As objects they would cost seconds and much memory in each worker, and a reload would hold
up the traffic for as long as it takes to make them. So each stays the text that it is, in one piece of memory that
workers share, and becomes a `User` when it is first needed:

    slots (4 octets each)     where a user's record begins, 0 if none; found by the CRC-32 of the name
    records                   octets of the name (2), octets of the text (4), the name, the text: an object of JSON
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator, Mapping
from typing import Any
from zlib import crc32

import msgspec

from tabi.config.check import check_user
from tabi.config.columns import Column, Has
from tabi.config.load import decode_special, encode_special
from tabi.config.mistakes import find_mistakes, in_words
from tabi.config.schema import Config, UserConfig
from tabi.errors import ConfigError
from tabi.policy.users import Secret, Users, plain_secret

HEAD = struct.Struct("<HI")
FEWEST_SLOTS = 8
MAX_SIZE = 1 << 32
MAX_LINE = 1 << 16
"""Octets of a line of the file."""


class Line(
    UserConfig, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True, repr_omit_defaults=True
):
    """A user as a line of ``users_file``: as ``[users.NAME]``, and the name."""

    name: str


decoder = msgspec.json.Decoder(Line, dec_hook=decode_special)
encoder = msgspec.json.Encoder(enc_hook=encode_special)


class UserTable(Mapping[str, UserConfig]):
    """All users by name. It does not change.

    Args:
        data: slots and records.
        slots: how many slots there are.
        count: how many users.
        has: what some of them have.
    """

    def __init__(self, data: Any, slots: int, count: int, has: Has) -> None:
        self.data = memoryview(data)
        self.slots = self.data[: 4 * slots].cast("I")
        self.mask = slots - 1
        self.count = count
        self.has = has

    def __repr__(self) -> str:
        return f"UserTable({self.count})"

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[str]:
        at = 4 * len(self.slots)
        while at < len(self.data):
            name, text = HEAD.unpack_from(self.data, at)
            at += HEAD.size
            yield str(self.data[at : at + name], "utf-8")
            at += name + text

    def __getitem__(self, name: str) -> UserConfig:
        user = self.find(name)
        if user is None:
            raise KeyError(name)
        return user

    def find(self, name: str) -> UserConfig | None:
        """A user, or None."""
        try:
            octets = name.encode()
        except UnicodeEncodeError:  # a name that came as octets which are not UTF-8
            return None
        data, place = self.data, crc32(octets) & self.mask
        while at := self.slots[place]:
            length, size = HEAD.unpack_from(data, at)
            at += HEAD.size
            if length == len(octets) and data[at : at + length] == octets:
                return decoder.decode(data[at + length : at + length + size])
            place = place + 1 & self.mask
        return None

    def secrets(self) -> Users | None:
        """The users that can log in by a password; None if there are none."""
        if not self.has.passwords:
            return None
        return Users(Column(self, lambda user: user.secret, True), self.has.sample or plain_secret(b""), self.has.costs)


class Builder:
    """Makes a `UserTable`, one user after the other."""

    def __init__(self) -> None:
        self.records = bytearray()
        self.places: list[tuple[int, int]] = []
        self.lines: dict[bytes, int] = {}
        self.has = Has()

    def add(self, name: str, user: UserConfig, secret: Secret | None, text: bytes, line: int = 0) -> int | None:
        """Add a user: ``text`` is JSON from a line of the file, 0 for tabi.toml. Returns None, or the line of a user
        that already has the name."""
        octets = name.encode()
        if octets in self.lines:
            return self.lines[octets]
        self.lines[octets] = line
        self.places.append((crc32(octets), len(self.records)))
        self.records += HEAD.pack(len(octets), len(text)) + octets + text
        self.has.note(user, secret)
        return None

    def build(self) -> UserTable:
        """The table. Raises ConfigError if it would be larger than 4 GiB."""
        slots = FEWEST_SLOTS
        while slots < 2 * len(self.places):
            slots *= 2
        start, mask, table = 4 * slots, slots - 1, array("I", bytes(4 * slots))
        if start + len(self.records) >= MAX_SIZE:
            raise ConfigError("more than 4 GiB of users", "auth.users_file")
        for crc, at in self.places:
            place = crc & mask
            while table[place]:
                place = place + 1 & mask
            table[place] = start + at
        return UserTable(table.tobytes() + self.records, slots, len(self.places), self.has)


def make_users(config: Config, without_password: bool) -> UserTable:
    """All users of a configuration that was checked, and of its file; some need no password, as in `check_values`.

    Raises:
        ConfigError: the file cannot be read, or something in it is wrong.
    """
    builder = Builder()
    for name, user in config.users.items():
        fields = {key: getattr(user, key) for key in UserConfig.__struct_fields__}
        builder.add(name, user, user.secret, encoder.encode(Line(name=name, **fields)))
    if config.auth.users_file is not None:
        read_users(config.auth.users_file, builder, without_password)
    return builder.build()


def read_users(path: str, builder: Builder, without_password: bool) -> None:
    """Read a file of users: an object of JSON a line. Empty lines are skipped, and those that begin with #.

    Raises:
        ConfigError: the file cannot be read, or something is wrong; it names file and line.
    """
    number = 0
    try:
        with open(path, "rb") as file:
            while octets := file.readline(MAX_LINE + 1):
                number += 1
                text = octets.strip()
                if len(octets) > MAX_LINE:
                    raise ConfigError(f"more than {MAX_LINE} octets")
                if not text or text.startswith(b"#"):
                    continue
                user = read_line(text)
                secret = check_user(user.name, user, without_password)
                same = builder.add(user.name, user, secret, text, number)
                if same is not None:
                    where = f"line {same}" if same else f"[users.{user.name}] of tabi.toml"
                    raise ConfigError(f"the same as in {where}", "name")
    except OSError as exc:
        raise ConfigError(f"{path}: {exc.strerror}", "auth.users_file") from exc
    except ConfigError as exc:
        raise ConfigError(f"{path}, line {number}: {exc}", "auth.users_file") from None


def read_line(text: bytes) -> Line:
    """A user from a line. Raises ConfigError."""
    try:
        return decoder.decode(text)
    except msgspec.ValidationError as exc:
        mistakes, _ = find_mistakes(msgspec.json.decode(text), Line, "", decode_special)
        raise (mistakes[0] if mistakes else in_words(str(exc), "")) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise ConfigError(f"no object of JSON: {exc}") from None
