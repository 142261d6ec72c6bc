"""HTTP/2 toward destinations: as the client begins it, or as a browser does, while the client's own windows hold."""

from __future__ import annotations

from pathlib import Path

import h2.events
import h2.settings
import pytest

from conftest import Run
from fingerprints import destination, http2_text, record_of, showing
from h2_ends import GET, OK, Ends, Pass, block
from interceptions import Slow
from processes import in_thread, need
from tabi.distort.fingerprint.fields import FieldOrder, places_of
from tabi.distort.fingerprint.http2 import MirrorHttp, MirrorRelay, ProfileHttp, ProfileRelay, in_order
from tabi.distort.fingerprint.presets import CHROME, find_profile
from tabi.intercept.hooks import Hooks
from tabi.intercept.http2_direction import MAX_SETTINGS
from tabi.policy.limits import DOWN, UP
from tabi.wire.h2 import ACK, PREFACE, PRIORITY, SETTINGS, ErrorCode, encode_frame, encode_settings
from tabi.wire.hpack import Field, NeverIndexed

CLIENT: list[Field] = [
    (b":method", b"GET"),
    (b":path", b"/"),
    (b":scheme", b"https"),
    (b":authority", b"a.test"),
    (b"x-one", b"1"),
    (b"accept", b"*/*"),
    (b"user-agent", b"x"),
]
"""A request in an order that is no browser's."""

BROWSER = [CLIENT[0], CLIENT[3], CLIENT[2], CLIENT[1], CLIENT[6], CLIENT[5], CLIENT[4]]
"""As Chrome has it."""

CHROMIUM = {1: 65536, 2: 0, 4: 6291456, 6: 262144}


class Profiled(Ends):
    """Both ends, with a profile between them. ``sent`` is what the server got."""

    def __init__(self, client: dict[int, int] | None = None, piece: int = 1 << 20) -> None:
        self.inspector = Pass()
        self.sent = b""
        relay = ProfileRelay(CHROME, FieldOrder(places_of(find_profile("chrome:152"))), self.inspector, False)
        super().__init__(client=client, relay=relay, piece=piece)

    def deliver(self) -> bool:
        """See `Ends.deliver`."""
        octets = bytes(self.relay.take(UP))
        self.sent += octets
        if octets:
            self.server.receive(octets)
        return super().deliver() or bool(octets)

    def ask(self, id: int = 1) -> None:
        """Send a request that has come whole."""
        self.client.connection.send_headers(id, CLIENT, end_stream=True)
        self.go()


@pytest.mark.parametrize("piece", [1, 1 << 20])
def test_a_server_sees_the_profile(piece: int) -> None:
    """SETTINGS, window and order are the profile's, whatever the client has."""
    ends = Profiled({3: 10, 4: 100_000, 5: 20_000}, piece)
    ends.ask()
    text, fields = http2_text(ends.sent)
    assert text == CHROME.text
    assert [(name.encode(), value.encode()) for name, value in fields] == BROWSER
    assert ends.server.heads[1] == BROWSER


def test_the_client_s_windows_hold() -> None:
    """The server may send as much as the profile says; what the client does not take waits, and nothing is lost."""
    ends = Profiled({4: 50_000})
    ends.ask()
    server = ends.server
    assert server.connection.local_flow_control_window(1) == 6291456
    content = bytes(range(256)) * 4000
    server.head(1, OK)
    unread: list[tuple[int, int]] = []
    ends.client.unread = unread
    server.body(1, content)
    ends.go()
    assert server.sending == {}
    assert len(ends.client.bodies[1]) == 50_000
    assert ends.relay.down.queued == len(content) - 50_000
    ends.client.unread = None
    for size, id in unread:
        ends.client.connection.acknowledge_received_data(size, id)
    ends.go()
    assert ends.client.bodies[1] == content
    assert 1 in ends.client.ended
    assert ends.relay.down.queued == 0


def test_a_client_with_a_smaller_window_for_all_streams() -> None:
    """The connection's window is the client's too: 65,535 octets, until it takes more."""
    ends = Profiled({4: 1 << 20})
    ends.ask()
    ends.ask(3)
    ends.client.unread = []
    for id in (1, 3):
        ends.server.head(id, OK)
        ends.server.body(id, bytes(60_000))
    ends.go()
    assert sum(map(len, ends.client.bodies.values())) == 65_535
    ends.client.connection.increment_flow_control_window(100_000)
    ends.go()
    assert [len(body) for body in ends.client.bodies.values()] == [60_000, 60_000]


