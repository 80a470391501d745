"""Tokenizers: the bundled one against figures that Hugging Face's library gave, and tokenizer.json files of every kind."""

import itertools
import json
import sys
import types
import unicodedata
import zlib

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kvgauge.failures import LoadError, UsageError
from kvgauge.load.prompts import text_of, unique_tokens, words, words_of
from kvgauge.tokens import choose, files, qwen
from kvgauge.tokens.bpe import merged
from kvgauge.tokens.patterns import category, compiled

LETTERS = files.byte_letters()
SPLIT = {"type": "Split", "pattern": {"Regex": qwen.PATTERN}, "behavior": "Isolated", "invert": False}
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}


def tokenizer_json(merges=(("t", "h"), ("th", "e"), ("Ġ", "the")), **changed):
    """One of 256 bytes, a few merges and one added token."""
    vocab = {letter: number for number, letter in enumerate(LETTERS.values())}
    for left, right in merges:
        vocab[left + right] = len(vocab)
    model = {"type": "BPE", "vocab": vocab, "merges": [list(pair) for pair in merges], "continuing_subword_prefix": ""}
    file = {
        "added_tokens": [{"id": len(vocab), "content": "<eos>"}],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [SPLIT, BYTES]},
        "model": model | changed.pop("model", {}),
    }
    return json.dumps(file | changed).encode()


# Ids by Hugging Face's library tokenizers 0.23.3, from this vocabulary with merges recovered from its ranks.
@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("Hello", [9707]),
        ("Explain AI", [840, 20772, 15235]),
        (
            "<think>\n1234 naïve\u0301 日本語  \r\n x</think><|im_end|>",
            [151667, 198, 16, 17, 18, 19, 94880, 51174, 75402, 21894, 102819, 10419, 856, 151668, 151645],
        ),
        ("\x1c \u0085\u2028 a\tb", [216, 2139, 227, 378, 101, 264, 2233]),
    ],
)
def test_the_bundled_tokenizer_gives_the_ids_that_the_reference_library_gives(text, ids):
    assert qwen.tokenizer().encode(text) == ids


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=200))
@example("e\u0301<think>\r\n\r\n  ")
def test_any_text_comes_back_from_its_ids_in_its_composed_form(text):
    tokenizer = qwen.tokenizer()
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == "".join(
        part if part in qwen.ADDED else unicodedata.normalize("NFC", part) for part in _parts(text)
    )
    assert tokenizer.count(text) == len(ids)
    assert all(0 <= number < tokenizer.size for number in ids)


def _parts(text):
    found = qwen.tokenizer()._added_at.split(text)
    return [part for part in found if part]


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 400), st.integers(0, 10**6))
def test_prompts_of_words_have_exactly_the_tokens_asked_for(count, seq):
    text = text_of(unique_tokens(1, "cell", seq, count, low=0, high=len(words()) - 1), words())
    assert qwen.tokenizer().count(text) == count


def test_every_word_is_one_token_first_and_after_a_blank():
    assert words_of(qwen.tokenizer()) == words()


def test_a_tokenizer_that_knows_too_few_words_makes_no_prompts():
    tokenizer, _ = files.read(tokenizer_json(), "x")
    with pytest.raises(LoadError, match="one token each"):
        words_of(tokenizer)


def test_the_lowest_rank_is_merged_first_and_the_leftmost_of_equal_ones():
    ranks = {(b"a", b"a"): 0, (b"b", b"c"): 1, (b"aa", b"a"): 2}
    assert merged(b"aaabc", lambda left, right: ranks.get((left, right))) == [b"aaa", b"bc"]
    assert merged(b"aaaa", lambda left, right: ranks.get((left, right))) == [b"aa", b"aa"]
    assert merged(b"", lambda left, right: 0) == []


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=40).map(lambda data: bytes(b % 3 + 97 for b in data)), st.integers(0, 10**6))
def test_merging_with_a_heap_gives_what_looking_at_every_pair_gives(data, seed):
    def rank(left, right):
        order = zlib.crc32(left + b"|" + right, seed) % 50
        return order if len(left + right) < 6 else None

    parts = [data[at : at + 1] for at in range(len(data))]
    while True:
        found = [(rank(*pair), at) for at, pair in enumerate(itertools.pairwise(parts))]
        found = [each for each in found if each[0] is not None]
        if not found:
            break
        _, at = min(found)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    assert merged(data, rank) == parts


def test_a_word_of_a_megabyte_is_no_trap():
    assert qwen.tokenizer().count("ab" * 50_000) > 1000


