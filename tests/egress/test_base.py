"""What every egress says of itself, and what one says that only opens connections."""

from __future__ import annotations

import pytest

from conftest import Run
from egresses import Recorder, session
from tabi.egress.base import CONNECTIONS_ALONE, NOBODY_LISTENS, Around, Egress
from tabi.egress.block import Block
from tabi.egress.direct import Direct
from tabi.egress.proxy_header import SendProxyHeader
from tabi.errors import DialError
from tabi.net.dial import StillDialer
from tabi.policy.grammar import Parameters
from tabi.policy.guard import allow_any_address
from tabi.wire.address import UNSPECIFIED, Address
from tabi.wire.socks5 import Command

SOMEWHERE = Address("example.com", 80)


def test_one_that_only_opens_refuses_all_else(run_once: Run) -> None:
    """Reply 07 with the same words before it is asked and when it is."""

    async def main() -> None:
        egress = Recorder()
        await egress.open(SOMEWHERE, allow_any_address)
        text = f"egress below: {CONNECTIONS_ALONE}"
        for command in ("bind", "associate", "resolve", "resolve_ptr"):
            assert egress.cannot(command) == text
        for command in ("connect", "forward"):
            assert egress.cannot(command) is None
        with pytest.raises(DialError) as caught:
            await egress.ask(Command.BIND, UNSPECIFIED, allow_any_address)
        assert (str(caught.value), caught.value.reply_code) == (text, 7)
        with pytest.raises(DialError) as caught:
            await egress.associate()
        assert (str(caught.value), caught.value.reply_code) == (text, 7)
        await egress.before_resolve("example.com")

    run_once(main)


def test_what_opens_nothing_says_so() -> None:
    """The base class alone is no egress."""
    with pytest.raises(NotImplementedError):
        Egress().open(SOMEWHERE, allow_any_address)


def test_questions_need_nobody_where_names_are_resolved_here() -> None:
    """The server answers them itself."""
    egress = Recorder()
    egress.resolves_locally = True
    assert (egress.cannot("resolve"), egress.cannot("resolve_ptr")) == (None, None)
    assert egress.cannot("bind") is not None


def test_one_without_a_pool_selects_nothing() -> None:
    """Neither by the parameters of a user name nor for a session."""
    egress = Recorder()
    assert egress.chooser() is None
    assert egress.explain_choice(Parameters(("de",))) == ["nothing: below is not a pool"]
    assert egress.explain_member(SOMEWHERE, session(), 0) is None


def test_its_name_is_its_description_and_its_place_in_a_chain() -> None:
    """One without a name is a part of another one, and shows nothing."""
    assert (Recorder().describe(), Recorder().steps(), Egress().steps()) == ("below", ["below"], [])


def test_one_around_another_is_that_one(run_once: Run) -> None:
    """In all that it does and says, until a subclass does it in another way."""

    async def main() -> None:
        below = Recorder()
        around = Around(below)
        await around.open(SOMEWHERE, allow_any_address)
        assert below.asked == ["example.com:80"]
        for asked in (around.ask(Command.BIND, UNSPECIFIED, allow_any_address), around.associate()):
            with pytest.raises(DialError, match=CONNECTIONS_ALONE):
                await asked
        await around.before_resolve("example.com")
        assert (around.name, around.describe(), around.path, around.leads_nowhere) == ("below", "below", [], False)
        assert (str(around.refusal()), around.chooser()) == (str(below.refusal()), None)
        assert around.cannot("bind") == below.cannot("bind")
        assert Around(Block("block")).leads_nowhere

    run_once(main)


def test_a_header_in_front_changes_nothing_of_what_a_direct_egress_can() -> None:
    """It listens for BIND from the same source, and a pool is told the same."""
    direct = Direct(StillDialer(10))
    around = SendProxyHeader(direct, 2)
    assert (around.direct, around.resolves_locally, around.source) == (True, True, None)
    assert (around.cannot("bind"), around.cannot("associate")) == (None, None)
    assert str(around.refusal()) == f"egress direct: {NOBODY_LISTENS}"
