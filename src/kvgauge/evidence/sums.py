"""The bytes: what the requests must have moved, against what each ledger counted. Pure integer sums, no statistics.

Expected of a request whose prompt is T tokens, in blocks of B, each token b bytes, held c times by the decode ranks:

    from  floor(T / B) x B x b x c    engines that leave an unfilled block to be computed again (older vLLM)
    to    ceil(T / B) x B x b x c     engines that move every block, filled or not (newer vLLM, the embedded stack)

T is the server's own count, so a start token it added is in it. With T a multiple of B both are the same number, and
the sum over N requests is exact: a request whose KV never moved is missing from it to the byte. Else the sum proves
what no sum without one of the requests could reach: more than all larger ends but one. Tokens that decode found in its
own cache lower the smaller end only: whether they were whole blocks of ours is not known.
"""

from collections.abc import Iterable, Sequence
from math import ceil, floor
from typing import Literal

import msgspec

from kvgauge.evidence.counters import Counted

Verdict = Literal["proved", "contradicted", "unproved"]
FLOAT_SHARE = 1e-9  # of a sum of doubles that were not whole numbers
MIB = 1 << 20


class Geometry(msgspec.Struct, frozen=True, kw_only=True):
    """token_bytes: of KV cache a token takes, counted once; copies: how often decode's ranks hold it; said: by whom."""

    token_bytes: int
    block_tokens: int
    copies: int
    said: str


class Expected(msgspec.Struct, frozen=True, kw_only=True):
    """low, high: bytes of all requests together; request_bytes: the least that one of them moves when it moves;
    without_one: the most that all but one of them can move; failed: others of ours, which may have moved too."""

    requests: int
    prompt_tokens: int
    low: int
    high: int
    without_one: int
    request_bytes: int
    shown_by: str
    failed: int = 0


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """One thing judged. name: what of; text: in a sentence; shown_by: the line or the sum; fix: what to do, if known.

    skipped  requests whose KV did not move, where that is what is wrong
    """

    name: str
    verdict: Verdict
    text: str
    shown_by: str
    fix: str | None = None
    skipped: int | None = None