def test_a_tokenizer_json_is_read_with_its_merges_added_tokens_and_start_token():
    post = {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>"}}, {"Sequence": {"id": "A"}}]}
    tokenizer, around = files.read(tokenizer_json(post_processor={"type": "Sequence", "processors": [post]}), "x")
    assert around == 1
    assert [tokenizer.decode([number]) for number in tokenizer.encode("the the<eos>x")] == ["the", " the", "<eos>", "x"]
    assert tokenizer.size == 260


def test_without_merging_by_rank_a_word_of_the_vocabulary_that_no_merge_makes_is_not_used():
    extra = {**json.loads(tokenizer_json())["model"]["vocab"], "xyz": 259}
    merging, _ = files.read(tokenizer_json(model={"vocab": extra}, added_tokens=[]), "x")
    whole, _ = files.read(tokenizer_json(model={"vocab": extra, "ignore_merges": True}, added_tokens=[]), "x")
    assert (merging.count("xyz"), whole.count("xyz")) == (3, 1)


@pytest.mark.parametrize(
    "changed",
    [
        {"model": {"type": "Unigram"}},
        {"model": {"byte_fallback": True}},
        {"normalizer": {"type": "Lowercase"}},
        {"pre_tokenizer": {"type": "Metaspace"}},
        {"pre_tokenizer": None},
        {"pre_tokenizer": {**SPLIT, "pattern": {"Regex": r"\p{Greek}+"}}},
        {"pre_tokenizer": {**SPLIT, "behavior": "MergedWithPrevious"}},
        {"pre_tokenizer": {**BYTES, "add_prefix_space": True}},
        {"added_tokens": [{"id": 300, "content": "<x>", "rstrip": True}]},
        {"model": {"vocab": {"a": 0}}},
        {"model": {"merges": ["a"]}},
    ],
)
def test_what_is_not_read_here_is_left_to_the_package_or_refused_with_the_way_out(changed, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UsageError, match="install the package `tokenizers`"):
        files.read(tokenizer_json(**changed), "mine.json")

    class Made:
        @staticmethod
        def from_str(text):
            assert json.loads(text)
            return Made()

        def get_vocab_size(self):
            return 7

        def encode(self, text, *, add_special_tokens):
            assert add_special_tokens is False
            return types.SimpleNamespace(ids=list(range(len(text))))

    monkeypatch.setitem(sys.modules, "tokenizers", types.SimpleNamespace(Tokenizer=Made))
    tokenizer, _ = files.read(tokenizer_json(**changed), "mine.json")
    assert (tokenizer.count("four"), tokenizer.size) == (4, 7)


@settings(max_examples=100, deadline=None)
@given(
    st.binary(max_size=100)
    | st.recursive(
        st.none() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["model", "type", "vocab", "merges", "added_tokens", "normalizer", "pre_tokenizer"]),
                inner,
                max_size=4,
            )
        ),
        max_leaves=12,
    ).map(lambda value: json.dumps(value).encode())
)
def test_no_bytes_make_the_reader_of_tokenizers_fail_otherwise_than_with_its_own_error(data):
    with pytest.raises(UsageError):
        files.read(data, "x")


@pytest.mark.parametrize(
    "pattern", ["[a[b]]", "[a&&b]", "^a", "a$", r"\h", r"\z", r"\x{41}", "(?<n>a)", "(", r"\p{Q}", "[]a]", "a" * 20_000]
)
def test_a_pattern_that_means_something_else_in_python_is_refused(pattern):
    with pytest.raises(UsageError):
        compiled(pattern)


def test_categories_and_blanks_are_those_of_tokenizers():
    assert compiled(r"\s+").findall("a \x1c\u3000\u0085b") == [" ", "\u3000\u0085"]
    assert compiled(r"[^\S\n]+").findall("a \n\tb") == [" ", "\t"]
    assert compiled(r"\P{L}+|\p{^Lu}").findall("aB1 ") == ["a", "1 "]
    assert compiled(r"(a|b)\pN").findall("a1b2") == ["a1", "b2"]
    assert category("Lu")[0] == (65, 90)


@pytest.mark.parametrize(
    ("model", "own"),
    [
        ("Qwen3-0.6B", True), ("Qwen/Qwen3-32B-FP8", True), ("qwen2.5-7b-instruct", True), ("Qwen2-VL-7B", True),
        ("QwQ-32B", True), ("Qwen3-Next-80B-A3B", True), ("/models/qwen3_30b", True), ("qwen3", True),
        ("Qwen3.5-9B", False), ("Qwen3.6-27B", False), ("Llama-3.1-8B", False), ("gpt-oss-120b", False),
        ("DeepSeek-R1-Distill-Qwen2.5-7B", False), ("Qwen-7B", False), ("qwen30", False), ("Qwen3_5-9B", False),
    ],
)  # fmt: skip
def test_the_bundled_tokenizer_stands_in_for_every_model_that_is_not_qwens(model, own):
    assert choose.bundled(model).stands_in is not own
