import json

import pytest

from kvgauge.failures import LoadError
from kvgauge.load.prompts import Bodies, shared_tokens, unique_tokens, words
from kvgauge.plan.dataset import DatasetPrompt
from kvgauge.plan.records import Cell, DatasetFile, TraceFile
from kvgauge.plan.trace import TraceRequest


def cell(**changes):
    given = {"name": "c", "load": "closed", "concurrency": 2, "requests": 4, "output_tokens": 7, "warmup_requests": 0}
    return Cell(**{**given, **changes})


def test_a_prompt_has_exactly_the_length_asked_for_and_stays_in_range():
    for count in (1, 2, 16, 17, 512):
        ids = unique_tokens(1, "c", 3, count, low=100, high=400)
        assert len(ids) == count
        assert all(100 <= token <= 400 for token in ids)


def test_the_same_seed_cell_and_number_give_the_same_prompt():
    assert unique_tokens(1, "c", 3, 64) == unique_tokens(1, "c", 3, 64)


def test_the_first_block_differs_between_requests_cells_and_seeds():
    heads = {
        tuple(unique_tokens(seed, name, seq, 512)[:16]) for seed in (1, 2) for name in ("a", "b") for seq in range(500)
    }
    assert len(heads) == 2_000


def test_two_tokens_of_a_small_vocabulary_still_tell_requests_apart():
    assert len({tuple(unique_tokens(1, "c", seq, 2, low=0, high=255)) for seq in range(20_000)}) == 20_000


def test_ids_cover_their_range_evenly():
    ids = [token for seq in range(200) for token in unique_tokens(1, "c", seq, 512, low=0, high=999)]
    tenths = [sum(100 * k <= token < 100 * (k + 1) for token in ids) for k in range(10)]
    assert max(tenths) / min(tenths) < 1.1


def test_a_range_too_small_to_be_unique_is_refused():
    with pytest.raises(LoadError, match="256 token ids"):
        unique_tokens(1, "c", 0, 16, low=0, high=9)


