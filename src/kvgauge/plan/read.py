"""YAML text to a checked Plan. Pure: the builds that exist are an argument, and nothing is started or opened.

Each problem is one PlanError that names the line and, for an unknown word, the nearest valid one.

    name, repetitions, gain_within, seed, load_workers: N or auto
    mode:     runs or paired: both tests' targets at once, every request to one of them at random
    primary:  {metric, cell}     baseline: NAME or [NAMES]
    warmup: steady    of cells that name no warm-up of their own (warmup.py)
    quick_ack: true   the client's kernel acknowledges every read at once
    goodput:  {ttft_ms, tpot_ms, e2e_latency_ms}: what a request must stay within, those that are given
    defaults: {fields of a test, for those that do not say otherwise}
    build:    1.5.0 or {wheel: FILE} or {plugin_dir: FOLDER, core: 1.5.0 or FOLDER}; paths start at the plan's folder
    tests:    [{name, backend, fabric, build, patches, stand_in, model, tp: 8 or {prefill: 4, decode: 8},
                prefill_workers, decode_workers, kv_dtype, operation, progress_thread, full_check, gpu,
                cold_start: {compile_s, graph_capture_s, graph_batch_max, connect_s},
                planted: {prefill_pct, decode_pct}, tokenizer: FILE, expect, baseline}]
    cells:    cells.py says what stands in them
"""

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import get_args

import msgspec

from kvgauge.builds.records import BuildSource
from kvgauge.failures import UsageError
from kvgauge.gpus import GPUS
from kvgauge.models import DTYPE_BYTES, MODELS, check_tp, possible_tps
from kvgauge.plan.cells import no_files, read_cells
from kvgauge.plan.metrics import GOODPUT_METRICS, METRICS, STREAM_FAMILIES
from kvgauge.plan.nodes import Value, nearest, parse
from kvgauge.plan.paired import paired, read_planted
from kvgauge.plan.records import (
    BACKENDS,
    FABRICS,
    Cell,
    ColdStart,
    Expect,
    Goodput,
    LoadWorkers,
    Mode,
    Operation,
    Plan,
    Primary,
    Test,
)
from kvgauge.plan.tokenizer import read_tokenizer
from kvgauge.plan.warmup import STEADY_WORKERS

PLAN_KEYS = (
    "name", "repetitions", "gain_within", "seed", "load_workers", "primary", "goodput", "quick_ack", "warmup",
    "baseline", "defaults", "tests", "cells", "mode",
)  # fmt: skip
TEST_KEYS = (
    "name",
    "backend",
    "fabric",
    "build",
    "patches",
    "stand_in",
    "model",
    "tp",
    "prefill_workers",
    "decode_workers",
    "kv_dtype",
    "operation",
    "progress_thread",
    "full_check",
    "gpu",
    "cold_start",
    "planted",
    "tokenizer",
    "expect",
    "baseline",
)
DEFAULTS_KEYS = tuple(key for key in TEST_KEYS if key not in {"name", "baseline"})

TESTS_MAX = 100
WORKERS_MAX = 64
LOAD_WORKERS_MAX = 64
COLD_SECONDS_MAX = {  # a capture falls between two tokens, where 30 s of silence end a request
    "compile_s": 3600,
    "graph_capture_s": 20,
    "connect_s": 600,
}
GRAPH_BATCH_MAX = 256  # sequences a decode worker batches
GOODPUT_MS_MAX = 3_600_000
NAME_CHARACTERS_MAX = 80
NOT_FOR_TRANSFER: frozenset[str] = frozenset({"tcp", "shm"})  # fabrics of a rehearsal: they say nothing about EFA


def stand_in_text(build: str) -> str:
    """What stands beside every name and number of a test whose build is not what its patches name."""
    return f"stand-in: NIXL {build}, not the patches"


