"""Questions to all workers, with workers and askers that the test plays."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

from doubles import Clock
from tabi.server.channel import MAX_MESSAGE, MAX_WAITING, Channel, make_channel
from tabi.server.child import Place
from tabi.server.questions import PATIENCE, Questions


class Scene:
    """Two workers, one place without, and one who asks."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.places = [Place(), Place(), Place()]
        self.ends: list[Channel] = []
        for pid, place in enumerate(self.places[:2], 1):
            place.channel, end = make_channel()
            place.pid = pid
            self.ends.append(end)
        self.asker, self.asking = make_channel()
        self.questions = Questions(self.places, self.clock)

    def ask(self, number: int = 7) -> None:
        """Ask something."""
        self.questions.ask("sessions", {"command": "sessions", "limit": 5}, number, self.asker)

    def heard(self) -> list[dict[str, Any]]:
        """What has come to who asks, with the text of each file in place of it."""
        found = []
        while (message := self.asking.next_message()) is not None:
            for fd in message.fds:
                message.body["text"] = os.pread(fd, 100, 0).decode()
                os.close(fd)
            found.append(message.body)
        return found

    def tell(self, worker: int, number: int, text: str = "x") -> None:
        """A worker answers."""
        memory = os.memfd_create("test")
        os.write(memory, text.encode())
        self.questions.told(self.places[worker], number, [memory])
        os.close(memory)


@pytest.fixture
def scene() -> Iterator[Scene]:
    """One of them, which is closed."""
    made = Scene()
    yield made
    for channel in (made.asker, made.asking, *made.ends):
        channel.close()
    for place in made.places:
        place.empty()


def test_each_answer_is_passed_on(scene: Scene) -> None:
    """As it comes, with its file; then who was silent. Nothing is kept."""
    scene.ask()
    for end in scene.ends:
        assert end.next_body() == {"ask": {"command": "sessions", "limit": 5, "about": "sessions", "id": 1}}
    scene.tell(1, 1, "second")
    assert scene.heard() == [{"id": 7, "part": 2, "text": "second"}]
    scene.tell(0, 1, "first")
    assert scene.heard() == [{"id": 7, "part": 1, "text": "first"}, {"id": 7, "silent": []}]
    assert not scene.questions.all
    assert scene.questions.due(scene.clock()) is None


def test_who_does_not_answer_in_time_is_silent(scene: Scene) -> None:
    """And what it says later is for nobody."""
    scene.ask()
    scene.tell(0, 1)
    assert scene.questions.due(scene.clock()) == PATIENCE
    scene.clock.now += PATIENCE / 2
    scene.questions.keep_time()
    assert scene.heard() == [{"id": 7, "part": 1, "text": "x"}]
    scene.clock.now += PATIENCE / 2
    scene.questions.keep_time()
    assert scene.heard() == [{"id": 7, "silent": [2]}]
    scene.tell(1, 1)
    scene.tell(0, 99)
    assert not scene.heard()


def test_a_worker_that_ends_is_not_waited_for(scene: Scene) -> None:
    """The others are."""
    scene.ask()
    scene.questions.left(scene.places[2])
    scene.questions.left(scene.places[0])
    assert not scene.heard()
    scene.tell(1, 1)
    assert scene.heard()[-1] == {"id": 7, "silent": [1]}


def test_a_worker_answers_once(scene: Scene) -> None:
    """What it says twice is not passed on."""
    scene.ask()
    scene.tell(0, 1)
    scene.tell(0, 1)
    assert len(scene.heard()) == 1


def test_without_workers_the_answer_is_there_at_once(scene: Scene) -> None:
    """As between the death of the only one and its next start."""
    for place in scene.places:
        place.pid = None
    scene.ask()
    assert scene.heard() == [{"id": 7, "silent": []}]


def test_a_worker_that_reads_nothing_is_silent(scene: Scene) -> None:
    """Its channel takes so many messages and no more."""
    channel = scene.places[0].channel
    assert channel is not None
    while channel.send({"x": "y" * 1000}):
        pass
    assert len(channel.waiting) == MAX_WAITING
    scene.ask()
    scene.tell(1, 1)
    assert scene.heard()[-1] == {"id": 7, "silent": [1]}


def test_an_asker_that_reads_nothing_costs_no_more(scene: Scene) -> None:
    """What it does not take is lost, and no question stays."""
    for number in range(MAX_WAITING * 10):
        scene.ask(number)
        scene.tell(0, number + 1)
        scene.tell(1, number + 1)
        for end in scene.ends:
            end.next_body()
    assert not scene.questions.all
    assert len(scene.asker.waiting) <= MAX_WAITING


def test_what_is_too_large_is_nobodys_question(scene: Scene) -> None:
    """It is an error of who asks, and nothing waits for it."""
    with pytest.raises(ValueError, match="a message of"):
        scene.questions.ask("sessions", {"command": "sessions", "x": "y" * MAX_MESSAGE}, 1, scene.asker)
    assert not scene.questions.all
