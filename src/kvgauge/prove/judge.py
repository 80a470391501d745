"""All that was seen of a deployment to one proof: claims, and the verdict over them. Pure."""

from collections.abc import Sequence

import msgspec

from kvgauge.evidence import sums, transport
from kvgauge.evidence.counters import Counted
from kvgauge.evidence.efa import TROUBLES, EfaMoved
from kvgauge.evidence.logs import LogFacts
from kvgauge.evidence.sums import Claim, Expected, Geometry, Ledger, Verdict
from kvgauge.evidence.trtllm import DIGITS_SHARE, SentRow

EXIT = {"proved": 0, "contradicted": 1, "unproved": 4}
WANTS = {"backend": "backend", "fabric": "fabric", "rails": "rails", "gpudirect": "GPUDirect"}


class Observed(msgspec.Struct, frozen=True, kw_only=True):
    """What came of the requests and of looking.

    prompts, failed  prompt tokens of each request that was answered, and of each that was not
    geometry         None: bytes a token are not known, `unknown` says why
    csv              TensorRT-LLM's rows since the requests began, by file
    """

    prompts: tuple[int, ...]
    failed: tuple[int, ...]
    geometry: Geometry | None
    unknown: str | None
    sources: tuple[Counted, ...]
    silent: tuple[str, ...]
    logs: tuple[LogFacts, ...]
    csv: dict[str, tuple[SentRow, ...]]
    efa: EfaMoved | None
    answers: Claim | None
    answers_wanted: bool
    want: transport.Want


class Proof(msgspec.Struct, frozen=True, kw_only=True):
    """The result. headline: expected, moved, over what, in one line."""

    url: str
    model: str
    verdict: Verdict
    headline: str
    claims: tuple[Claim, ...]
    requests: int
    failed: int
    took_s: float

    @property
    def exit_code(self) -> int:
        return EXIT[self.verdict]


def judged(observed: Observed) -> tuple[list[Claim], Verdict, str]:
    """(claims, verdict, headline)"""
    ledgers = [*sums.ledgers(observed.sources), *_csv_ledgers(observed.csv), *_efa_ledger(observed.efa)]
    wanted = _expected(observed)
    claims = [_bytes(observed, wanted, ledger) for ledger in ledgers] if wanted is not None else []
    if wanted is None or not any(not ledger.least for ledger in ledgers):
        claims.insert(0, _no_bytes(observed, ledgers))
    claims += _efa(observed, wanted)
    claims += _tokens(observed)
    claims += _sources(observed)
    claims += transport.claims(observed.want, observed.logs)
    claims += [observed.answers] if observed.answers is not None else []
    return claims, _verdict(observed, claims, ledgers), _headline(observed, claims, wanted, ledgers)


def _expected(observed: Observed) -> Expected | None:
    if observed.geometry is None:
        return None
    return sums.expected(
        observed.prompts, observed.geometry, found_tokens=_found_tokens(observed), failed=observed.failed
    )


def _bytes(observed: Observed, wanted: Expected, ledger: Ledger) -> Claim:
    """Where decode answered those too that failed on our side, late for a client's time-out, they count like any."""
    whole = (*observed.prompts, *observed.failed)
    if observed.failed and ledger.answered == len(whole) and observed.geometry is not None:
        wanted = sums.expected(whole, observed.geometry, found_tokens=_found_tokens(observed))
    return sums.judge(wanted, ledger)


def _found_tokens(observed: Observed) -> int:
    return sum(round(_found(source)) for source in _deciding(observed.sources))


def _deciding(sources: Sequence[Counted]) -> list[Counted]:
    """Sources whose cache hits lessen what is moved: decode workers where they can be told, else every one."""
    decoding = [source for engine in ("vLLM", "SGLang") for source in sums.decodes(sources, engine)]
    return decoding or list(sources)


def _found(source: Counted) -> float:
    return max(source.get(engine, "prefix_hit_tokens") or 0.0 for engine in ("vLLM", "SGLang"))


