"""Hours of service in minutes: load without a pause while workers are killed and started again.

    python overhead/soak.py [--minutes 20] [--concurrency 20] [--every 60] [--backend UCX]

Two prefill and two decode workers. Every minute one of prefill-1 and decode-1, in turn, gets SIGKILL; five seconds
later it is started again. The others survive the whole time: they lose and find peers, and must not grow by it.

Every 30 s a line of figures; at the end a verdict, exit code 1 when one of these does not hold:

* Memory and descriptors are flat. Of the frontend, prefill-0, decode-0 and this client, the median of the last quarter
  is at most that of the second quarter (the first is start-up) plus 5 % and 8 MiB, or plus 3 descriptors: allocators
  keep some pages, a connection may be under way; one descriptor lost at each kill would be ten in 20 minutes.
* The frontend does not end, and neither does this client. A worker that ends without having been killed (UCX 1.23 of
  NIXL 1.5.0 was seen to crash in a survivor of a peer's death) is started again, counted, and named in the verdict;
  its memory counts from then on.
* No request is unaccounted for: each that was sent has an answer or a failure of a known kind, the frontend counts as
  many answers as we do and has none under way, and every block of every pool is free.
"""

import argparse
import os
import platform
import signal
import statistics
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from pathlib import Path

from kvgauge.builds.install import install
from kvgauge.evidence.machine import PAGE_BYTES
from kvgauge.load.drive import Driver
from kvgauge.plan.records import Cell, Run, Test
from kvgauge.target.embedded import EmbeddedTarget, Options

VICTIMS = ("decode-1", "prefill-1")
SURVIVORS = ("frontend", "prefill-0", "decode-0", "client")
DOWN_S = 5.0
LOOK_S = 1.0
LINE_S = 30.0
SETTLE_S = 10.0
ROUNDS = 10  # requests of a slot in one cell; the time is looked at between cells
CRASHES_MAX = 20
RSS_SHARE, RSS_BYTES, FDS = 0.05, 8 << 20, 3


class Look:
    """Memory and open descriptors of every process at one moment."""

    def __init__(self, at_s: float, pids: dict[str, int]) -> None:
        self.at_s = at_s
        self.rss_bytes: dict[str, int] = {}
        self.fds: dict[str, int] = {}
        for name, pid in pids.items():
            try:
                pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
                self.fds[name] = len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208 - links are not to be followed
            except (OSError, IndexError):
                continue  # killed a moment ago
            self.rss_bytes[name] = pages * PAGE_BYTES


class Soak:
    """The state of one soak; `tick` is called by the load driver all along."""

    def __init__(self, target: EmbeddedTarget, minutes: float, every_s: float) -> None:
        self._target, self._every_s = target, every_s
        self.began = time.monotonic()
        self.seconds = minutes * 60
        self.looks: list[Look] = []
        self.offered = self.answered = 0
        self.failed: Counter[str] = Counter()
        self.wrong_pieces = self.kills = 0
        self.died: str | None = None  # what cannot be started again
        self.crashes: list[tuple[str, float, str]] = []  # worker, when, how: nobody had killed it
        self._down: tuple[str, float] | None = None
        self._next_line = LINE_S

    @property
    def now_s(self) -> float:
        return time.monotonic() - self.began

    def on_exchange(self, exchange) -> None:
        if exchange.failure is None:
            self.answered += 1
        else:
            self.failed[kind(exchange)] += 1

    def tick(self) -> None:
        self.wrong_pieces += sum(transfer.pieces_wrong for transfer in self._target.phases())
        now_s = self.now_s
        if not self.looks or now_s - self.looks[-1].at_s >= LOOK_S:
            self.looks.append(Look(now_s, self._target.pids()))
        if now_s >= self._next_line:
            self._next_line += LINE_S
            self.say()
        if self._down is None and self.died is None and (how := self._target.trouble()) is not None:
            self._ended(how, now_s)
        if self.died is not None:
            return
        if self._down is not None and now_s >= self._down[1]:
            self._target.restart(self._down[0], wait=False)
            self._down = None
        elif self._down is None and now_s >= (self.kills + 1) * self._every_s and now_s < self.seconds - 2 * DOWN_S:
            victim = VICTIMS[self.kills % len(VICTIMS)]
            os.kill(self._target.pids()[victim], signal.SIGKILL)
            self.kills += 1
            self._down = (victim, now_s + DOWN_S)

    def _ended(self, how: str, now_s: float) -> None:
        name = how.split(maxsplit=1)[0]
        if name.split("-")[0] not in ("prefill", "decode") or len(self.crashes) == CRASHES_MAX:
            self.died = how
            return
        self.crashes.append((name, now_s, how.split(";", maxsplit=1)[0]))
        print(f"{now_s:6.0f} s  {self.crashes[-1][2]}, and nobody had killed it: it is started again", flush=True)
        self._target.restart(name, wait=False)

    @property
    def unaccounted(self) -> int:
        return self.offered - self.answered - sum(self.failed.values())

    def say(self) -> None:
        look = self.looks[-1]
        under_way = "" if self.unaccounted == 0 else f", {self.unaccounted} to come"
        print(
            f"{self.now_s:6.0f} s  {self.offered:,} offered, {self.answered:,} answered, "
            f"{sum(self.failed.values())} failed{under_way}; {self.kills} killed"
        )
        shown = (f"{name} {look.rss_bytes[name] / 2**20:.1f} MiB {look.fds[name]} fds" for name in look.rss_bytes)
        print(f"          {', '.join(shown)}", flush=True)


