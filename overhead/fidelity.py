"""How true and how fast the client is: kvgauge's load driver beside a bare C reader, and other tools where installed.

    python overhead/fidelity.py [--quick] [--rounds 3] [--streams 1,8,32,128] [--peers VENV] [--json FILE]

A pacing server in C (pacer.c), alone on one core, writes down when each request came and when each chunk left; the
client has one other core to itself. First the server's own times are proved against the kernel's stamps at the bare
reader (reader.c); where they are not true enough to judge by, nothing is judged. Then every client is run in turn,
round after round, and the median of the quiet rounds is shown. truth.py defines the words, verdict.py the targets.
"""

import argparse
import fcntl
import json
import os
import platform
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from launch import Cores, Pacer, Ran, build, busy_s, compiler, cores, run_client
from peers import installed
from tools import Finished, Floor, Kvgauge, Said, Setting, Tool
from truth import (
    Proof,
    Truth,
    flood_chunks_s,
    held,
    inflation_ns,
    kept_chunks_s,
    lateness_ns,
    offered_chunks_s,
    prove,
    read_side,
    refill_ns,
    spread,
)
from verdict import QUIET, Row, judge, table

TTFT_US, ITL_US, TOKENS = 50_000, 5_000, 64
FLOOD_STREAMS, FLOOD_TOKENS, FLOOD_TURN = 32, 256, 8
ERROR_MEAN_US, ERROR_P99_US = 20, 100  # a third of the targets
HOLD_EVERY, HOLD_US = 16, 500
PROOF_TRIES = 3


class Bench:
    def __init__(self, pacer: Path, reader: Path, folder: Path, where: Cores) -> None:
        self._pacer, self._reader, self._folder, self._cores = pacer, reader, folder, where

    def _serve(self, setting: Setting, **options: object) -> Pacer:
        flood = {"flood": setting.flood} if setting.flood else {"ttft-us": TTFT_US, "itl-us": ITL_US}
        given = {**flood, "tokens": setting.tokens, "requests": 4 * (setting.requests + setting.warmup), **options}
        return Pacer(self._pacer, self._folder, self._cores.server, given)

    def idle(self) -> bool:
        """Whether both cores had hardly anything to do for half a second."""
        both = (self._cores.server, self._cores.client)
        before = [busy_s(core) for core in both]
        time.sleep(0.5)
        return all(busy_s(core) - begun <= 0.5 * QUIET for core, begun in zip(both, before, strict=True))

    def proof(self, streams: int) -> Proof:
        setting = Setting(streams=streams, requests=max(16, 3 * streams), warmup=0, tokens=TOKENS)
        truth, _, _ = self._client(Floor(self._reader, "kernel"), setting)
        return prove(truth, read_side(self._folder / "reader.bin"))

    def held(self) -> tuple[int, int, int]:
        setting = Setting(streams=4, requests=16, warmup=0, tokens=TOKENS)
        options = {"hold-every": HOLD_EVERY, "hold-us": HOLD_US}
        truth, _, _ = self._client(Floor(self._reader, "kernel"), setting, **options)
        return held(truth, read_side(self._folder / "reader.bin"), HOLD_EVERY, HOLD_US * 1_000)

    def _client(self, tool: Tool, setting: Setting, **options: object) -> tuple[Truth, Ran, Path]:
        log = self._folder / "client.log"
        with self._serve(setting, **options) as pacer:
            ran = run_client(tool.command(pacer.port, setting, self._folder), self._cores.client, log)
        if pacer.truth.refused:
            raise RuntimeError(f"the pacing server refused {pacer.truth.refused} requests of {tool.name}")
        return pacer.truth, ran, log

    def row(self, tool: Tool, setting: Setting, at: int) -> Row:
        truth, ran, log = self._client(tool, setting)
        said = tool.read(Finished(truth=truth, setting=setting, folder=self._folder, log=log))
        whole = set(truth.whole().tolist())
        if len(said.numbers) != setting.requests or not whole.issuperset(said.numbers.tolist()):
            raise RuntimeError(f"{tool.name} tells of {len(said.numbers)} requests, {setting.requests} were asked for")
        return _row(tool, setting, at, truth, ran, said)