class Ledger(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody's count of bytes moved while the requests ran.

    slack_bytes  by which it may be off, either way, for the digits it is told with
    least        it counts what else there is too: only too little means anything
    answered     requests that its sources answered as decode; None: they do not say, so one may not have been named
    firm         its meaning was verified with a real engine; else a sum that differs proves nothing
    """

    name: str
    moved_bytes: float
    transfers: int | None
    answered: int | None
    shown_by: str
    slack_bytes: float = 0.0
    least: bool = False
    firm: bool = True


def expected(
    prompts: Iterable[int], geometry: Geometry, *, found_tokens: int = 0, failed: Sequence[int] = ()
) -> Expected:
    """prompts: tokens of each answered request; found_tokens: those that decode found in its own cache; failed:
    tokens of requests that failed, whose KV may have moved all the same."""
    block, token = geometry.block_tokens, geometry.token_bytes * geometry.copies
    lengths = list(prompts)
    lows = [length // block * block * token for length in lengths]
    highs = [-(-length // block) * block * token for length in lengths]
    high = sum(highs) + sum(-(-length // block) * block * token for length in failed)
    alike = f"{lengths[0]} tokens" if len(set(lengths)) == 1 else f"{sum(lengths)} tokens in all"
    sides = "" if geometry.copies == 1 else f" x {geometry.copies} copies on the decode ranks"
    found = f", less up to {found_tokens} tokens that decode found in its cache" if found_tokens else ""
    found += f", and up to {len(failed)} that failed" if failed else ""
    return Expected(
        requests=len(lengths),
        prompt_tokens=sum(lengths),
        low=max(0, sum(lows) - found_tokens * token),
        high=high,
        without_one=high - min(highs, default=0),
        request_bytes=min(lows, default=0),
        failed=len(failed),
        shown_by=f"{len(lengths)} prompts of {alike} x {geometry.token_bytes} bytes a token ({geometry.said}){sides}, "
        f"blocks of {block}{found}",
    )


def judge(wanted: Expected, ledger: Ledger) -> Claim:
    """One ledger against the sum."""
    moved, slack = ledger.moved_bytes, ledger.slack_bytes
    low, high = wanted.low - slack, wanted.high + slack
    claim = _Claims(wanted, ledger)
    if ledger.answered is not None and ledger.answered < wanted.requests:
        return claim.unproved(
            f"its sources answered {ledger.answered} of the {wanted.requests} requests",
            "name every decode worker with --workers",
        )
    if ledger.answered is not None and ledger.answered > wanted.requests + wanted.failed:
        others = ledger.answered - wanted.requests - wanted.failed
        return claim.unproved(
            f"{others} requests of others were served meanwhile and are in its count",
            "prove on a deployment that nobody else uses",
        )
    if moved < low:
        return claim.short(low - moved, high - moved)
    if moved > high and not ledger.least:
        return claim.over(moved - high)
    if ledger.least:
        return claim.made("proved", f"at least: {_size(moved)} passed, others' and headers included")
    if moved - slack <= wanted.without_one:
        return claim.unproved(
            f"{_size(moved)} fits, but so would a sum without one of the requests",
            f"use prompts of a whole number of blocks that decode's cache has not seen ({wanted.shown_by})",
        )
    return claim.made("proved", f"moved {_each(moved, wanted.requests)}, all {wanted.requests} requests")


class _Claims:
    """Claims about one ledger."""

    def __init__(self, wanted: Expected, ledger: Ledger) -> None:
        self._wanted, self._ledger = wanted, ledger

    def made(self, verdict: Verdict, text: str, fix: str | None = None, skipped: int | None = None) -> Claim:
        wanted, ledger = self._wanted, self._ledger
        either = f"{wanted.low:,}" if wanted.low == wanted.high else f"{wanted.low:,} to {wanted.high:,}"
        moved = f"{ledger.moved_bytes:,.0f} bytes"
        moved += f", {ledger.transfers} transfers" if ledger.transfers is not None else ""
        return Claim(
            name=f"bytes ({ledger.name})",
            verdict=verdict,
            text=f"expected {_each(wanted.high, wanted.requests + wanted.failed)}, {text}",
            shown_by=f"{wanted.shown_by} = {either} bytes; {ledger.shown_by}: {moved}",
            fix=fix,
            skipped=skipped,
        )

    def unproved(self, text: str, fix: str) -> Claim:
        return self.made("unproved", text, fix)

    def short(self, least_missing: float, most_missing: float) -> Claim:
        """Too little was moved: by how many requests."""
        wanted, ledger = self._wanted, self._ledger
        each = max(1, wanted.request_bytes)
        fewest = min(wanted.requests, max(1, ceil(least_missing / each)))
        most = max(fewest, floor(most_missing / each))
        count = f"{fewest}" if wanted.low == wanted.high or fewest == most else f"{fewest} to {most}"
        whole = abs(least_missing - fewest * each) <= 2 * ledger.slack_bytes
        part = "" if whole or wanted.low != wanted.high else " at least (the sum lacks no whole number of them)"
        if ledger.moved_bytes == 0:
            text = "moved 0: every prompt was recomputed locally, or its KV came some other way"
        else:
            moved = f"moved {_size(ledger.moved_bytes)} of {_size(wanted.high)}"
            text = f"{moved}: {count} of {wanted.requests} requests{part} moved no KV"
        if ledger.answered is None and not ledger.least:
            return self.made(
                "unproved",
                f"{text}, or a worker was not named: this ledger does not count requests",
                "name every worker, or the /metrics of the engine, with --workers",
            )
        if ledger.least:
            return self.made("unproved", f"{text}, or it did not pass here", "read the counters on the workers' hosts")
        if not ledger.firm:
            return self.made(
                "unproved", f"{text}, if {ledger.name} counts as we think", "look at its transfers' number"
            )
        return self.made("contradicted", text, SKIPPED_FIX, fewest)

    def over(self, excess: float) -> Claim:
        wanted, ledger = self._wanted, self._ledger
        ratio = ledger.moved_bytes / max(1, wanted.high)
        if abs(ratio - round(ratio)) < FLOAT_SHARE * ratio and ratio > 1:
            hint = f"exactly {round(ratio)} times: is the KV dtype or tensor parallelism what was said?"
        else:
            hint = "retries, other users, or another KV layout"
        verdict: Verdict = "contradicted" if ledger.firm and ledger.answered is not None else "unproved"
        return self.made(verdict, f"moved {_size(ledger.moved_bytes)}, {_size(excess)} too much ({hint})",
                         "give --kv-bytes-per-token, --kv-dtype and --tp as the workers run")  # fmt: skip


SKIPPED_FIX = (
    "decode computed these prompts itself: look there for failed or expired transfers, for prompts below the "
    "connector's minimum, and for a router that skips prefill"
)


def _size(count: float) -> str:
    return f"{count / MIB:,.4g} MiB" if count >= MIB else f"{count:,.0f} bytes"


def _each(total: float, requests: int) -> str:
    return f"{_size(total / max(1, requests))} a request"


def decodes(sources: Sequence[Counted], engine: str) -> list[Counted]:
    """Sources that answered as decode: more than a token a request; a prefill worker gives each request one."""
    found = []
    for source in sources:
        requests, tokens = requests_of(source, engine), source.get(engine, "output_tokens")
        if requests and tokens is not None and tokens > 1.5 * requests:
            found.append(source)
    return found


def requests_of(source: Counted, engine: str) -> float:
    """Answered ones; where an engine behind another frontend does not count them, those that gave a first token."""
    ended = (source.get(engine, "requests") or 0.0) - (source.get(engine, "aborted") or 0.0)
    return ended or source.get(engine, "first_tokens") or 0.0


def ledgers(sources: Sequence[Counted]) -> list[Ledger]:
    """Every ledger these sources keep. One that restarted has lost its count and keeps none."""
    whole = [source for source in sources if not source.restarted]
    found = []
    for engine, firm in (("vLLM", True), ("SGLang", False)):
        mine = [source for source in whole if source.get(engine, "kv_bytes") is not None]
        if mine:
            by = decodes(whole, engine)
            answered = sum(round(requests_of(source, engine)) for source in by) if by else None
            found.append(_engine_ledger(engine, mine, answered, firm=firm))
    mine = [s for s in whole if s.get("NIXL", "kv_rx_bytes") is not None or s.get("NIXL", "kv_tx_bytes") is not None]
    if mine:
        found.append(_nixl_ledger(mine))
    return found


def _added(sources: Sequence[Counted], engine: str, *quantities: str) -> float:
    return sum(source.get(engine, quantity) or 0.0 for source in sources for quantity in quantities)


def _engine_ledger(engine: str, mine: Sequence[Counted], answered: int | None, *, firm: bool) -> Ledger:
    moved = _added(mine, engine, "kv_bytes")
    return Ledger(
        name=engine,
        moved_bytes=moved,
        transfers=round(_added(mine, engine, "kv_transfers")),
        answered=answered,
        shown_by=f"{engine}'s KV bytes at {', '.join(source.source for source in mine)}",
        slack_bytes=0.0 if float(moved).is_integer() else max(1.0, moved * FLOAT_SHARE),
        firm=firm,
    )


def _nixl_ledger(mine: Sequence[Counted]) -> Ledger:
    lost = round(_added(mine, "NIXL", "telemetry_dropped"))
    return Ledger(
        name="NIXL",
        moved_bytes=_added(mine, "NIXL", "kv_rx_bytes", "kv_tx_bytes"),
        transfers=round(_added(mine, "NIXL", "kv_rx_transfers", "kv_tx_transfers")),
        answered=None,
        shown_by=f"NIXL's agent_rx_bytes_total and agent_tx_bytes_total at {', '.join(s.source for s in mine)}"
        + (f" ({lost} telemetry events were dropped: its count is too low)" if lost else ""),
        firm=not lost,
    )
