"""Masking: no secret is left in what is shown, and all else stays octet for octet."""

from __future__ import annotations

import gzip
import json

import brotli
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows import make_record
from tabi.intercept.har import encode_entry
from tabi.intercept.masking import (
    mask_body,
    mask_fields,
    mask_json,
    mask_pairs,
    mask_text,
    mask_url,
    names_for,
    prepare,
)
from tabi.intercept.record import WebSocketMessage

NAMES = names_for(("Sesame", "x-door"))


@pytest.mark.parametrize(
    "name",
    [
        *("access_token", "accessToken", "ACCESS-TOKEN", "refresh_token", "id_token", "token", "csrf_token"),
        *("api_key", "apikey", "X-Api-Key", "Ocp-Apim-Subscription-Key", "client_secret", "secret", "X-Auth-Token"),
        *("password", "passwd", "pwd", "user_password", "new-password2", "user[password]", "login.password", "a:token"),
        *("X-Amz-Signature", "X-Amz-Security-Token", "X-Amz-Credential", "sig", "AWSSecretKey", "SecretAccessKey"),
        *("Authorization", "Proxy-Authorization", "PRIVATE-TOKEN", "JOB-TOKEN", "X-Vault-Token", "sesame", "SESAME"),
        *(
            "X-Door",
            "door",
            "X-Forwarded-Authorization",
            "X-Goog-IAM-Authorization-Token",
            "JSESSIONID",
            "session_id",
            "code_verifier",
            "client_assertion",
        ),
    ],
)
def test_names_of_secrets_are_known(name: str) -> None:
    """However they are spelled, and those of the rule."""
    assert name in NAMES


@pytest.mark.parametrize(
    "name", ["", "a", "key", "max_tokens", "tokens", "author", "passenger", "page", "next_page_token"]
)
def test_other_names_are_not(name: str) -> None:
    """What only looks like one stays readable."""
    assert name not in NAMES


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://example.com/a?b=1&c=#d", "https://example.com/a?b=1&c=#d"),
        ("https://u:p@example.com/", "https://***@example.com/"),
        ("https://u:p@q@example.com:1/@x", "https://***@example.com:1/@x"),
        ("//u:p@example.com/", "//***@example.com/"),
        ("https://example.com/a@b?c=d@e", "https://example.com/a@b?c=d@e"),
        ("/a?token=x&b=2&password=", "/a?token=***&b=2&password=***"),
        ("/a?TOKEN=x=y==", "/a?TOKEN=***"),
        ("/a?pass%77ord=x", "/a?pass%77ord=***"),
        ("/a?a=1;token=x;y&b=2", "/a?a=1;token=***&b=2"),
        ("/a;jsessionid=1;b=2?c", "/a;jsessionid=***;b=2?c"),
        ("/cb#access_token=x&state=1", "/cb#access_token=***&state=1"),
        ("/cb?a#/path?access_token=x", "/cb?a#/path?access_token=***"),
        ("/a?to=https://u:p@h/", "/a?to=https://***@h/"),
        ("/a?token", "/a?token"),
    ],
)
def test_urls(url: str, shown: str) -> None:
    """User information and values of keys of secrets, also where they are encoded or in a fragment."""
    assert mask_url(url, NAMES) == shown


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("Authorization", "Bearer abc", "Bearer ***"),
        ("authorization", 'Digest username="u", response="r"', "Digest ***"),
        ("Authorization", "abc def", "***"),
        ("Authorization", "abc", "***"),
        ("Authorization", "", ""),
        ("Proxy-Authorization", "Basic abc", "Basic ***"),
        ("Cookie", "a=b; c=d=e; f; g=", "a=***; c=***;***; g="),
        ("Set-Cookie", "a=b; Path=/; HttpOnly", "a=***; Path=/; HttpOnly"),
        ("X-Api-Key", "abc", "***"),
        ("Sesame", "open up", "***"),
        ("Referer", "https://u:p@h/?token=1&a=2", "https://***@h/?token=***&a=2"),
        ("Location", "/x?code=1&access_token=2", "/x?code=1&access_token=***"),
        ("Link", '<https://u@h/?token=a>; rel="next", </b?c=d>', '<https://***@h/?token=***>; rel="next", </b?c=d>'),
        ("Refresh", "5; url=https://h/?token=a", "5; url=https://h/?token=***"),
        ("User-Agent", "curl/8 (a; b)", "curl/8 (a; b)"),
        ("Accept", "*/*", "*/*"),
        ("WWW-Authenticate", 'Basic realm="x"', 'Basic realm="x"'),
    ],
)
def test_fields(name: str, value: str, shown: str) -> None:
    """The scheme of credentials and the names of cookies stay."""
    assert mask_fields([(name.encode(), value.encode())], NAMES) == [(name.encode(), shown.encode())]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ('{"password": "x", "a": 1}', '{"password": "***", "a": 1}'),
        ('{"a":{"b":[{"token":"x"}]}}', '{"a":{"b":[{"token":"***"}]}}'),
        ('{"token":{"a":["}","x"]},"b":1}', '{"token":"***","b":1}'),
        (
            '{"token":12,"secret":null,"password":true,"pwd":""}',
            '{"token":"***","secret":null,"password":true,"pwd":""}',
        ),
        ('{"pass\\u0077ord":"x\\"y"}', '{"pass\\u0077ord":"***"}'),
        ('{"a":"\\"token\\":\\"x\\"","b":"token"}', '{"a":"\\"token\\":\\"x\\"","b":"token"}'),
        ('{"token":"cut off', '{"token":"***"'),
        ('{"token":{"cut":"off', '{"token":"***"'),
        ('{"token":\n  "x"}\n{"token" : "y"}', '{"token":\n  "***"}\n{"token" : "***"}'),
        ('{"token":', '{"token":'),
        ('["token","x"]', '["token","x"]'),
    ],
)
def test_json(text: str, shown: str) -> None:
    """Keys at any depth, with escapes, in JSON that is cut or has several values; all else stays as it is."""
    assert mask_json(text, NAMES) == shown