def kind(exchange) -> str:
    """A failure's kind, and what the server said without numbers: few and countable."""
    said = (exchange.detail or "").split(" while ")[0].split(" for a ")[0][:90]
    return f"{exchange.failure}: {said}" if said else str(exchange.failure)


def the_test(backend: str, operation: str) -> Test:
    return Test(
        name="soak",
        backend=backend,
        fabric="tcp",
        build="1.5.0",
        patches="none",
        stand_in=None,
        model="Qwen3-0.6B",
        prefill_tp=1,
        decode_tp=1,
        prefill_workers=2,
        decode_workers=2,
        operation=operation,
    )


def offer(soak: Soak, target: EmbeddedTarget, endpoint, cell: Cell) -> None:
    """Cell after cell until the time is over."""
    with Driver(endpoint.url, endpoint.model, host=platform.node(), request_timeout_s=60) as driver:
        while soak.now_s < soak.seconds and soak.died is None:
            soak.offered += cell.requests
            driver.run_cell(
                cell,
                run_id="soak",
                seed=1,
                on_exchange=soak.on_exchange,
                tick=soak.tick,
                stop=lambda: soak.died is not None,
            )
    while (
        soak.died is None and target.trouble() is not None and soak.now_s < soak.seconds + 60
    ):  # the last one may still be down
        soak.tick()
        time.sleep(0.1)


def flatness(soak: Soak) -> list[str]:
    """What grew, from the second quarter to the last; a line for each survivor is printed."""
    grew = []
    quarters = [[look for look in soak.looks if low <= look.at_s / soak.seconds < low + 0.25] for low in (0.25, 0.75)]
    crashed = {name for name, _, _ in soak.crashes}
    for name in SURVIVORS:
        if name in crashed:
            print(f"  {name:10} crashed: its memory says nothing about the whole time")
            continue
        rss = [statistics.median(look.rss_bytes[name] for look in quarter) for quarter in quarters]
        fds = [statistics.median(look.fds[name] for look in quarter) for quarter in quarters]
        print(
            f"  {name:10} {rss[0] / 2**20:8.1f} -> {rss[1] / 2**20:8.1f} MiB, {fds[0]:g} -> {fds[1]:g} descriptors "
            f"(second quarter -> last)"
        )
        if rss[1] > rss[0] * (1 + RSS_SHARE) + RSS_BYTES:
            grew.append(f"{name} grew by {(rss[1] - rss[0]) / 2**20:.1f} MiB")
        if fds[1] > fds[0] + FDS:
            grew.append(f"{name} holds {fds[1] - fds[0]:g} descriptors more")
    return grew


def unaccounted(soak: Soak, target: EmbeddedTarget, url: str) -> list[str]:
    """What is missing somewhere, once everything has had its time to end."""
    until = time.monotonic() + SETTLE_S
    while True:
        target.phases()
        counted = metrics(url)
        held = {name: r.blocks_total - r.blocks_free for name, r in target._reports().items()}
        missing = [f"{count} blocks of {name} are not free" for name, count in held.items() if count]
        if soak.unaccounted:
            missing.append(f"{soak.unaccounted} requests have neither an answer nor a failure")
        if counted["vllm:num_requests_running"]:
            missing.append(f"the frontend still has {counted['vllm:num_requests_running']:.0f} requests")
        answered = counted["vllm:request_success_total"]
        if answered != soak.answered:
            missing.append(f"the frontend answered {answered:.0f} requests, {soak.answered} answers came")
        if soak.wrong_pieces:
            missing.append(f"{soak.wrong_pieces} pieces of KV were wrong")
        if not missing or time.monotonic() > until:
            return missing
        time.sleep(0.2)


def metrics(url: str) -> dict[str, float]:
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as answer:
        lines = [line for line in answer.read().decode().splitlines() if not line.startswith("#")]
    return {line.split("{")[0]: float(line.rsplit(" ", 1)[1]) for line in lines}


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--concurrency", type=int, default=20)
    parser.add_argument("--every", type=float, default=60, metavar="S", help="from one kill to the next (60)")
    parser.add_argument("--backend", choices=("UCX", "LIBFABRIC"), default="UCX")
    parser.add_argument("--operation", choices=("READ", "WRITE"), default="READ")
    args = parser.parse_args()

    cell = Cell(
        name="soak",
        load="closed",
        concurrency=args.concurrency,
        requests=ROUNDS * args.concurrency,
        output_tokens=128,
        warmup_requests=0,
        input_tokens=512,
    )
    logs = Path(tempfile.mkdtemp(prefix="kvgauge-soak-"))
    target = EmbeddedTarget(logs, install, Options())
    test = the_test(args.backend, args.operation)
    try:
        target.prepare(test)
        endpoint = target.start(Run(run_id="soak", test=test, repetition=1, order=0, seed=1, cells=(cell,)))
        print(f"{args.minutes:g} minutes of {args.concurrency} requests at a time over {args.backend}; logs in {logs}")
        soak = Soak(target, args.minutes, args.every)
        offer(soak, target, endpoint, cell)
        soak.say()
        wrong = [soak.died] if soak.died is not None else flatness(soak) + unaccounted(soak, target, endpoint.url)
    finally:
        target.stop()
    for what, count in soak.failed.most_common():
        print(f"  {count} failed with {what}")
    for name, at_s, how in soak.crashes:
        print(f"  {name} crashed at {at_s:.0f} s: {how}")
    own = f", {len(soak.crashes)} more crashed by themselves" if soak.crashes else ""
    print(
        f"verdict: {'; '.join(wrong)}{own}"
        if wrong
        else f"verdict: flat and accounted for, {soak.kills} workers killed{own}"
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