def _csv_ledgers(csv: dict[str, tuple[SentRow, ...]]) -> list[Ledger]:
    """Sent and received apart: each holds every transfer once."""
    found = []
    for way in ("send", "recv"):
        rows = [row for name, mine in csv.items() if way in name for row in mine]
        if rows:
            moved = sum(row.size_bytes for row in rows)
            found.append(
                Ledger(
                    name=f"TensorRT-LLM {way}",
                    moved_bytes=moved,
                    transfers=len({row.request_id for row in rows}),
                    answered=None,
                    shown_by=f"bandwidth x duration over {len(rows)} rows of {', '.join(n for n in csv if way in n)}",
                    slack_bytes=moved * DIGITS_SHARE,
                    firm=False,
                )
            )
    return found


def _efa_ledger(efa: EfaMoved | None) -> list[Ledger]:
    if efa is None or efa.wire_bytes is None:
        return []
    broken = f"; counters that were reset: {', '.join(efa.resets[:3])}" if efa.resets else ""
    return [
        Ledger(
            name="EFA of this host",
            moved_bytes=efa.wire_bytes,
            transfers=None,
            answered=None,
            shown_by=f"tx_bytes or rx_bytes over {len(efa.rails)} ports ({', '.join(efa.rails[:8])}){broken}",
            least=True,
        )
    ]


def _efa(observed: Observed, wanted: Expected | None) -> list[Claim]:
    """Beside the sum: whether LIBFABRIC's bytes went by RDMA, and what the devices counted as errors. UCX's SRD sends
    messages too, so nothing is asked of it."""
    efa, found = observed.efa, []
    if efa is None or wanted is None:
        return []
    by_rdma, wire = efa.rdma_bytes, efa.wire_bytes
    if "UCX" not in (*transport.seen(observed.logs).backends, observed.want.backend) and by_rdma is not None and wire:
        shown = "rdma_read_bytes, rdma_write_bytes and their receiving sides"
        if by_rdma >= wanted.low:
            text = f"at least {by_rdma:,} bytes by RDMA of {wanted.low:,} expected"
            found.append(Claim(name=RDMA, verdict="proved", text=text, shown_by=shown))
        elif wire >= wanted.low:
            text = f"{by_rdma:,} bytes by RDMA of {wanted.low:,} expected, while {wire:,} passed: reads and writes are "
            text += "emulated by messages, or other traffic passed here and the KV did not"
            found.append(Claim(name=RDMA, verdict="unproved", text=text, shown_by=shown,
                               fix="FI_EFA_USE_DEVICE_RDMA=1 (or unset), on devices that have it"))  # fmt: skip
    if troubles := [f"{name} {efa.totals[name]:,}" for name in TROUBLES if efa.totals.get(name)]:
        text = f"the EFA devices of this host counted {', '.join(troubles)} meanwhile"
        found.append(Claim(name="EFA errors", verdict="unproved", text=text, shown_by="hw_counters of its ports"))
    return found


def _no_bytes(observed: Observed, ledgers: Sequence[Ledger]) -> Claim:
    if observed.geometry is None:
        moved = "; ".join(f"{ledger.name} counted {ledger.moved_bytes:,.0f} bytes" for ledger in ledgers)
        text = f"bytes a token are not known ({observed.unknown}){'; ' + moved if moved else ''}"
        return Claim(name="bytes", verdict="unproved", text=text, shown_by="-", fix="give --kv-bytes-per-token")
    return Claim(
        name="bytes",
        verdict="unproved",
        text="nobody that was asked counts KV bytes",
        shown_by=", ".join(source.source for source in observed.sources) or "no /metrics answered",
        fix="name the workers' /metrics with --workers: vLLM's and SGLang's own, or NIXL's exporter "
        "(NIXL_TELEMETRY_ENABLE=y NIXL_TELEMETRY_EXPORTER=prometheus)",
    )


