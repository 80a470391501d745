"""A tokenizer.json, as Hugging Face's `tokenizers` writes it, to a tokenizer. Pure: its bytes are an argument.

Byte-level BPE is read here: Qwen, Llama 3 and 4, DeepSeek, gpt-oss, Mistral's Tekken and their like. Any other kind
(SentencePiece's: Llama 2, Gemma, Mistral 7B) is left to the package `tokenizers`, where that is installed.
"""

from typing import Any, Protocol

import msgspec

from kvgauge.failures import UsageError
from kvgauge.tokens.bpe import BytePairs
from kvgauge.tokens.patterns import compiled

BYTES_MAX = 128 << 20
GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_UNREADABLE = (msgspec.MsgspecError, RecursionError, ValueError)


class Tokenizer(Protocol):
    """Text to token ids and back, as BytePairs says. size: one more than the largest id."""

    size: int

    def encode(self, text: str) -> list[int]: ...
    def count(self, text: str) -> int: ...
    def decode(self, ids: list[int]) -> str: ...


class _Model(msgspec.Struct):
    type: str | None = None
    vocab: Any = None
    merges: list[str | tuple[str, str]] = []
    ignore_merges: bool = False
    byte_fallback: bool = False
    dropout: float | None = None
    continuing_subword_prefix: str | None = None
    end_of_word_suffix: str | None = None


class _Added(msgspec.Struct):
    id: int
    content: str
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False


class _File(msgspec.Struct):
    model: _Model
    added_tokens: list[_Added] = []
    normalizer: dict[str, Any] | None = None
    pre_tokenizer: dict[str, Any] | None = None
    post_processor: dict[str, Any] | None = None


class _Elsewhere(Exception):
    """What this module does not read."""


def read(data: bytes, source: str) -> tuple[Tokenizer, int]:
    """The tokenizer, and how many tokens it puts around one text by itself (Llama 3: 1, for its start).

    source  what messages call it
    raises  UsageError for what is no tokenizer.json, or one that needs the package `tokenizers` where there is none
    """
    if len(data) > BYTES_MAX:
        raise UsageError(f"{source}: larger than {BYTES_MAX >> 20} MiB; no tokenizer.json is")
    try:
        file = msgspec.json.decode(data, type=_File)
    except _UNREADABLE as error:
        raise UsageError(f"{source} is no tokenizer.json: {error}; name the one beside the model's weights") from None
    try:
        return _byte_pairs(file), _around(file.post_processor)
    except (_Elsewhere, UsageError) as error:
        return _by_package(data, source, str(error)), _around(file.post_processor)


def _byte_pairs(file: _File) -> BytePairs:
    """raises _Elsewhere, UsageError: this is another kind"""
    model = file.model
    if model.type not in ("BPE", None) or not isinstance(model.vocab, dict) or not model.merges:
        raise _Elsewhere(f"its model is {model.type or 'not named'}")
    if model.byte_fallback or model.dropout or model.continuing_subword_prefix or model.end_of_word_suffix:
        raise _Elsewhere("its BPE is not of bytes alone")
    if any(each.single_word or each.lstrip or each.rstrip for each in file.added_tokens):
        raise _Elsewhere("its added tokens look at what stands beside them")
    nfc = _nfc(file.normalizer)
    patterns = [compiled(text) for text in _patterns(file.pre_tokenizer)]
    letters = {letter: bytes([byte]) for byte, letter in byte_letters().items()}
    added = {each.content: each.id for each in file.added_tokens if each.content}
    try:
        ids = {_bytes(text, letters): int(number) for text, number in model.vocab.items() if text not in added}
        pairs = [each.split(" ") if isinstance(each, str) else each for each in model.merges]
        ranks = {(_bytes(left, letters), _bytes(right, letters)): order for order, (left, right) in enumerate(pairs)}
    except (KeyError, ValueError, TypeError) as error:
        raise _Elsewhere(f"its vocabulary is not of bytes: {error!r}") from None
    if not {bytes([byte]) for byte in range(256)} <= ids.keys() or any(a + b not in ids for a, b in ranks):
        raise _Elsewhere("its vocabulary lacks single bytes, or what its merges give")
    return BytePairs(
        ids,
        lambda left, right: ranks.get((left, right)),
        patterns=patterns,
        added=added,
        nfc=nfc,
        whole=model.ignore_merges,
    )


