"""How many tokens a server makes of a text, where it offers /tokenize (vLLM does).

What a chat template or a start token adds is then left out of the prompts, so that they have the length asked for.
Asked between cells, never while something is measured.
"""

import msgspec

from kvgauge.load.answers import UNREADABLE
from kvgauge.load.prompts import sample_text
from kvgauge.load.site import Site, ask
from kvgauge.plan.records import Cell

ROUNDS = 3  # a template adds the same to each text, so the second count already fits
MEAN_WORDS = 512  # of a cell without one length for all


class _Counted(msgspec.Struct):
    count: int


class TextLengths:
    """Asks one server, and remembers when it does not answer such questions."""

    def __init__(self, site: Site, model: str) -> None:
        self._site, self._model = site, model
        self._offered = True

    def added(self, cell: Cell) -> int:
        """Tokens that the server adds to the texts made for this cell; 0 where it cannot be asked, or none are made."""
        if cell.prompt_kind != "text" or cell.prompt is not None or cell.dataset is not None:
            return 0
        wanted = cell.input_tokens or MEAN_WORDS
        added = 0
        for _ in range(ROUNDS):
            counted = self._count(cell, sample_text(cell, wanted - added))
            if counted is None or counted == wanted:
                break
            added += counted - wanted
            if not -wanted < added < wanted:
                return 0  # no wish for words is this far off: leave it to usage to show
        return added

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
