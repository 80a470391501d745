"""What a cell's requests ask for, beyond how many tokens: which endpoint, which kind of prompt, what else. Pure.

api: completions | chat         stream: true | false      ignore_eos: true | false
prompt_kind: tokens | text      shared_prefix_tokens: 256     prefixes: 4
dataset: FILE                   extra_body: {any: JSON}
"""

import hashlib
from collections.abc import Callable
from typing import Any, get_args

import msgspec

from kvgauge.plan import dataset
from kvgauge.plan.nodes import Value
from kvgauge.plan.records import Api, DatasetFile, PromptKind

REQUEST_KEYS = (
    "api",
    "stream",
    "ignore_eos",
    "prompt_kind",
    "shared_prefix_tokens",
    "prefixes",
    "dataset",
    "extra_body",
)
UNIQUE_TOKENS_MIN = 2  # of a prompt, after what it shares: two tell a million requests apart
PREFIXES_MAX = 10_000
EXTRA_BYTES_MAX = 16 << 10
SET_BY_KVGAUGE = {
    "model": "--model",
    "prompt": "`prompt` or `input_tokens`",
    "messages": "`prompt` or `input_tokens`",
    "max_tokens": "`output_tokens`",
    "max_completion_tokens": "`output_tokens`",
    "temperature": "nothing: answers are greedy, so that runs can be compared",
    "ignore_eos": "`ignore_eos`",
    "stream": "`stream`",
    "stream_options": "`stream`: usage is always asked for",
    "n": "nothing: one answer a request",
}


def read_request(
    fields: dict[str, Value], input_tokens: int | None, read_file: Callable[[str], bytes]
) -> dict[str, Any]:
    """The fields of Cell that say what a request asks for; those that are not written are left to their defaults.

    input_tokens  of a unique prompt; None where prompts are not made but given
    raises        PlanError for what cannot be asked for, and a dataset that cannot be used
    """
    found: dict[str, Any] = {}
    if "api" in fields:
        found["api"] = fields["api"].word(get_args(Api), "api")
    for key in ("stream", "ignore_eos"):
        if key in fields:
            found[key] = fields[key].flag()
    found["prompt_kind"] = _prompt_kind(fields, text=found.get("api") == "chat" or "conversation" in fields)
    found |= _prefix(fields, input_tokens)
    if "dataset" in fields:
        for key in ("prompt", "input_tokens"):
            if key in fields:
                raise fields[key].error("given beside `dataset`, whose prompts are sent as they stand; remove one")
        found["dataset"] = _dataset(fields["dataset"], read_file)
    if "extra_body" in fields:
        found["extra_body"] = _extra_body(fields["extra_body"])
    return found


def _prompt_kind(fields: dict[str, Value], *, text: bool) -> str:
    """Token ids where nothing is said, exact whatever the tokenizer; chat and conversations take text only."""
    if "prompt_kind" not in fields:
        return "text" if text else "tokens"
    value = fields["prompt_kind"]
    for key in ("prompt", "dataset"):
        if key in fields:
            raise value.error(f"given beside `{key}`, which is text already; remove it")
    kind = value.word(get_args(PromptKind), "prompt kind")
    if text and kind == "tokens":
        raise value.error("the chat API takes text, not token ids; use text, or api: completions")
    return kind


def _prefix(fields: dict[str, Value], input_tokens: int | None) -> dict[str, Any]:
    if "shared_prefix_tokens" not in fields:
        if "prefixes" in fields:
            raise fields["prefixes"].error("needs `shared_prefix_tokens`: how long each prefix is")
        return {}
    value = fields["shared_prefix_tokens"]
    if input_tokens is None:
        raise value.error("needs `input_tokens`: prompts that are given share what they share")
    if input_tokens <= UNIQUE_TOKENS_MIN:
        raise value.error(f"input_tokens {input_tokens} leave nothing to share beside {UNIQUE_TOKENS_MIN} unique ones")
    found = {"shared_prefix_tokens": value.integer(1, input_tokens - UNIQUE_TOKENS_MIN)}
    if "prefixes" in fields:
        found["prefixes"] = fields["prefixes"].integer(1, PREFIXES_MAX)
    return found


def _dataset(value: Value, read_file: Callable[[str], bytes]) -> DatasetFile:
    path = value.path()
    try:
        data = read_file(path)
    except OSError as error:
        raise value.error(f"cannot read {path}: {error.strerror}; name a JSON or JSONL file") from None
    return dataset.summary(path, hashlib.sha256(data).hexdigest(), dataset.parse(data, path))


def _extra_body(value: Value) -> dict[str, Any]:
    found = value.json()
    if not isinstance(found, dict):
        raise value.error("expected a mapping: the keys that are added to each request")
    for key in found:
        if key in SET_BY_KVGAUGE:
            raise value.error(f"{key!r} is set by kvgauge; what decides it: {SET_BY_KVGAUGE[key]}")
    if len(msgspec.json.encode(found)) > EXTRA_BYTES_MAX:
        raise value.error(f"longer than {EXTRA_BYTES_MAX >> 10} KiB as JSON; it is sent with every request")
    return found
