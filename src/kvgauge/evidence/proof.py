"""Facts and sums against what the plan asked for. Each reason says what was seen, what was wanted, what to do."""

from collections.abc import Sequence
from math import ceil

from kvgauge.evidence.facts import Evidence, Missing
from kvgauge.plan.records import Cell, Test
from kvgauge.plan.trace import FileRequest, asked
from kvgauge.samples.records import Exchange, Transfer

TEXT_SHARE = 0.02  # by which a text may differ from the length asked for: our words in an unknown vocabulary
START_TOKENS, TEMPLATE_TOKENS = 2, 128  # what a server may add to a text, and to a chat message
WIRE_PROVIDERS = {"tcp": ("tcp", "sockets"), "efa": ("efa", "srd"), "ib": ("verbs", "rc", "dc", "ud")}


def contradictions(
    test: Test, evidence: Evidence, transfers: Sequence[Transfer], exchanges: Sequence[Exchange] = ()
) -> list[str]:
    """Why nothing of this run may be believed; empty when evidence and plan agree.

    A target that cannot see its transport contradicts nothing but what a proof found: its results are shown as
    unproved.
    """
    if evidence.proving is not None:
        return list(evidence.proving.contradicted)
    if evidence.unobserved is not None:
        return []
    return [
        *_backend(test, evidence, transfers),
        *_provider(test, evidence),
        *_spoken(test, evidence),
        *_unrecorded(transfers, exchanges),
        *_bytes(transfers),
        *_integrity(transfers),
        *_wire(test, evidence, transfers),
    ]


def cell_troubles(cell: Cell, measured: Sequence[Exchange], requests: tuple[FileRequest, ...] = ()) -> list[str]:
    """Why this cell's numbers cannot stand for what was offered: requests that failed, or were not what was asked.

    requests  those of the trace or dataset that the cell sends
    """
    if not measured:
        return ["no request was measured"]
    return [*_failures(measured), *_lengths(cell, measured, requests)]


def _lengths(cell: Cell, measured: Sequence[Exchange], requests: tuple[FileRequest, ...]) -> list[str]:
    """Answers and prompts that the server counted otherwise than they were asked for: another work was measured."""
    answered = [e for e in measured if e.failure is None and e.tokens_source == "usage"]
    counted = [(e, *_asked(cell, requests, e)) for e in answered]
    short = [(e.tokens_out, answer) for e, _, answer in counted if _unlike(cell, e.tokens_out, answer)]
    other = [
        (e.tokens_in, prompt)
        for e, prompt, _ in counted
        if prompt is not None and e.tokens_in is not None and not _fits(cell, e.tokens_in, prompt)
    ]
    troubles = []
    if short:
        troubles.append(
            f"{len(short)} of {len(counted)} answers have another length than the {short[0][1]} tokens asked "
            f"for (the first: {short[0][0]}): does the server heed max_tokens and ignore_eos?"
        )
    if other:
        troubles.append(
            f"{len(other)} of {len(counted)} prompts were counted as another length than {other[0][1]} tokens "
            f"(the first: {other[0][0]}){_why_other(cell)}"
        )
    return troubles


def _asked(cell: Cell, requests: tuple[FileRequest, ...], exchange: Exchange) -> tuple[int | None, int]:
    """What later turns have before them is the server's to count."""
    prompt, answer = asked(cell, requests, exchange.seq if exchange.session is None else exchange.session)
    return (prompt if exchange.turn in (None, 1) else None), answer


def _unlike(cell: Cell, given: int, wanted: int) -> bool:
    """A model that may end its answer may end it early, not late."""
    return given != wanted if cell.ignore_eos else given > wanted


def _fits(cell: Cell, counted: int, wanted: int) -> bool:
    """Token ids are as many as they are; text is what the server's tokenizer, and its template, make of it."""
    if cell.prompt_kind == "tokens":
        return counted == wanted
    slack = ceil(TEXT_SHARE * wanted)
    added = START_TOKENS + (TEMPLATE_TOKENS if cell.api == "chat" else 0)
    return wanted - slack <= counted <= wanted + slack + added


def _why_other(cell: Cell) -> str:
    if cell.prompt_kind == "tokens":
        return ": does the server take token ids as they are?"
    return f", more than {TEXT_SHARE:.0%} and what a template adds: use prompt_kind: tokens, or a prompt of your own"


def _failures(measured: Sequence[Exchange]) -> list[str]:
    failed = [exchange for exchange in measured if exchange.failure is not None]
    if not failed:
        return []
    kinds: dict[str, int] = {}
    for exchange in failed:
        kinds[exchange.failure or ""] = kinds.get(exchange.failure or "", 0) + 1
    counted = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
    first = next((exchange.detail for exchange in failed if exchange.detail), None)
    shown = f"; the first: {first[:200]}" if first else ""
    return [f"{len(failed)} of {len(measured)} requests failed ({counted}){shown}. The others flatter the result"]


