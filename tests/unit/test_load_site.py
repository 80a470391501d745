import pytest

from kvgauge.failures import LoadError
from kvgauge.load import site as sites
from kvgauge.load.site import same_server, site_of


def test_a_base_path_comes_before_the_api_and_v1_is_not_said_twice():
    assert site_of("http://127.0.0.1:8000").path("/v1/models") == "/v1/models"
    assert site_of("http://127.0.0.1:8000/a/").path("/v1/models") == "/a/v1/models"
    assert site_of("http://127.0.0.1:8000/a/v1").path("/v1/models") == "/a/v1/models"


def test_an_ipv6_host_keeps_its_brackets_in_the_host_header():
    site = site_of("http://[::1]:8000")
    assert site.addresses[0][1][:2] == ("::1", 8000)
    assert b"Host: [::1]:8000\r\n" in site.request("GET", "/v1/models")


def test_a_request_is_whole_http():
    request = site_of("http://127.0.0.1:8000/x").request("POST", "/v1/completions", b"{}")
    head, body = request.split(b"\r\n\r\n")
    assert head.startswith(b"POST /x/v1/completions HTTP/1.1\r\n")
    assert b"Content-Length: 2" in head
    assert body == b"{}"


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("ftp://example.test", "not an http URL"),
        ("127.0.0.1:8000", "not an http URL"),
        ("http://", "not an http URL"),
        ("http://h:99999", "not a URL"),
        ("http://[::1", "not a URL"),
        ("http://127.0.0.1/a?b=c", "only a host"),
        ("http://127.0.0.1/a b", "only a host"),
        ("http://no-such-host.invalid:8000", "cannot look up"),
    ],
)
def test_a_url_that_cannot_be_used_says_what_to_write(url, said):
    with pytest.raises(LoadError, match=said):
        site_of(url)


def test_a_password_in_the_url_is_refused_and_not_repeated():
    with pytest.raises(LoadError) as caught:
        site_of("http://me:hunter2@127.0.0.1:8000")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(("status", "do"), [(401, "--api-key-env"), (403, "--api-key-env"), (404, "name the model")])
def test_a_list_of_models_that_is_refused_says_what_to_do(monkeypatch, status, do):
    monkeypatch.setattr(sites, "ask", lambda *_: (status, b'{"error": {"message": "no"}}'))
    with pytest.raises(LoadError, match=f"HTTP {status}: no; .*{do}"):
        sites.models("http://127.0.0.1:8000")


@pytest.mark.parametrize(
    ("other", "same"),
    [("http://127.0.0.1:8000", True), ("http://localhost:8000/v1/", True), ("http://127.0.0.1:8001", False),
     ("http://127.0.0.1:8000/whole", False), ("http://192.0.2.7:8000", False)],
)  # fmt: skip
def test_two_urls_of_one_server_are_known_as_such(other, same):
    assert same_server("http://127.0.0.1:8000/v1", other) is same
