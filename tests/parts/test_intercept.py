"""Intercept: the carrier that looks into sessions, as a value, for a whole server and for one command."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from authorities import authority
from conftest import Run
from intercepting import Mark, ask, origin
from tabi import Config, ConfigError, Intercept, Server, Tunnel, compile_config
from tabi.config import InterceptConfig
from tabi.intercept.authority import Authority
from tabi.parts import Bind, Connect, Listener, Socks5


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Any]:
    """An authority elsewhere, and an entry that trusts the origins of tests."""
    Authority.make(str(tmp_path / "ours"))
    (tmp_path / "origins.pem").write_bytes(authority().cert_pem.bytes())
    return {
        "authority": (f"{tmp_path}/ours/ca.crt", f"{tmp_path}/ours/ca.key"),
        "entry": {"hosts": ["localhost"], "trust": f"{tmp_path}/origins.pem"},
    }


def test_it_is_a_value() -> None:
    """Equal to another one of the same contents; names, mappings and structs do as entries."""
    assert Intercept() == Intercept({}) == Intercept(InterceptConfig())
    assert Intercept("*.a.example") == Intercept({"hosts": ["*.a.example"]}) != Intercept("b.example")
    hook = Mark()
    assert Intercept(hooks=[hook]) == Intercept(hooks=(hook,)) != Intercept()
    assert repr(Intercept("a.example", authority=("/a", "/b"))).startswith("Intercept(InterceptConfig(")


@pytest.mark.parametrize(
    ("entries", "keys", "message"),
    [
        (({"hosts": ["a*b"]},), {}, r"intercept\[0\]\.hosts\[0\]: 'a\*b' has a star"),
        (("a.example", {"host": ["a"]}), {}, r"intercept\[1\]\.host: unknown key, expected one of: action, name, "),
        (({"on_pinning": "x"},), {}, r"intercept\[0\]\.on_pinning: invalid enum value 'x', expected pass or refuse"),
        ((), {"hooks": [object()]}, r"hooks\[0\]: object has none of the methods client_hello, "),
        ((), {"hooks": [Mark]}, r"hooks\[0\]: Mark is a class, expected an object"),
        ((), {"hooks": Mark()}, r"hooks: Mark, expected a list of objects"),
        ((), {"authority": ("/a", "")}, r"ca\.key: expected the path of a file"),
    ],
)
def test_what_is_wrong_is_told_when_it_is_made(entries: Any, keys: Mapping[str, Any], message: str) -> None:
    """With the key, as in a file; the server says the same."""
    with pytest.raises(ConfigError, match=f"^{message}"):
        Intercept(*entries, **keys)
    if "authority" not in keys:
        with pytest.raises(ConfigError, match=f"^{message}"):
            Server("socks5://127.0.0.1:0", intercept=list(entries), **keys)


def test_entries_of_another_type_are_told() -> None:
    """A single one in place of a list too."""
    with pytest.raises(TypeError, match=r"^intercept\[0\]: int, expected tabi\.config\.InterceptConfig or a mapping$"):
        Intercept(7)  # type: ignore[arg-type]
    for one in ("a.example", {"hosts": ["a.example"]}, InterceptConfig()):
        with pytest.raises(TypeError, match=r"^intercept: \w+, expected a list$"):
            Server("socks5://127.0.0.1:0", intercept=one)  # type: ignore[arg-type]


def test_a_server_with_it(run: Run, files: dict[str, Any]) -> None:
    """As ``intercept`` and ``hooks``, with an authority of its own, over reloads too."""

    async def main() -> None:
        hook = Mark()
        carrier = Intercept(files["entry"], hooks=[hook], authority=files["authority"])
        async with origin() as port, Server("socks5://127.0.0.1:0", carrier=carrier) as server:
            assert b"X-Mark" in (await ask(server.url, port)).octets
            assert server.reload(Config(listen=server.config.listen, log=server.config.log)) == []
            assert b"X-Mark" in (await ask(server.url, port)).octets

    run(main)


def test_one_command_with_it(run: Run, files: dict[str, Any]) -> None:
    """A proxy that is composed by hand: its CONNECT looks into sessions. BIND has nothing to look into."""

    async def main() -> None:
        hook = Mark()
        carrier = Intercept(files["entry"], hooks=[hook], authority=files["authority"])
        proxy = Socks5(Connect(carrier=carrier), Bind(carrier=carrier))
        async with origin() as port, Listener("127.0.0.1:0", proxy) as listener:
            url = f"socks5://{listener.address}"
            assert b"X-Mark" in (await ask(url, port)).octets
            assert b"X-Mark" not in (await ask(url, port, sni="other.example")).octets
            assert len(hook.urls) == 1
            carriers = listener.server.parts.sessions.carriers
            assert len(carriers) == len(set(map(id, carriers)))

    run(main)


def test_without_an_authority_nothing_starts(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server says so at once, a listener when it starts."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    with pytest.raises(ConfigError, match=r"^ca: there is no authority at .*: `tabi ca init` makes one$"):
        Server("socks5://127.0.0.1:0", intercept=["a.example"])

    async def main() -> None:
        listener = Listener("127.0.0.1:0", Socks5(Connect(carrier=Intercept())))
        with pytest.raises(ConfigError, match=r"^ca: there is no authority at "):
            await listener.start()
        await listener.close()

    run(main)


def test_a_carrier_of_ones_own_leaves_nothing_to_intercept() -> None:
    """Both at once are an error, not a surprise."""

    async def carry(tunnel: Tunnel) -> None:
        raise NotImplementedError

    for keys in ({"intercept": [{"tls": False}]}, {"hooks": [Mark()]}):
        with pytest.raises(
            ConfigError, match=r"^carrier: it gets every session, so that there is nothing to intercept$"
        ):
            Server("socks5://127.0.0.1:0", carrier=carry, **keys)
    compiled = compile_config(Config(intercept=[InterceptConfig(tls=False)]))
    with pytest.raises(ConfigError, match=r"^carrier: it gets every session, "):
        Server(carrier=carry, compiled=compiled)
    assert Server(hooks=[Mark()], compiled=compiled).hooks
    with pytest.raises(ConfigError, match=r"^hooks: there is no \[\[intercept\]\] in what was compiled$"):
        Server(hooks=[Mark()], compiled=compile_config(Config()))
