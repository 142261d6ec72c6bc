"""What policy asks of users, one thing at a time."""

from __future__ import annotations

import pytest

from tabi.config import LimitsConfig, UserConfig
from tabi.config.columns import KNOWN, Column, Has
from tabi.policy.quantities import Moment


def test_a_column_keeps_what_it_has_read() -> None:
    """Each user is looked for and read once, a name that nobody has too; a column has a bound."""
    read: list[str] = []

    def groups(user: UserConfig) -> list[str] | None:
        read.extend(user.groups)
        return user.groups or None

    users = {str(number): UserConfig(groups=[str(number)]) for number in range(KNOWN + 1)} | {"none": UserConfig()}
    column: Column[list[str]] = Column(users, groups, True)
    assert (column.get("7"), column.get("7"), read) == (["7"], ["7"], ["7"])
    assert column.get("stranger", ["x"]) == ["x"]
    assert column.known == {"7": ["7"], "stranger": None}
    assert ("7" in column, "none" in column, "stranger" in column) == (True, False, False)
    assert len(column) == KNOWN + 1
    assert len(column.known) == KNOWN
    with pytest.raises(KeyError):
        column["none"]
    assert Column(users, groups, False).get("7", "nothing is asked") == "nothing is asked"


def test_what_users_of_a_configuration_have() -> None:
    """Each thing counts as soon as one of them has it."""
    assert Has.of({}) == Has()
    assert Has.of({"a": UserConfig("x", plain=True), "b": UserConfig(expires=Moment.parse("2027-01-01"))}) == Has(
        passwords=True, expires=True
    )
    assert Has.of({"a": UserConfig(groups=["g"], limits=LimitsConfig(connections=1))}) == Has(groups=True, limits=True)
    cheap = UserConfig("$scrypt$ln=1,r=1,p=1$c2FsdA$" + "A" * 43)
    assert Has.of({"a": cheap, "b": cheap}) == Has(passwords=True, sample=cheap.secret, costs={(1, 1, 1): 2})