def test_forms() -> None:
    """Pairs of a form, and the parts of one with files."""
    form = [(b"Content-Type", b"application/x-www-form-urlencoded; charset=utf-8")]
    assert mask_body(b"a=1&password=x%20y&pass%77ord=z", form, NAMES) == b"a=1&password=***&pass%77ord=***"
    parts = [(b"Content-Type", b'multipart/form-data; charset=utf-8; boundary="x"')]
    body = (
        b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n'
        b'--x\r\nContent-Disposition: form-data; name="password"\r\n\r\nsecret\xff\r\n--x--\r\n'
    )
    assert mask_body(body, parts, NAMES) == body.replace(b"secret\xff", b"***")
    assert mask_body(body[:-9], parts, NAMES).endswith(b"\r\n\r\n***")


def test_other_bodies_stay_as_they_are() -> None:
    """Text, and octets; JSON is found without its type."""
    assert mask_body(b"password=x", [(b"Content-Type", b"text/plain")], NAMES) == b"password=x"
    assert mask_body(b"\xff\x00", [], NAMES) == b"\xff\x00"
    assert mask_body(b'\xef\xbb\xbf {"token":"x"}', [], NAMES) == b'\xef\xbb\xbf {"token":"***"}'
    for kind, before in ((b"text/event-stream", b"event: a\ndata: "), (b"text/javascript", b"callback(")):
        assert mask_body(before + b'{"token":"x"}', [(b"Content-Type", kind)], NAMES) == before + b'{"token":"***"}'
    assert mask_body(b'"token":"x"', [(b"content-type", b"application/problem+json")], NAMES) == b'"token":"***"'


SECRET = "S3cr3tV4lue"


