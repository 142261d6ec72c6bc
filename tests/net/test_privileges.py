"""Root given up: in processes of their own, since there is no way back."""

from __future__ import annotations

import grp
import os
import pwd
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from processes import environment
from tabi.errors import ConfigError
from tabi.net.privileges import Identity, acting_as, find_identity, identity_of

NOBODY = pwd.getpwnam("nobody")

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give root up")


def run(code: str) -> str:
    """What a program prints that begins with everything of this module."""
    text = f"import os\nfrom tabi.net.privileges import *\nwho = find_identity('nobody')\n{code}"
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, env=environment(), timeout=20)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_users_by_name_and_number() -> None:
    """With the groups of the user, or the one that is named."""
    groups = tuple(os.getgrouplist("nobody", NOBODY.pw_gid))
    expected = Identity("nobody", NOBODY.pw_uid, NOBODY.pw_gid, groups)
    assert find_identity("nobody") == find_identity(str(NOBODY.pw_uid)) == expected
    group = grp.getgrall()[1]
    assert find_identity(f"nobody:{group.gr_name}") == expected._replace(gid=group.gr_gid, groups=(group.gr_gid,))
    assert find_identity("765432:765433") == Identity("765432", 765432, 765433, (765433,))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("no-such-user", "there is no user 'no-such-user'"),
        ("765432", "there is no user '765432'"),
        ("99999999999999999999:1", "there is no user '99999999999999999999'"),
        ("nobody:no-such-group", "there is no group 'no-such-group'"),
        ("", "there is no user ''"),
        ("root", "'root' is root, expected another user"),
        ("0:nogroup", "'0:nogroup' is root, expected another user"),
    ],
)
def test_who_cannot_be_become(text: str, why: str) -> None:
    """One line, which names the key."""
    with pytest.raises(ConfigError) as caught:
        find_identity(text)
    assert str(caught.value) == f"user: {why}"


def test_only_root_becomes_another_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is that user already stays it, as under a service manager."""
    assert identity_of(None) is None
    monkeypatch.setattr(os, "geteuid", lambda: NOBODY.pw_uid)
    assert identity_of("nobody") is None
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    with pytest.raises(ConfigError, match="user: only root can become nobody, and this is user 4711"):
        identity_of("nobody")


@as_root
def test_there_is_no_way_back() -> None:
    """Users, groups and capabilities are those of the other one, and executed programs get no more."""
    code = """
become(who)
print(os.getresuid() == (who.uid,) * 3, os.getresgid() == (who.gid,) * 3, os.getgroups() == list(who.groups))
print(permitted())
text = open("/proc/self/status").read()
print("NoNewPrivs:\\t1" in text)
for call in (lambda: os.setuid(0), lambda: os.setgroups([]), lambda: os.chown("/", 0, 0)):
    try:
        call()
        print("worked")
    except PermissionError:
        print("refused")
"""
    assert run(code).split() == ["True", "True", "True", "0", "True", "refused", "refused", "refused"]


@as_root
def test_files_are_opened_as_another_user() -> None:
    """Between two moments as root, after an error, too."""
    before = (os.geteuid(), os.getegid(), os.getgroups())
    with acting_as(None):
        assert os.geteuid() == 0
    with tempfile.TemporaryDirectory(prefix="tabi-") as folder:
        os.chmod(folder, 0o755)
        Path(folder, "theirs").mkdir()
        os.chown(Path(folder, "theirs"), NOBODY.pw_uid, NOBODY.pw_gid)
        code = f"""
with acting_as(who):
    open({folder + "/theirs/file"!r}, "w").close()
    try:
        open({folder + "/mine"!r}, "w")
    except PermissionError:
        print("refused", os.geteuid() == who.uid)
try:
    with acting_as(who):
        raise KeyError
except KeyError:
    print(os.geteuid(), os.getegid())
"""
        assert run(code).split() == ["refused", "True", "0", "0"]
        assert Path(folder, "theirs", "file").stat().st_uid == NOBODY.pw_uid
    assert (os.geteuid(), os.getegid(), os.getgroups()) == before


@as_root
def test_the_supervisor_keeps_few_capabilities() -> None:
    """It binds low ports and becomes other users, and can do nothing else that root can: nor can what it executes."""
    code = """
import socket, subprocess, sys
keep_few()
print(permitted() & ~sum(1 << one for one in KEPT))
with socket.socket() as sock:
    sock.bind(("127.0.0.1", 0))
packets = socket.AF_PACKET, socket.SOCK_RAW
for call in (lambda: os.chroot("/"), lambda: os.setpriority(os.PRIO_PROCESS, 0, -5), lambda: socket.socket(*packets)):
    try:
        call()
        print("worked")
    except PermissionError:
        print("refused")
line = "from tabi.net.privileges import *; print(permitted() & ~sum(1 << one for one in KEPT))"
print(subprocess.run([sys.executable, "-c", line], capture_output=True, text=True).stdout)
keep_few()
become(who)
print(permitted())
"""
    assert run(code).split() == ["0", "refused", "refused", "refused", "0", "0"]
