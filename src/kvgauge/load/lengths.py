"""How many tokens a server makes of a text: its own word where it offers /tokenize (vLLM does), else that of the
tokenizer the user gave, which knows of a start token but of no chat template.

What a chat template or a start token adds is then left out of the prompts, so that they have the length asked for.
Asked between cells, never while something is measured.
"""

import msgspec

from kvgauge.load.answers import UNREADABLE
from kvgauge.load.prompts import sample_text, words, words_of
from kvgauge.load.site import Site, ask
from kvgauge.plan.records import Cell
from kvgauge.tokens.choose import Chosen

ROUNDS = 3  # a template adds the same to each text, so the second count already fits
MEAN_WORDS = 512  # of a cell without one length for all


class _Counted(msgspec.Struct):
    count: int


class TextLengths:
    """Asks one server, and remembers when it does not answer such questions."""

    def __init__(self, site: Site, model: str, tokenizer: Chosen | None = None) -> None:
        self._site, self._model, self._tokenizer = site, model, tokenizer
        self._known: tuple[str, ...] | None = None
        self._offered = True

    def made(self, cell: Cell) -> tuple[tuple[str, ...] | None, int]:
        """The words that the cell's texts are made of, and the tokens that come on top; (None, 0) where none are made.

        raises  LoadError when the tokenizer given knows too few of our words
        """
        if cell.prompt_kind != "text" or cell.prompt is not None or cell.dataset is not None:
            return None, 0
        if self._known is None:
            self._known = words() if self._tokenizer is None else words_of(self._tokenizer.tokenizer)
        return self._known, self._added(cell, self._known)

    def _added(self, cell: Cell, known: tuple[str, ...]) -> int:
        """Tokens that the server adds to the texts made for this cell; 0 where nobody knows."""
        wanted = cell.input_tokens or MEAN_WORDS
        added = 0
        for _ in range(ROUNDS):
            counted = self._count(cell, sample_text(cell, wanted - added, known))
            if counted is None:
                return self._around(cell)
            if counted == wanted:
                break
            added += counted - wanted
            if not -wanted < added < wanted:
                return 0  # no wish for words is this far off: leave it to usage to show
        return added

    def _around(self, cell: Cell) -> int:
        """By the tokenizer: our words are one token each in it, so only what comes with every text is added."""
        return self._tokenizer.around if self._tokenizer is not None and cell.api == "completions" else 0

    def _count(self, cell: Cell, text: str) -> int | None:
        if not self._offered:
            return None
        asked: dict[str, object] = {"model": self._model, "prompt": text}
        if cell.api == "chat":
            messages = [{"role": "user", "content": text}]
            asked = {"model": self._model, "messages": messages, "add_generation_prompt": True}
        try:
            status, body = ask(self._site, "/tokenize", body=msgspec.json.encode(asked))
            if status == 200:
                return msgspec.json.decode(body, type=_Counted).count
        except (OSError, *UNREADABLE):
            pass  # not offered: the prompts go out as they are, and usage judges them
        self._offered = False
        return None
