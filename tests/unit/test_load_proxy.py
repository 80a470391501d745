"""Proxies: which one, what it is asked, what its refusals mean, and that its password shows nowhere."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvgauge.failures import UsageError
from kvgauge.load.proxy import NO_PROXIES, Proxies, Proxy, ProxyRefused, Tunnel
from kvgauge.load.site import site_of
from kvgauge.samples.records import Exchange

PASSWORD = "p%40ss-w0rd-never-shown"
NAMED = f"http://me:{PASSWORD}@127.0.0.1:3128"


def exchange(**changed):
    given = {
        "seq": 0, "run_id": "r", "cell": "c", "warmup": False, "slot": 0, "worker": 0, "host": "h", "clock": "monotonic",
        "stamp_source": "user", "due_ns": 0, "sent_ns": 0, "arrivals_ns": (), "done_ns": 1, "tokens_in": None,
        "tokens_out": 0, "tokens_source": "events", "status": 502, "failure": "status", "detail": "HTTP 502: no",
    }  # fmt: skip
    return Exchange(**{**given, **changed})


def test_an_http_target_is_asked_by_its_whole_url_and_the_proxy_is_connected_to():
    site = site_of("http://inside.example:8000/a", proxy=Proxy(NAMED))  # a name that only the proxy need know
    assert [address[:2] for _, address in site.addresses] == [("127.0.0.1", 3128)]
    head = site.request("GET", "/v1/models").decode()
    assert head.startswith("GET http://inside.example:8000/a/v1/models HTTP/1.1\r\nHost: inside.example:8000\r\n")
    assert "Proxy-Authorization: Basic bWU6cEBzcy13MHJkLW5ldmVyLXNob3du\r\n" in head  # me:p@ss-w0rd-never-shown
    assert site.tunnel() is None


def test_an_https_target_is_asked_inside_a_tunnel_where_the_proxys_password_does_not_go():
    site = site_of("https://inside.example/a", proxy=Proxy(NAMED))
    assert site.request("GET", "/v1/models").startswith(b"GET /a/v1/models HTTP/1.1\r\nHost: inside.example\r\n")
    assert b"Proxy-Authorization" not in site.request("GET", "/v1/models")
    tunnel = site.tunnel().request
    assert tunnel.startswith(b"CONNECT inside.example:443 HTTP/1.1\r\nHost: inside.example:443\r\n")
    assert b"Proxy-Authorization: Basic " in tunnel
    assert Proxy("[::1]:9").tunnel("::2", 1).startswith(b"CONNECT [::2]:1 ")


def test_without_being_asked_for_there_is_no_proxy_whatever_the_environment_says(monkeypatch):
    monkeypatch.setenv("http_proxy", NAMED)
    assert NO_PROXIES.of("http://a.example") is None
    assert site_of("http://127.0.0.1:1").proxy is None


@pytest.mark.parametrize(
    ("url", "no_proxy", "goes_through"),
    [
        ("http://a.example", "", "p:1"),
        ("https://a.example", "", "s:2"),
        ("http://a.example", "*", None),
        ("http://a.example", "b.example, a.example", None),
        ("http://x.a.example", "a.example", None),
        ("http://x.a.example", ".a.example", None),
        ("http://x.a.example", "*.a.example", None),
        ("http://bad-a.example", "a.example", "p:1"),
        ("http://a.example:8000", "a.example:8000", None),
        ("http://a.example:8000", "a.example:80", "p:1"),
        ("https://a.example", "a.example:443", None),
        ("http://10.1.2.3", "10.0.0.0/8", None),
        ("http://11.1.2.3", "10.0.0.0/8", "p:1"),
        ("http://[::1]:8000", "::1", None),
        ("http://[::1]:8000", "[::1]:8000", None),
        ("http://10.1.2.30", "10.1.2.3", "p:1"),
        ("http://a.example", " , ,.", "p:1"),
    ],
)
def test_the_environment_is_read_as_other_tools_read_it(url, no_proxy, goes_through):
    environment = {
        "http_proxy": "http://p:1",
        "HTTP_PROXY": "http://not-this:9",
        "HTTPS_PROXY": "s:2",
        "NO_PROXY": no_proxy,
    }
    found = Proxies(environment=environment).of(url)
    assert (found and found.authority) == goes_through


def test_all_proxy_is_for_what_has_no_variable_of_its_own():
    assert Proxies(environment={"ALL_PROXY": "http://a:3"}).of("https://x").authority == "a:3"
    assert Proxies(environment={}).of("https://x") is None


@given(st.text(max_size=30), st.text(max_size=40))
def test_no_list_of_exceptions_is_an_error(host, no_proxy):
    Proxies(environment={"http_proxy": "p:1", "no_proxy": no_proxy}).of(f"http://{host}")


@pytest.mark.parametrize(
    "url",
    [
        "socks5://me:hunter2secret@h:1", "https://me:hunter2secret@h:1", "http://me:hunter2secret@", "http://",
        "http://me:hunter2secret@h:99999", "http://me:hunter2secret@h/path", "http://me:hunter2secret@[::1",
        "http://me:hunter2secret@h?x", "http://me:hunter2secret@h\n:1x",
    ],
)  # fmt: skip
def test_a_proxy_that_cannot_be_used_is_refused_without_its_password(url):
    with pytest.raises(UsageError, match="write http://HOST:PORT") as caught:
        Proxy(url)
    assert "hunter2" not in str(caught.value)
    with pytest.raises(UsageError, match="the variable http_proxy"):
        Proxies(environment={"http_proxy": url}).of("http://a")


def test_a_password_is_in_no_text_that_a_proxy_gives_and_taken_out_of_what_comes_back():
    proxy = Proxy(NAMED)
    basic = "bWU6cEBzcy13MHJkLW5ldmVyLXNob3du"
    assert "w0rd" not in f"{proxy!r} {proxy.shown} {proxy.authority}"
    body = f"you sent p@ss-w0rd-never-shown and {PASSWORD} and {basic}".encode()
    assert b"w0rd" not in proxy.hidden(body)
    assert basic.encode() not in proxy.hidden(body)
    assert len(proxy.hidden(body)) == len(body)
    short = Proxy("http://me:abc@h:1")
    assert short.judged(exchange(detail="HTTP 500: abc?", status=500), tunnelled=False).detail == "HTTP 500: ***?"


@pytest.mark.parametrize("cut", [1, 5, 1000])
@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"HTTP/1.1 200 Connection established\r\nVia: x\r\n\r\n", None),
        (b"HTTP/1.0 200 OK\r\n\r\n", None),
        (b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\nbody", "wants another name and password"),
        (b"HTTP/1.1 502 Bad Gateway\r\n\r\n", "502 Bad Gateway: it could not reach the server"),
        (b"HTTP/1.1 403 No p@ss-w0rd-never-shown\r\n\r\n", "answered 403 No *** and made no tunnel"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "is no http proxy"),
        (b"x" * 70_000, "is no http proxy"),
        (b"HTTP/1.1 200 OK\r\n\r\nmore", "bytes of its own"),
        (b"HTTP/1.1 200 OK\r\n", "closed the connection"),
    ],
)
def test_what_a_proxy_answers_makes_a_tunnel_or_an_error_that_says_which(answer, said, cut):
    tunnel, stands = Tunnel(Proxy(NAMED), "h", 1), False
    pieces = [
        answer[at : at + cut * 100 if cut == 1000 else at + cut]
        for at in range(0, len(answer), cut * 100 if cut == 1000 else cut)
    ]
    if cut < 1000:
        pieces = [answer] if len(answer) > 1000 or b"more" in answer else pieces
    try:
        for piece in pieces:
            stands = tunnel.take(piece)
        stands = stands or tunnel.take(b"")
    except ProxyRefused as refused:
        assert said is not None
        assert said in str(refused)
        assert "w0rd" not in str(refused)
    else:
        assert stands
        assert said is None


def test_a_refusal_in_the_servers_place_is_told_from_the_servers_own():
    proxy = Proxy("h:1")
    wants = proxy.judged(exchange(status=407), tunnelled=False)
    assert (wants.failure, "the proxy h:1 answered 407" in wants.detail) == ("connect", True)
    assert "from the proxy h:1" in proxy.judged(exchange(), tunnelled=False).detail
    for same in (exchange(status=500), exchange(status=200, failure=None, detail=None)):
        assert proxy.judged(same, tunnelled=False) == same
    assert proxy.judged(exchange(status=407), tunnelled=True) == exchange(status=407)