def _bytes(text: str, letters: dict[str, bytes]) -> bytes:
    return b"".join([letters[char] for char in text])


def byte_letters() -> dict[int, str]:
    """The letter that stands for each byte in byte-level vocabularies: itself where it can be seen."""
    seen = [*range(33, 127), *range(161, 173), *range(174, 256)]
    unseen = [byte for byte in range(256) if byte not in seen]
    return {byte: chr(byte) for byte in seen} | {byte: chr(256 + place) for place, byte in enumerate(unseen)}


def _nfc(normalizer: dict[str, Any] | None) -> bool:
    """Whether texts are composed first. raises _Elsewhere for any other change to them"""
    if normalizer is None:
        return False
    if normalizer.get("type") == "Sequence":
        return True in [_nfc(each) for each in normalizer.get("normalizers") or []]
    if normalizer.get("type") != "NFC":
        raise _Elsewhere(f"its normalizer is {normalizer.get('type')}")
    return True


def _patterns(cutter: dict[str, Any] | None) -> list[str]:
    """The patterns that cut a text, in their order. raises _Elsewhere"""
    kind = (cutter or {}).get("type")
    if cutter is None or kind is None:
        raise _Elsewhere("it names no pre-tokenizer")
    if kind == "Sequence":
        return [pattern for each in cutter.get("pretokenizers") or [] for pattern in _patterns(each)]
    if kind == "ByteLevel":
        if cutter.get("add_prefix_space"):
            raise _Elsewhere("it puts a blank before each text")
        return [GPT2_PATTERN] if cutter.get("use_regex", True) else []
    if kind == "Split":
        pattern = (cutter.get("pattern") or {}).get("Regex")
        behaviour, invert = cutter.get("behavior"), cutter.get("invert", False)
        if pattern is not None and ((behaviour, invert) in (("Isolated", False), ("Removed", True))):
            return [pattern]
    if kind == "Digits":
        return [r"\p{N}" if cutter.get("individual_digits") else r"\p{N}+"]
    raise _Elsewhere(f"its pre-tokenizer {kind} cuts in a way that is not read here")


def _around(post: dict[str, Any] | None) -> int:
    """Special tokens put around a single text."""
    if post is None:
        return 0
    if post.get("type") == "Sequence":
        return sum(_around(each) for each in post.get("processors") or [])
    single = post.get("single") if post.get("type") == "TemplateProcessing" else None
    return sum("SpecialToken" in each for each in single) if isinstance(single, list) else 0


class _Package:
    """By `tokenizers`, from what is in the file: nothing is downloaded."""

    def __init__(self, made: Any) -> None:
        self._made = made
        self.size = int(made.get_vocab_size())

    def encode(self, text: str) -> list[int]:
        return list(self._made.encode(text, add_special_tokens=False).ids)

    def count(self, text: str) -> int:
        return len(self.encode(text))

    def decode(self, ids: list[int]) -> str:
        return str(self._made.decode(ids, skip_special_tokens=False))


def _by_package(data: bytes, source: str, why: str) -> Tokenizer:
    try:
        from tokenizers import Tokenizer as Made
    except ImportError:
        raise UsageError(
            f"{source} is not read by kvgauge itself ({why}): install the package `tokenizers` beside it, or leave "
            "the tokenizer away"
        ) from None
    try:
        return _Package(Made.from_str(data.decode()))
    except Exception as error:  # the package raises nothing more exact
        raise UsageError(f"{source} cannot be used: {error}; is it the tokenizer.json of a model?") from None
