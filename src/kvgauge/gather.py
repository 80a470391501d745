"""What a run leaves behind while it lasts and once it is over: KV moves, evidence, counted tokens, judged results."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

from kvgauge.judge import Measured, judge, requests_of
from kvgauge.load import count
from kvgauge.load.texts import Texts
from kvgauge.plan.records import Goodput, Run
from kvgauge.plan.trace import FileRequest
from kvgauge.report.records import RunResult
from kvgauge.samples.disk import disk_errors
from kvgauge.samples.files import SampleWriter
from kvgauge.samples.read import load_metrics
from kvgauge.samples.records import Exchange
from kvgauge.stats.server import metric_names, server_cells
from kvgauge.target.contract import Target
from kvgauge.tokens.choose import Chosen

LATE_MOVES_S = 0.5  # a KV move's record may reach us this much after the answer it belongs to


def take_moves(target: Target, writer: SampleWriter, run_id: str, measured: Measured) -> None:
    """The KV moves that ended since the last call."""
    for transfer in target.phases():
        measured.transfers.append(transfer)
        writer.add_transfer(run_id, transfer)


def late_moves(target: Target, writer: SampleWriter, measured: Measured) -> None:
    """Wait, for a moment, until every answered request's move is recorded."""
    run_id = measured.exchanges[0].run_id if measured.exchanges else ""
    wanted = {exchange.request_id for exchange in measured.exchanges if exchange.request_id}
    until = time.monotonic() + LATE_MOVES_S
    while wanted - {transfer.request_id for transfer in measured.transfers} and time.monotonic() < until:
        take_moves(target, writer, run_id, measured)
        time.sleep(0.01)


def count_texts(
    chosen: Chosen,
    writer: SampleWriter,
    measured: Measured,
    files: Mapping[str, tuple[FileRequest, ...]],
    stop: Callable[[], bool],
) -> None:
    """Tokens of the answers that came without usage, now that nothing is measured any more."""
    assert isinstance(measured.texts, Texts)
    tokens = count.count(measured.texts, chosen, stop=stop)
    measured.loads = [
        (
            cell,
            load,
            count.counted(each, tokens, chosen, count.prompt_counter(cell, requests_of(cell, files), chosen)),
        )
        for cell, load, each in measured.loads
    ]
    measured.exchanges = [exchange for _, _, exchanges in measured.loads for exchange in exchanges]
    writer.count([each for each in measured.exchanges if each.tokenizer is not None])


def judged(
    run: Run,
    measured: Measured,
    folder: Path,
    files: Mapping[str, tuple[FileRequest, ...]],
    goodput: Goodput | None,
) -> list[RunResult]:
    """Keep the evidence of a run, and what it gave, with what its server said of itself. raises SamplesError"""
    if measured.evidence is not None:
        encoded = msgspec.json.format(msgspec.json.encode(measured.evidence))
        with disk_errors(folder, "evidence.json"):
            (folder / "evidence.json").write_bytes(encoded)
    server = server_cells(load_metrics(folder, names=metric_names()), measured.windows, measured.exchanges)
    results = judge(msgspec.structs.replace(run, seed=measured.seed), measured, files, goodput)
    return [
        msgspec.structs.replace(
            result,
            server=server.get(result.cell) if result.cell is not None else None,
            deployment=measured.deployment,
            began=measured.began,
            ended=measured.ended,
        )
        for result in results
    ]


def hopeless(measured: Measured) -> bool:
    """Every request of the last cell failed: the others would only wait for their time-outs."""
    cell, _, exchanges = measured.loads[-1]
    if any(name == cell.name for name, _ in measured.mishaps):
        return False  # started again since
    return bool(exchanges) and all(exchange.failure is not None for exchange in exchanges)


def places(prompts: int, first: int, exchanges: Sequence[Exchange]) -> list[int]:
    """Places in the dataset of what was sent, each conversation once, in the order of sending."""
    sent = [each for each in exchanges if each.failure != "unsent" and each.turn in (None, 1)]
    numbers = sorted(each.seq if each.session is None else each.session for each in sent)
    return [(first + number) % prompts for number in numbers]
