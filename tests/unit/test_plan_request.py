"""What a cell's requests ask for: what is read, what is refused and at which line, and files of prompts."""

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvgauge.failures import PlanError
from kvgauge.plan import dataset
from kvgauge.plan.dataset import BYTES_MAX, again, parse, summary
from kvgauge.plan.expand import prompt_tokens
from kvgauge.plan.read import read
from kvgauge.plan.records import Goodput, Plan
from kvgauge.plan.trace import asked

HEAD = """\
name: breadth
primary: {metric: METRIC, cell: c}
tests: [{name: A, backend: UCX, fabric: tcp, build: 1.5.0, model: Qwen3-0.6B}]
cells:
"""
SHAREGPT = json.dumps(
    [
        {"id": "1", "conversations": [{"from": "human", "value": "Hi, you!"}, {"from": "gpt", "value": "Hello"}]},
        {"id": "2", "conversations": [{"from": "gpt", "value": "I begin"}]},
        {"id": "3", "conversations": []},
        {"id": "4", "messages": [{"role": "user", "content": "one two"}]},
    ]
).encode()
LINES = (
    b'{"prompt": "a b c", "output_tokens": 5}\n\n{"prompt": "d", "output_len": 7, "other": [1]}\n{"prompt": "e f"}\n'
)


def plan(
    cell: str, *, metric: str = "e2e_latency_ms_mean", more: str = "", files: dict[str, bytes] | None = None
) -> Plan:
    def read_file(path: str) -> bytes:
        if files and path in files:
            return files[path]
        raise FileNotFoundError(2, "No such file or directory", path)

    text = (
        f"{HEAD.replace('METRIC', metric)}  - {{name: c, load: closed, concurrency: 1, requests: 9, output_tokens: 3,\n"
    )
    return read(f"{text}     {cell}}}\n{more}", source="p.yaml", known_builds=("1.5.0",), read_file=read_file)


def refusal(cell: str, **more) -> str:
    with pytest.raises(PlanError) as caught:
        plan(cell, **more)
    return str(caught.value)


def test_where_nothing_is_said_requests_are_streamed_completions_of_token_ids_to_the_last_token():
    cell = plan("input_tokens: 64").cells[0]
    assert (cell.api, cell.stream, cell.prompt_kind, cell.ignore_eos) == ("completions", True, "tokens", True)
    assert (cell.shared_prefix_tokens, cell.prefixes, cell.extra_body, cell.dataset) == (0, 1, {}, None)


def test_every_field_is_read():
    text = (
        "input_tokens: 64, api: chat, stream: false, ignore_eos: no, shared_prefix_tokens: 62, prefixes: 4, "
        "extra_body: {top_p: 0.5, seed: 3, stop: ['.', 'x'], guided: {a: null, b: true}, tag: '1'}"
    )
    cell = plan(text).cells[0]
    assert (cell.api, cell.stream, cell.ignore_eos, cell.prompt_kind) == ("chat", False, False, "text")
    assert (cell.shared_prefix_tokens, cell.prefixes) == (62, 4)
    assert cell.extra_body == {
        "top_p": 0.5,
        "seed": 3,
        "stop": [".", "x"],
        "guided": {"a": None, "b": True},
        "tag": "1",
    }
    assert plan("input_tokens: 9, prompt_kind: text").cells[0].prompt_kind == "text"


def test_what_was_read_comes_back_from_json_the_same():
    whole = plan(
        "input_tokens: 64, api: chat, extra_body: {a: [1, 0.5, x]}",
        more="goodput: {ttft_ms: 200, e2e_latency_ms: 900.5}\n",
    )
    assert msgspec.json.decode(msgspec.json.encode(whole), type=Plan) == whole
    assert whole.goodput == Goodput(ttft_ms=200, e2e_latency_ms=900.5)


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("input_tokens: 9, api: chatt", "p.yaml:6: api: unknown api 'chatt'; did you mean 'chat'?"),
        ("input_tokens: 9, stream: maybe", "p.yaml:6: stream: expected true or false"),
        ("input_tokens: 9, api: chat, prompt_kind: tokens", "p.yaml:6: prompt_kind: the chat API takes text"),
        ("prompt: Hello, prompt_kind: text", "p.yaml:6: prompt_kind: given beside `prompt`"),
        ("input_tokens: 9, prefixes: 2", "p.yaml:6: prefixes: needs `shared_prefix_tokens`"),
        ("prompt: Hello, shared_prefix_tokens: 2", "p.yaml:6: shared_prefix_tokens: needs `input_tokens`"),
        ("input_tokens: 9, shared_prefix_tokens: 8", "p.yaml:6: shared_prefix_tokens: expected a whole number from 1 to 7"),
        ("input_tokens: 2, shared_prefix_tokens: 1", "leave nothing to share"),
        ("input_tokens: 9, extra_body: [1]", "p.yaml:6: extra_body: expected a mapping"),
        ("input_tokens: 9, extra_body: {max_tokens: 1}", "'max_tokens' is set by kvgauge; what decides it: `output_tokens`"),
        ("input_tokens: 9, extra_body: {a: 1, a: 2}", "'a' is given twice"),
        ("input_tokens: 9, extra_body: {a: 2026-01-01}", "not what JSON has; quote it"),
        ("input_tokens: 9, extra_body: {a: .inf}", "write numbers as JSON does"),
        ("input_tokens: 9, extra_body: {a: 0x1f}", "write numbers as JSON does"),
        (f"input_tokens: 9, extra_body: {{a: {'x' * 17_000}}}", "longer than 16 KiB"),
        ("dataset: d.json, prompt: Hello", "given beside `dataset`"),
        ("dataset: d.json, input_tokens: 9", "given beside `dataset`"),
        ("dataset: none.json", "p.yaml:6: dataset: cannot read none.json: No such file or directory"),
    ],
)  # fmt: skip
def test_what_cannot_be_asked_for_is_refused_at_its_line(cell, message):
    assert message in refusal(cell, files={"d.json": SHAREGPT})


