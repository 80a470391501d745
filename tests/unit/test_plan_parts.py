"""Which part of a dataset each cell sends, and how often a prompt was sent before."""

from hypothesis import given
from hypothesis import strategies as st

from kvgauge.plan.parts import Seen, first_prompts, turned
from kvgauge.plan.records import Conversation, DatasetFile
from scene import make_cell


def file(prompts, sha256="a"):
    return DatasetFile(
        path="d", sha256=sha256, prompts=prompts, words_mean=1, words_max=1, output_tokens_mean=None,
        output_tokens_max=None,
    )  # fmt: skip


def cell(name, prompts=100, sha256="a", **changes):
    base = {"input_tokens": None, "dataset": file(prompts, sha256), "requests": 9, "warmup_requests": 1}
    return make_cell(name=name, **(base | changes))


def test_cells_take_parts_that_follow_one_another_warm_up_included():
    assert first_prompts([cell("a"), cell("b"), make_cell(name="made"), cell("c")]) == {"a": 0, "b": 10, "c": 20}


def test_parts_begin_again_where_the_dataset_ends_and_files_do_not_share_them():
    cells = [cell("a", 15), cell("b", 15), cell("other", 15, "b"), cell("c", 15)]
    assert first_prompts(cells) == {"a": 0, "b": 10, "c": 5, "other": 0}


def test_conversations_count_as_one_prompt_each():
    cells = [cell("a", requests=30, sessions=10, conversation=Conversation(turns=3)), cell("b")]
    assert first_prompts(cells) == {"a": 0, "b": 11}


def test_cells_that_end_by_the_clock_share_what_the_others_leave():
    long = {"requests": 1_000_000, "duration_s": 60.0}
    assert first_prompts([cell("a", **long), cell("b"), cell("c", **long)]) == {"a": 0, "b": 45, "c": 55}


def test_the_next_round_on_the_same_target_goes_on_from_there():
    assert first_prompts([cell("a"), cell("b")], round_number=2) == {"a": 40, "b": 50}


@given(st.lists(st.integers(1, 30), min_size=1, max_size=6), st.integers(1, 200))
def test_no_prompt_repeats_while_the_dataset_lasts_and_every_repeat_is_counted(sizes, prompts):
    cells = [cell(str(number), prompts, requests=size, warmup_requests=0) for number, size in enumerate(sizes)]
    firsts, seen = first_prompts(cells), Seen()
    repeated = sum(
        seen.repeated("a", [(firsts[each.name] + number) % prompts for number in range(each.requests)])
        for each in cells
    )
    assert repeated == max(0, sum(sizes) - prompts)


def test_a_fresh_target_has_seen_nothing():
    seen = Seen()
    assert (seen.repeated("a", [1, 2, 1]), seen.repeated("b", [1]), seen.repeated("a", [2, 3])) == (1, 0, 1)
    seen.forget()
    assert seen.repeated("a", [1, 2, 3]) == 0


def test_turned_items_lose_nothing():
    assert turned((1, 2, 3), 2) == (3, 1, 2)
    assert turned((1, 2), 0) == (1, 2)
