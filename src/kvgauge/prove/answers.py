"""Greedy answers of the deployment against a reference's, and against its own. Pure.

A working deployment differs from a reference no more than the reference differs from itself: batches add numbers in
another order, so a few answers may differ anywhere. KV that arrived wrong changes most of them.
"""

from collections.abc import Sequence
from math import comb

import msgspec

from kvgauge.evidence.sums import Claim

SURE = 0.01  # the chance of so large a difference if there were none, below which it is one


class Answered(msgspec.Struct, frozen=True, kw_only=True):
    """One prompt's greedy answers; None: not answered. reference: asked twice, or not at all."""

    url: tuple[str | None, str | None]
    reference: tuple[str | None, str | None] | None = None


def chance(differ: int, of: int, base_differ: int, base_of: int) -> float:
    """Of `differ` or more among the first, were both alike: Fisher's exact test, one-sided."""
    total, marked = of + base_of, differ + base_differ
    ways = sum(comb(of, k) * comb(base_of, marked - k) for k in range(differ, min(of, marked) + 1))
    return ways / comb(total, marked)


def claim(answers: Sequence[Answered], trouble: str | None = None) -> Claim:
    """About all prompts together. trouble: why one was not answered, if one was not"""
    own = [each.url for each in answers if None not in each.url]
    agree = sum(first == second for first, second in own)
    twice = f"asked twice, {agree} of {len(own)} answers are the same"
    with_reference = [
        (each.url[0], *each.reference)
        for each in answers
        if each.reference is not None and None not in (each.url[0], *each.reference)
    ]
    if not with_reference:
        missing = "no --reference was given" if all(each.reference is None for each in answers) else "too few answers"
        missing += f"; {trouble}" if trouble is not None else ""
        return Claim(
            name="answers",
            verdict="unproved",
            text=f"whether they are right is not known ({missing}); {twice}",
            shown_by=f"{len(answers)} greedy prompts",
            fix="give --reference URL: the same model without a KV transfer, say a decode worker asked directly",
        )
    count = len(with_reference)
    differ = sum(url != first for url, first, _ in with_reference)
    itself = sum(first != second for _, first, second in with_reference)
    text = f"{differ} of {count} differ from the reference's, which differs from itself in {itself}; {twice}"
    odds = chance(differ, count, itself, count)
    shown = f"{count} greedy prompts; chance of that if both were alike {odds:.2g}"
    known = {first or "" for _, first, _ in with_reference}
    if differ <= itself and (len(known) < min(2, count) or known == {""}):
        one = next(iter(known))[:40]
        text = f"the reference answers every prompt alike ({one!r}), so equal answers say nothing; {twice}"
        fix = "name a reference that computes, with --reference and --reference-model"
        return Claim(name="answers", verdict="unproved", text=text, shown_by=shown, fix=fix)
    if differ <= itself:
        return Claim(name="answers", verdict="proved", text=text, shown_by=shown)
    if odds < SURE:
        fix = "the KV cache arrives wrong: try another backend or build, and `kvgauge builds test` on this one"
        return Claim(name="answers", verdict="contradicted", text=text, shown_by=shown, fix=fix)
    return Claim(name="answers", verdict="unproved", text=text, shown_by=shown, fix="ask again, with more prompts")
