"""A proof as a page of text. Pure."""

import textwrap

from kvgauge.evidence.sums import Claim
from kvgauge.prove.judge import Proof

WIDTH = 120
MARK = {"proved": "proved", "contradicted": "CONTRADICTED", "unproved": "not proved"}
INDENT = " " * 14


def text(proof: Proof) -> str:
    failed = f", {proof.failed} failed" if proof.failed else ""
    lines = [
        f"{proof.model} at {proof.url}: {proof.requests} requests answered{failed}, {proof.took_s:.0f} s",
        *textwrap.wrap(_clean(proof.headline), WIDTH),
        "",
    ]
    for verdict in ("contradicted", "proved", "unproved"):
        for claim in proof.claims:
            if claim.verdict == verdict:
                lines += _claim(claim)
    lines += ["", f"verdict: {proof.verdict}{_why(proof)}"]
    return "\n".join(lines)


def _claim(claim: Claim) -> list[str]:
    head = f"{MARK[claim.verdict]:<13} {claim.name}: {claim.text}"
    lines = textwrap.wrap(_clean(head), WIDTH, subsequent_indent=INDENT)
    lines += textwrap.wrap(
        _clean(f"by: {claim.shown_by}"), WIDTH, initial_indent=INDENT, subsequent_indent=INDENT + "  "
    )
    if claim.fix is not None:
        lines += textwrap.wrap(
            _clean(f"fix: {claim.fix}"), WIDTH, initial_indent=INDENT, subsequent_indent=INDENT + "  "
        )
    return lines


def _why(proof: Proof) -> str:
    if proof.verdict == "unproved":
        return " (nothing speaks against it; what would settle it stands beside each line above)"
    skipped = [claim.skipped for claim in proof.claims if claim.skipped]
    return f" ({max(skipped)} of {proof.requests} requests moved no KV)" if skipped else ""


def _clean(line: str) -> str:
    """Log lines are other people's text: nothing in them may steer a terminal."""
    return "".join(char if char.isprintable() else " " for char in line)
