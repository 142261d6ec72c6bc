"""`tabi fault` behind the control socket: what the supervisor keeps and tells, and what workers do."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from time import monotonic
from typing import Any

import msgspec
import pytest

from conftest import Run
from doubles import LOOPBACK
from processes import Serve, Tunnel, listening, paused, receive_exactly, serve, wait_for
from sockets import until
from support import target, tunnel
from tabi import Server
from tabi.config import make_config
from tabi.config.check_matchers import LONGEST_NAME
from tabi.errors import ConfigError, TabiError
from tabi.server import fault_control
from tabi.server.channel import Channel, make_channel
from tabi.server.child import Place
from tabi.server.control import ask_server, find_socket
from tabi.server.fault_control import MOST_OCTETS, PATIENCE, FaultControl, Orders, obey
from tabi.server.faults import MOST_FAULTS


@pytest.fixture(autouse=True)
def empty_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A server of the machine that has its socket in /run is none of the tests' business."""
    monkeypatch.setattr("tabi.server.control.RUN", str(tmp_path / "run"))


# --- the supervisor's part, with workers that the test plays ---


class Scene:
    """A `FaultControl` with two workers, a clock that the test sets, and what was answered."""

    def __init__(self, config: Mapping[str, Any] = {}) -> None:
        self.now = 1000.0
        self.places = [Place(), Place()]
        self.ends: list[Channel] = []
        for number, place in enumerate(self.places):
            place.channel, end = make_channel()
            place.pid = number + 1
            self.ends.append(end)
        made = make_config({"listen": [{"url": LOOPBACK}], **config})
        self.control = FaultControl(self.places, made, lambda: self.now)
        self.answers: list[Mapping[str, Any]] = []

    def ask(self, action: object, **arguments: Any) -> None:
        """A request."""
        self.control.do({"command": "fault", "action": action, **arguments}, self.answers.append)

    def told(self, worker: int = 0) -> list[dict[str, Any]]:
        """What a worker was told since."""
        found = []
        while (body := self.ends[worker].next_body()) is not None:
            found.append(body["faults"])
        return found

    def answer(self, worker: int, number: int, **more: Any) -> None:
        """A worker answers."""
        self.control.heard(self.places[worker], {"faults": number, **more})

    def answer_all(self, **more: Any) -> list[dict[str, Any]]:
        """All workers answer what they were told last; gives it."""
        found = [self.told(number)[-1] for number in range(2)]
        for number, told in enumerate(found):
            self.answer(number, told["id"], **more)
        return found

    def close(self) -> None:
        """Close the channels."""
        for place, end in zip(self.places, self.ends, strict=True):
            place.empty()
            end.close()


@pytest.fixture
def scene() -> Iterator[Scene]:
    """A scene, closed after the test."""
    made = Scene({"profile": {"mine": {"latency": "1s"}}, "distort": [{"name": "filed", "fault": "3g"}]})
    yield made
    made.close()


def test_a_request_is_answered_when_all_workers_have(scene: Scene) -> None:
    """They are sent the figures of the profile, too, so that each acts by the same."""
    scene.ask("add", fault={"profile": "mine", "hosts": ["a"]})
    first, second = scene.told(0), scene.told(1)
    assert first == second
    assert first[0]["set"] == {
        "fault-1": {"given": {"profile": "mine", "hosts": ["a"]}, "profile": {"latency": 1.0}},
    }
    scene.answer(0, first[0]["id"])
    assert scene.answers == []
    scene.answer(1, first[0]["id"])
    assert scene.answers == [{"ok": {"name": "fault-1", "silent": []}}]
    scene.ask("change", name="fault-1", fault={"jitter": "1ms"})
    assert scene.answer_all()[1]["set"]["fault-1"]["given"] == {"profile": "mine", "hosts": ["a"], "jitter": "1ms"}
    assert scene.control.messages["fault-1"]["given"]["jitter"] == "1ms"
    scene.ask("remove", names=["fault-1"])
    assert scene.answer_all()[0]["remove"] == ["fault-1"]
    assert scene.control.messages == {}
    assert scene.answers[2] == {"ok": {"names": ["fault-1"], "silent": []}}


