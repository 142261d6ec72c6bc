"""HTTP/2 toward a destination: as the client begins it (`MirrorHttp`), or as a browser does (`ProfileHttp`).

The frame relay passes SETTINGS as they are, but for what has a bound in it, and the fields of a request in the order
in which they came. For a mirror the bounds are those of browsers. With a profile the SETTINGS, the window of the
connection and the order of fields are the profile's. What the destination may send is what these say, and what the
client takes is what its own say: the difference waits here, at most the window of the connection.
"""

from __future__ import annotations

from functools import partial

from tabi.distort.fingerprint.fields import FieldOrder, ordered, places_of
from tabi.distort.fingerprint.presets import Http2Profile, Profile
from tabi.errors import H2Error
from tabi.intercept.hooks import Hooks
from tabi.intercept.http2 import Down, Up
from tabi.intercept.http2_direction import MAX_SETTINGS
from tabi.intercept.http2_stream import Half, Inspector
from tabi.intercept.sent import WatchedRelay
from tabi.wire.h2 import (
    ACK,
    HEADER_TABLE_SIZE,
    INITIAL_WINDOW_SIZE,
    MAX_WINDOW,
    SETTINGS,
    SETTINGS_ACK,
    WINDOW,
    ErrorCode,
    decode_settings,
    encode_frame,
    encode_settings,
    encode_window_update,
)
from tabi.wire.hpack import TABLE_SIZE, Field

MAX_TABLE = 1 << 16
"""Octets of a table of fields that is allowed to a destination: what Chrome and Firefox allow."""

ANY = (1 << 32) - 1


class MirrorUp(Up):
    """What the client sends, with its own SETTINGS and the order of its pseudo-header fields."""

    max_table = MAX_TABLE
    max_list = ANY
    pseudo: tuple[bytes, ...] = ()

    def write_fields(self, half: Half, fields: list[Field], end: bool, before: bytes = b"") -> None:
        """See `Outlet.write_fields`."""
        super().write_fields(half, fields if half.to else in_order(fields, self.pseudo), end, before)


class MirrorRelay(WatchedRelay):
    """A frame relay that shows a destination what the client shows."""

    def make_directions(self) -> tuple[Up, Down]:
        """See `FrameRelay.make_directions`."""
        return MirrorUp(self), Down(self)

    def begin(self, id: int, end: int, before: bytes, fields: list[Field]) -> None:
        """See `FrameRelay.begin`."""
        up = self.up
        assert isinstance(up, MirrorUp)
        if not up.pseudo:  # hooks would have an order of their own
            up.pseudo = tuple([name for name, _ in fields if name.startswith(b":")])
        super().begin(id, end, before, fields)


class MirrorHttp:
    """What the client shows. See `HttpFingerprint`."""

    def around(self, hooks: Hooks) -> Hooks:
        """HTTP/1 passes as it is."""
        return hooks

    def make_relay(self, inspector: Inspector, strip_alt_svc: bool) -> WatchedRelay:
        """See `HttpFingerprint.make_relay`."""
        return MirrorRelay(inspector, strip_alt_svc)


class ProfileUp(Up):
    """What the client sends, with a browser's SETTINGS and order of fields."""

    relay: ProfileRelay
    asked = False

    def on_settings(self, flags: int, id: int, payload: bytes) -> bool:
        """The first of the client's become the profile's, later ones are only counted: the destination acknowledges
        each."""
        if flags & ACK:
            return super().on_settings(flags, id, payload)
        self.count_noise()
        given = dict(decode_settings(payload))
        self.settings.append((given.get(HEADER_TABLE_SIZE), given.get(INITIAL_WINDOW_SIZE)))
        if len(self.settings) > MAX_SETTINGS:
            raise H2Error("too many SETTINGS that are not acknowledged", ErrorCode.ENHANCE_YOUR_CALM)
        if self.asked:
            self.emit(encode_frame(SETTINGS, 0, 0))
            return False
        self.asked = True
        profile = self.relay.profile
        self.emit(encode_settings(profile.settings))
        self.emit(encode_window_update(0, profile.window))
        return False

    def on_priority(self, flags: int, id: int, payload: bytes) -> bool:
        """The profile has none."""
        super().on_priority(flags, id, payload)
        return False

    def write_fields(self, half: Half, fields: list[Field], end: bool, before: bytes = b"") -> None:
        """See `Outlet.write_fields`."""
        if not half.to:
            fields = self.relay.arrange(fields)
        super().write_fields(half, fields, end, before)


