"""The tree keeps its shape: imports point one way, workers stay small, the core stays pure, help stays quick."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "kvgauge"

# Lower first. A module may import from its own rank and from those above it in this list, never from below.
ORDER = (
    ("failures", "parent"),
    ("models", "gpus"),
    ("tokens",),
    ("samples.records",),
    ("builds", "backends", "switch"),
    ("plan",),
    ("kv",),
    ("serve",),
    ("evidence",),
    ("target",),
    ("samples",),
    ("load",),
    ("doctor",),
    ("scrape",),
    ("prove",),
    ("stats",),
    ("compare",),
    ("report",),
    ("query", "peers"),
    ("xfer",),
    ("judge", "capacity"),
    ("gather",),
    ("conduct", "resume", "side_by_side"),
    ("cli", "__main__"),
)
PURE = ("failures", "judge", "capacity", "models", "backends", "plan", "kv.layout", "kv.stamps", "stats", "compare", "evidence.nixl",
        "evidence.ucx", "evidence.proof", "load.sse", "load.alike", "load.answers", "load.arrivals", "load.offset",
        "load.prompts", "load.pairs", "load.paired_work", "load.schedules", "load.continuous", "load.shares", "load.how_many", "load.open",
        "load.tally", "load.sessions",
        "evidence.prometheus", "evidence.known_metrics",
        "scrape.changes", "switch", "tokens", "load.count",
        "evidence.proc", "doctor.needs", "doctor.records", "doctor.judge_builds", "doctor.judge_fabrics",
        "doctor.judge_memory", "doctor.judge_network", "doctor.judge_processor", "doctor.judge_transports",
        "doctor.judge_variables",
        "evidence.libfabric", "evidence.engines", "evidence.trtllm", "evidence.counters",
        "evidence.sums", "evidence.transport", "evidence.nvml", "prove.answers", "prove.judge", "prove.page",
        "query.views", "peers.aiperf", "peers.vllm", "peers.nixlbench", "peers.records",
        "serve.openai", "serve.compute", "serve.cold", "serve.blocks", "serve.vocabulary",
        "report.axes", "report.marks", "xfer.series", "xfer.panels", "xfer.dots", "xfer.chart",
        "xfer.workload", "xfer.signals", "xfer.image", "xfer.fabric", "xfer.asked", "xfer.figures",
        "xfer.seen")  # fmt: skip
XFER_WORKER = tuple(f"xfer.{name}" for name in
                    ("worker", "loop", "image", "workload", "cuda", "memory", "limits", "messages", "verify", "signals",
                     "kernel", "staging", "answers", "gathered", "connections"))  # fmt: skip
IMPURE_MODULES = {"socket", "select", "subprocess", "threading", "time", "zmq", "asyncio", "requests", "urllib"}
WORKER_MAY_IMPORT = {"kvgauge", "numpy", "msgspec", "zmq"}


@cache
def modules():
    return list(parsed())


def parsed():
    for path in sorted(SOURCE.rglob("*.py")):
        name = ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")
        if name not in ("__init__", ""):
            yield name, ast.parse(path.read_text())


def imported(tree, *, top_level_only=False):
    nodes = tree.body if top_level_only else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def rank(name):
    found = [
        (len(prefix), index)
        for index, prefixes in enumerate(ORDER)
        for prefix in prefixes
        if name == prefix or name.startswith(f"{prefix}.")
    ]
    return max(found)[1] if found else None


def test_every_module_has_a_place_in_the_order():
    assert [name for name, _ in modules() if rank(name) is None] == []


def test_imports_point_one_way():
    wrong = []
    for name, tree in modules():
        for target in imported(tree):
            if not target.startswith("kvgauge."):
                continue
            below = rank(target.removeprefix("kvgauge."))
            if below is not None and below > rank(name):
                wrong.append(f"{name} imports {target}")
    assert wrong == []


@pytest.mark.parametrize("name", PURE)
def test_the_pure_core_opens_no_socket_reads_no_clock_and_prints_nothing(name):
    found = [(module, tree) for module, tree in modules() if module == name or module.startswith(f"{name}.")]
    assert found, f"{name} is gone: take it off the list"
    for module, tree in found:
        bad = {target.split(".")[0] for target in imported(tree)} & IMPURE_MODULES
        assert not bad, f"{module} imports {bad}"
        calls = [n.func.id for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)]
        assert "print" not in calls, f"{module} prints"


def test_a_worker_imports_the_standard_library_numpy_msgspec_pyzmq_and_nothing_else():
    code = (
        "import sys, kvgauge.serve.worker, kvgauge.serve.prefill, kvgauge.serve.decode, kvgauge.kv.transfer,"
        "kvgauge.xfer.worker;"
        "print(*sorted({name.split('.')[0] for name in sys.modules if getattr(sys.modules[name], '__file__', None)}))"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
    packages = {
        name for name in done.stdout.split() if name not in sys.stdlib_module_names and not name.startswith("_")
    }
    assert (
        packages - WORKER_MAY_IMPORT - {"sitecustomize", "typing_extensions"} == set()
    )  # msgspec takes the latter where it is


def test_every_module_of_kv_imports_only_what_a_worker_may():
    for name, tree in modules():
        if name.startswith("kv.") or name in (
            "serve.worker",
            "serve.prefill",
            "serve.decode",
            "serve.ranks",
            *XFER_WORKER,
        ):
            roots = {target.split(".")[0] for target in imported(tree)}
            assert roots - WORKER_MAY_IMPORT - set(sys.stdlib_module_names) == set(), name


def test_nothing_is_pickled():
    for name, tree in modules():
        assert not {t.split(".")[0] for t in imported(tree)} & {"pickle", "marshal", "shelve", "dill"}, name


@pytest.mark.parametrize("argument", ["--help", "--version"])
def test_help_imports_nothing_heavy(argument):
    code = (
        "import sys\nfrom kvgauge.cli.main import main\n"
        f"try:\n    main([{argument!r}])\nexcept SystemExit:\n    pass\n"
        "print(*sorted(set(sys.modules) & {'numpy', 'scipy', 'pyarrow', 'rich', 'zmq', 'yaml', 'msgspec', 'duckdb', 'vl_convert'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == ""


def test_the_renderer_is_loaded_in_its_own_process_alone():
    loaded = {name for name, tree in modules() if "vl_convert" in set(imported(tree))}
    assert loaded == {"report.charts"}
    at_once = {name for name, tree in modules() if {"vl_convert", "altair"} & set(imported(tree, top_level_only=True))}
    assert at_once == set()


def test_files_stay_short():
    long = {name: len(ast.unparse(tree).splitlines()) for name, tree in modules()}
    assert {name: lines for name, lines in long.items() if lines > 400} == {}


def test_no_room_has_a_name_that_says_nothing():
    assert [
        n for n, _ in modules() if {"utils", "util", "common", "base", "helpers", "manager", "misc"} & set(n.split("."))
    ] == []