def test_a_completion_asks_for_greedy_tokens_to_the_last_and_their_count():
    body = json.loads(Bodies(cell(prompt="Hello"), model="m", seed=1).body(0))
    assert body == {
        "model": "m",
        "prompt": "Hello",
        "max_tokens": 7,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_a_unique_prompt_goes_out_as_token_ids():
    bodies = Bodies(cell(input_tokens=20), model="m", seed=1)
    first, second = (json.loads(bodies.body(seq))["prompt"] for seq in (0, 1))
    assert len(first) == len(second) == 20
    assert first != second


def test_without_streaming_no_stream_options_are_sent():
    body = json.loads(Bodies(cell(prompt="Hello", stream=False), model="m", seed=1).body(0))
    assert "stream" not in body
    assert "stream_options" not in body


def test_chat_wraps_the_prompt_in_a_message():
    body = json.loads(Bodies(cell(prompt="Hello", api="chat"), model="m", seed=1).body(0))
    assert body["messages"] == [{"role": "user", "content": "Hello"}]


def test_chat_refuses_token_ids_and_a_cell_without_a_prompt_is_refused():
    with pytest.raises(LoadError, match="chat takes text"):
        Bodies(cell(input_tokens=20, api="chat"), model="m", seed=1)
    with pytest.raises(LoadError, match="neither"):
        Bodies(cell(), model="m", seed=1)


TRACE = (
    TraceRequest(at_ns=0, input_tokens=1100, output_tokens=3, hash_ids=(7, 8, 9)),
    TraceRequest(at_ns=0, input_tokens=1500, output_tokens=4, hash_ids=(7, 8, 5)),
    TraceRequest(at_ns=0, input_tokens=700, output_tokens=5, hash_ids=(7,)),
    TraceRequest(at_ns=0, input_tokens=700, output_tokens=6, hash_ids=()),
)


def test_the_same_hash_id_is_the_same_block_and_the_rest_is_unique():
    prompts = [shared_tokens(1, "c", request, seq) for seq, request in enumerate(TRACE)]
    assert [len(prompt) for prompt in prompts] == [1100, 1500, 700, 700]
    assert prompts[0][:1024] == prompts[1][:1024]
    assert prompts[0][1024:1040] != prompts[1][1024:1040]
    assert prompts[2][:512] == prompts[0][:512]
    assert prompts[2][512:528] not in (prompts[0][512:528], prompts[3][:16])
    assert prompts[3][:16] != prompts[0][:16]
    assert shared_tokens(1, "c", TRACE[0], 0) == prompts[0]


def test_blocks_differ_between_seeds_and_cells_so_that_no_cell_warms_anothers_cache():
    heads = {tuple(shared_tokens(seed, name, TRACE[0], 0)[:16]) for seed in (1, 2) for name in ("a", "b")}
    assert len(heads) == 4


def test_bodies_of_a_trace_ask_for_each_requests_lengths_after_a_warm_up_of_its_own():
    file = TraceFile(
        path="t", sha256="", requests=4, span_s=0, input_tokens_mean=1000, input_tokens_max=1500,
        output_tokens_mean=4.5, output_tokens_max=6,
    )  # fmt: skip
    bodies = Bodies(cell(load="trace", trace=file, warmup_requests=2), model="m", seed=1, requests=TRACE)
    read = [json.loads(bodies.body(seq)) for seq in range(6)]
    assert [(len(each["prompt"]), each["max_tokens"]) for each in read] == [
        (1000, 4), (1000, 4), (1100, 3), (1500, 4), (700, 5), (700, 6),
    ]  # fmt: skip
    assert read[0]["prompt"][:16] != read[2]["prompt"][:16]
    with pytest.raises(LoadError, match="chat takes text"):
        Bodies(cell(load="trace", trace=file, api="chat"), model="m", seed=1, requests=TRACE)


def test_text_has_as_many_words_as_tokens_were_asked_for_and_begins_like_no_other():
    bodies = Bodies(cell(input_tokens=20, prompt_kind="text"), model="m", seed=1)
    prompts = [json.loads(bodies.body(seq))["prompt"] for seq in range(2_000)]
    assert {len(prompt.split(" ")) for prompt in prompts} == {20}
    assert len({tuple(prompt.split(" ")[:16]) for prompt in prompts}) == 2_000
    assert {word for prompt in prompts for word in prompt.split(" ")} <= set(words())


def test_the_words_are_1024_and_none_is_like_another():
    assert len(set(words())) == len(words()) == 1024
    assert all(word.isascii() and word.isalpha() and word.islower() for word in words())


def test_text_over_chat_is_made_shorter_by_what_the_server_adds():
    bodies = Bodies(cell(input_tokens=20, prompt_kind="text", api="chat"), model="m", seed=1, added=7)
    [message] = json.loads(bodies.body(0))["messages"]
    assert (message["role"], len(message["content"].split())) == ("user", 13)


def test_a_shared_prefix_is_the_same_and_the_rest_is_not():
    bodies = Bodies(cell(input_tokens=64, shared_prefix_tokens=40), model="m", seed=1)
    prompts = [json.loads(bodies.body(seq))["prompt"] for seq in range(50)]
    assert {len(prompt) for prompt in prompts} == {64}
    assert len({tuple(prompt[:40]) for prompt in prompts}) == 1
    assert len({tuple(prompt[40:42]) for prompt in prompts}) == 50


def test_several_prefixes_are_taken_in_turn():
    bodies = Bodies(cell(input_tokens=64, shared_prefix_tokens=40, prefixes=3, prompt_kind="text"), model="m", seed=1)
    heads = [json.loads(bodies.body(seq))["prompt"].split()[:40] for seq in range(6)]
    assert heads[0] == heads[3]
    assert heads[2] == heads[5]
    assert heads[0] != heads[1] != heads[2] != heads[0]


def test_what_is_added_to_the_body_stands_beside_what_kvgauge_sets():
    which = cell(prompt="Hello", ignore_eos=False, extra_body={"top_p": 0.5, "stop": ["."]})
    body = json.loads(Bodies(which, model="m", seed=1).body(0))
    assert (body["top_p"], body["stop"], body["model"], body["max_tokens"]) == (0.5, ["."], "m", 7)
    assert "ignore_eos" not in body


def test_a_trace_over_chat_is_text_of_its_lengths_with_its_shared_blocks():
    file = TraceFile(
        path="t", sha256="", requests=4, span_s=0, input_tokens_mean=1000, input_tokens_max=1500,
        output_tokens_mean=4.5, output_tokens_max=6,
    )  # fmt: skip
    which = cell(load="trace", trace=file, api="chat", prompt_kind="text")
    bodies = Bodies(which, model="m", seed=1, requests=TRACE)
    texts = [json.loads(bodies.body(seq))["messages"][0]["content"].split() for seq in range(4)]
    assert [len(text) for text in texts] == [1100, 1500, 700, 700]
    assert texts[0][:1024] == texts[1][:1024]


def test_prompts_of_a_file_are_sent_as_they_stand_in_turn():
    given = (DatasetPrompt(text="eins", output_tokens=None), DatasetPrompt(text="zwei\n", output_tokens=2))
    file = DatasetFile(
        path="d", sha256="", prompts=2, words_mean=1, words_max=1, output_tokens_mean=2, output_tokens_max=2
    )
    bodies = Bodies(cell(dataset=file), model="m", seed=1, requests=given)
    read = [json.loads(bodies.body(seq)) for seq in range(3)]
    assert [(each["prompt"], each["max_tokens"]) for each in read] == [("eins", 7), ("zwei\n", 2), ("eins", 7)]