def _row(tool: Tool, setting: Setting, at: int, truth: Truth, ran: Ran, said: Said) -> Row:
    numbers = said.numbers
    chunks = len(numbers) * (setting.tokens + 2)
    begin_ns, end_ns = int(truth.received_ns[numbers].min()), int(truth.taken_ns[numbers].max())
    cpu_s = said.cpu_s if said.cpu_s is not None else ran.cpu_between_s(begin_ns, end_ns)
    paced = not setting.flood
    return Row(
        tool=tool.name,
        streams=setting.streams,
        flood=not paced,
        round=at,
        requests=len(numbers),
        inflation=spread(inflation_ns(truth, numbers, said.ttft_ns)) if paced else None,
        refill=spread(refill_ns(truth, numbers, setting.streams)),
        kept_chunks_s=kept_chunks_s(truth, numbers, setting.streams) if paced else None,
        offered_chunks_s=offered_chunks_s(truth, setting.streams) if paced else None,
        late=spread(lateness_ns(truth)) if paced else None,
        chunks_s=None if paced else flood_chunks_s(truth, numbers, said.ended_ns),
        cpu_ms_per_1000=None if cpu_s is None else cpu_s * 1e6 / chunks,
        every_chunk=None if said.chunks is None else said.chunks == len(numbers) * setting.tokens,
        launch_s=(int(truth.received_ns[0]) - ran.launched_ns) / 1e9,
        exit_s=(ran.exited_ns - int(truth.taken_ns.max())) / 1e9,
        rss_mb=ran.rss_mb,
        foreign=ran.foreign,
    )


def show_proof(bench: Bench) -> tuple[bool, list[Proof]]:
    """Print how true the server's own times are. False: too little to judge clients by."""
    proofs, good = [], True
    for streams in (1, 32):
        for _ in range(PROOF_TRIES):
            proof = bench.proof(streams)
            true_enough = proof.inside > 0.999 and proof.error.mean < ERROR_MEAN_US and proof.error.p99 < ERROR_P99_US
            if true_enough:
                break
        proofs.append(proof)
        good &= true_enough
        error, asking, late = proof.error, proof.asking, proof.late
        print(
            f"  {streams:3} streams: a chunk's stamp by the kernel at the bare reader - the server's own 'left': "
            f"mean {error.mean:.1f}, p50 {error.p50:.1f}, p99 {error.p99:.1f} us (n = {error.n:,})\n"
            f"{'':15}{proof.inside:.2%} of these stamps inside the server's send(), {proof.asked:.2%} of its own "
            f"receive stamps inside the reader's\n"
            f"{'':15}the request's hop: mean {asking.mean:.1f}, p99 {asking.p99:.1f} us; left after it was due: "
            f"p50 {late.p50:.1f}, p99 {late.p99:.1f}, max {late.max:.0f} us"
        )
    was_held, found, others = bench.held()
    caught = was_held > 0 and found == was_held and others * 100 <= was_held
    print(
        f"  a server made to note 1 in {HOLD_EVERY} chunks {HOLD_US} us too early: {found} of {was_held} found, "
        f"{others} others"
    )
    return good and caught, proofs


