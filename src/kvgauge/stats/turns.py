"""What conversations gave: how many went to their end, and how turns differ. Pure.

The first turn meets an empty prefix cache, later ones may find what was said before in it: their TTFTs stand apart.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from kvgauge.plan.records import Cell
from kvgauge.samples.records import Exchange
from kvgauge.stats.cells import NS_PER_MS, family
from kvgauge.stats.estimate import Estimate, bare, counted, missing

if TYPE_CHECKING:
    from kvgauge.load.tally import CellLoad

TURNS_SHOWN = 16
FIRST, LATER = "ttft_first_turn_ms", "ttft_later_turns_ms"


def turn_metrics(cell: Cell, exchanges: Sequence[Exchange], load: "CellLoad") -> dict[str, Estimate]:
    """sessions and how they ended; TTFT of the first turn, of later ones and of each. Nothing without conversations."""
    if load.sessions is None:
        return {}
    begun = load.sessions.begun
    found = {
        "sessions": counted(load.sessions.whole, "sessions", begun),
        "sessions_failed": counted(load.sessions.failed, "sessions", begun),
        "sessions_full": counted(load.sessions.full, "sessions", begun),
        "sessions_cut": counted(load.sessions.cut, "sessions", begun),
    }
    good = [each for each in exchanges if not each.warmup and each.failure is None and each.turn is not None]
    turns: dict[int, list[Exchange]] = {}
    for exchange in good:
        turns.setdefault(exchange.turn or 1, []).append(exchange)
    later = [exchange for exchange in good if (exchange.turn or 1) > 1]
    not_streamed = None if cell.stream else "answers were not streamed: nothing shows when their first token came"
    found |= family(
        FIRST, _ttfts_ms(turns.get(1, []), not_streamed), why_none=not_streamed or "no first turn was answered"
    )
    found |= family(
        LATER,
        _ttfts_ms(later, not_streamed),
        independent=False,
        groups=len({exchange.session for exchange in later}),
        why_none=not_streamed or "no later turn was answered",
    )
    for turn in sorted(turns)[:TURNS_SHOWN]:
        found |= _of_turn(turn, turns[turn], not_streamed)
    return found


def _of_turn(turn: int, exchanges: Sequence[Exchange], not_streamed: str | None) -> dict[str, Estimate]:
    ttfts, n = _ttfts_ms(exchanges, not_streamed), len(exchanges)
    reason = "of one turn: no interval within a run"
    tokens = [exchange.tokens_in for exchange in exchanges if exchange.tokens_in is not None]
    return {
        f"ttft_turn_{turn}_ms_mean": bare(sum(ttfts) / len(ttfts), "ms", n, reason)
        if ttfts
        else missing("ms", not_streamed or "no answer brought content"),
        f"input_tokens_turn_{turn}_mean": bare(sum(tokens) / len(tokens), "tokens", n, reason)
        if tokens
        else missing("tokens", "no answer carried usage"),
    }


def _ttfts_ms(exchanges: Sequence[Exchange], not_streamed: str | None) -> list[float]:
    if not_streamed is not None:
        return []
    return [ttft_ns / NS_PER_MS for exchange in exchanges if (ttft_ns := exchange.ttft_ns) is not None]


def turn_troubles(exchanges: Sequence[Exchange]) -> list[str]:
    """Why these were no conversations: a server that was sent more and counted no more has cut what came before."""
    last: dict[int, Exchange] = {}
    cut = []
    for exchange in sorted(exchanges, key=lambda each: each.seq):
        if exchange.session is None or exchange.tokens_in is None or exchange.warmup:
            continue
        before = last.get(exchange.session)
        if before is not None and before.tokens_in is not None and exchange.tokens_in <= before.tokens_in:
            cut.append((before, exchange))
        last[exchange.session] = exchange
    if not cut:
        return []
    before, after = cut[0]
    return [
        f"{len(cut)} turns were counted as no longer than the turn before (the first: turn {after.turn} of session "
        f"{after.session}, {after.tokens_in} prompt tokens after {before.tokens_in}): does the server cut what it is "
        "sent? Lower the turns, or use a model with a longer context"
    ]
