"""The egress that leads nowhere."""

from __future__ import annotations

import pytest

from conftest import Run
from tabi.egress.block import Block
from tabi.errors import PolicyDenied
from tabi.policy.guard import allow_any_address
from tabi.wire.address import Address
from tabi.wire.socks5 import Command


def test_block_refuses_everything(run_once: Run) -> None:
    """Reply 02, with its name, whatever is asked for; it says so before it is asked, too."""

    async def main() -> None:
        block = Block("block")
        with pytest.raises(PolicyDenied, match=r"^egress block: example\.com:80$"):
            await block.open(Address("example.com", 80), allow_any_address)
        with pytest.raises(PolicyDenied, match=r"^egress block: example\.com:0$"):
            await block.ask(Command.RESOLVE, Address("example.com", 0), allow_any_address)
        with pytest.raises(PolicyDenied, match=r"^egress block: datagrams$"):
            await block.associate()
        assert (block.leads_nowhere, block.describe(), block.cannot("associate")) == (True, "block", None)

    run_once(main)