def _tokens(observed: Observed) -> list[Claim]:
    """vLLM's own account, at its decode workers, of where prompt tokens came from."""
    by = [
        source for source in sums.decodes(observed.sources, "vLLM") if source.get("vLLM", "computed_tokens") is not None
    ]
    if not by or observed.geometry is None:
        return []
    computed, external, found = (
        round(sum(source.get("vLLM", name) or 0.0 for source in by))
        for name in ("computed_tokens", "external_kv_tokens", "cached_tokens")
    )
    answered = sum(round(sums.requests_of(source, "vLLM")) for source in by)
    shortest = min(observed.prompts, default=0)
    block = observed.geometry.block_tokens
    slack = sum(1 + length % block for length in observed.prompts)  # the last token, and an unfilled block
    text = f"{external} from prefill, {found} from its cache, {computed} computed by decode itself"
    shown = f"vllm:prompt_tokens_by_source_total at {', '.join(source.source for source in by)}"
    if computed == 0 or computed <= slack < shortest:
        return [Claim(name="prompt tokens", verdict="proved", text=text, shown_by=shown)]
    if answered != len(observed.prompts):
        text += f" (of {answered} requests: others' or failed ones too)"
        return [Claim(name="prompt tokens", verdict="unproved", text=text, shown_by=shown)]
    whole = (computed - slack) // max(1, shortest) if computed > slack else 0
    if whole >= 1:
        return [Claim(name="prompt tokens", verdict="contradicted", text=f"{text}: whole prompts", shown_by=shown,
                      fix=sums.SKIPPED_FIX, skipped=whole)]  # fmt: skip
    text += ": last tokens, or a few whole prompts"
    return [Claim(name="prompt tokens", verdict="unproved", text=text, shown_by=shown)]


def _sources(observed: Observed) -> list[Claim]:
    claims = [
        Claim(name="metrics", verdict="unproved", text=f"{why}", shown_by="--workers", fix="is its /metrics on?")
        for why in observed.silent
    ]
    claims += [
        Claim(name="metrics", verdict="unproved", text=f"{source.source} was restarted meanwhile: its count is lost",
              shown_by="a counter fell", fix="prove again")
        for source in observed.sources
        if source.restarted
    ]  # fmt: skip
    failures = sum(round(source.get(engine, "kv_failures") or 0) for source in observed.sources for engine in ENGINES)
    if failures:
        text = f"the workers counted {failures} failed KV transfers meanwhile"
        claims.append(Claim(name="transfers", verdict="contradicted", text=text, shown_by="their /metrics"))
    stale = sum(round(source.get("vLLM", "kv_stale") or 0) for source in observed.sources)
    if stale:
        text = f"{stale} were fetched after prefill had given them up: their blocks may have held another request's KV"
        claims.append(Claim(name=STALE, verdict="unproved", text=text, shown_by="their /metrics",
                            fix=transport.STALE_FIX))  # fmt: skip
    if observed.failed:
        text = f"{len(observed.failed)} of {len(observed.failed) + len(observed.prompts)} requests failed"
        claims.append(Claim(name="requests", verdict="unproved", text=text, shown_by="the client"))
    return claims


ENGINES = ("vLLM", "SGLang", "NIXL")
STALE = "KV caches"
RDMA = "EFA RDMA"


def _verdict(observed: Observed, claims: Sequence[Claim], ledgers: Sequence[Ledger]) -> Verdict:
    """What was asked for, and the bytes always, must be proved; nothing at all may be contradicted."""
    if any(claim.verdict == "contradicted" for claim in claims):
        return "contradicted"
    full = {f"bytes ({ledger.name})" for ledger in ledgers if not ledger.least}
    required = {name for field, name in WANTS.items() if getattr(observed.want, field) is not None}
    required |= {"answers"} if observed.answers_wanted else set()
    required |= {claim.name for claim in claims if claim.name == STALE}
    if observed.want.fabric not in (None, "tcp"):  # a fast fabric is asked for its remote memory access
        required |= {claim.name for claim in claims if claim.name in (RDMA, transport.REMOTE)}
    of = {claim.name: claim.verdict for claim in claims}
    bytes_proved = any(of.get(name) == "proved" for name in full)
    return "proved" if bytes_proved and all(of.get(name) == "proved" for name in required) else "unproved"


def _headline(observed: Observed, claims: Sequence[Claim], wanted: Expected | None, ledgers: Sequence[Ledger]) -> str:
    """`expected 56 MiB a request, moved 56 MiB a request, all 200 requests over LIBFABRIC/efa, 4 rails`"""
    way = transport.seen(observed.logs).way
    over = f"over {way}" if way else "over what is not known"
    order = {"contradicted": 0, "proved": 1, "unproved": 2}
    mine = [claim for claim in claims if claim.name.startswith("bytes")]
    if not mine or wanted is None or not ledgers:
        return mine[0].text if mine else "nothing is known of the bytes"
    first = min(mine, key=lambda claim: order[claim.verdict])
    return f"{first.text} {over}" if first.verdict == "proved" else f"{first.text} ({over})"
