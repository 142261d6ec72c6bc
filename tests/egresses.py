"""Egresses that note what they are asked for, and sessions on whose behalf that is."""

from __future__ import annotations

from typing import Any

from tabi.egress.base import Egress
from tabi.policy.grammar import Parameters
from tabi.session import Session
from tabi.wire.address import Address, parse_host
from tabi.wire.socks5 import Credentials


class Recorder(Egress):
    """An egress that notes what it was asked for, and gives nothing."""

    name = "below"

    def __init__(self, credentials: Credentials | None = None) -> None:
        self.credentials = credentials
        self.asked: list[str] = []

    async def open(self, destination: Address, address_filter: Any, session: Session | None = None) -> Any:
        self.asked.append(str(destination))


def session(user: str | None = None, token: str | None = None, client: str = "192.0.2.1") -> Session:
    """On whose behalf."""
    made = Session(1, "", Address(parse_host(client), 1), 0.0)
    made.user = user
    made.parameters = None if token is None else Parameters((), token)
    return made