class ProfileDown(Down):
    """What the server sends, as much of it as the profile says; the client's own windows say when it goes on."""

    relay: ProfileRelay

    def __init__(self, relay: ProfileRelay) -> None:
        super().__init__(relay)
        profile = relay.profile
        settings = dict(profile.settings)
        self.managed = True
        self.credit = WINDOW + profile.window
        self.of_stream = settings.get(INITIAL_WINDOW_SIZE, WINDOW)
        self.table = settings.get(HEADER_TABLE_SIZE, TABLE_SIZE)

    def on_settings(self, flags: int, id: int, payload: bytes) -> bool:
        """The server has acknowledged the profile's, and so we the client's."""
        if not flags & ACK:
            return super().on_settings(flags, id, payload)
        self.count_noise()
        if not self.other.settings:
            raise H2Error("an acknowledgement of no SETTINGS", ErrorCode.PROTOCOL_ERROR)
        table, window = self.other.settings.popleft()
        self.decoder.allow(self.table)
        if table is not None:
            self.encoder.allow(table)
        self.emit(SETTINGS_ACK)
        if window is not None:
            self.set_initial(window)
        return False

    def set_initial(self, window: int) -> None:
        """The client's window for new streams. Raises H2Error."""
        change, self.initial = window - self.initial, window
        for half in self.all_halves():
            half.window += change
            if half.window > MAX_WINDOW:
                raise H2Error("a window beyond what it can be", ErrorCode.FLOW_CONTROL_ERROR)
        self.pump()

    def opened(self, half: Half) -> None:
        """See `Outlet.opened`."""
        half.credit = self.of_stream


class ProfileRelay(WatchedRelay):
    """A frame relay that shows a destination what a browser shows.

    Args:
        profile: the browser's.
        order: arranges its fields.
        inspector, strip_alt_svc: as `FrameRelay`.
    """

    def __init__(self, profile: Http2Profile, order: FieldOrder, inspector: Inspector, strip_alt_svc: bool) -> None:
        self.profile = profile
        self.order = order
        self.held_limit = WINDOW + profile.window  # else one stream that rests would hold up all others
        super().__init__(inspector, strip_alt_svc)

    def make_directions(self) -> tuple[Up, Down]:
        """See `FrameRelay.make_directions`."""
        return ProfileUp(self), ProfileDown(self)

    def arrange(self, fields: list[Field]) -> list[Field]:
        """The fields of a request, in the profile's order."""
        found = in_order(fields, self.profile.pseudo)
        count = sum(1 for name, _ in found if name.startswith(b":"))
        return found[:count] + ordered(found[count:], self.order.places)


class ProfileHttp:
    """What a browser shows. See `HttpFingerprint`.

    Args:
        profile: the browser's.
    """

    def __init__(self, profile: Profile) -> None:
        self.order = FieldOrder(places_of(profile))
        self.around = self.order.around
        self.make_relay = partial(ProfileRelay, profile.http2, self.order)


def in_order(fields: list[Field], pseudo: tuple[bytes, ...]) -> list[Field]:
    """The fields of a request with its pseudo-header fields in an order; those without a place are behind them."""
    if not pseudo:
        return fields
    first = [field for field in fields if field[0].startswith(b":")]
    rest = fields[len(first) :]
    first.sort(key=lambda field: pseudo.index(field[0]) if field[0] in pseudo else len(pseudo))
    return first + rest