def settings(streams: list[int], *, quick: bool) -> list[Setting]:
    """Each round's closed loops; about as long each, but for the single stream."""
    cycles = {1: 20, 8: 8, 32: 6, 128: 6} if quick else {1: 60, 8: 30, 32: 16, 128: 10}
    paced = [
        Setting(streams=n, requests=n * cycles.get(n, 8), warmup=n if n > 1 else 2, tokens=TOKENS) for n in streams
    ]
    flood = Setting(streams=FLOOD_STREAMS, requests=1_000, warmup=32, tokens=FLOOD_TOKENS, flood=FLOOD_TURN)
    return [*paced, flood]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer requests, two rounds: under 3 minutes")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--streams", default="1,8,32,128")
    parser.add_argument("--peers", type=Path, help="virtual environment with aiperf or vllm; else those on PATH")
    parser.add_argument("--patience", type=float, default=0, help="seconds in which disturbed runs are done again")
    parser.add_argument("--json", type=Path, help="keep every run's figures here")
    args = parser.parse_args()
    cc = compiler()
    if cc is None:
        print(
            "SKIPPED: no C compiler, so neither the pacing server nor the bare reader can be built, and nothing is\n"
            "said of our fidelity and speed. Install one (cc, gcc, clang), or `pip install ziglang`, or name it in CC."
        )
        return 0
    where = cores()
    if where.server == where.client:
        print("SKIPPED: one core only: server and client would take it from each other, and neither could be judged.")
        return 0
    alone = Path(tempfile.gettempdir(), f"kvgauge-fidelity-{os.getuid()}.lock").open("w")  # noqa: SIM115  (held until we end)
    try:
        fcntl.flock(alone, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print("another fidelity run is under way on this machine; waiting for its end", flush=True)
        fcntl.flock(alone, fcntl.LOCK_EX)
    os.sched_setaffinity(0, {where.server})  # what we do ourselves shall not be on the client's core
    with tempfile.TemporaryDirectory(prefix="kvgauge-fidelity-") as folder:
        pacer, reader = build(cc, Path(folder))
        bench = Bench(pacer, reader, Path(folder), where)
        print(
            f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; server on core "
            f"{where.server}, client on core {where.client}\nthe server's own times:"
        )
        good, proofs = show_proof(bench)
        if not good:
            print(
                "REFUSED: the server's own times are not true to a third of the targets, or a fault was not found:\n"
                "no client is judged. Run it again when the machine is quiet."
            )
            return 1
        until_s = time.monotonic() + args.patience
        rounds = args.rounds or (2 if args.quick else 3)
        cells = settings([int(n) for n in args.streams.split(",")], quick=args.quick)
        rows = offer(
            bench, [Floor(reader, "user"), Floor(reader, "kernel"), Kvgauge()], args.peers, cells, rounds, until_s
        )
    print("\n".join(["", *table(rows)]))
    print("\nkvgauge against its targets (medians of the quiet rounds; floor: with user stamps):")
    print("\n".join(judge(rows, "kvgauge", rows[0].tool)))
    if args.json:
        kept = {"at": time.time(), "proofs": [asdict(p) for p in proofs], "rows": [asdict(row) for row in rows]}
        args.json.write_text(json.dumps(kept, indent=1))
    return 0


def undisturbed(bench: Bench, tool: Tool, setting: Setting, at: int, until_s: float) -> Row:
    """One run; done again, as long as there is patience, when others were on its cores."""
    while not (row := bench.row(tool, setting, at)).quiet and time.monotonic() < until_s:
        while time.monotonic() < until_s and not bench.idle():
            pass
    return row


def offer(
    bench: Bench, ours: list[Tool], venv: Path | None, cells: list[Setting], rounds: int, until_s: float
) -> list[Row]:
    """Every tool in turn, round after round. A peer that fails says so and is left out from then on."""
    rows, others = [], installed(venv)
    print(f"peers found: {', '.join(tool.name for tool in others) or 'none (aiperf, vllm): ours stand alone'}")
    for at in range(rounds):
        for setting in cells:
            for tool in [*ours, *others]:
                try:
                    rows.append(undisturbed(bench, tool, setting, at, until_s))
                except (RuntimeError, ValueError, KeyError, OSError) as error:
                    if tool in ours:
                        raise
                    print(f"{tool.name} is LEFT OUT from here on: {error!r}")
                    others = [other for other in others if other is not tool]
                print(".", end="", flush=True, file=sys.stderr)
    print(file=sys.stderr)
    return rows


if __name__ == "__main__":
    sys.exit(main())
