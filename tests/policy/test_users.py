"""Users and their passwords: hashes, comparison of octets, and the short memory of what was proven."""

from __future__ import annotations

import base64
import traceback
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.pretty import pretty_repr

from tabi.policy import users as module
from tabi.policy.users import (
    KEY_SIZES,
    PROVEN_SECONDS,
    Cost,
    Proofs,
    Secret,
    Users,
    derive,
    from_base64,
    make_hash,
    parse_hash,
    plain_secret,
    to_base64,
)

SALT, KEY = "c2FsdA", to_base64(bytes(range(32)))


def cheap_hash(password: bytes) -> Secret:
    """A hash at the lowest cost."""
    return parse_hash(f"$scrypt$ln=1,r=1,p=1${SALT}${to_base64(derive(password, Secret(1, 1, 1, b'salt', bytes(32))))}")


# --- hashes ---


def test_a_hash_is_read_back() -> None:
    """What `tabi passwd` prints verifies its password and no other."""
    text = make_hash(b"secret")
    assert text.startswith("$scrypt$ln=14,r=8,p=1$")
    assert "=" not in text.split("$", 3)[3]
    users = Users({"alice": parse_hash(text)})
    assert users.verify(b"alice", b"secret") == "alice"
    assert users.verify(b"alice", b"Secret") is None


def test_a_hash_has_a_salt_of_its_own() -> None:
    """The same password gives another hash each time, and the same one with the same salt."""
    assert make_hash(b"secret") != make_hash(b"secret")
    assert make_hash(b"secret", b"salt") == make_hash(b"secret", b"salt")


def test_the_key_is_that_of_rfc_7914() -> None:
    """Section 12's third test vector, so that hashes of other programs verify."""
    key = bytes.fromhex(
        "7023bdcb3afd7348461c06cd81fd38ebfda8fbba904f8e3ea9b543f6545da1f2"
        "d5432955613f0fcf62d49705242a9af9e61e85dc0d651e40dfcf017b45575887"
    )
    text = f"$scrypt$ln=14,r=8,p=1${to_base64(b'SodiumChloride')}${to_base64(key)}"
    assert Users({"u": parse_hash(text)}).verify(b"u", b"pleaseletmein") == "u"


def test_the_order_of_the_costs_does_not_matter() -> None:
    """Other programs may write them otherwise."""
    assert parse_hash(f"$scrypt$p=1,ln=3,r=2${SALT}${KEY}") == Secret(3, 2, 1, b"salt", bytes(range(32)))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "sekret",
        "$sekret",
        "$scrypt$sekret",
        "$2b$12$sekretsekretsekretsekretse",
        f"sekret$scrypt$ln=1,r=1,p=1${SALT}${KEY}",
        f"$scrypt$ln=sekret,r=1,p=1${SALT}${KEY}",
        f"$scrypt$ln=1,r=1${SALT}${KEY}",
        f"$scrypt$ln=1,r=1,p=1,sekret=1${SALT}${KEY}",
        f"$scrypt$ln=1=sekret,r=1,p=1${SALT}${KEY}",
        f"$scrypt$sekret${SALT}${KEY}",
        f"$scrypt$${SALT}${KEY}",
        f"$scrypt$ln=1,r=1,p=1$sekret!${KEY}",
        f"$scrypt$ln=1,r=1,p=1${SALT}$sekret!",
        f"$scrypt$ln=1,r=1,p=1${SALT}$sekreté",
        f"$scrypt$ln=1,r=1,p=1${SALT}$sekret",
        f"$scrypt$ln=1,r=1,p=1$${KEY}",
        f"$scrypt$ln=1,r=1,p=1${SALT}${KEY}$sekret",
        f"$scrypt$ln=0,r=8,p=1${SALT}${KEY}",
        f"$scrypt$ln=-1,r=8,p=1${SALT}${KEY}",
        f"$scrypt$ln=21,r=8,p=1${SALT}${KEY}",
        f"$scrypt$ln=14,r=0,p=1${SALT}${KEY}",
        f"$scrypt$ln=14,r=33,p=1${SALT}${KEY}",
        f"$scrypt$ln=14,r=8,p=0${SALT}${KEY}",
        f"$scrypt$ln=14,r=8,p=17${SALT}${KEY}",
        f"$scrypt$ln=20,r=32,p=1${SALT}${KEY}",
        f"$scrypt$ln=20,r=9,p=1${SALT}${KEY}",
        f"$scrypt$ln=16,r=1,p=1${SALT}${KEY}",
        f"$scrypt$ln={'9' * 5000},r=8,p=1${SALT}${KEY}",
    ],
)
def test_what_is_no_hash_is_refused_without_a_word_of_it(text: str) -> None:
    """It may be a password that was put there by mistake: neither message nor traceback holds any of it."""
    with pytest.raises(ValueError, match=r"expected \$scrypt\$") as caught:
        parse_hash(text)
    shown = "".join(traceback.format_exception(caught.value, chain=True))
    assert "sekret" not in str(caught.value)
    assert "sekret" not in "".join(line for line in shown.splitlines() if "Error" in line)