def test_no_secret_is_left_in_a_record() -> None:
    """Whatever holds it: URLs, fields, compressed bodies, messages, errors, the proxy on the way."""
    message = json.dumps({"token": SECRET}).encode()
    record = make_record(
        f"https://u:{SECRET}@h/?token={SECRET}",
        request_fields=[
            *((name, SECRET.encode()) for name in (b"Authorization", b"Cookie", b"X-Api-Key", b"Sesame")),
            (b"Referer", f"https://{SECRET}@h/?password={SECRET}".encode()),
            (b"Content-Type", b"application/x-www-form-urlencoded"),
            (b"Content-Encoding", b"gzip"),
        ],
        request_body=gzip.compress(f"password={SECRET}&sesame={SECRET}".encode()),
        response_fields=[
            (b"Set-Cookie", f"a={SECRET}; Path=/".encode()),
            (b"Location", f"/?access_token={SECRET}".encode()),
            (b"Content-Type", b"application/json"),
            (b"Content-Encoding", b"br"),
        ],
        messages=[WebSocketMessage("send", 1.0, 1, message)],
        error=f"no answer from https://u:{SECRET}@h/",
        via=f"socks5://u:{SECRET}@h:1",
    )
    record.response_body = brotli.compress(message)
    assert SECRET.encode() not in encode_entry(prepare(record, 1_000_000, more=("sesame",)))
    shown = encode_entry(prepare(record, 1_000_000, secrets=True)).decode()
    assert shown.count(SECRET) >= 14


def test_a_record_that_is_prepared_stays_as_it_is() -> None:
    """It is not decoded twice."""
    record = prepare(make_record(), 100)
    assert prepare(record, 1) is record


def test_bodies_are_without_their_coding_and_within_the_limit() -> None:
    """What is cut says so; what cannot be decoded is kept as it came."""
    coded = [(b"Content-Encoding", b"gzip")]
    data = gzip.compress(b"hello")
    record = prepare(make_record(body=data, response_fields=coded), 100)
    assert (record.response_body, record.content_size, record.truncated) == (b"hello", 5, False)
    record = prepare(make_record(body=data, response_fields=coded), 4)
    assert (record.response_body, record.content_size, record.truncated) == (b"hell", -1, True)
    record = prepare(make_record(body=b"hello", response_fields=coded), 100)
    assert (record.response_body, record.truncated) == (b"hello", False)
    record = prepare(make_record(body=b"hello", response_size=9), 100)
    assert (record.response_body, record.truncated) == (b"hello", True)


def test_sizes_of_heads() -> None:
    """As they were before anything was masked; HTTP/2 has no such number."""
    record = prepare(make_record("https://u:p@h/a?token=1", request_fields=[(b"Host", b"h")], response_fields=[]), 100)
    assert record.request_head_size == len("GET /a?token=1 HTTP/1.1\r\nHost: h\r\n\r\n")
    assert record.response_head_size == len("HTTP/1.1 200 OK\r\n\r\n")
    record = prepare(make_record(version="HTTP/2", response_version="HTTP/2"), 100)
    assert (record.request_head_size, record.response_head_size) == (-1, -1)
    assert prepare(make_record(status=0), 100).response_head_size == -1


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["a", "token", 'to"ken', "pass\\word", "password"]), inner, max_size=3)
    ),
)


@given(JSON, st.booleans(), st.integers(0, 200))
def test_any_json_stays_json_and_has_no_secret(value: object, plain: bool, cut: int) -> None:
    """A secret anywhere below the key of one is gone; a text cut anywhere does not fail."""
    text = json.dumps({"keep": "K", "password": [value, SECRET], "x": value}, ensure_ascii=plain)
    shown = mask_json(text, NAMES)
    assert json.loads(shown).keys() == {"keep", "password", "x"}
    assert SECRET not in shown
    assert "token" not in json.loads(shown) or json.loads(shown)["token"] == "***"
    assert SECRET not in mask_json(text[:cut], NAMES)


@given(st.text(alphabet="ab=&;?#/:@%.[]token \n"))
def test_any_text_is_masked_once(text: str) -> None:
    """Masking what is masked changes nothing, and nothing fails."""
    for mask in (mask_url, mask_pairs, mask_text):
        once = mask(text, NAMES)
        assert mask(once, NAMES) == once