def test_a_stream_that_rests_holds_up_no_other() -> None:
    """More is kept than in other relays: as much as the server may send."""
    ends = Profiled()
    ends.ask()
    ends.client.unread = []
    ends.server.head(1, OK)
    ends.server.body(1, bytes(6_000_000))
    ends.go()
    assert ends.relay.down.queued == 6_000_000 - 65_535
    assert ends.relay.held_limit > ends.relay.down.queued


def test_a_server_that_sends_more_than_it_may() -> None:
    """Also with a profile that is the end of the connection."""
    ends = Profiled()
    ends.ask()
    ends.client.unread = []
    ends.server.head(1, OK)
    ends.go()
    for _ in range(385):
        ends.raw(DOWN, encode_frame(0, 0, 1, bytes(16384)))
    assert ends.relay.failure is not None
    assert ends.relay.failure.code == ErrorCode.FLOW_CONTROL_ERROR


def test_later_settings_of_the_client_are_its_own() -> None:
    """The server sees none of them but acknowledges each; windows of open streams change with them."""
    ends = Profiled({4: 1000})
    ends.ask()
    ends.client.unread = []
    ends.server.head(1, OK)
    ends.server.body(1, bytes(5000))
    ends.go()
    assert len(ends.client.bodies[1]) == 1000
    ends.client.connection.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 3000})
    ends.go()
    assert len(ends.client.bodies[1]) == 3000
    changed = [event for event in ends.server.events if isinstance(event, h2.events.RemoteSettingsChanged)]
    assert [bool(event.changed_settings) for event in changed] == [True, False]
    acknowledged = [event for event in ends.client.events if isinstance(event, h2.events.SettingsAcknowledged)]
    assert len(acknowledged) == 2


def test_tables_of_fields_are_those_of_each_side() -> None:
    """The server may use the profile's, the client gets what it has allowed."""
    ends = Profiled({1: 0})
    ends.ask()
    ends.server.head(1, [*OK, *((b"n%d" % number, b"v" * 500) for number in range(100))])
    ends.go()
    assert len(ends.client.heads[1]) == 102
    ends.ask(3)
    ends.server.head(3, [*OK, *((b"n%d" % number, b"v" * 500) for number in range(100))])
    ends.go()
    assert ends.client.heads[3] == ends.client.heads[1]


def test_priorities_are_not_the_profile_s() -> None:
    """PRIORITY of the client goes no further."""
    ends = Profiled()
    ends.raw(UP, encode_frame(PRIORITY, 0, 3, bytes(5)))
    ends.ask()
    assert http2_text(ends.sent)[0] == CHROME.text


@pytest.mark.parametrize(
    ("direction", "octets", "words"),
    [
        (DOWN, encode_frame(SETTINGS, ACK, 0) * 2, "acknowledgement of no SETTINGS"),
        (UP, encode_settings([(3, 1)]) * (MAX_SETTINGS + 1), "too many SETTINGS"),
        (UP, encode_settings([(4, 1 << 31)]), "an initial window"),
    ],
)
def test_what_a_peer_must_not_do(direction: int, octets: bytes, words: str) -> None:
    """The end of the connection, as without a profile."""
    relay = ProfileRelay(CHROME, FieldOrder({}), Pass(), False)
    relay.up.feed(PREFACE + encode_settings([]))
    relay.down.feed(encode_settings([]))
    relay.directions[direction].feed(octets)
    assert relay.failure is not None
    assert words in str(relay.failure)


def test_a_window_beyond_what_it_can_be() -> None:
    """The client's SETTINGS add to windows that it has made large."""
    relay = ProfileRelay(CHROME, FieldOrder({}), Pass(), False)
    relay.up.feed(PREFACE + encode_settings([]) + block(1, GET, 1))
    relay.down.feed(encode_settings([]) + encode_frame(SETTINGS, ACK, 0))
    relay.up.feed(encode_frame(8, 0, 1, (0x7FFFFFFF - 65535).to_bytes(4)) + encode_settings([(4, 70_000)]))
    relay.down.feed(encode_frame(SETTINGS, ACK, 0))
    assert relay.failure is not None
    assert relay.failure.code == ErrorCode.FLOW_CONTROL_ERROR


def test_secrets_stay_out_of_tables() -> None:
    """What the client wants indexed by nobody is so behind a profile too."""
    relay = ProfileRelay(CHROME, FieldOrder(places_of(find_profile("chrome:152"))), Pass(), False)
    secret = NeverIndexed((b"authorization", b"Basic x"))
    found = relay.arrange([*GET[:4], secret, GET[4]])
    assert [name for name, _ in found[:4]] == [b":method", b":authority", b":scheme", b":path"]
    assert type(found[found.index(secret)]) is NeverIndexed


