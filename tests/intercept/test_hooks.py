"""Hooks: how they are called, what they may do wrong, and what that does to a flow."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Callable
from typing import Any

import pytest

from conftest import Run
from tabi.errors import TooLarge
from tabi.intercept import hooks as hooks_module
from tabi.intercept.events import ClientHelloInfo, Connection, DatagramInfo, WebSocketMessage
from tabi.intercept.flow import Drop, Flow, FlowRequest, FlowResponse
from tabi.intercept.headers import Headers
from tabi.intercept.hooks import EVENTS, FORMS, HookFailed, Hooks, check_hook, in_thread, methods_of

CONNECTION = Connection("1", ("192.0.2.1", 5), None, "socks5://[::1]:1080", "example.com", 443)


def make_flow() -> Flow:
    """A flow whose request is here."""
    request = FlowRequest("GET", "https", "example.com", "/", "HTTP/1.1", Headers(b"\r\nHost: example.com"))
    return Flow("1", ("192.0.2.1", 5), None, "socks5://[::1]:1080", "example.com", 443, None, request)


def hook(**methods: Callable[..., Any]) -> object:
    """An object with these methods, which get no ``self``."""
    return type("Hook", (), {name: staticmethod(method) for name, method in methods.items()})()


def mark(name: str) -> Callable[[Flow], None]:
    """A hook that adds a field."""

    def request(flow: Flow) -> None:
        flow.request.headers.add("X-Seen", name)

    return request


def seen(flow: Flow) -> list[str]:
    """What `mark` has left."""
    return flow.request.headers.get_all("X-Seen")


async def ask(hooks: Hooks, flow: Flow) -> None:
    """Show a request to hooks."""
    await hooks.on_message(hooks.request, flow, flow.request)


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the log says."""
    return [record.getMessage() for record in caplog.records]


def test_they_are_called_in_their_order(run_once: Run) -> None:
    """Those that wait, those that do not, and those in a thread; each sees what the others have changed."""

    async def wait(flow: Flow) -> None:
        await asyncio.sleep(0)
        flow.request.headers.add("X-Seen", f"waited after {seen(flow)}")

    @in_thread
    def block(flow: Flow) -> None:
        flow.request.headers.add("X-Seen", f"blocked in {threading.current_thread().name}")

    async def main() -> None:
        hooks = Hooks(
            [hook(request=mark("first")), hook(request=wait), hook(request=block), hook(request=mark("last"))]
        )
        assert [handler.waits for handler in hooks.request] == [False, True, True, False]
        flow = make_flow()
        await ask(hooks, flow)
        assert seen(flow) == ["first", "waited after ['first']", "blocked in tabi-hook", "last"]
        hooks.close()

    run_once(main)


def test_every_event_has_its_handlers() -> None:
    """A tuple for each, empty where nobody wants it."""
    hooks = Hooks()
    assert all(getattr(hooks, event) == () for event in EVENTS)
    assert not hooks.of_flows
    hooks.replace([hook(client_hello=lambda hello: None, udp_data=lambda datagram: None)])
    assert not hooks.of_flows
    assert repr(hooks.client_hello) == "(Hook.client_hello,)"
    for event in ("request", "response_body", "websocket_message", "error"):
        assert Hooks([hook(**{event: lambda *args: None})]).of_flows


def test_who_answers_ends_the_chain(run_once: Run) -> None:
    """The others are not asked any more. What stands there from before does not count."""

    async def main() -> None:
        hooks = Hooks([hook(request=mark("one")), hook(request=lambda flow: flow.drop()), hook(request=mark("two"))])
        flow = make_flow()
        await ask(hooks, flow)
        assert seen(flow) == ["one"]
        assert flow.instead == Drop()
        hooks.replace([hook(request=mark("three")), hook(request=mark("four"))])
        await ask(hooks, flow)
        assert seen(flow) == ["one", "three", "four"]

    run_once(main)


def fail(flow: Flow) -> None:
    """Change all that there is, and fail."""
    flow.request.method = "POST"
    flow.request.path = "/other"
    flow.request.headers["Host"] = "other"
    flow.request.headers = Headers({"A": "b"})
    flow.request.set_body("other")
    flow.drop()
    raise ZeroDivisionError("why")


async def fail_later(flow: Flow) -> None:
    """Fail after a wait."""
    await asyncio.sleep(0)
    fail(flow)


def leave(flow: Flow) -> None:
    """End the program."""
    fail_quietly(flow)
    raise SystemExit(3)


