"""`kvgauge xfer`: the KV micro-benchmark over NIXL, between two processes or two hosts."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from kvgauge.cli import xfer_flags

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kvgauge.builds.records import Build
    from kvgauge.xfer.asked import Asked
    from kvgauge.xfer.files import Folder
    from kvgauge.xfer.measure import Measured
    from kvgauge.xfer.places import Here
    from kvgauge.xfer.remote import There
    from kvgauge.xfer.rounds import Setting
    from kvgauge.xfer.workload import Workload

EXIT_FAILED, EXIT_INTERRUPTED = 3, 130


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "xfer",
        help="KV transfers alone: NIXL between two processes or two hosts, every byte checked",
        description="Moves the paged KV cache of models, or blocks of any size, between NIXL agents of two processes; "
        "times connecting, registering, preparing, posting and completing; compares every byte; and measures beside it "
        "what memory and a plain TCP stream of the same machine can do. Several values of a flag are swept.",
    )
    xfer_flags.add(parser)
    parser.add_argument("--json", type=Path, metavar="FILE", help="the results there too; - prints them")
    parser.add_argument("--out", type=Path, metavar="DIR", help="a new folder (default: below kvgauge-runs/)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """raises UsageError, BuildError, TargetError, TransferError, SamplesError"""
    from kvgauge.failures import UsageError

    xfer_flags.check(args)
    if args.listen is not None and args.connect is not None:
        raise UsageError("--listen runs the targets and --connect the initiators: give one on each host")
    return _listen(args) if args.listen is not None else _measure(args)


def _asked(args: argparse.Namespace) -> "Asked":
    from kvgauge.xfer.asked import Asked

    return Asked(
        models=args.model,
        tokens=args.tokens,
        block_tokens=args.block_tokens,
        tp=args.tp,
        layers=args.layers,
        dtype=args.kv_dtype,
        block_sizes=args.block_size,
        counts=args.count,
        patterns=args.pattern,
        operations=args.operation,
        strategies=args.strategy,
        depths=args.depth,
        threads=args.threads,
        scheme=args.scheme,
        peers=args.peers,
        memory=args.memory.upper(),
    )


def _build(args: argparse.Namespace) -> "Build":
    """raises BuildError, UsageError"""
    from kvgauge.builds.own import find
    from kvgauge.builds.records import BuildSource
    from kvgauge.failures import UsageError

    source = None
    if args.build.endswith(".whl"):
        source = BuildSource(wheel=args.build)
    elif Path(args.build).expanduser().is_dir():
        source = BuildSource(plugin_dir=args.build, core=args.core or "1.5.0")
    if args.core is not None and (source is None or source.wheel is not None):
        raise UsageError("--core goes with --build FOLDER: it is what opens that folder's plugins")
    return find(source.label if source else args.build, source, _say)


def _backends(args: argparse.Namespace) -> tuple[str, ...]:
    return ("UCX", "LIBFABRIC") if args.backend == "both" else (args.backend,)


def _here(args: argparse.Namespace, build: "Build", own: str | None, device: int) -> "tuple[Here, list[str]]":
    """This host's workers, and what has to be said about it.

    own  our address on the way between two hosts; None: everything is on this one
    """
    from kvgauge import backends
    from kvgauge.builds.present import nvidia_gpu
    from kvgauge.failures import UsageError
    from kvgauge.target import interfaces
    from kvgauge.xfer.fabric import default_fabric, environment, read_extra
    from kvgauge.xfer.places import Here

    fabric = args.fabric or default_fabric(args.memory.upper())
    extra = read_extra(args.env)
    environments, notes = {}, []
    for backend in _backends(args):
        interface = args.interface
        if interface is None and own is not None:
            interface = interfaces.holding(own)
        elif interface is None and fabric == "tcp" and backends.needs_interface(backend, build.release):
            outward = interfaces.first_outward()
            if outward is None:
                raise UsageError(f"{backend} cannot use loopback and there is no other interface: take --backend UCX")
            interface = outward[0]
        if backend == "LIBFABRIC" and fabric == "tcp":
            notes.append(
                f"libfabric's tcp provider listens without authentication while this lasts, on interface {interface}"
            )
        environments[backend] = environment(
            backend,
            fabric,
            args.memory.upper(),
            interface,
            build.release,
            plugin_dir=build.plugin_dir,
            extra=extra,
            gpu=nvidia_gpu(),
        )
    return Here(build, environments, device=device, stream_host=own or "127.0.0.1"), notes


def _measure(args: argparse.Namespace) -> int:
    from kvgauge.xfer.files import Folder
    from kvgauge.xfer.measure import Measured
    from kvgauge.xfer.places import Crew
    from kvgauge.xfer.rounds import conduct

    setting = _setting(args)
    there, own = _there(args) if args.connect is not None else (None, None)
    opened: list[Here | There] = [] if there is None else [there]
    found: list[Measured] = []
    interrupted = False
    try:
        build = _build(args)
        if there is not None:
            _same_build(build, there)
        here, notes = _here(args, build, own, args.device[0])
        opened.append(here)
        targets: Here | There = there or here
        if there is None and len(args.device) == 2 and args.memory == "vram":
            targets, _ = _here(args, build, own, args.device[1])
            opened.append(targets)
        folder = Folder(args.out)
        notes += _notes(args, there, setting.workloads)
        for note in notes:
            _say(f"note: {note}")
        conduct(setting, Crew(here, targets), folder, _say, found)
    except KeyboardInterrupt:
        if not found:
            raise
        interrupted = True
        _say("interrupted: what follows is what was found until then")
    finally:
        for place in opened:
            place.close()
    whole = _report(args, setting, found, folder, build, notes)
    return EXIT_INTERRUPTED if interrupted else 0 if whole else EXIT_FAILED


def _setting(args: argparse.Namespace) -> "Setting":
    """raises UsageError; TransferError where there is no GPU for --memory vram"""
    from kvgauge.evidence.machine import read_available_memory
    from kvgauge.failures import UsageError
    from kvgauge.xfer import cuda
    from kvgauge.xfer.asked import needed_bytes, workloads_of
    from kvgauge.xfer.fabric import default_fabric
    from kvgauge.xfer.measure import Pace
    from kvgauge.xfer.rounds import Setting

    works = workloads_of(_asked(args))
    if args.memory == "vram":
        cuda.require()
    needed, free = needed_bytes(works, both_sides=args.connect is None), read_available_memory()
    if needed > free:
        raise UsageError(f"needed are {needed >> 20:,} MiB of memory and {free >> 20:,} MiB are available: take fewer "
                         "tokens, ranks or threads, or a smaller depth")  # fmt: skip
    return Setting(
        workloads=works,
        backends=_backends(args),
        rounds=args.rounds,
        pace=Pace(transfers=args.transfers, warmup=args.warmup, seconds=args.seconds, timeout_s=args.timeout),
        progress_thread=args.progress_thread,
        threads=args.nixl_threads,
        fabric=args.fabric or default_fabric(args.memory.upper()),
    )


def _report(
    args: argparse.Namespace,
    setting: "Setting",
    found: "Sequence[Measured]",
    folder: "Folder",
    build: "Build",
    notes: "Sequence[str]",
) -> bool:
    """Print and write; whether every row is whole and right. raises SamplesError"""
    import sys

    from kvgauge.cli.charts import drawn
    from kvgauge.report.text import page
    from kvgauge.samples.disk import write_whole
    from kvgauge.xfer.results import document
    from kvgauge.xfer.rounds import results_of
    from kvgauge.xfer.table import render
    from kvgauge.xfer.tools import beside

    rows, ratios = results_of(found, setting, build.release)
    tools = beside(setting.workloads, setting.backends) if args.connect is None else []
    text = document(rows, ratios, tools, setting=setting, build=build, args=_kept(args), notes=notes)
    folder.write_results(text)
    chart = drawn(text, folder.path)
    if args.json is not None and str(args.json) == "-":
        print(text.decode())
    else:
        console = page()
        for part in render(rows, ratios, tools):
            console.print(part)
        if args.json is not None:
            write_whole(args.json, text)
        print(f"results: {folder.path}")
    if chart is not None:
        print(f"chart: {chart}", file=sys.stderr if str(args.json) == "-" else sys.stdout)
    return bool(rows) and all(row.valid and not row.failures for row in rows)


def _kept(args: argparse.Namespace) -> dict[str, object]:
    """What was asked, for results.json; values of --env may be anything, so only their names are kept."""
    kept = {name: value for name, value in vars(args).items() if name not in ("run", "env", "json", "out")}
    return {**kept, "env": sorted(word.partition("=")[0] for word in args.env)}


def _notes(args: argparse.Namespace, there: "There | None", works: "Sequence[Workload]") -> list[str]:
    import os

    from kvgauge.xfer.fabric import default_fabric

    notes, cores = [], len(os.sched_getaffinity(0))
    busiest = max(work.initiators if there else work.initiators + work.targets for work in works)
    if busiest > cores:
        notes.append(f"{busiest} processes poll on {cores} cores: they give way to one another between polls")
    if (args.fabric or default_fabric(args.memory.upper())) == "tcp":
        notes.append("rehearsal: fabric tcp; what is measured here does not transfer to EFA")
    if there is not None:
        notes.append(f"targets run on {there.opened.host}, kvgauge {there.opened.version}")
    return notes


def _there(args: argparse.Namespace) -> "tuple[There, str]":
    """raises UsageError, TargetError"""
    from kvgauge.failures import TargetError, UsageError
    from kvgauge.target.interfaces import towards
    from kvgauge.xfer.remote import TOKEN_VARIABLE, There, address_of, token_here

    host, port = address_of(args.connect)
    token = token_here()
    if token is None:
        raise UsageError(f"set {TOKEN_VARIABLE} in the environment to what `kvgauge xfer --listen` has or says")
    own = towards(host, port)
    if own is None:
        raise TargetError(f"there is no way from here to {host}: check the name and the route")
    there = There(host, port, token)
    try:
        there.open()
    except BaseException:
        there.close()
        raise
    return there, own


def _same_build(build: "Build", there: "There") -> None:
    from kvgauge.failures import UsageError

    if build.identity != there.opened.identity:
        raise UsageError(
            f"the build here is {build.name} ({build.identity[:12]}), over there {there.opened.build} "
            f"({there.opened.identity[:12]}): give both sides the same --build"
        )


def _listen(args: argparse.Namespace) -> int:
    """raises UsageError, BuildError, TargetError"""
    import zmq

    from kvgauge.evidence.machine import read_available_memory
    from kvgauge.target.interfaces import holding
    from kvgauge.xfer.listen import Listener, refuse_everywhere
    from kvgauge.xfer.remote import TOKEN_VARIABLE, address_of, new_token, server_socket, token_here

    host, port = address_of(args.listen, host="127.0.0.1")
    refuse_everywhere(host)
    token = token_here()
    if token is None:
        token = new_token()
        _say(f"{TOKEN_VARIABLE}={token}   (made for this session: set it for --connect on the other host)")
    build = _build(args)
    here, notes = _here(args, build, host, args.device[-1])
    context = zmq.Context()
    try:
        socket = server_socket(context, token, host, port)
        for note in notes:
            _say(f"note: {note}")
        _say(f"listening on {host} port {port} with NIXL {build.name} ({build.identity[:12]}); Ctrl-C ends it")
        Listener(socket, here, holding(host), read_available_memory).serve(args.wait, _say)
    finally:
        here.close()
        context.destroy(linger=500)
    _say("the session is over")
    return 0


def _say(line: str) -> None:
    import sys

    print("".join(c if c.isprintable() else " " for c in line), file=sys.stderr, flush=True)
