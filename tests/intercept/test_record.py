"""Records: what they weigh, how long a flow took, and how a field is found."""

from __future__ import annotations

from flows import make_record
from tabi.intercept.record import OVERHEAD, WebSocketMessage, first_value


def test_the_time_is_the_sum_of_what_is_known() -> None:
    """A time that is not known, such as that of a connection that was there already, counts nothing."""
    assert round(make_record().seconds, 6) == 0.024
    assert round(make_record(dns=1.0, connect=2.0, tls=3.0).seconds, 6) == 6.024
    assert make_record(send=None, wait=None, receive=None).seconds == 0


def test_the_weight_counts_all_that_a_peer_can_make_long() -> None:
    """Bodies, fields, the URL and messages."""
    long = 100_000
    light = make_record(body=b"").weight
    assert OVERHEAD < light < 2 * OVERHEAD
    message = WebSocketMessage("send", 1.0, 2, bytes(long))
    for heavy in (
        make_record(body=bytes(long)),
        make_record(request_body=bytes(long)),
        make_record(url="x" * long),
        make_record(request_fields=[(b"a", bytes(long))]),
        make_record(response_fields=[(bytes(long), b"")]),
        make_record(messages=[message]),
    ):
        assert heavy.weight >= light + long - 1000


def test_the_first_field_of_a_name_in_any_case_is_found() -> None:
    """Names of fields are the same in any case."""
    fields = [(b"a", b"1"), (b"CONTENT-type", b"2"), (b"Content-Type", b"3")]
    assert first_value(fields, b"content-type") == b"2"
    assert first_value(fields, b"content-length") is None