def test_pseudo_fields_in_an_order() -> None:
    """Those without a place are behind the others; without an order they stay."""
    request: list[Field] = [(b":protocol", b"p"), *GET]
    assert in_order(request, ()) is request
    assert [name for name, _ in in_order(request, CHROME.pseudo)][:5] == [*CHROME.pseudo, b":protocol"]


# --- mirror ---


def test_settings_of_browsers_pass_as_they_are() -> None:
    """Also those that have a bound in other relays: the table of fields, and the size of heads."""
    relay = MirrorHttp().make_relay(Pass(), False)
    assert isinstance(relay, MirrorRelay)
    seen = b""
    ends = Ends(client=CHROMIUM, relay=relay)
    relay = MirrorRelay(Pass())
    relay.up.feed(PREFACE + encode_settings(CHROMIUM.items()) + block(1, CLIENT, 1))
    seen = bytes(relay.take(UP))
    assert http2_text(seen)[0] == "1:65536;2:0;4:6291456;6:262144|00|0|m,p,s,a"
    assert ends.relay.failure is None
    assert MirrorHttp().around(Hooks()).request == ()


def test_a_large_table_of_fields_works() -> None:
    """The server may use all of it."""
    ends = Ends(client=CHROMIUM, relay=MirrorRelay(Pass()))
    fields = [*OK, *((b"n%d" % number, b"v" * 500) for number in range(100))]
    for id in (1, 3):
        ends.client.connection.send_headers(id, CLIENT, end_stream=True)
        ends.go()
        ends.server.head(id, fields)
        ends.go()
        assert ends.client.heads[id] == fields


# --- with a whole server ---


@pytest.mark.interop
@pytest.mark.parametrize("tls", ["chrome:stable", "mirror", None])
def test_curl_with_a_profile(run_once: Run, tmp_path: Path, tls: str | None) -> None:
    """The destination gets the browser's beginning, and curl a large answer; the record says what was sent."""
    body = bytes(range(256)) * 20_000

    async def main() -> None:
        shows = showing(tmp_path, profile="chrome:152", **({"tls": tls} if tls else {}))
        async with shows as proxy, destination(None, "h2", "http/1.1", body=body) as there:
            where = [
                "--socks5-hostname",
                str(proxy.address),
                "--noproxy",
                "",
                "--cacert",
                str(tmp_path / "ca" / "ca.crt"),
            ]
            done = await in_thread([need("curl"), "-sS", *where, f"https://localhost:{there.port}/"])
            assert (done.stdout == body, done.stderr) == (True, b"")
            text, fields = http2_text(there.inside[0])
            assert text == CHROME.text
            assert [name for name, _ in fields][4:] == ["user-agent", "accept"]
            record = await record_of(proxy)
            assert record.sent_http2 == CHROME.text
            assert record.sent_ja4 == there.hello.ja4
            assert record.fingerprint == tls

    run_once(main)


class Sets:
    """A hook that changes heads."""

    def request(self, flow: object) -> None:
        flow.request.headers["x-two"] = "2"  # type: ignore[attr-defined]


@pytest.mark.interop
@pytest.mark.parametrize("hooks", [(), (Sets(),), (Sets(), Slow())])
def test_hooks_do_not_change_how_it_begins(run_once: Run, tmp_path: Path, hooks: tuple[object, ...]) -> None:
    """The order of curl's own pseudo-header fields stays, where a head is written anew too."""

    async def main() -> None:
        async with showing(tmp_path, *hooks, tls="mirror") as proxy, destination(None, "h2") as there:
            curl = [need("curl"), "-sS", "--noproxy"]
            url = f"https://localhost:{there.port}/"
            await in_thread([*curl, "*", "-k", url])
            where = ["--socks5-hostname", str(proxy.address), "--cacert", str(tmp_path / "ca" / "ca.crt")]
            done = await in_thread([*curl, "", *where, url])
            assert (done.stdout, done.stderr) == (b"ok", b"")
            alone, through = (http2_text(octets) for octets in there.inside)
            assert through[0] == alone[0]
            assert len(through[1]) == len(alone[1]) + bool(hooks)

    run_once(main)


def test_a_profile_s_parts() -> None:
    """What interception asks for."""
    http = ProfileHttp(find_profile("chrome:152"))
    assert isinstance(http.make_relay(Pass(), True), ProfileRelay)
    assert http.make_relay(Pass(), True).strip_alt_svc
    assert len(http.around(Hooks()).request) == 1
