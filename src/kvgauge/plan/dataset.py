"""Prompts from a file: ShareGPT's JSON, or JSONL with a prompt a line. Pure.

    [{"conversations": [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "Hi"}, ...]}, ...]
    {"prompt": "Hello", "output_tokens": 100}      a line; output_tokens may be missing, and be called output_len

A conversation must begin with a human's turn; one that begins otherwise is passed over, as other tools do. Cells
without `conversation` send that turn alone. The others follow as long as model and human take turns. Other keys are
ignored.
"""

import hashlib
import re
from typing import Annotated

import msgspec

from kvgauge.failures import PlanError
from kvgauge.plan.records import DatasetFile

BYTES_MAX = 256 << 20
PROMPTS_MAX = 1_000_000
PROMPT_CHARACTERS_MAX = 1_000_000
TOKENS_MAX = 131_072
ASKING = ("human", "user")
ANSWERING = ("gpt", "assistant", "model", "chatgpt", "bing", "bard")
_WORD = re.compile(r"\w+|[^\w\s]")

Tokens = Annotated[int, msgspec.Meta(ge=1, le=TOKENS_MAX)]
Text = Annotated[str, msgspec.Meta(max_length=PROMPT_CHARACTERS_MAX)]


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """What was recorded as the model's answer, and what the user said then."""

    answer: str
    text: str


class DatasetPrompt(msgspec.Struct, frozen=True, kw_only=True):
    """One prompt of a file, and the turns that followed. output_tokens: of its answer; None where the file does not
    say."""

    text: str
    output_tokens: int | None
    replies: tuple[Reply, ...] = ()


class _Turn(msgspec.Struct, frozen=True):
    sender: str | None = msgspec.field(default=None, name="from")
    role: str | None = None
    value: Text | None = None
    content: Text | None = None


class _Conversation(msgspec.Struct, frozen=True):
    conversations: tuple[_Turn, ...] = ()
    conversation: tuple[_Turn, ...] = ()
    messages: tuple[_Turn, ...] = ()


class _Line(msgspec.Struct, frozen=True):
    prompt: Text
    output_tokens: Tokens | None = None
    output_len: Tokens | None = None


def parse(data: bytes, source: str) -> tuple[DatasetPrompt, ...]:
    """The prompts of a file, in its order.

    data    a JSON list of conversations, or JSONL; blank lines are passed over
    source  what messages call it
    raises  PlanError, with the line in JSONL: not JSON, no prompt, out of range; a file that is empty or too large
    """
    if len(data) > BYTES_MAX:
        raise PlanError(f"longer than {BYTES_MAX >> 20} MiB; cut the dataset into parts", source=source)
    prompts = _conversations(data, source) if data.lstrip()[:1] == b"[" else _lines(data, source)
    if not prompts:
        raise PlanError(
            "the dataset has no prompt: it needs a JSON list of conversations that begin with a human's turn, or a "
            "JSON object with `prompt` on each line",
            source=source,
        )
    if len(prompts) > PROMPTS_MAX:
        raise PlanError(f"more than {PROMPTS_MAX} prompts; cut the dataset", source=source)
    return tuple(prompts)


def _conversations(data: bytes, source: str) -> list[DatasetPrompt]:
    try:
        read = msgspec.json.decode(data, type=list[_Conversation])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise PlanError(f"{error}; a ShareGPT file is a list of {{conversations: [...]}}", source=source) from None
    prompts = []
    for each in read:
        turns = each.conversations or each.conversation or each.messages
        if not turns or (turns[0].sender or turns[0].role) not in ASKING:
            continue
        text = turns[0].value or turns[0].content
        if text:
            prompts.append(DatasetPrompt(text=text, output_tokens=None, replies=_replies(turns[1:])))
    return prompts


def _replies(turns: tuple[_Turn, ...]) -> tuple[Reply, ...]:
    """The pairs of a model's and a human's turn; the first that is neither, or says nothing, ends the conversation."""
    found = []
    for said, asked in zip(turns[::2], turns[1::2], strict=False):
        answer, text = said.value or said.content, asked.value or asked.content
        in_turn = (said.sender or said.role) in ANSWERING and (asked.sender or asked.role) in ASKING
        if not (in_turn and answer and text):
            break
        found.append(Reply(answer=answer, text=text))
    return tuple(found)


def _lines(data: bytes, source: str) -> list[DatasetPrompt]:
    decode = msgspec.json.Decoder(_Line).decode
    prompts = []
    for number, line in enumerate(data.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            read = decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            problem = f"{error}; a line holds prompt and, where it is known, output_tokens"
            raise PlanError(problem, source=source, line=number) from None
        if not read.prompt:
            raise PlanError("the prompt is empty", source=source, line=number)
        prompts.append(DatasetPrompt(text=read.prompt, output_tokens=read.output_tokens or read.output_len))
    return prompts


def count_words(text: str) -> int:
    """Words and punctuation marks."""
    return len(_WORD.findall(text))


def summary(path: str, sha256: str, prompts: tuple[DatasetPrompt, ...]) -> DatasetFile:
    """What a plan remembers of a dataset."""
    words = [count_words(prompt.text) for prompt in prompts]
    turns = [1 + len(prompt.replies) for prompt in prompts]
    more = [sum(count_words(f"{reply.answer} {reply.text}") for reply in prompt.replies) for prompt in prompts]
    outputs = [prompt.output_tokens for prompt in prompts if prompt.output_tokens is not None]
    return DatasetFile(
        path=path,
        sha256=sha256,
        prompts=len(prompts),
        words_mean=sum(words) / len(words),
        words_max=max(words),
        output_tokens_mean=sum(outputs) / len(outputs) if outputs else None,
        output_tokens_max=max(outputs, default=None),
        turns_mean=sum(turns) / len(turns),
        turns_most=max(turns),
        whole_words_max=max(map(sum, zip(words, more, strict=True))),
    )


def again(file: DatasetFile, data: bytes) -> tuple[DatasetPrompt, ...]:
    """The prompts of a dataset read before. PlanError when the file is another by now."""
    if hashlib.sha256(data).hexdigest() != file.sha256:
        raise PlanError(
            "the dataset is not what it was when the plan was read (its sha256 differs); put it back, or begin a new "
            "run",
            source=file.path,
        )
    return parse(data, file.path)
