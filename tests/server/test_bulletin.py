"""The bulletin: what the supervisor puts up, workers read."""

from __future__ import annotations

import contextlib
import os

from tabi.config import Config, make_config
from tabi.server.bulletin import Bulletin

EVERYTHING = {
    "users": {"alice": {"password": "x", "plain": True, "expires": "2027-01-01", "limits": {"quota": "1 GB/day"}}},
    "limits": {"connect_rate": "5/s", "bandwidth": "1 MB/s", "burst": "10 kB", "max_session": "1 h"},
    "rule": [{"action": "deny", "hosts": [f"{number}.example.com"], "ports": [25, "1-9"]} for number in range(5000)],
}


def test_the_last_message_is_read() -> None:
    """A worker reads what was put up last, whole, however long what was there before; every kind of value survives."""
    with contextlib.closing(Bulletin()) as bulletin:
        assert bulletin.read() is None
        long, short = make_config(EVERYTHING), Config(workers=2)
        bulletin.publish(long, {"user alice": 0})
        assert bulletin.read() == (long, {"user alice": 0})
        bulletin.publish(short, {})
        pid = os.fork()
        if not pid:
            os._exit(0 if bulletin.read() == (short, {}) else 1)
        assert os.waitpid(pid, 0)[1] == 0