def test_a_primary_metric_that_its_cell_can_never_give_is_refused():
    assert "not known in c, whose answers are not streamed" in refusal(
        "input_tokens: 9, stream: false", metric="ttft_ms_p99"
    )
    assert "needs objectives" in refusal("input_tokens: 9", metric="goodput_req_s")
    more = "goodput: {tpot_ms: 50}\n"
    assert plan("input_tokens: 9", metric="goodput_req_s", more=more).primary.metric == "goodput_req_s"
    assert "not streamed" in refusal("input_tokens: 9, stream: false", metric="goodput_share_pct", more=more)
    assert "at least one of ttft_ms" in refusal("input_tokens: 9", more="goodput: {}\n")
    assert "unknown key 'ttft'; did you mean 'ttft_ms'?" in refusal("input_tokens: 9", more="goodput: {ttft: 1}\n")


def test_sharegpt_gives_the_first_turn_of_each_conversation_that_a_human_begins():
    cell = plan("dataset: d.json", files={"d.json": SHAREGPT}).cells[0]
    prompts = again(cell.dataset, SHAREGPT)
    assert [prompt.text for prompt in prompts] == ["Hi, you!", "one two"]
    assert (cell.dataset.prompts, cell.dataset.words_mean, cell.dataset.words_max) == (2, 3.0, 4)
    assert (prompt_tokens(cell), cell.dataset.output_tokens_max) == (3, None)
    with pytest.raises(PlanError, match="sha256 differs"):
        again(cell.dataset, SHAREGPT + b" ")


def test_lines_may_state_how_long_their_answers_are_and_are_sent_in_turn():
    cell = plan("dataset: d.jsonl", files={"d.jsonl": LINES}).cells[0]
    prompts = again(cell.dataset, LINES)
    assert [asked(cell, prompts, seq) for seq in range(4)] == [(None, 5), (None, 7), (None, 3), (None, 5)]
    assert (cell.dataset.output_tokens_mean, cell.dataset.output_tokens_max) == (6.0, 7)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "has no prompt"),
        (b"[]", "has no prompt"),
        (b"[1]", "ShareGPT file is a list"),
        (b'{"prompt": "a"}\n{"prompt": 3}', "d:2: "),
        (b'{"prompt": ""}', "d:1: the prompt is empty"),
        (b'{"prompt": "a", "output_tokens": 0}', "d:1: "),
        (b'{"text": "a"}', "missing required field `prompt`"),
        (b'{"prompt": "\xff"}', "d:1: "),
    ],
)
def test_a_dataset_that_is_none_is_refused_with_its_line(data, message):
    with pytest.raises(PlanError) as caught:
        parse(data, "d")
    assert message in str(caught.value)


def test_a_dataset_that_is_too_long_is_refused(monkeypatch):
    monkeypatch.setattr(dataset, "BYTES_MAX", 10)
    with pytest.raises(PlanError, match="cut the dataset"):
        parse(LINES, "d")
    assert BYTES_MAX == 256 << 20


@given(st.binary(max_size=200) | st.binary(max_size=100).map(lambda data: b"[" + data + b"]"))
def test_whatever_stands_in_a_dataset_it_is_prompts_or_one_error(data):
    try:
        prompts = parse(data, "d")
    except PlanError as error:
        assert "d" in str(error)
    else:
        assert all(prompt.text for prompt in prompts)


@given(st.lists(st.tuples(st.text(min_size=1, max_size=40), st.none() | st.integers(1, 500)), min_size=1, max_size=20))
def test_lines_that_were_written_are_read_back(written):
    lines = [{"prompt": text} | ({} if tokens is None else {"output_tokens": tokens}) for text, tokens in written]
    data = b"\n".join(json.dumps(line).encode() for line in lines)
    read_back = parse(data, "d")
    assert [(prompt.text, prompt.output_tokens) for prompt in read_back] == written
    assert summary("d", "", read_back).prompts == len(written)
