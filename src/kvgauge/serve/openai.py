"""The OpenAI API as far as this stack speaks it: requests checked, answers written. Pure: bytes in, bytes out."""

from typing import Any

import msgspec

from kvgauge.serve import vocabulary

MAX_BODY_BYTES = 8 << 20
DEFAULT_MAX_TOKENS = 16  # what the completions API says

WORDS = [vocabulary.word(token).encode() for token in range(vocabulary.SIZE)]  # all of one length, no escapes needed


class ApiError(Exception):
    """An answer that is an error: `status`, and a body as OpenAI and vLLM write it."""

    def __init__(self, status: int, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.param = status, message, param

    @property
    def body(self) -> bytes:
        kind = {400: "BadRequestError", 404: "NotFoundError", 413: "RequestTooLarge"}.get(
            self.status, "InternalServerError"
        )
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.status}
        return msgspec.json.encode({"error": error})


class StreamOptions(msgspec.Struct):
    include_usage: bool = False


class CompletionRequest(msgspec.Struct):
    """/v1/completions; fields that change nothing here (temperature, seed, ...) are accepted and ignored."""

    prompt: str | list[int]
    model: str | None = None
    max_tokens: int | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: int | None = None


class Part(msgspec.Struct):
    text: str = ""


class Message(msgspec.Struct):
    role: str
    content: str | list[Part] | None = None


class ChatRequest(msgspec.Struct):
    """/v1/chat/completions."""

    messages: list[Message]
    model: str | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: int | None = None


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """A request that can be served."""

    chat: bool
    prompt_tokens: int
    digest: int
    max_tokens: int
    stream: bool
    include_usage: bool


_completion = msgspec.json.Decoder(CompletionRequest)
_chat = msgspec.json.Decoder(ChatRequest)


def read_request(body: bytes, *, chat: bool, model: str, limit: int) -> Asked:
    """Check one request.

    limit   prompt and answer together, in tokens
    raises  ApiError 400 or 404
    """
    try:
        request: Any = (_chat if chat else _completion).decode(body)
    except (msgspec.ValidationError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ApiError(400, f"cannot read the request: {error}") from error
    if request.model is not None and request.model != model:
        raise ApiError(404, f"The model `{request.model}` does not exist; this server has `{model}`.", param="model")
    if request.n not in (None, 1):
        raise ApiError(400, f"n is {request.n}; this server gives one answer a request", param="n")
    prompt, tokens = _chat_prompt(request) if chat else _completion_prompt(request)
    wanted = request.max_tokens
    if chat and request.max_completion_tokens is not None:
        wanted = request.max_completion_tokens
    wanted = DEFAULT_MAX_TOKENS if wanted is None else wanted
    if wanted < 1:
        raise ApiError(400, f"max_tokens must be at least 1, got {wanted}", param="max_tokens")
    if tokens + wanted > limit:
        raise ApiError(
            400,
            f"This model's maximum context length is {limit} tokens. However, you requested {tokens + wanted} tokens "
            f"({tokens} in the prompt, {wanted} in the answer). Please reduce one of them.",
            param="max_tokens",
        )
    return Asked(
        chat=chat,
        prompt_tokens=tokens,
        digest=vocabulary.digest(prompt),
        max_tokens=wanted,
        stream=request.stream,
        include_usage=request.stream_options is not None and request.stream_options.include_usage,
    )


def _completion_prompt(request: CompletionRequest) -> tuple[str | list[int], int]:
    prompt = request.prompt
    if isinstance(prompt, str):
        return prompt, vocabulary.token_count(prompt)
    if not prompt:
        raise ApiError(400, "the prompt is empty", param="prompt")
    if min(prompt) < 0 or max(prompt) >= vocabulary.SIZE:
        raise ApiError(400, f"token ids must lie in 0..{vocabulary.SIZE - 1}", param="prompt")
    return prompt, len(prompt)


def _chat_prompt(request: ChatRequest) -> tuple[str, int]:
    if not request.messages:
        raise ApiError(400, "there are no messages", param="messages")
    lines = []
    for message in request.messages:
        content = message.content
        text = content if isinstance(content, str) else "".join(part.text for part in content or [])
        lines.append(f"{message.role}: {text}")
    prompt = "\n".join(lines)
    return prompt, vocabulary.token_count(prompt)


class Writer:
    """Writes the events of one streamed answer. Everything that does not change is put together once."""

    def __init__(self, asked: Asked, request_id: str, model: str, created: int) -> None:
        self._asked = asked
        head = {
            "id": f"{'chatcmpl' if asked.chat else 'cmpl'}-{request_id}",
            "object": f"{'chat.completion.chunk' if asked.chat else 'text_completion'}",
            "created": created,
            "model": model,
        }
        self._head = msgspec.json.encode(head)[:-1]
        if asked.chat:
            before, after = b'"delta":{"content":"', b'"},"logprobs":null,"finish_reason":'
        else:
            before, after = b'"text":"', b'","logprobs":null,"finish_reason":'
        self._before = b"data: " + self._head + b',"choices":[{"index":0,' + before
        self._after = after
        width = len(WORDS[0])
        self._open = b"%x\r\n" % (len(self._before) + width + len(after) + len(b"null}]}\n\n")) + self._before
        self._close = after + b"null}]}\n\n\r\n"

    def first(self) -> bytes:
        """What comes before the first token: chat names the role."""
        if not self._asked.chat:
            return b""
        choice = (
            b',"choices":[{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]}'
        )
        return chunk(b"data: " + self._head + choice + b"\n\n")

    def token(self, token: int) -> bytes:
        """One event, framed for chunked transfer."""
        return self._open + WORDS[token] + self._close

    def last(self, token: int) -> bytes:
        return chunk(self._before + WORDS[token] + self._after + b'"length"}]}\n\n')

    def end(self, extension: bytes) -> bytes:
        """Usage where asked for, with kvgauge's extension, then [DONE] and the end of the body."""
        ending = chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"
        if not self._asked.include_usage:
            return ending
        usage = msgspec.json.encode(_usage(self._asked))
        event = b"data: " + self._head + b',"choices":[],"usage":' + usage + b',"kvgauge":' + extension + b"}\n\n"
        return chunk(event) + ending


def whole_answer(asked: Asked, tokens: list[int], head: dict[str, Any], extension: bytes) -> bytes:
    """The body of an answer that is not streamed."""
    text = b"".join(WORDS[token] for token in tokens).decode()
    choice: dict[str, Any] = {"index": 0, "logprobs": None, "finish_reason": "length"}
    choice |= {"message": {"role": "assistant", "content": text}} if asked.chat else {"text": text}
    body = head | {"choices": [choice], "usage": _usage(asked), "kvgauge": msgspec.Raw(extension)}
    body["object"] = "chat.completion" if asked.chat else "text_completion"
    return msgspec.json.encode(body)


def error_event(error: ApiError) -> bytes:
    """An error after the stream has begun, as engines send it: an event, then [DONE]."""
    return chunk(b"data: " + error.body + b"\n\n") + chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _usage(asked: Asked) -> dict[str, int]:
    return {
        "prompt_tokens": asked.prompt_tokens,
        "completion_tokens": asked.max_tokens,
        "total_tokens": asked.prompt_tokens + asked.max_tokens,
    }