def test_counts_of_all_workers_are_added(scene: Scene) -> None:
    """Those that were set come first, with the time that is left; then those of the configuration."""
    scene.ask("add", fault={"latency": 1, "name": "it"}, **{"for": "30s"})
    scene.answer_all()
    scene.now += 10
    scene.ask("list")
    scene.answer_all(live={"it": [2, 5]}, file=[["filed", "3g", "", 1, 3]], left_out=0)
    assert [list(one.values()) for one in scene.answers[1]["ok"]["faults"]] == [
        ["it", True, "latency 1", "", 4, 10, 20.0],
        ["filed", False, "3g", "", 2, 6, None],
    ]


def test_a_worker_that_does_not_answer_is_named(scene: Scene) -> None:
    """After its time; from then on nobody waits for it, until it answers something. One that has ended is not waited
    for, either."""
    scene.ask("add", fault={"latency": 1})
    scene.answer(0, scene.told(0)[0]["id"])
    assert scene.control.due(scene.now) == PATIENCE
    scene.now += PATIENCE
    scene.control.keep_time()
    assert scene.answers == [{"ok": {"name": "fault-1", "silent": [2]}}]
    assert scene.control.due(scene.now) is None
    scene.ask("list")
    scene.answer(0, scene.told(0)[0]["id"], live={"fault-1": [0, 1]}, file=[])
    assert scene.answers[1]["ok"]["silent"] == [2]
    late = scene.told(1)
    assert [set(one) for one in late] == [{"id", "set"}], "it was asked for a list, too"
    scene.answer(1, late[0]["id"])
    scene.ask("list")
    scene.answer(0, scene.told(0)[0]["id"])
    assert len(scene.answers) == 2
    scene.control.left(scene.places[1])
    assert scene.answers[2]["ok"]["silent"] == []


def test_what_a_worker_has_missed_it_gets_when_it_reads_again(scene: Scene) -> None:
    """So many messages wait for it that no more are taken: then it is told all that holds by now, and what is left."""
    for _ in range(400):
        scene.ask("add", fault={"latency": 1, "hosts": ["x" * 200] * 10, "name": "it"})
        scene.ask("remove")
        scene.told(0)
    scene.ask("add", fault={"latency": 1, "name": "last"})
    assert scene.places[1] in scene.control.missed
    names: set[str] = set()

    def obeyed(told: Mapping[str, Any]) -> None:
        names.update(told.get("set", ()))
        names.difference_update(told.get("remove", ()))
        if "keep" in told:
            names.intersection_update(told["keep"])

    while (body := scene.ends[1].next_body()) is not None:
        obeyed(body["faults"])
        assert scene.places[1].channel is not None
        scene.places[1].channel.flush()  # as the supervisor does before it takes an answer
        scene.answer(1, body["faults"]["id"])
    assert names == {"last"}
    assert scene.control.missed == set()


def test_a_fault_for_a_time(scene: Scene) -> None:
    """It is removed when that is over. A change that says no time keeps it, one that does sets it anew."""
    scene.ask("add", fault={"latency": 1}, **{"for": 10})
    scene.answer_all()
    assert scene.control.due(scene.now) == 10
    scene.now += 9
    scene.ask("change", name="fault-1", fault={"latency": 2})
    scene.answer_all()
    assert scene.control.due(scene.now) == 1
    scene.ask("change", name="fault-1", **{"for": "1min"})
    scene.answer_all()
    scene.now += 59
    scene.control.keep_time()
    assert "fault-1" in scene.control.all
    scene.now += 1
    scene.control.keep_time()
    assert scene.answer_all()[0]["remove"] == ["fault-1"]
    assert scene.control.due(scene.now) is None


