"""The quota store: what was used is there after a restart, whatever happened before it."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import sqlite3
import stat
import threading
from pathlib import Path

import pytest

from tabi.config import LimitsConfig
from tabi.errors import ConfigError
from tabi.policy.ledger import PERIOD, USED
from tabi.policy.limits import UP
from tabi.policy.limits import Limits as Accounts
from tabi.policy.quantities import Quota
from tabi.server.ledger import LocalLedger
from tabi.server.quota_store import VERSION, QuotaStore, check_store, default_path, open_store
from tabi.wire.address import parse_host

CLIENT = parse_host("192.0.2.1")
DAY = 86400
NOW = 20_000 * DAY + 3600.0


def make_limits(quota: str = "1 GB/day") -> Accounts:
    """One user with a quota, on a ledger of its own."""
    return Accounts(LocalLedger(), users={"alice": LimitsConfig(quota=Quota.parse(quota))})


def use(limits: Accounts, octets: int, wall: float = NOW) -> None:
    """Have alice use something."""
    lease = limits.admit("alice", CLIENT, 0, wall)
    assert lease is not None
    lease.spend(UP, octets, 0)
    lease.release()


def restore(limits: Accounts, store: QuotaStore, wall: float) -> None:
    """Begin with what is stored, and have alice come."""
    limits.ledger.restore(store.load())
    limits.accounts_of("alice", CLIENT)
    limits.turn_periods(wall)


def used(limits: Accounts) -> int:
    """What alice has used."""
    return limits.ledger.cells[limits.ledger.rows["user alice"] + USED]


def test_what_was_used_comes_back(tmp_path: Path) -> None:
    """Saved in parts, loaded as a whole; what was saved is not saved again."""
    store, limits = QuotaStore(tmp_path / "a" / "b" / "quotas.sqlite"), make_limits()
    for octets in (100, 0, 23):
        use(limits, octets)
        assert store.save(limits.ledger)
        assert store.save(limits.ledger)
    period = limits.ledger.cells[PERIOD + limits.ledger.rows["user alice"]]
    assert store.load() == {"user alice": (period, 123)}
    again = make_limits()
    restore(again, store, NOW)
    assert used(again) == 123
    use(again, 7)
    store.save(again.ledger)
    assert store.load() == {"user alice": (period, 130)}


def test_another_period_begins_with_nothing(tmp_path: Path) -> None:
    """What is left of yesterday does not count, neither in the file nor when it is loaded."""
    store, limits = QuotaStore(tmp_path / "q"), make_limits()
    use(limits, 500)
    store.save(limits.ledger)
    use(limits, 3, NOW + DAY)
    store.save(limits.ledger)
    ((period, octets),) = store.load().values()
    assert octets == 3
    assert period == int(NOW + DAY) // DAY * DAY
    later = make_limits()
    restore(later, store, NOW + 2 * DAY)
    assert used(later) == 0


def test_a_clock_that_was_set_back_gives_nothing_away(tmp_path: Path) -> None:
    """After a restart with the clock a day back, what was used counts on."""
    store, limits = QuotaStore(tmp_path / "q"), make_limits()
    use(limits, 500)
    store.save(limits.ledger)
    early = make_limits()
    restore(early, store, NOW - DAY)
    assert used(early) == 500


def test_it_is_for_its_owner_only(tmp_path: Path) -> None:
    """Names of users and what they do are nobody else's business: file, log beside it, and folder."""
    path = tmp_path / "state" / "q"
    store, limits = QuotaStore(path), make_limits()
    use(limits, 1)
    with store.open():
        modes = {found.name: stat.S_IMODE(found.stat().st_mode) for found in path.parent.iterdir()}
    assert modes == {"q": 0o600, "q-wal": 0o600, "q-shm": 0o600}
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_a_process_that_is_killed_breaks_nothing(tmp_path: Path) -> None:
    """SIGKILL in the middle of a transaction: what was committed is there, the file is whole, the next one writes."""
    path = tmp_path / "q"
    store, limits = QuotaStore(path), make_limits()
    use(limits, 100)
    store.save(limits.ledger)
    pid = os.fork()
    if not pid:
        try:
            with store.open() as database:
                database.execute("UPDATE quota SET used = 999")
                os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    use(limits, 11)
    assert store.save(limits.ledger)
    ((_, octets),) = store.load().values()
    assert octets == 111
    with sqlite3.connect(path) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_two_who_save_at_once_save_everything_once(tmp_path: Path) -> None:
    """Workers without a supervisor save what all of them have used: whoever comes second finds it saved."""
    store, limits = QuotaStore(tmp_path / "q"), make_limits()
    for round_ in range(20):
        use(limits, 10)
        threads = [threading.Thread(target=store.save, args=(limits.ledger,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        ((_, octets),) = store.load().values()
        assert octets == 10 * (round_ + 1)


def test_a_failure_is_said_once_and_loses_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A file that cannot be written holds up nobody; what was used waits for the next time."""
    path = tmp_path / "q"
    store, limits = QuotaStore(path), make_limits()
    with sqlite3.connect(path) as database:
        database.execute("ALTER TABLE quota RENAME TO elsewhere")
    use(limits, 40)
    assert not store.save(limits.ledger)
    assert not store.save(limits.ledger)
    assert caplog.text.count("no such table: quota; what is used is lost with this process") == 1
    with sqlite3.connect(path) as database:
        database.execute("ALTER TABLE elsewhere RENAME TO quota")
    use(limits, 2)
    assert store.save(limits.ledger)
    ((_, octets),) = store.load().values()
    assert octets == 42
    assert not store.failed


def test_what_the_disk_did_not_take_at_the_end_is_saved_later(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Octets reach the file with COMMIT only: where that fails, they are not taken for saved."""
    store, limits = QuotaStore(tmp_path / "q"), make_limits()
    use(limits, 40)
    with contextlib.closing(sqlite3.connect(store.path)) as reader:
        reader.execute("SELECT * FROM quota").fetchall()  # so that the files beside it are there, and stay
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
        try:
            assert not store.save(limits.ledger)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert "what is used is lost with this process until it can be written" in caplog.text
        assert store.load() == {}
        use(limits, 2)
        assert store.save(limits.ledger)
    ((_, octets),) = store.load().values()
    assert octets == 42


def test_what_is_no_store_is_refused(tmp_path: Path) -> None:
    """A file of something else, one of a later version, a folder, a folder that cannot be made: one line, the key."""
    other = tmp_path / "text"
    other.write_text("this is no database, and long enough to be seen as none " * 20)
    with pytest.raises(ConfigError, match=r"^quotas\.path: .*/text: file is not a database$"):
        open_store(other)
    later = tmp_path / "later"
    with sqlite3.connect(later) as database:
        database.execute(f"PRAGMA user_version = {VERSION + 1}")
    with pytest.raises(ConfigError, match=rf"^quotas\.path: .*/later: version {VERSION + 1}, expected {VERSION}"):
        open_store(later)
    with pytest.raises(ConfigError, match=r"^quotas\.path: .*: Is a directory$"):
        open_store(tmp_path)
    with pytest.raises(ConfigError, match=r"^quotas\.path: .*/text/q: (Not a directory|File exists)$"):
        open_store(other / "q")
    store = open_store(tmp_path / "gone")
    (tmp_path / "gone").write_text("something else by now, and long enough to be seen as none " * 20)
    with pytest.raises(ConfigError, match=r"^quotas\.path: .*/gone: file is not a database$"):
        store.load()


def test_a_check_finds_what_a_start_would(tmp_path: Path) -> None:
    """And changes nothing: neither a file nor a folder is made."""
    check_store(tmp_path / "a" / "b" / "q")
    assert list(tmp_path.iterdir()) == []
    store = QuotaStore(tmp_path / "good")
    check_store(store.path)
    (tmp_path / "empty").touch()
    check_store(tmp_path / "empty")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere" / "q")
    (tmp_path / "text").write_text("this is no database, and long enough to be seen as none " * 20)
    with sqlite3.connect(tmp_path / "other") as database:
        database.execute("CREATE TABLE bookmarks (url TEXT)")
    for name in ("link", "text", "other", "text/q", ""):
        with pytest.raises(ConfigError, match=r"^quotas\.path: "):
            check_store(tmp_path / name)
        with pytest.raises(ConfigError, match=r"^quotas\.path: "):
            open_store(tmp_path / name)


@pytest.mark.parametrize(
    ("environment", "path"),
    [
        ({"STATE_DIRECTORY": "/var/lib/tabi"}, "/var/lib/tabi/quotas.sqlite"),
        ({"STATE_DIRECTORY": "/a:/b"}, "/a/quotas.sqlite"),
        ({"XDG_STATE_HOME": "/home/x/state"}, "/home/x/state/tabi/quotas.sqlite"),
        ({"XDG_STATE_HOME": "relative"}, "~/.local/state/tabi/quotas.sqlite"),
        ({}, "~/.local/state/tabi/quotas.sqlite"),
    ],
)
def test_where_it_is_by_default(environment: dict[str, str], path: str) -> None:
    """The state directory of systemd, else that of the user; a relative one is to be ignored (XDG)."""
    assert default_path(environment) == Path(path).expanduser()


def test_the_next_period_of_another_server_stays(tmp_path: Path) -> None:
    """At midnight one of two has begun the new day, and the other stores the rest of the old one: that is over."""
    store, late, early = QuotaStore(tmp_path / "q"), make_limits(), make_limits()
    use(late, 500)
    store.save(late.ledger, True)
    use(early, 3, NOW + DAY)
    store.save(early.ledger, True)
    use(late, 20)
    store.save(late.ledger, True)
    assert [octets for _, octets in store.load().values()] == [3]
    use(late, 4, NOW + DAY)
    store.save(late.ledger, True)
    assert [octets for _, octets in store.load().values()] == [7]