def slug(name: str) -> str:
    """A test's name as run ids and folders spell it: lower-case ASCII letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def rehearsal(tests: Iterable[Test]) -> bool:
    """Whether no test leaves tcp and shm, so that nothing measured transfers to EFA."""
    return all(test.fabric in NOT_FOR_TRANSFER for test in tests)


def read(
    text: str | bytes, *, source: str, known_builds: Collection[str], read_file: Callable[[str], bytes] = no_files
) -> Plan:
    """The plan a YAML text states.

    source        what messages and the Plan call the text, usually its path
    known_builds  NIXL versions that can be installed, such as "1.5.0"
    read_file     gives the bytes of a trace the plan names; raises OSError
    raises        PlanError for the first problem found, with its line
    """
    root = parse(text, source)
    fields = root.fields(PLAN_KEYS)
    for key in ("name", "primary", "tests", "cells"):
        if key not in fields:
            raise root.missing(key, "the plan")
    tests = _tests(fields, known_builds, read_file)
    cells = read_cells(fields["cells"], read_file, _primary_metric(fields["primary"]), fields.get("warmup"))
    goodput = _goodput(fields["goodput"]) if "goodput" in fields else None
    primary = _primary(fields["primary"], cells)
    _refuse_unknowable(fields["primary"], primary, cells, goodput)
    load_workers = _load_workers(fields["load_workers"]) if "load_workers" in fields else 1
    if isinstance(load_workers, int) and load_workers > 1 and (found := [c.name for c in cells if c.steady]):
        raise fields["load_workers"].error(f"{STEADY_WORKERS} ({found[0]}): leave it away, or give `warmup_requests`")
    plan = Plan(
        name=fields["name"].line_of_text(characters_max=NAME_CHARACTERS_MAX),
        source=source,
        tests=tests,
        cells=cells,
        repetitions=fields["repetitions"].integer(1, 1000) if "repetitions" in fields else 5,
        primary=primary,
        goodput=goodput,
        gain_within_pct=100 * fields["gain_within"].number(0.001, 0.5, percent=True)
        if "gain_within" in fields
        else None,
        quick_ack=fields["quick_ack"].flag() if "quick_ack" in fields else False,
        seed=fields["seed"].integer(0, 2**31 - 1) if "seed" in fields else 1,
        rehearsal=rehearsal(tests),
        load_workers=load_workers,
    )
    if "mode" in fields and fields["mode"].word(get_args(Mode), "mode") == "paired":
        return paired(fields["mode"], plan)
    return plan


def _load_workers(value: Value) -> LoadWorkers:
    """A number, or auto."""
    if not value.is_list and not value.is_mapping and value.node.value == "auto":
        return "auto"
    return value.integer(1, LOAD_WORKERS_MAX)


def _primary_metric(value: Value) -> str:
    fields = value.fields(("metric", "cell"))
    if "metric" not in fields:
        raise value.missing("metric", "primary")
    return fields["metric"].word(METRICS, "metric")


def _primary(value: Value, cells: Sequence[Cell]) -> Primary:
    fields = value.fields(("metric", "cell"))
    for key in ("metric", "cell"):
        if key not in fields:
            raise value.missing(key, "primary")
    return Primary(
        metric=fields["metric"].word(METRICS, "metric"),
        cell=fields["cell"].word([cell.name for cell in cells], "cell"),
    )


def _goodput(value: Value) -> Goodput:
    fields = value.fields(Goodput.__struct_fields__)
    if not fields:
        raise value.error(f"expected at least one of {', '.join(Goodput.__struct_fields__)}")
    return Goodput(**{key: field.number(0.001, GOODPUT_MS_MAX) for key, field in fields.items()})


def _refuse_unknowable(value: Value, primary: Primary, cells: Sequence[Cell], goodput: Goodput | None) -> None:
    """A primary metric that its cell can never give would end every comparison in "cannot tell"."""
    cell = next(cell for cell in cells if cell.name == primary.cell)
    if primary.metric in GOODPUT_METRICS and goodput is None:
        raise value.error(
            f"{primary.metric} needs objectives: add `goodput: {{ttft_ms: 200, tpot_ms: 50}}` to the plan"
        )
    needs_stream = primary.metric.startswith(STREAM_FAMILIES) or (
        primary.metric in GOODPUT_METRICS and goodput is not None and needs_first_tokens(goodput)
    )
    if needs_stream and not cell.stream:
        raise value.error(f"{primary.metric} is not known in {cell.name}, whose answers are not streamed")


def needs_first_tokens(goodput: Goodput) -> bool:
    """Whether an objective is about more than the end of an answer."""
    return goodput.ttft_ms is not None or goodput.tpot_ms is not None


def _tests(
    fields: dict[str, Value], known_builds: Collection[str], read_file: Callable[[str], bytes]
) -> tuple[Test, ...]:
    defaults = fields["defaults"].fields(DEFAULTS_KEYS) if "defaults" in fields else {}
    written = fields["tests"].items(TESTS_MAX)
    if not written:
        raise fields["tests"].error("a plan needs at least one test")
    tests: list[Test] = []
    own_baselines: dict[str, Value] = {}
    lines: dict[str, tuple[str, int]] = {}  # slug -> name, line
    for value in written:
        own = value.fields(TEST_KEYS)
        if "name" not in own:
            raise value.missing("name", "a test")
        test = _test(value, defaults | own, known_builds, read_file)
        if slug(test.name) in lines:
            other, line = lines[slug(test.name)]
            same = "has the name" if other == test.name else f"makes the same run ids as {other!r},"
            raise own["name"].error(f"{test.name!r} {same} of the test on line {line}; rename one")
        lines[slug(test.name)] = test.name, own["name"].line
        if "baseline" in own:
            own_baselines[test.name] = own["baseline"]
        tests.append(test)
    return _with_baselines(tests, fields.get("baseline"), own_baselines)


def _test(
    value: Value, fields: dict[str, Value], known_builds: Collection[str], read_file: Callable[[str], bytes]
) -> Test:
    """One row, its baseline still empty."""
    name = fields["name"].line_of_text(characters_max=NAME_CHARACTERS_MAX)
    if not slug(name):
        raise fields["name"].error(f"{name!r} needs at least one ASCII letter or digit: run ids are made of it")
    for key in ("backend", "fabric", "build", "model"):
        if key not in fields:
            raise value.missing(key, f"test {name!r}")
    model = fields["model"].word(MODELS, "model")
    prefill_tp, decode_tp = _tp(fields.get("tp"), model)
    build, build_source = _build(fields["build"], known_builds)
    patches = fields["patches"].line_of_text(characters_max=200) if "patches" in fields else "none"
    chosen: dict[str, object] = {
        "name": name,
        "backend": fields["backend"].word(BACKENDS, "backend"),
        "fabric": fields["fabric"].word(FABRICS, "fabric"),
        "build": build,
        "patches": patches,
        "build_source": build_source,
        "stand_in": _stand_in(fields.get("stand_in"), patches, None if build_source else build),
        "model": model,
        "prefill_tp": prefill_tp,
        "decode_tp": decode_tp,
    }
    for key in ("prefill_workers", "decode_workers"):
        if key in fields:
            chosen[key] = fields[key].integer(1, WORKERS_MAX)
    for key in ("progress_thread", "full_check"):
        if key in fields:
            chosen[key] = fields[key].flag()
    if "kv_dtype" in fields:
        chosen["kv_dtype"] = fields["kv_dtype"].word(DTYPE_BYTES, "KV dtype")
    if "operation" in fields:
        chosen["operation"] = fields["operation"].word(get_args(Operation), "operation")
    if "gpu" in fields:
        chosen["gpu"] = fields["gpu"].word(GPUS, "GPU")
    if "cold_start" in fields:
        chosen["cold_start"] = _cold_start(fields["cold_start"])
    if "planted" in fields:
        chosen["planted"] = read_planted(fields["planted"])
    if "tokenizer" in fields and not fields["tokenizer"].is_null:
        try:
            chosen["tokenizer"] = read_tokenizer(fields["tokenizer"].path(), read_file)
        except UsageError as error:
            raise fields["tokenizer"].error(str(error)) from None
    if "expect" in fields:
        chosen["expect"] = fields["expect"].word(get_args(Expect), "expectation")
    return msgspec.convert(chosen, Test)


def _tp(value: Value | None, model_name: str) -> tuple[int, int]:
    """(prefill, decode) tensor parallelism; 1 where nothing is said."""
    if value is None:
        return 1, 1
    if not value.is_mapping:
        return (both := _one_tp(value, model_name)), both
    sides = value.fields(("prefill", "decode"))
    for side in ("prefill", "decode"):
        if side not in sides:
            raise value.missing(side, "tp")
    return _one_tp(sides["prefill"], model_name), _one_tp(sides["decode"], model_name)


def _one_tp(value: Value, model_name: str) -> int:
    tp = value.integer(1, 1024)
    model = MODELS[model_name]
    reason = check_tp(model, tp)
    if reason is not None:
        possible = ", ".join(map(str, possible_tps(model)))
        raise value.error(f"TP {tp} is impossible: {reason}; possible: {possible}")
    return tp


def _build(value: Value, known_builds: Collection[str]) -> tuple[str, BuildSource | None]:
    """(published version, None), or (label, where the user's own build lies)."""
    if not value.is_mapping:
        return value.word(known_builds, "build"), None
    fields = value.fields(("plugin_dir", "core", "wheel"))
    paths = {key: field.path() for key, field in fields.items() if key != "core"}
    if "wheel" in fields:
        if len(fields) > 1:
            raise value.error("a wheel is a build by itself; remove plugin_dir and core, or the wheel")
        source = BuildSource(wheel=paths["wheel"])
    else:
        for key in ("plugin_dir", "core"):
            if key not in fields:
                raise value.missing(key, "a build with a plugin folder of its own")
        core = fields["core"].scalar("a version or a folder")
        looks_published = re.fullmatch(r"[0-9.]+", core) is not None
        core = fields["core"].word(known_builds, "core") if looks_published else fields["core"].path()
        source = BuildSource(plugin_dir=paths["plugin_dir"], core=core)
    return source.label, source


def _cold_start(value: Value) -> ColdStart | None:
    """A whole mapping, which takes the place of that of `defaults`; null: a warm start."""
    if value.is_null:
        return None
    fields = value.fields((*COLD_SECONDS_MAX, "graph_batch_max"))
    if not fields:
        raise value.error(f"says nothing; give one of {', '.join(COLD_SECONDS_MAX)}, or remove it")
    chosen: dict[str, float] = {
        key: fields[key].seconds(high) for key, high in COLD_SECONDS_MAX.items() if key in fields
    }
    if "graph_batch_max" in fields:
        if "graph_capture_s" not in fields:
            raise fields["graph_batch_max"].error("says nothing without `graph_capture_s`; add that, or remove it")
        chosen["graph_batch_max"] = fields["graph_batch_max"].integer(1, GRAPH_BATCH_MAX)
    return msgspec.convert(chosen, ColdStart)


def _stand_in(value: Value | None, patches: str, published: str | None) -> str | None:
    """As written; where nothing is, a published release can only stand in for named patches."""
    if value is None:
        return None if patches == "none" or published is None else stand_in_text(published)
    return None if value.is_null else value.line_of_text(characters_max=200)


def _with_baselines(tests: list[Test], default: Value | None, own: dict[str, Value]) -> tuple[Test, ...]:
    """The tests with what each is compared with: its own list, or the plan's.

    A test that the plan's list names is compared with those listed before it, so the first has no baseline.
    """
    names = [test.name for test in tests]
    listed = _names(default, names) if default is not None else ()
    chosen: dict[str, tuple[str, ...]] = {}
    for name in names:
        if name not in own:
            chosen[name] = listed[: listed.index(name)] if name in listed else listed
            continue
        chosen[name] = _names(own[name], names)
        if name in chosen[name]:
            raise own[name].error(f"{name!r} names itself; a test cannot be its own baseline")
    _refuse_cycle(chosen, own)
    return tuple(msgspec.structs.replace(test, baseline=chosen[test.name]) for test in tests)


def _names(value: Value, tests: Collection[str]) -> tuple[str, ...]:
    """One name or a list of names, each a test of the plan, none twice."""
    names: list[str] = []
    for item in value.items(TESTS_MAX) if value.is_list else [value]:
        text = item.scalar("the name of a test")
        if text not in tests:
            raise item.error(f"no test is called {text[:NAME_CHARACTERS_MAX]!r}; {nearest(text, tests)}")
        if text in names:
            raise item.error(f"{text!r} is listed twice; remove one")
        names.append(text)
    return tuple(names)


def _refuse_cycle(baselines: dict[str, tuple[str, ...]], own: dict[str, Value]) -> None:
    """PlanError at a test's own list that leads back to it. The plan's list alone cannot make a cycle."""
    for start, value in own.items():
        seen: set[str] = set()
        waiting = list(baselines[start])
        while waiting:
            name = waiting.pop()
            if name == start:
                raise value.error(f"a cycle: {start!r} is compared with a test that is compared with it")
            if name not in seen:
                seen.add(name)
                waiting += baselines[name]