WRONG: list[tuple[dict[str, Any], str, str | None]] = [
    ({"action": "frobnicate"}, "'frobnicate', expected one of: list, add, change, remove", "action"),
    ({"action": ["add"]}, "expected one of: list, add, change, remove", "action"),
    ({"action": "add", "fault": ["latency"]}, "list, expected an object", "fault"),
    ({"action": "add"}, "it changes nothing", None),
    ({"action": "add", "fault": {"latency": -1}}, "more than 0", "latency"),
    ({"action": "add", "fault": {"profile": "5g"}}, "'5g', expected a profile: ", "profile"),
    ({"action": "add", "fault": {"profile": 5}}, "expected the name of a profile", "profile"),
    ({"action": "add", "fault": {"latency": 1, "seed": 7}}, "expected workers = 1", "seed"),
    ({"action": "add", "fault": {"latency": 1, "name": "filed"}}, "there is one called 'filed' already", "name"),
    ({"action": "add", "fault": {"latency": 1, "name": ["x"]}}, "expected string", "name"),
    ({"action": "add", "fault": {"latency": 1, "name": "x" * (LONGEST_NAME + 1)}}, "60 at most", "name"),
    ({"action": "add", "fault": {"latency": 1, "hosts": ["x" * 90] * 400}}, "expected 32768 at most", None),
    ({"action": "add", "fault": {"latency": 1}, "for": -1}, "more than 0", "for"),
    ({"action": "add", "fault": {"latency": 1}, "for": ["x"]}, "not a duration", "for"),
    ({"action": "change", "name": "fault-9", "fault": {"latency": 1}}, "there is no fault 'fault-9': none is", None),
    ({"action": "change", "name": "filed", "fault": {"latency": 1}}, "filed is of the configuration", None),
    ({"action": "change", "name": ["x"], "fault": {"latency": 1}}, "list, expected a name", None),
    ({"action": "remove", "names": ["fault-9"]}, "there is no fault", None),
    ({"action": "remove", "names": "fault-9"}, "str, expected a list", "names"),
    ({"action": "remove", "names": [["x"]]}, "list, expected a name", None),
]


@pytest.mark.parametrize(("request_", "message", "path"), WRONG)
def test_a_wrong_request_changes_nothing(
    scene: Scene, request_: dict[str, Any], message: str, path: str | None
) -> None:
    """It is answered at once, with its key, and no worker hears of it."""
    scene.ask(**request_)
    assert message in scene.answers[0]["error"]
    assert scene.answers[0]["path"] == path
    assert scene.told(0) == []
    assert scene.control.all == {}


def test_a_change_without_a_key(scene: Scene) -> None:
    """It is a mistake, and so is one that contradicts what stays."""
    scene.ask("add", fault={"blackhole": True})
    scene.answer_all()
    scene.ask("change", name="fault-1")
    assert scene.answers[1]["error"] == "nothing to change, expected one key or more"
    scene.ask("change", name="fault-1", fault={"bandwidth": 1000})
    assert "contradicts blackhole" in scene.answers[2]["error"]
    assert scene.control.all["fault-1"].given == {"blackhole": True}


def test_there_is_a_bound(scene: Scene) -> None:
    """Of faults, and of octets of a list, which says how many it leaves out."""
    for _ in range(MOST_FAULTS):
        scene.ask("add", fault={"latency": 1, "hosts": ["\N{HIRAGANA LETTER A}" * 20] * 20})
        scene.answer_all()
    scene.ask("add", fault={"latency": 1})
    assert scene.answers[-1]["error"] == f"{MOST_FAULTS} faults are set already"
    scene.ask("list")
    scene.answer_all(live={}, file=[[f"file {n}", "w" * 200, "m" * 200, 0, 0] for n in range(60)], left_out=5)
    found = scene.answers[-1]["ok"]
    assert len(found["faults"]) + found["left_out"] == MOST_FAULTS + 65
    assert all(one["live"] for one in found["faults"][:MOST_FAULTS])
    assert len(str(found).encode()) < 2 * MOST_OCTETS


