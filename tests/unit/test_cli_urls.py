"""`--url`: which deployment runs which test."""

import pytest

from kvgauge.cli.urls import read_urls
from kvgauge.failures import UsageError
from kvgauge.plan.records import Plan, Primary
from scene import make_cell, make_test

ONE = Plan(
    name="p", source="s", tests=(make_test(name="only"),), cells=(make_cell(),), repetitions=1,
    primary=Primary(metric="ttft_ms_mean", cell="c"),
)  # fmt: skip


def two(*names):
    return Plan(
        name="p", source="s", tests=tuple(make_test(name=name) for name in names), cells=(make_cell(),), repetitions=1,
        primary=Primary(metric="ttft_ms_mean", cell="c"), mode="paired",
    )  # fmt: skip


def test_one_test_takes_a_bare_url_even_with_a_sign_of_equality_in_it():
    assert read_urls(["http://h:1/v?a=b"], ONE) == {"only": "http://h:1/v?a=b"}
    assert read_urls([], ONE) == {}


def test_a_paired_plan_takes_one_for_each_test_whatever_their_names_hold():
    given = ["efa/as it is=http://a", "slower=http://b"]
    assert read_urls(given, two("efa/as it is", "slower")) == {"efa/as it is": "http://a", "slower": "http://b"}


@pytest.mark.parametrize(
    ("given", "words"),
    [(["http://a"], "say whose it is"), (["a=http://a"], "no --url for 'b'"), (["a=http://x", "b=http://x"], "runs there too"),
     (["a=http://x", "a=http://y"], "has one already"), (["c=http://x"], "no test is called 'c'")],
)  # fmt: skip
def test_what_is_missing_or_twice_is_refused(given, words):
    with pytest.raises(UsageError, match=words):
        read_urls(given, two("a", "b"))