def _backend(test: Test, evidence: Evidence, transfers: Sequence[Transfer]) -> list[str]:
    if not any(transfer.transferred_ns is not None for transfer in transfers):
        failed = transfers[0].failure if transfers else None
        why = f": {failed}" if failed else ""
        return [f"no KV transfer ended well{why}. Nothing proves that {test.backend} carried anything"]
    others = {backend: count for backend, count in evidence.backends.items() if backend not in (test.backend, "none")}
    if others:
        seen = ", ".join(f"{count} by {backend}" for backend, count in others.items())
        return [f"{test.backend} was asked for, but NIXL says that transfers were carried otherwise: {seen}"]
    return []


def _provider(test: Test, evidence: Evidence) -> list[str]:
    if not evidence.providers:
        return [
            f"unproved: no start-up line says which provider or lane {test.backend} used; "
            "keep NIXL_LOG_LEVEL=INFO, UCX_LOG_LEVEL=info and UCX_LOG_FILE=stderr"
        ]
    wanted = WIRE_PROVIDERS.get(test.fabric)
    if wanted is None:
        return []
    wrong = [name for name in evidence.providers if name.split("/")[0].split("_")[0].split(" ")[0] not in wanted]
    if wrong:
        line = next((fact.shown_by for fact in evidence.facts if fact.value.startswith(wrong[0])), "")
        return [f"fabric {test.fabric} was asked for, {', '.join(wrong)} carried it ({line})"]
    datagrams = [name for name in evidence.providers if name.startswith("ud") and test.fabric == "ib"]
    if datagrams:
        return [
            f"fabric ib was asked for, and {datagrams[0]} carried it: datagrams have no READ or WRITE, UCX "
            "emulates both in software; name rc or dc in UCX_TLS"
        ]
    return []


def _spoken(test: Test, evidence: Evidence) -> list[str]:
    """Lines that contradict a plan whatever else is right; on tcp UCX has nothing but emulation."""
    against = {"rail_mismatch": "the two sides opened different numbers of rails",
               "handshake_missing": "a peer's handshake never came"}  # fmt: skip
    if test.fabric != "tcp":
        against["emulated"] = f"fabric {test.fabric} was asked for, but UCX emulates remote memory access in software"
    found = [(against[fact.name], fact) for fact in evidence.facts if fact.name in against]
    return [f"{text}: {fact.value} ({fact.shown_by})" for text, fact in found[:3]]


def _unrecorded(transfers: Sequence[Transfer], exchanges: Sequence[Exchange]) -> list[str]:
    """Every answer needs its KV: one without a transfer on record was answered from somewhere else."""
    known = {transfer.request_id for transfer in transfers}
    answered = [exchange for exchange in exchanges if exchange.failure is None]
    without = [exchange for exchange in answered if exchange.request_id not in known]
    if not without:
        return []
    return [
        f"{len(without)} of {len(answered)} answered requests have no KV transfer on record (the first: request "
        f"{without[0].seq} of cell {without[0].cell}): recomputed, cached, or not recorded"
    ]


def _bytes(transfers: Sequence[Transfer]) -> list[str]:
    done = [transfer for transfer in transfers if transfer.failure is None]
    wrong = [
        transfer
        for transfer in done
        if transfer.bytes_listed != transfer.bytes_expected
        or (transfer.bytes_moved is not None and transfer.bytes_moved != transfer.bytes_expected)
    ]
    if not wrong:
        return []
    worst = wrong[0]
    return [
        f"bytes do not add up in {len(wrong)} of {len(done)} transfers: {worst.prompt_tokens} prompt tokens are "
        f"{worst.bytes_expected} bytes of KV, the descriptors list {worst.bytes_listed}, "
        f"NIXL counted {worst.bytes_moved}"
    ]


def _integrity(transfers: Sequence[Transfer]) -> list[str]:
    wrong = [transfer for transfer in transfers if transfer.pieces_wrong]
    if not wrong:
        return []
    pieces = sum(transfer.pieces_wrong for transfer in wrong)
    return [
        f"wrong KV in {len(wrong)} of {len(transfers)} transfers, {pieces} pieces in all; "
        f"the first: {wrong[0].failure}. "
        "NIXL reported DONE for them: do not use this build with this backend"
    ]


def _wire(test: Test, evidence: Evidence, transfers: Sequence[Transfer]) -> list[str]:
    """Over tcp every byte passes a network interface; fewer there than moved means something else carried them."""
    if test.fabric != "tcp" or isinstance(evidence.wire_bytes, Missing):
        return []
    moved = sum(transfer.bytes_listed for transfer in transfers if transfer.failure is None)
    if evidence.wire_bytes < moved:
        return [
            f"{moved} bytes were moved, but only {evidence.wire_bytes} passed the network interfaces: "
            "shared memory or another path carried the rest"
        ]
    return []
