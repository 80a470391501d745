"""Headers and keys: what may be sent, and that no value is to be had from anything but the wire."""

import pytest

from kvgauge.failures import UsageError
from kvgauge.load.headers import NO_HEADERS, Headers, read_headers
from kvgauge.load.site import site_of

KEY = 'sk-very"secret\\12345'
SET = {"MY_KEY": KEY, "TENANT": "blue-team-7", "BROKEN": "sk-abcdefgh\n", "EMPTY": "", "SHORT": "abc"}


def refusal(plain=(), env=(), key=None):
    with pytest.raises(UsageError) as caught:
        read_headers(plain, env, key, SET)
    return str(caught.value)


def test_headers_and_a_key_stand_in_the_head_of_a_request():
    headers = read_headers(["X-Team: a b"], ["X-Tenant:TENANT"], "MY_KEY", SET)
    head = site_of("http://127.0.0.1:1", headers=headers).request("POST", "/v1/completions", b"{}")
    assert b"\r\nX-Team: a b\r\nX-Tenant: blue-team-7\r\nAuthorization: Bearer " + KEY.encode() + b"\r\n" in head
    assert head.endswith(b"\r\nContent-Length: 2\r\n\r\n{}")
    assert headers.names == ("X-Team", "X-Tenant", "Authorization")


def test_a_site_that_is_printed_shows_no_value():
    site = site_of("http://127.0.0.1:1", headers=read_headers([], ["X-Tenant:TENANT"], "MY_KEY", SET))
    assert "Headers(X-Tenant, Authorization)" in repr(site)
    assert KEY not in repr(site)
    assert "blue-team-7" not in repr(site)


def test_what_a_server_says_back_is_as_long_and_without_the_key():
    headers = read_headers([], ["X-Tenant:TENANT"], "MY_KEY", SET)
    said = b'{"error": "no key sk-very\\"secret\\\\12345 of blue-team-7", "raw": "' + KEY.encode() + b'"}'
    hidden = headers.hidden(said)
    assert len(hidden) == len(said)
    assert b"secret" not in hidden
    assert b"blue" not in hidden
    assert NO_HEADERS.hidden(said) is said


def test_a_value_too_short_to_be_a_key_does_not_eat_words():
    assert read_headers([], [], "SHORT", SET).hidden(b"abcde") == b"abcde"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"plain": ["nothing"]}, "write NAME:VALUE"),
        ({"plain": ["a b: c"]}, "'a b' is not the name of a header"),
        ({"plain": ["X-A: b\r\nX-B: c"]}, "printable ASCII"),
        ({"plain": ["X-A: \x00"]}, "printable ASCII"),
        ({"plain": ["X-A:"]}, "printable ASCII"),
        ({"plain": ["X-A: é"]}, "printable ASCII"),
        ({"plain": ["Content-Length: 3"]}, "kvgauge's own to set"),
        ({"plain": ["Authorization: Bearer x"]}, "--header-env Authorization:VARIABLE"),
        ({"plain": ["x-api-key: x"]}, "--header-env x-api-key:VARIABLE"),
        ({"plain": ["X-A: 1", "x-a: 2"]}, "given twice"),
        ({"key": "NOWHERE"}, "'NOWHERE' is not set"),
        ({"key": "EMPTY"}, "'EMPTY' is not set, or empty"),
        ({"key": "BROKEN"}, "printable ASCII"),
        ({"env": ["X-Api-Key:BROKEN"]}, "printable ASCII"),
        ({"plain": [f"X-{n}: 1" for n in range(51)]}, "at most 50"),
    ],
)
def test_what_cannot_be_sent_is_refused_and_no_message_holds_a_value(given, message):
    said = refusal(**given)
    assert message in said
    assert "sk-" not in said


def test_headers_have_no_way_to_be_saved():
    assert not hasattr(Headers([("X-A", "1")]), "__dict__")