@pytest.mark.parametrize(
    "costs", ["ln=20,r=8,p=1", "ln=17,r=8,p=1", "ln=15,r=32,p=16", "ln=15,r=1,p=1", "ln=1,r=1,p=16"]
)
def test_a_cost_within_the_bounds_can_be_computed(costs: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What parse_hash takes never fails later: OpenSSL is allowed the memory, and not more than it can count."""
    asked: list[dict[str, int]] = []

    def scrypt(password: bytes, *, salt: bytes, n: int, r: int, p: int, maxmem: int, dklen: int) -> bytes:
        asked.append({"maxmem": maxmem, "needed": 128 * r * (n + p + 2), "bits": n.bit_length() - 1, "most": 16 * r})
        return bytes(dklen)

    monkeypatch.setattr("hashlib.scrypt", scrypt)
    assert derive(b"x", parse_hash(f"$scrypt${costs}${SALT}${KEY}")) == bytes(32)
    (found,) = asked
    assert found["needed"] <= found["maxmem"] < 1 << 31
    assert found["bits"] < found["most"]


@settings(max_examples=10)
@given(
    st.integers(1, 6),
    st.integers(1, 3),
    st.integers(1, 3),
    st.binary(min_size=1, max_size=20),
    st.sampled_from(KEY_SIZES),
)
def test_small_costs_really_compute(log_n: int, block: int, parallel: int, salt: bytes, size: int) -> None:
    """The formula for the memory is OpenSSL's own."""
    text = f"$scrypt$ln={log_n},r={block},p={parallel}${to_base64(salt)}${to_base64(bytes(size))}"
    assert len(derive(b"password", parse_hash(text))) == size


@pytest.mark.parametrize("salt", ["c2FsdB", "c2Fsd", "c2FsdA x", "c2FsdA=A"])
@pytest.mark.parametrize("key", [KEY, KEY[:-1], KEY + "A", KEY + "AAAA", KEY + " x", to_base64(bytes(31))])
def test_a_hash_that_was_changed_on_its_way_is_refused(salt: str, key: str) -> None:
    """Text that no program makes: characters lost or added, or bits that stand for nothing."""
    for text in (f"{salt}${KEY}", f"{SALT}${key}"):
        if text != f"{SALT}${KEY}":
            with pytest.raises(ValueError, match="expected"):
                parse_hash("$scrypt$ln=1,r=1,p=1$" + text)


@given(st.binary())
def test_base64_without_padding(data: bytes) -> None:
    """What is written has no padding and is read back."""
    assert not to_base64(data).endswith("=")
    assert from_base64(to_base64(data)) == data
    assert base64.b64decode(to_base64(data) + "==") == data


@given(st.text(max_size=80))
def test_any_text_is_a_hash_or_value_error(text: str) -> None:
    """Nothing else is raised, and what was typed is not in the message."""
    with pytest.raises(ValueError, match="expected") as caught:
        parse_hash("$scrypt$" + text)
    assert not text or len(text) < 8 or text not in str(caught.value)


def test_secrets_are_not_shown() -> None:
    """Neither a password nor a key is in repr, nor in what rich prints."""
    for secret in (plain_secret("sekret"), Secret(1, 1, 1, b"sekret", b"sekret")):
        for text in (repr(secret), f"{[secret]}", pretty_repr(secret), pretty_repr([secret])):
            assert "sekret" not in text
    users = Users.plain({"alice": "sekret"})
    assert repr(users) == pretty_repr(users) == "Users(1)"


# --- verifying ---


def test_plain_passwords() -> None:
    """The right name with the right password, and nothing else."""
    users = Users.plain({"alice": "secret", "bob": "other"})
    assert users.verify(b"alice", b"secret") == "alice"
    assert users.verify(b"bob", b"other") == "bob"
    for username, password in [
        (b"alice", b"other"),
        (b"carol", b"secret"),
        (b"", b""),
        (b"alice", b""),
        (b"ALICE", b"secret"),
    ]:
        assert users.verify(username, password) is None


@pytest.mark.parametrize("make", [plain_secret, cheap_hash])
def test_any_octets_may_be_a_password(make: Callable[[bytes], Secret]) -> None:
    """RFC 1929 has octets, not characters: 0x00 to 0xFF count, one by one, and so does the length."""
    password = bytes(range(256))[:255]
    users = Users({"alice": make(password)})
    assert users.verify(b"alice", password) == "alice"
    for wrong in (password[:-1], password + b"\x00", password[::-1], password[1:], b"\x00" + password[1:-1] + b"\x00"):
        assert users.verify(b"alice", wrong) is None


def test_names_are_compared_as_utf_8() -> None:
    """A name of the configuration is text, on the wire it is its octets; another form of the same letter is another."""
    users = Users.plain({"jürgen": "pässword"})
    assert users.verify("jürgen".encode(), "pässword".encode()) == "jürgen"
    assert users.verify("jürgen".encode("latin-1"), "pässword".encode()) is None
    assert users.verify("ju\u0308rgen".encode(), "pässword".encode()) is None
    assert users.verify("jürgen".encode(), "pässword".encode("latin-1")) is None


@given(st.binary(max_size=255), st.binary(max_size=255))
def test_any_octets_get_an_answer(username: bytes, password: bytes) -> None:
    """Whatever a client sends, it is right or wrong."""
    users = Users.plain({"alice": "secret"})
    right = (username, password) == (b"alice", b"secret")
    assert users.verify(username, password) == ("alice" if right else None)


def counting(monkeypatch: pytest.MonkeyPatch) -> list[Cost]:
    """The costs of the hashes that are computed from now on."""
    computed: list[Cost] = []

    def derive_counted(password: bytes, secret: Secret) -> bytes:
        computed.append(secret.cost)
        return derive(password, secret)

    monkeypatch.setattr(module, "derive", derive_counted)
    return computed


def test_each_login_computes_one_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is a hash at all, the time does not tell which names exist, nor whose password is stored plain."""
    users = Users({"alice": cheap_hash(b"secret"), "bob": plain_secret("secret")})
    for username, password, found in [
        (b"alice", b"secret", "alice"),
        (b"alice", b"wrong", None),
        (b"bob", b"secret", "bob"),
        (b"bob", b"wrong", None),
        (b"nobody", b"secret", None),
        (b"\xff", b"secret", None),
    ]:
        computed = counting(monkeypatch)
        assert users.verify(username, password) == found
        assert computed == [(1, 1, 1)]


def test_names_without_a_hash_take_as_long_as_those_with_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where hashes differ in their cost, so do those that are computed for other names: as many of each cost, the same
    for a name each time, in another process and after another user has come too."""
    costs = {(1, 1, 1): 3, (2, 1, 1): 1}
    sample = cheap_hash(b"secret")
    users, other, grown = (Users({}, sample, given) for given in (costs, costs, costs | {(1, 1, 1): 4}))
    names = [str(number).encode() for number in range(400)]
    computed = counting(monkeypatch)
    for name in names:
        users.verify(name, b"x")
    assert 50 < computed.count((2, 1, 1)) < 150
    assert set(computed) == set(costs)
    assert [other.hashed(name).cost for name in names] == computed
    assert sum(grown.hashed(name).cost != cost for name, cost in zip(names, computed, strict=True)) < 60
    assert Users({"a": sample, "b": parse_hash(f"$scrypt$ln=2,r=1,p=1${SALT}${KEY}")}).decoys[-1][0] == 2


def test_the_decoy_is_nobodys_password(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even a match with what stands in for an unknown user lets nobody in."""
    users = Users.plain({"alice": "secret"})
    assert users.verify(b"nobody", users.decoy(b"nobody").key) is None
    hashed = Users({"alice": cheap_hash(b"secret")})
    monkeypatch.setattr(module, "derive", lambda password, secret: secret.key)
    assert hashed.verify(b"nobody", b"x") is None
    assert hashed.verify(b"alice", b"x") == "alice"


def test_plain_users_are_verified_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no hash nothing is slow."""
    computed = counting(monkeypatch)
    users = Users.plain({"alice": "secret"})
    assert not users.is_slow
    assert users.verify(b"alice", b"secret") == "alice"
    assert not computed
    assert Users({"alice": plain_secret("secret"), "bob": cheap_hash(b"secret")}).is_slow


def test_no_users_at_all() -> None:
    """An empty table refuses everybody."""
    assert Users({}).verify(b"", b"") is None


# --- what was proven ---


SECRET = cheap_hash(b"secret")


def test_a_proven_pair_is_recalled_for_a_while() -> None:
    """A hash is not computed again for the very pair, within its time."""
    proofs = Proofs()
    mark = proofs.mark(b"alice", b"secret", SECRET)
    assert not proofs.recall(mark, 100.0)
    proofs.remember(mark, 100.0)
    assert proofs.recall(mark, 100.0)
    assert not proofs.recall(proofs.mark(b"alice", b"Secret", SECRET), 100.0)
    assert not proofs.recall(proofs.mark(b"alic", b"esecret", SECRET), 100.0)
    assert not proofs.recall(mark, 100.0 + PROVEN_SECONDS)
    assert not proofs.recall(mark, 100.0), "what is over stays over"


def test_a_proof_lasts_from_its_last_use() -> None:
    """A browser that is in use is never asked to wait; one that rests for too long is."""
    proofs, now = Proofs(), 100.0
    mark = proofs.mark(b"alice", b"secret", SECRET)
    proofs.remember(mark, now)
    for _ in range(5):
        now += PROVEN_SECONDS - 1
        assert proofs.recall(mark, now)
    assert not proofs.recall(mark, now + PROVEN_SECONDS)


def test_a_proof_ends_with_what_it_was_compared_with() -> None:
    """A user whose password was changed, or stored in another way, proves it anew, even if it is the same one."""
    stored = [SECRET, SECRET._replace(salt=b"other"), SECRET._replace(log_n=2), plain_secret("secret"), None]
    proofs = Proofs()
    marks = [proofs.mark(b"alice", b"secret", one) for one in stored]
    assert len(set(marks)) == len(stored)
    assert proofs.mark(b"alice", b"secret", Secret(*SECRET)) == marks[0]


def test_the_memory_is_bounded_and_forgets_what_was_unused_longest(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many pairs are proven, no more than the limit stay."""
    monkeypatch.setattr(module, "PROVEN_LIMIT", 3)
    proofs = Proofs()
    marks = [proofs.mark(b"%d" % number, b"secret", SECRET) for number in range(4)]
    for mark in marks[:3]:
        proofs.remember(mark, 1.0)
    assert proofs.recall(marks[0], 2.0)
    proofs.remember(marks[2], 2.0)
    proofs.remember(marks[3], 2.0)
    assert len(proofs.proven) == 3
    assert [proofs.recall(mark, 3.0) for mark in marks] == [True, False, True, True]


def test_the_memory_holds_no_password() -> None:
    """What is kept says nothing about the pair, and differs between two servers."""
    first, second = Proofs(), Proofs()
    for proofs in (first, second):
        proofs.remember(proofs.mark(b"alice", b"sekret", SECRET), 0.0)
        assert all(b"sekret" not in mark and b"alice" not in mark for mark in proofs.proven)
    assert first.proven.keys().isdisjoint(second.proven)


def test_a_sample_says_how_long_an_unknown_user_takes() -> None:
    """Where users are very many nobody looks for a hash among them: one is given."""
    sample = parse_hash(make_hash(b"secret"))
    users = Users({"alice": plain_secret("x")}, sample)
    assert users.is_slow
    assert users.hashed(b"nobody").cost == users.hashed(b"alice").cost == sample.cost
    assert users.hashed(b"nobody").key != sample.key
