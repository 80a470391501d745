"""Flags of `kvgauge xfer`, and what is wrong with them before anything starts."""

import argparse

from kvgauge.cli import values


def add(parser: argparse.ArgumentParser) -> None:
    what = parser.add_argument_group("what is moved")
    what.add_argument("--model", type=values.words, default=(), metavar="NAME[:TP][,...]",
                      help="paged KV of these models (Qwen3-0.6B, Llama-3.1-8B, Llama-3.1-70B:8)")  # fmt: skip
    what.add_argument(
        "--tokens", type=values.whole_numbers, default=(512,), metavar="N[,...]", help="of a prompt (512)"
    )
    what.add_argument("--block-tokens", type=int, default=16, metavar="N", help="in a KV block (16)")
    what.add_argument("--tp", type=int, default=1, metavar="N", help="ranks a side, an agent each (1)")
    what.add_argument("--layers", type=int, metavar="N", help="only so many of the model's")
    what.add_argument("--kv-dtype", default="bf16", metavar="TYPE", help="(bf16)")
    what.add_argument("--block-size", type=values.sizes, default=(), metavar="SIZE[,...]",
                      help="blocks of no model, e.g. 4KiB,64KiB,1MiB")  # fmt: skip
    what.add_argument(
        "--count", type=values.whole_numbers, default=(64,), metavar="N[,...]", help="of them a transfer (64)"
    )
    what.add_argument("--pattern", type=values.choice("scattered", "contiguous"), default=("scattered",),
                      metavar="P[,P]", help="scattered, contiguous (scattered)")  # fmt: skip
    what.add_argument("--operation", type=values.choice("READ", "WRITE"), default=("READ",), metavar="OP[,OP]",
                      help="READ, WRITE (READ)")  # fmt: skip
    what.add_argument("--strategy", type=values.choice("blocks", "gathered"), default=("blocks",), metavar="S[,S]",
                      help="blocks: as they lie, a descriptor each; gathered: through one buffer (blocks)")  # fmt: skip
    what.add_argument(
        "--depth", type=values.whole_numbers, default=(1,), metavar="N[,...]", help="transfers under way (1)"
    )
    what.add_argument("--threads", type=values.whole_numbers, default=(1,), metavar="N[,...]",
                      help="Python threads of an initiator, each with agents of its own (1)")  # fmt: skip
    what.add_argument("--scheme", default="pairwise", metavar="S", help="pairwise, many-to-one, one-to-many (pairwise)")
    what.add_argument("--peers", type=int, default=2, metavar="N", help="processes on the side that is many (2)")
    what.add_argument("--memory", choices=("dram", "vram"), default="dram", help="both sides' (dram)")
    what.add_argument("--device", type=values.whole_numbers, default=(0,), metavar="N[,M]",
                      help="GPU of initiators, and of targets on this host (0)")  # fmt: skip
    how = parser.add_argument_group("how")
    how.add_argument("--backend", choices=("UCX", "LIBFABRIC", "both"), default="both", help="(both, interleaved)")
    how.add_argument("--build", default="1.5.0", metavar="V|WHEEL|FOLDER",
                     help="a NIXL version, a wheel, or a folder of plugins with --core (1.5.0)")  # fmt: skip
    how.add_argument("--core", metavar="V|DIR", help="what opens the plugins of that folder")
    how.add_argument("--fabric", metavar="F", help="tcp, shm, cuda, or any: restrict nothing (tcp; vram: cuda)")
    how.add_argument("--interface", metavar="NAME", help="of tcp, where another than the one chosen is meant")
    how.add_argument(
        "--env", action="append", default=[], metavar="NAME=VALUE", help="for the transports' own settings"
    )
    how.add_argument("--progress-thread", action="store_true", help="NIXL's own thread; it takes a core for itself")
    how.add_argument("--nixl-threads", type=int, default=0, metavar="N", help="NIXL's num_threads of a backend (0)")
    how.add_argument("--rounds", type=int, default=5, metavar="N", help="fresh processes each; intervals need 2 (5)")
    how.add_argument("--transfers", type=int, default=100, metavar="N", help="a round at most, of each thread (100)")
    how.add_argument("--warmup", type=int, default=3, metavar="N", help="transfers before them (3)")
    how.add_argument("--seconds", type=float, default=2.0, metavar="S", help="a row and round at most (2)")
    how.add_argument("--timeout", type=float, default=30.0, metavar="S", help="of one transfer (30)")
    hosts = parser.add_argument_group("two hosts: the same KVGAUGE_XFER_TOKEN in the environment of both")
    hosts.add_argument("--listen", metavar="[ADDR:]PORT", help="run the targets here (127.0.0.1 unless told)")
    hosts.add_argument("--connect", metavar="HOST:PORT", help="run the initiators here, everything else is said here")
    hosts.add_argument("--wait", type=float, default=600.0, metavar="S", help="of --listen, for the other side (600)")


def check(args: argparse.Namespace) -> None:
    """raises UsageError"""
    from kvgauge.failures import UsageError
    from kvgauge.xfer.fabric import FABRICS

    for name, low, high in (("rounds", 1, 1000), ("transfers", 1, 10**6), ("warmup", 0, 10**6), ("peers", 1, 64),
                            ("seconds", 0.01, 3600), ("timeout", 0.1, 3600), ("nixl_threads", 0, 64),
                            ("wait", 1, 86400)):  # fmt: skip
        if not low <= getattr(args, name) <= high:
            raise UsageError(f"--{name.replace('_', '-')}: expected {low} to {high}, got {getattr(args, name)}")
    if args.json is not None and str(args.json) != "-":
        values.check_writable("--json", args.json)
    if args.fabric is not None and args.fabric not in FABRICS:
        raise UsageError(f"unknown fabric {args.fabric!r}: {'; '.join(f'{k}: {v}' for k, v in FABRICS.items())}")
    if not 1 <= len(args.device) <= 2:
        raise UsageError("--device: one GPU, or two: of initiators and of targets")
    if args.listen is None and (idle := _idle(args)) is not None:
        raise UsageError(idle)


def _idle(args: argparse.Namespace) -> str | None:
    """A flag that would change nothing was meant to change something."""
    of_model = args.model or not args.block_size  # without both the reference's models are moved
    if args.count != (64,) and not args.block_size:
        return "--count says how many blocks of --block-size SIZE a transfer has: give that too"
    named = {"tokens": (512,), "block_tokens": 16, "tp": 1, "layers": None, "kv_dtype": "bf16"}
    idle = [name for name, usual in named.items() if not of_model and getattr(args, name) != usual]
    if idle:
        return f"--{idle[0].replace('_', '-')} is of a model's KV: give --model NAME too, or leave it away"
    if args.peers != 2 and args.scheme == "pairwise":
        return "--peers says how many processes the many are: it goes with --scheme many-to-one or one-to-many"
    if args.device != (0,) and args.memory == "dram":
        return "--device names a GPU: it goes with --memory vram"
    return None