def test_profiles_of_another_configuration(scene: Scene) -> None:
    """They are known from the reload on; a fault keeps the figures that it was set with."""
    scene.ask("add", fault={"profile": "mine"})
    scene.answer_all()
    scene.control.learn({"other": {"latency": 2.0}}, ["new"])
    scene.ask("change", name="fault-1", fault={"jitter": "1ms"})
    told = scene.answer_all()[0]["set"]["fault-1"]
    assert (told["given"], told["profile"]) == ({"profile": "mine", "jitter": "1ms"}, {"latency": 1.0})
    scene.ask("add", fault={"profile": "mine"})
    assert "'mine', expected a profile" in scene.answers[-1]["error"]
    scene.ask("add", fault={"profile": "other", "name": "filed"})
    assert scene.answer_all()[0]["set"]["filed"]["profile"] == {"latency": 2.0}
    scene.ask("add", fault={"profile": "other", "name": "new"})
    assert "already" in scene.answers[-1]["error"]


def test_what_a_worker_could_not_do_is_told(scene: Scene) -> None:
    """As an error of the server."""
    scene.ask("add", fault={"latency": 1})
    scene.answer_all(error="out of order")
    assert scene.answers == [{"error": "a worker could not: out of order"}]


# --- the worker's part ---


def test_sessions_are_served_while_the_first_fault_is_prepared(run_once: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its modules are loaded in a thread; what the supervisor says meanwhile is done behind it, in its order."""
    loading, loaded = threading.Event(), threading.Event()

    def load(name: str) -> None:
        loading.set()
        assert loaded.wait(10)

    async def main() -> None:
        ours, theirs = make_channel()
        async with target() as port, Server(LOOPBACK) as server:
            monkeypatch.setattr(fault_control, "MOLDING", "no.such.module")
            monkeypatch.setattr(importlib, "import_module", load)
            orders = Orders(lambda: server.faults, theirs)
            held = {"given": {"latency": 9}, "profile": None}
            orders.add({"id": 1, "set": {"it": held}})
            orders.add({"id": 2, "remove": ["it"]})
            await until(loading.is_set)
            async with tunnel(server.addresses[0], port) as (reader, writer):
                writer.write(b"ping")
                assert await reader.readexactly(4) == b"ping"
            assert ours.next_body() is None
            loaded.set()
            await until(lambda: not orders.waiting)
            assert [ours.next_body(), ours.next_body()] == [{"faults": 1}, {"faults": 2}]
            assert server.faults.all == {}
            await orders.close()
        ours.close()
        theirs.close()

    run_once(main)


@pytest.mark.parametrize(
    ("given", "profile", "more"),
    [
        ({"status": 503}, None, True),
        ({"profile": "mine"}, {"truncate": 5}, True),
        ({"profile": "3g"}, {"rtt": 1}, False),
    ],
)
def test_what_a_fault_of_http_needs_is_loaded_too(
    run_once: Run, monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], profile: dict[str, Any] | None, more: bool
) -> None:
    """In a thread, as all that a fault needs; other faults do not load it."""
    loaded: list[str] = []
    monkeypatch.setattr(fault_control, "MOLDING", "no.molding")
    monkeypatch.setattr(fault_control, "OF_HTTP", ("no.http",))

    def load(name: str) -> None:
        assert threading.current_thread() is not threading.main_thread()
        loaded.append(name)

    async def main() -> None:
        ours, theirs = make_channel()
        async with Server(LOOPBACK) as server:
            monkeypatch.setattr(importlib, "import_module", load)
            orders = Orders(lambda: server.faults, theirs)
            orders.add({"id": 1, "set": {"it": {"given": given, "profile": profile}}})
            await until(lambda: not orders.waiting)
            assert loaded == (["no.molding", "no.http"] if more else ["no.molding"])
            assert ours.next_body() == {"faults": 1}
            await orders.close()
        ours.close()
        theirs.close()

    run_once(main)


def test_a_worker_obeys(run_once: Run) -> None:
    """It sets, changes, removes and counts; what it cannot do it says, and goes on."""

    async def main() -> None:
        config = make_config(
            {
                "listen": [{"url": LOOPBACK}],
                "log": {"access": "none"},
                "distort": [{"hosts": ["x" * 60], "name": f"n{number}", "fault": "3g"} for number in range(1000)],
            }
        )
        async with target() as port, Server(config=config) as server, tunnel(server.addresses[0], port) as streams:
            for given in ({"profile": "mine"}, {"profile": "mine", "hosts": ["127.0.0.1"]}):
                told = {"id": 3, "set": {"it": {"given": given, "profile": {"latency": 0.02}}}}
                assert obey(server.faults, told) == {"faults": 3}
                began = monotonic()
                streams[1].write(b"ping")
                assert await streams[0].readexactly(4) == b"ping"
                assert monotonic() - began >= 0.04
            obey(server.faults, {"id": 4, "set": {"n1": {"given": {"latency": 1, "ports": [1]}, "profile": None}}})
            found = obey(server.faults, {"id": 5, "list": True})
            assert found["live"] == {"it": (1, 2), "n1": (0, 0)}
            assert found["file"][0] == ("n0", "3g", f"hosts {'x' * 60}", 0, 0)
            assert len(found["file"]) + found["left_out"] == 1000
            assert found["left_out"] > 0
            wrong = obey(server.faults, {"id": 6, "set": {"bad": {"given": {"latency": -1}, "profile": None}}})
            assert "more than 0" in wrong["error"]
            assert obey(server.faults, {"id": 7, "remove": ["it", "nobody"]}) == {"faults": 7}
            assert list(server.faults.all) == ["n1"]
            obey(server.faults, {"id": 8, "keep": []})
            assert server.faults.all == {}

    run_once(main)


# --- of `tabi serve` ---


@pytest.fixture
def runtime(tmp_path: Path) -> dict[str, str]:
    """The environment in which the sockets of this test lie apart."""
    return {"XDG_RUNTIME_DIR": str(tmp_path)}


def seconds_of(sock: Tunnel) -> float:
    """How long a round trip takes."""
    began = monotonic()
    sock.client.sendall(b"ping")
    assert receive_exactly(sock.server, 4) == b"ping"
    sock.server.sendall(b"pong")
    assert receive_exactly(sock.client, 4) == b"pong"
    return monotonic() - began


@contextlib.contextmanager
def spread(proxy: Serve, count: int) -> Iterator[list[Tunnel]]:
    """Tunnels through a server, of which each of two workers has one at least, most likely."""
    with listening() as (listener, _), contextlib.ExitStack() as closing:
        found = []
        for _ in range(count):
            found.append(Tunnel(proxy.address, listener))
            closing.callback(found[-1].close)
        yield found


def test_all_workers_act_by_it_at_once(tmp_path: Path, runtime: dict[str, str]) -> None:
    """On sessions that run, when it is answered; also after a reload, and in a worker that is started again."""
    file = tmp_path / "tabi.toml"
    text = 'workers = 2\n[[listen]]\nurl = "socks5://127.0.0.1:0"\n'
    file.write_text(text)
    with serve(tmp_path, "-c", file, environ=runtime) as proxy:
        path = find_socket(runtime)
        wait_for(lambda: len(proxy.workers()) == 2, "both workers")
        with spread(proxy, 8) as before:
            given = {"latency": "50ms", "hosts": ["127.0.0.1"]}
            assert ask_server(path, "fault", action="add", fault=given) == {"name": "fault-1", "silent": []}
            for one in before:
                assert seconds_of(one) >= 0.1
            (row,) = ask_server(path, "fault", action="list")["faults"]
            assert (row["sessions"], row["chosen"]) == (8, 8)
            file.write_text(
                text + '[profile.mine]\nlatency = "90ms"\n[[distort]]\nname = "filed"\nfault = "mine"\nports = [1]'
            )
            ask_server(path, "reload")
            ask_server(path, "fault", action="change", name="fault-1", fault={"latency": "70ms"})
            for one in before:
                assert seconds_of(one) >= 0.14
            wait_for(lambda: len(ask_server(path, "fault", action="list")["faults"]) == 2, "the new configuration")
            with pytest.raises(ConfigError, match="filed is of the configuration"):
                ask_server(path, "fault", action="change", name="filed", fault={"latency": 1})
            ask_server(path, "fault", action="change", name="fault-1", fault={"profile": "mine"})
            victim, other = proxy.workers()
            os.kill(victim, signal.SIGKILL)
            wait_for(lambda: len(proxy.workers()) == 2 and victim not in proxy.workers(), "the next worker")
            os.kill(other, signal.SIGKILL)
            wait_for(lambda: len(proxy.workers()) == 2 and other not in proxy.workers(), "the next worker")
        with spread(proxy, 4) as after:
            for one in after:
                assert seconds_of(one) >= 0.18
            ask_server(path, "fault", action="remove")
            rows = ask_server(path, "fault", action="list")["faults"]
            assert [one["name"] for one in rows] == ["filed"]
            for one in after:
                seconds_of(one)


def test_a_worker_that_is_held_up(tmp_path: Path, runtime: dict[str, str]) -> None:
    """It is named after a while; it acts by the fault as soon as it goes on."""
    with serve(tmp_path, "--workers", "2", environ=runtime) as proxy:
        path = find_socket(runtime)
        wait_for(lambda: len(proxy.workers()) == 2, "both workers")
        assert ask_server(path, "fault", action="list")["silent"] == []
        held = proxy.workers()[0]
        with paused(held):
            found = ask_server(path, "fault", action="add", fault={"latency": "40ms"})
            assert found == {"name": "fault-1", "silent": [held]}
        wait_for(lambda: not ask_server(path, "fault", action="list")["silent"], "its answer")
        with spread(proxy, 4) as found_after:
            for one in found_after:
                assert seconds_of(one) >= 0.08


def test_its_time_is_kept(tmp_path: Path, runtime: dict[str, str]) -> None:
    """The supervisor removes it, without anybody who asks."""
    with serve(tmp_path, environ=runtime) as proxy:
        path = find_socket(runtime)
        time: dict[str, Any] = {"for": "200ms"}
        ask_server(path, "fault", action="add", fault={"latency": "1ms"}, **time)
        wait_for(lambda: "fault fault-1 is removed" in proxy.messages, "its end")
        assert ask_server(path, "fault", action="list")["faults"] == []


def test_a_request_that_is_too_large(tmp_path: Path, runtime: dict[str, str]) -> None:
    """It is refused, and the next one is answered."""
    with serve(tmp_path, environ=runtime):
        path = find_socket(runtime)
        fault = {"latency": 1, "hosts": ["x" * 100] * 635}
        for more in range(100, 900, 50):
            with pytest.raises(TabiError, match=r"too large|at most"):
                ask_server(path, "fault", action="add", fault=fault | {"name": "x" * more})
        assert ask_server(path, "fault", action="list")["faults"] == []


def test_another_process_takes_the_faults_over() -> None:
    """With their names, the figures of their profiles as they were, and the moment of their end."""
    with contextlib.closing(Scene({"profile": {"mine": {"latency": "1 s"}}})) as one:
        one.ask("add", fault={"name": "a", "profile": "mine", "hosts": ["*.example"]}, **{"for": "1 h"})
        one.ask("add", fault={"name": "b", "loss": "1%"})
        state = json.loads(msgspec.json.encode(one.control.state()))
    with contextlib.closing(Scene({"profile": {"mine": {"latency": "2 s"}}})) as two:
        two.control.adopt(state)
        assert two.control.all == one.control.all
        assert two.control.all["a"].until == 4600
        two.ask("add", fault={"loss": "2%"})
        assert "fault-1" in two.control.all


def test_a_fault_that_does_not_go_with_the_configuration_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    """Its listener is gone, its name is that of an entry now, or it is of a version that has other keys."""
    with contextlib.closing(Scene({"distort": [{"name": "taken", "fault": "3g"}]})) as scene:
        held = {"profile": None, "until": None}
        scene.control.adopt(
            {
                "gone": {"given": {"loss": "1%", "listeners": ["http://127.0.0.1:9"]}, **held},
                "taken": {"given": {"loss": "1%"}, **held},
                "later": {"given": {"gremlins": True}, **held},
                "other": {},
                "good": {"given": {"loss": "1%"}, **held},
            }
        )
        assert list(scene.control.all) == ["good"]
        for name in ("gone", "taken", "later", "other"):
            assert f"fault {name} is not taken over: " in caplog.text
