"""What `kvgauge xfer` says of one GPU: blocks as they lie and gathered, READ and WRITE, cut to what matters.

    python overhead/xfer_gpu.py --build WHEEL [--cases NAME,...] [--rounds 3] [--list] [--json FILE]

Each case is one `kvgauge xfer` command, printed before it runs; every byte is compared by it. Cases that begin with mps
share the GPU through NVIDIA's MPS daemon, started here for them alone and ended with them (overhead/gpu.py says why).
Kept of each row: latency, its parts, blocks checked and wrong, what was seen, what speaks against it. A case that fails
is a result too: its reason is kept. Run it on a machine whose CUDA runtime is found (LD_LIBRARY_PATH).
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from gpu import Mps

GET = ("--env", "UCX_CUDA_IPC_ENABLE_GET_ZCOPY=on")
VRAM = ("--memory", "vram", "--backend", "UCX")
QWEN, THREE = ("--model", "Qwen3-0.6B"), ("--model", "Qwen3-0.6B,Llama-3.1-8B,Llama-3.1-70B:8")
BOTH = ("--operation", "READ,WRITE", "--strategy", "blocks,gathered")
CASES = {
    "read-as-it-comes": (*VRAM, *QWEN, "--strategy", "blocks,gathered", "--transfers", "6"),
    "vram": (*VRAM, *THREE, *BOTH, *GET),
    "depth": (*VRAM, *QWEN, "--operation", "READ,WRITE", "--strategy", "gathered", "--depth", "2,4", *GET),
    "libfabric-vram": ("--memory", "vram", "--backend", "LIBFABRIC", *QWEN),
    "dram-ucx": ("--backend", "UCX", *QWEN, *BOTH),
    "dram-libfabric": ("--backend", "LIBFABRIC", *QWEN, *BOTH),
    "mps": (*VRAM, *THREE, *BOTH, *GET),
}
MEANS = ("prepare_us_mean", "gather_us_mean", "transfer_us_mean", "signal_us_mean", "scatter_us_mean")
KEPT = ("latency_us_p50", "latency_us_mean", *MEANS, "stamp_error_us_p50", "bandwidth_gb_s", "copy_gb_s",
        "connect_cold_ms", "first_cold_ms", "register_ms")  # fmt: skip
ROUND_LIMIT_S = 100


def run(name: str, build: str, rounds: int, env: dict[str, str]) -> dict[str, object]:
    """env: what workers must find too; `kvgauge xfer` hands them what it is told by --env"""
    with tempfile.TemporaryDirectory() as folder:
        said = ["xfer", "--build", build, *CASES[name], "--tokens", "512", "--rounds", str(rounds)]
        print("$ kvgauge", shlex.join(said), flush=True)
        found: dict[str, object] = {"case": name, "command": ["kvgauge", *said[:2], "WHEEL", *said[3:]]}
        said += [word for key, value in env.items() for word in ("--env", f"{key}={value}")]
        command = [sys.executable, "-m", "kvgauge", *said, "--out", f"{folder}/out", "--json", f"{folder}/results.json"]
        try:
            done = subprocess.run(command, env=os.environ | env, capture_output=True, text=True, check=False,
                                  timeout=ROUND_LIMIT_S * rounds)  # fmt: skip
        except subprocess.TimeoutExpired:
            return {**found, "problem": f"not done in {ROUND_LIMIT_S * rounds} s"}
        results = Path(folder) / "results.json"
        if not results.exists():
            return {**found, "exit": done.returncode, "problem": done.stderr.strip()[-400:]}
        whole = json.loads(results.read_text())
    return {**found, "exit": done.returncode, "rows": [cut(r) for r in whole["rows"]]}


def cut(row: dict) -> dict[str, object]:
    estimates = {key: row["figures"][key] for key in KEPT}
    figures = {
        key: {what: round(value, 3) for what in ("point", "low", "high") if (value := one[what]) is not None}
        for key, one in estimates.items()
    }
    kept = {
        key: row[key] for key in ("name", "backend", "rounds", "transfers", "valid", "against", "failures", "evidence")
    }
    work = {key: row["workload"][key] for key in ("operation", "strategy", "memory", "ranks", "depth", "block_bytes")}
    right = {key: row["integrity"][key] for key in ("blocks_checked", "blocks_wrong", "blocks_outside")}
    return {**kept, **work, "descriptors": row["descriptors"]["listed"], **right, "figures": figures}


def line(row: dict) -> str:
    figures = row["figures"]

    def ms(key: str) -> str:
        return f"{point / 1e3:9.3f}" if (point := figures[key].get("point")) is not None else "        -"

    state = "" if row["valid"] else f" INVALID {'; '.join([*row['against'], *row['failures']])[:200]}"
    name = " ".join(
        dict.fromkeys([*row["name"].split(), row["operation"], row["strategy"], row["backend"], row["memory"]])
    )
    return f"{name:75} {ms('latency_us_p50')} {' '.join(map(ms, MEANS))} {row['blocks_wrong']:6}{state}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--build", required=True, help="as kvgauge xfer takes it")
    parser.add_argument("--cases", default=",".join(CASES), help="names, comma-separated")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    wanted = args.cases.split(",")
    if args.list or set(wanted) - set(CASES):
        print("\n".join(f"{name}: {shlex.join(flags)}" for name, flags in CASES.items()))
        return 0 if args.list else 2
    results: list[dict] = []
    print(f"{'row, times in ms':75}   lat P50   prepare    gather  transfer   signals   scatter  wrong", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        mps: Mps | None = None
        try:
            for name in wanted:
                if name.startswith("mps") and mps is None:
                    mps = Mps(Path(folder))
                one = run(name, args.build, args.rounds, mps.env if mps and name.startswith("mps") else {})
                results.append(one)
                print("\n".join(map(line, one.get("rows", ()))) or one.get("problem", "no row"), flush=True)
                if args.json:
                    args.json.write_text(json.dumps(results, indent=1) + "\n")
        finally:
            if mps:
                mps.end()
    return int(any(row["blocks_wrong"] for one in results for row in one.get("rows", ())))


if __name__ == "__main__":
    sys.exit(main())