def fail_quietly(flow: Flow) -> None:
    """Change all that there is."""
    try:
        fail(flow)
    except ZeroDivisionError:
        pass


async def cancel(flow: Flow) -> None:
    """Wait for what was cancelled."""
    fail_quietly(flow)
    future = asyncio.get_running_loop().create_future()
    future.cancel()
    await future


async def wait_forever(flow: Flow) -> None:
    """Never end."""
    fail_quietly(flow)
    await asyncio.get_running_loop().create_future()


async def run_out(flow: Flow) -> None:
    """A timeout of its own."""
    fail_quietly(flow)
    raise TimeoutError("of its own")


async def too_much(flow: Flow) -> None:
    """Content that is too large."""
    fail_quietly(flow)
    raise TooLarge("more than 5 octets")


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (fail, "hook Hook.request failed"),
        (fail_later, "hook Hook.request failed"),
        (in_thread(functools.wraps(fail)(lambda flow: fail(flow))), "hook Hook.request failed"),
        (leave, "hook Hook.request: it raised SystemExit"),
        (cancel, "hook Hook.request: it raised CancelledError"),
        (wait_forever, "hook Hook.request: not done within 0.01 s"),
        (run_out, "hook Hook.request failed"),
        (too_much, "hook Hook.request: TooLarge: more than 5 octets"),
    ],
)
def test_what_a_hook_that_fails_has_changed_is_undone(
    function: Callable[[Flow], Any], said: str, run_once: Run, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged by its name, with the traceback where it is to blame, and the next hook sees the flow as it was.

    Where it is to be closed, HookFailed ends it.
    """

    async def main() -> None:
        hooks = Hooks([hook(request=function), hook(request=mark("next"))], 0.01 if function is wait_forever else 20)
        flow = make_flow()
        headers = flow.request.headers
        await ask(hooks, flow)
        assert flow.request.headers is headers
        assert headers.encode() == b"\r\nHost: example.com\r\nX-Seen: next"
        assert (flow.request.method, flow.request.path, flow.request._content) == ("GET", "/", None)
        assert flow.instead is None
        hooks.close_on_error = True
        with pytest.raises(HookFailed, match=r"^hook Hook\.request failed$"):
            await ask(hooks, flow)
        assert seen(flow) == ["next"]
        assert await hooks.tell(hooks.request, flow) is None  # type: ignore[func-returns-value]
        with pytest.raises(HookFailed):
            await hooks.call(hooks.request[0], flow)
        hooks.close()

    run_once(main)
    assert messages(caplog) == [said] * 4
    assert (caplog.records[0].exc_info is not None) == said.endswith("failed")


class Content:
    """A reader of content that is there."""

    async def read_all(self, limit: int) -> bytes:
        """See `flow.Reader`."""
        return b"content"


def test_content_is_read_while_the_hook_runs(run_once: Run) -> None:
    """And not by a task that it has left behind, nor by a hook of the response, unless it was read in time."""

    async def main() -> None:
        left: list[asyncio.Task[str]] = []
        flow = make_flow()
        flow.request.headers["Content-Length"] = "7"
        flow.request._reader = Content()

        async def leave_behind(flow: Flow) -> None:
            left.append(asyncio.get_running_loop().create_task(flow.request.text()))

        async def look(flow: Flow) -> None:
            flow.tags.add(await flow.request.text())

        await ask(Hooks([hook(request=leave_behind)]), flow)
        with pytest.raises(RuntimeError, match="gone on"):
            await left[0]
        hooks = Hooks([hook(request=look, response=look)])
        flow.request._reader = Content()
        await ask(hooks, flow)
        flow.tags.clear()
        flow.response = FlowResponse(200, "OK", "HTTP/1.1", Headers())
        await hooks.on_message(hooks.response, flow, flow.response)
        assert flow.tags == {"content"}

    run_once(main)


def test_a_thread_that_comes_too_late_changes_nothing(run_once: Run, caplog: pytest.LogCaptureFixture) -> None:
    """It works on a copy, which is thrown away after the deadline."""
    gate, done = threading.Event(), threading.Event()

    @in_thread
    def block(flow: Flow) -> None:
        gate.wait(20)
        fail_quietly(flow)
        done.set()

    async def main() -> None:
        hooks = Hooks([hook(request=block)], 0.01)
        flow = make_flow()
        await ask(hooks, flow)
        gate.set()
        await asyncio.to_thread(done.wait, 20)
        while hooks.threads.calls:
            await asyncio.sleep(0.001)
        assert not flow.request.changed
        assert flow.instead is None
        hooks.close()

    run_once(main)
    assert messages(caplog) == ["hook Hook.request: not done within 0.01 s"]


def test_the_flows_own_cancellation_is_no_failure(run_once: Run, caplog: pytest.LogCaptureFixture) -> None:
    """It goes on to whoever runs the flow, also where a thread is at work."""
    gate = threading.Event()

    async def main() -> None:
        for function in (wait_forever, in_thread(lambda flow: gate.wait(20))):
            hooks = Hooks([hook(request=function)])
            task = asyncio.get_running_loop().create_task(ask(hooks, make_flow()))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            gate.set()
            while hooks.threads.calls:
                await asyncio.sleep(0.001)
            hooks.close()

    run_once(main)
    assert messages(caplog) == []


def test_chunks(run_once: Run, caplog: pytest.LogCaptureFixture) -> None:
    """Each hook gets what the one before it has returned; one that returns nothing, or fails, leaves it."""

    async def upper(flow: Flow, chunk: bytes) -> bytes:
        return chunk.upper()

    def wrong(flow: Flow, chunk: bytes) -> Any:
        return 5

    async def main() -> None:
        hooks = Hooks(
            [
                hook(request_body=lambda flow, chunk: None),
                hook(request_body=upper),
                hook(request_body=wrong),
                hook(request_body=lambda flow, chunk: "text"),
                hook(request_body=lambda flow, chunk: memoryview(chunk)[1:]),
            ]
        )
        assert await hooks.on_chunk(hooks.request_body, make_flow(), b"abc") == b"BC"
        hooks.replace([hook(request_body=lambda flow, chunk: b"")])
        assert await hooks.on_chunk(hooks.request_body, make_flow(), b"abc") == b""
        hooks.replace([hook(tcp_data=lambda connection, direction, data: data + direction.encode())])
        assert await hooks.on_data(hooks.tcp_data, b"abc ", CONNECTION, "up") == b"abc up"
        hooks.replace([hook(request_body=wrong)])
        hooks.close_on_error = True
        with pytest.raises(HookFailed):
            await hooks.on_chunk(hooks.request_body, make_flow(), b"abc")

    run_once(main)
    assert messages(caplog) == ["hook Hook.request_body failed"] * 3
    assert "the hook returned int, expected bytes or None" in caplog.text
    assert "the hook returned str, expected bytes or None" in caplog.text


def test_events(run_once: Run, caplog: pytest.LogCaptureFixture) -> None:
    """Messages and datagrams may be changed and dropped, which ends the chain; a failure is undone."""

    def change(flow: Flow, message: WebSocketMessage) -> None:
        message.text += "!"

    @in_thread
    def change_in_thread(flow: Flow, message: WebSocketMessage) -> None:
        message.text += "?"

    def broken(flow: Flow, message: WebSocketMessage) -> None:
        message.text = "broken"
        message.drop()
        raise ValueError

    async def main() -> None:
        hooks = Hooks([hook(websocket_message=one) for one in (change, broken, change_in_thread)])
        message = WebSocketMessage("up", True, b"a")
        await hooks.on_event(hooks.websocket_message, message, make_flow())
        assert (message.text, message.dropped) == ("a!?", False)
        hooks.close()

        hooks = Hooks([hook(udp_data=lambda datagram: datagram.drop()), hook(udp_data=lambda datagram: 1 / 0)])
        datagram = DatagramInfo(CONNECTION, "up", b"a")
        await hooks.on_event(hooks.udp_data, datagram)
        assert datagram.dropped

        def change_datagram(datagram: DatagramInfo) -> None:
            datagram.payload += b"!"

        def broken_datagram(datagram: DatagramInfo) -> None:
            datagram.payload = b"broken"
            datagram.drop()
            raise ValueError

        hooks = Hooks([hook(udp_data=one) for one in (change_datagram, broken_datagram, change_datagram)])
        datagram = DatagramInfo(CONNECTION, "up", b"a")
        hooks.show_event(hooks.udp_data, datagram)
        assert (datagram.payload, datagram.dropped) == (b"a!!", False)
        hooks = Hooks([hook(udp_data=lambda datagram: datagram.drop()), hook(udp_data=broken_datagram)])
        hooks.show_event(hooks.udp_data, datagram)
        assert datagram.dropped

        hooks = Hooks([hook(client_hello=lambda hello: hello.drop()), hook(client_hello=lambda it: it.pass_through())])
        hello = ClientHelloInfo(CONNECTION, None, (), None)
        await hooks.on_event(hooks.client_hello, hello)
        assert hello.action == "pass"

    run_once(main)
    assert messages(caplog) == ["hook Hook.websocket_message failed", "hook Hook.udp_data failed"]


def test_failures_with_datagrams_are_logged_now_and_then(caplog: pytest.LogCaptureFixture) -> None:
    """A client may send any number of them."""
    hooks = Hooks([hook(udp_data=lambda datagram: 1 / 0)], close_on_error=True)
    for _ in range(3):
        with pytest.raises(HookFailed):
            hooks.show_event(hooks.udp_data, DatagramInfo(CONNECTION, "up", b"a"))
    assert messages(caplog) == ["hook Hook.udp_data failed"]
    assert not hooks.may_log(hooks.quiet_until - 0.1)
    assert hooks.may_log(hooks.quiet_until)


def test_events_of_those_that_do_not_wait(caplog: pytest.LogCaptureFixture) -> None:
    """Without a task, and with the same order, failures and drops."""
    told: list[str] = []

    def broken(flow: Flow, message: WebSocketMessage) -> None:
        message.text = "lost"
        raise ValueError

    def note(flow: Flow, message: WebSocketMessage) -> None:
        told.append(message.text)
        message.text += "!"

    hooks = Hooks([hook(websocket_message=one) for one in (note, broken, note)])
    message = WebSocketMessage("up", True, b"a")
    hooks.show_event(hooks.websocket_message, message, make_flow())
    assert (told, message.text) == (["a", "a!"], "a!!")
    hooks.close_on_error = True
    with pytest.raises(HookFailed, match=r"^hook Hook\.websocket_message failed$"):
        hooks.show_event(hooks.websocket_message, message, make_flow())
    hooks.replace([hook(websocket_message=lambda flow, message: message.drop()), hook(websocket_message=note)])
    hooks.show_event(hooks.websocket_message, message, make_flow())
    assert message.dropped
    assert told == ["a", "a!", "a!!"]
    assert messages(caplog) == ["hook Hook.websocket_message failed"] * 2


def test_telling_never_raises(run_once: Run, caplog: pytest.LogCaptureFixture) -> None:
    """All are told, whoever fails."""
    told: list[Flow] = []

    async def main() -> None:
        failing = hook(flow_end=lambda flow: 1 / 0)
        hooks = Hooks([failing, hook(flow_end=told.append), failing], close_on_error=True)
        flow = make_flow()
        await hooks.tell(hooks.flow_end, flow)
        assert told == [flow]

    run_once(main)
    assert messages(caplog) == ["hook Hook.flow_end failed"] * 2


def cancel_now(flow: Flow) -> None:
    """Look at what was cancelled."""
    fail_quietly(flow)
    raise asyncio.CancelledError


@pytest.mark.parametrize("function", [fail, leave, cancel_now])
def test_those_that_do_not_wait_are_called_without_a_task(
    function: Callable[[Flow], Any], caplog: pytest.LogCaptureFixture
) -> None:
    """With the same order, the same failures, and the same ways out."""
    hooks = Hooks([hook(request=function, flow_end=function), hook(request=mark("next"))])
    flow = make_flow()
    hooks.show(hooks.request, flow, flow.request)
    hooks.tell_now(hooks.flow_end, make_flow())
    assert seen(flow) == ["next"]
    assert (flow.request.method, flow.instead) == ("GET", None)
    hooks.close_on_error = True
    with pytest.raises(HookFailed, match=r"^hook Hook\.request failed$"):
        hooks.show(hooks.request, flow, flow.request)
    hooks.tell_now(hooks.flow_end, make_flow())
    assert len(messages(caplog)) == 4
    hooks.replace([hook(request=lambda flow: flow.drop()), hook(request=mark("never"))])
    hooks.show(hooks.request, flow, flow.request)
    assert (seen(flow), flow.instead) == (["next"], Drop())


def test_replacing_while_one_runs(run_once: Run) -> None:
    """The flow that is under way ends with those that it began with; the next has the others."""

    async def main() -> None:
        gate = asyncio.Event()

        async def wait(flow: Flow) -> None:
            await gate.wait()
            mark("waited")(flow)

        hooks, flow, next_flow = Hooks([hook(request=wait), hook(request=mark("old"))]), make_flow(), make_flow()
        async with asyncio.TaskGroup() as group:
            group.create_task(ask(hooks, flow))
            await asyncio.sleep(0)
            hooks.replace([hook(request=mark("new"))])
            await ask(hooks, next_flow)
            gate.set()
        assert seen(flow) == ["waited", "old"]
        assert seen(next_flow) == ["new"]

    run_once(main)


class AsyncCall:
    """An object that is called, and waits."""

    async def __call__(self, flow: Flow) -> None:
        mark("called")(flow)


def test_what_is_called_may_be_anything(run_once: Run) -> None:
    """A partial function, an object that waits."""

    async def main() -> None:
        async def named(name: str, flow: Flow) -> None:
            mark(name)(flow)

        hooks = Hooks([hook(request=functools.partial(named, "partial")), hook(request=AsyncCall())])
        flow = make_flow()
        await ask(hooks, flow)
        assert seen(flow) == ["partial", "called"]

    run_once(main)


def test_what_is_no_hook_is_refused() -> None:
    """With what is wrong, and nothing is changed by it."""

    class Nothing:
        error = ValueError
        request = None

    class Wrong:
        def request(self) -> None:
            """One that forgets its flow."""

    class Yields:
        def request(self, flow: Flow) -> Any:
            """One that never runs."""
            yield flow

    right = hook(request=mark("right"))
    hooks = Hooks([right])
    for wrong, said in (
        (Nothing(), "Nothing has none of the methods client_hello, "),
        (Nothing, "Nothing is a class, expected an object with hooks: Nothing()"),
        (Wrong(), "Wrong.request takes other arguments, expected def request(self, flow)"),
        (Yields(), "Yields.request yields, expected def request(self, flow)"),
        (hook(tcp_data=lambda data: None), "Hook.tcp_data takes other arguments, expected def tcp_data(self, "),
    ):
        with pytest.raises(TypeError) as caught:
            hooks.replace([right, wrong])
        assert str(caught.value).startswith(said)
    assert hooks.objects == (right,)
    assert check_hook(hook(request=lambda *args: None, flow_end=lambda flow, more=None: None)) == [
        "request",
        "flow_end",
    ]
    assert check_hook(hook(request=print)) == ["request"]
    assert check_hook(hook(request=dict.fromkeys)) == ["request"]
    assert methods_of(Nothing) == []
    assert set(FORMS) == set(EVENTS)
    with pytest.raises(TypeError, match=r"wait_forever is async, expected an ordinary function for a thread$"):
        in_thread(wait_forever)


def test_a_slow_hook_is_remembered_for_the_watchdog(run_once: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that does not wait, and each step of one that does; for the turn in which it was, and no other."""
    now = [100.0]
    monkeypatch.setattr(hooks_module, "monotonic", lambda: now[0])

    def slow(flow: Flow) -> None:
        now[0] += 0.25

    async def slow_step(flow: Flow) -> None:
        await asyncio.sleep(0)
        now[0] += 0.5
        await asyncio.sleep(0)
        now[0] += 0.01

    async def patient(flow: Flow) -> None:
        now[0] += 0.01
        await asyncio.sleep(0)
        now[0] += 0.04

    async def main() -> None:
        hooks = Hooks([hook(request=patient)])
        await ask(hooks, make_flow())
        assert hooks.slow_since(0.0) is None
        hooks.replace([hook(request=slow)])
        now[0] = 200.0
        await ask(hooks, make_flow())
        assert hooks.slow_since(200.0) == "hook Hook.request (250 ms)"
        assert hooks.slow_since(200.1) is None
        hooks.replace([hook(request=slow_step)])
        now[0] = 300.0
        await ask(hooks, make_flow())
        assert hooks.slow_since(300.0) == "hook Hook.request (500 ms)"

    run_once(main)


def test_a_hook_that_waits_may_be_closed_and_hear_of_errors(run_once: Run) -> None:
    """What it awaits may fail in it, and a hook that catches that goes on."""

    async def catch(flow: Flow) -> None:
        try:
            async with asyncio.timeout(0):
                await asyncio.get_running_loop().create_future()
        except TimeoutError:
            mark("caught")(flow)

    async def main() -> None:
        hooks, flow = Hooks([hook(request=catch)]), make_flow()
        await ask(hooks, flow)
        assert seen(flow) == ["caught"]

    run_once(main)
