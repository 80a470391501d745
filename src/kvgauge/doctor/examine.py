"""Looks at this machine and judges it: facts from the edges, findings from the pure rules, in about two seconds."""

import os
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from kvgauge.backends import INHERITED
from kvgauge.builds.install import cache_folder
from kvgauge.builds.pins import known_versions
from kvgauge.doctor import (
    attempts,
    fabrics,
    host,
    judge_builds,
    judge_fabrics,
    judge_memory,
    judge_network,
    judge_processor,
    judge_variables,
    live,
    needs,
    plugins,
)
from kvgauge.doctor.loader import Loader, highest
from kvgauge.doctor.needs import Needs
from kvgauge.doctor.records import LEVELS, Examination, Fabrics, Facts, FoundBuild, NotLooked, Plugin
from kvgauge.evidence.cgroups import Cgroups
from kvgauge.evidence.tree import Tree
from kvgauge.plan.records import Plan

TRIES_S = 2.0  # for all plugins together, after the second of watching
SMI_S = 1.6
# Where images of vLLM, TensorRT-LLM, SGLang and Dynamo keep their packages.
IMAGE_SITES = (
    "usr/local/lib/python3*/dist-packages",
    "usr/local/lib/python3*/site-packages",
    "usr/lib/python3*/dist-packages",
    "usr/lib/python3*/site-packages",
    "opt/venv/lib/python3*/site-packages",
    "opt/*/venv/lib/python3*/site-packages",
)
SITES_MAX = 20
RULES = (judge_memory, judge_processor, judge_fabrics, judge_builds, judge_network, judge_variables)


def examine(plan: Plan | None, sites: Sequence[Path] = ()) -> tuple[Examination, Facts]:
    """This machine, for a plan or as a whole.

    sites  further Python environments (site-packages) whose NIXL is meant
    """
    facts = collect(plan, sites)
    return judge(facts, needs.of_plan(plan) if plan is not None else needs.of_machine(facts)), facts


def judge(facts: Facts, asked: Needs) -> Examination:
    """All rules over all facts, the worst first. Pure."""
    found = [finding for rule in RULES for finding in rule.judge(facts, asked)]
    return Examination(
        looked_for=f"{asked.looked_for}; asked for: {', '.join(asked.why)}" if asked.why else asked.looked_for,
        findings=tuple(sorted(found, key=lambda finding: LEVELS.index(finding.level))),
        not_looked=(*facts.not_looked, *judge_builds.not_looked(facts, asked), *judge_fabrics.not_looked(facts, asked)),
    )


def collect(plan: Plan | None, sites: Sequence[Path] = ()) -> Facts:
    """What is here. Nothing is installed, changed or sent; what may hang is given its limit."""
    tree, variables = Tree(), dict(os.environ)
    cgroups, loader = Cgroups(tree), Loader(tree, variables.get("LD_LIBRARY_PATH", ""))
    clock_ns = live.clock_read_ns()
    watched = live.watch(tree, cgroups)
    with tempfile.TemporaryDirectory(prefix="kvgauge-doctor-") as scratch, ThreadPoolExecutor(1) as beside:
        smi = beside.submit(attempts.nvidia_smi, SMI_S)
        candidates, missing = find_builds(plan, loader, sites, variables, Path(scratch))
        builds = tuple(_tried(candidates, plan))
        tool, why = smi.result()
    libcuda = loader.find("libcuda.so.1")
    gpus = fabrics.gpus(tree, str(libcuda) if libcuda else None)
    facts = Facts(
        memory=host.memory(tree, cgroups, live.space("/dev/shm")),  # noqa: S108 - asked for its size
        limits=host.limits(tree, cgroups),
        processor=live.with_watched(host.processor(tree, cgroups), watched, clock_ns),
        place=host.place(tree, variables),
        fabrics=with_libfabrics(fabrics.fabrics(tree, lambda name: _text(loader.find(name))), loader),
        gpus=msgspec.structs.replace(gpus, tool=tool),
        network=fabrics.network(tree, live.interfaces(), live.outward()),
        builds=builds,
        variables=judge_variables.kept(variables),
        disk_free=live.disk_free([cache_folder(), Path()]),
    )
    unseen = [*missing, *unread(facts)]
    if gpus.there and why is not None:
        unseen.append(NotLooked(what="GPU memory in use", why=why))
    return msgspec.structs.replace(facts, not_looked=tuple(unseen))


def find_builds(
    plan: Plan | None, loader: Loader, sites: Sequence[Path], variables: dict[str, str], scratch: Path
) -> tuple[list[plugins.Candidate], list[NotLooked]]:
    """A plan's own builds; without one, all of the cache. Where engines are meant, also theirs."""
    inherited = {name: variables[name] for name in INHERITED if name in variables}
    if plan is None:
        found, missing = list(plugins.published(loader, known_versions(), inherited)), list[NotLooked]()
    else:
        sources = {test.build: test.build_source for test in plan.tests if test.build_source is not None}
        names = dict.fromkeys(test.build for test in plan.tests if test.build_source is None)
        own, missing = plugins.own(loader, sources, inherited, scratch)
        found = [*plugins.published(loader, names, inherited), *own]
    if plan is None or any(test.fabric != needs.EMBEDDED_FABRIC for test in plan.tests):
        found += plugins.environments(loader, site_folders(sites, variables), variables)
    return found, missing


def site_folders(given: Sequence[Path], variables: dict[str, str], root: Path = Path("/")) -> list[Path]:
    """Where Python packages of engines lie: what was named, this Python's path, an active environment's, an image's."""
    folders = [*given, *(Path(entry) for entry in sys.path if entry.endswith(("site-packages", "dist-packages")))]
    for name in ("VIRTUAL_ENV", "CONDA_PREFIX"):
        if prefix := variables.get(name):
            folders += sorted(Path(prefix).glob("lib/python3*/site-packages"))
    for pattern in IMAGE_SITES:
        folders += sorted(root.glob(pattern))[:SITES_MAX]
    return list(dict.fromkeys(folder.resolve() for folder in folders))


def _tried(candidates: list[plugins.Candidate], plan: Plan | None) -> list[FoundBuild]:
    """The builds, those of their plugins opened that are worth the time: UCX takes half a second each."""
    newest = max((c.build.name for c in candidates if c.build.origin == "published"), key=_release, default=None)
    chosen = [
        (candidate.build.name, backend, attempt)
        for candidate in sorted(candidates, key=lambda each: each.build.origin == "published")  # others first
        for backend, attempt in candidate.tries.items()
        if backend == "LIBFABRIC"
        or plan is not None
        or candidate.build.origin != "published"
        or candidate.build.name == newest
    ]
    done = attempts.attempts([attempt for _, _, attempt in chosen], TRIES_S)
    outcome = {(name, backend): result for (name, backend, _), result in zip(chosen, done, strict=True)}

    def tried(name: str, plugin: Plugin) -> Plugin:
        result = outcome.get((name, plugin.backend))
        return msgspec.structs.replace(plugin, attempt=result) if result else plugin

    return [
        msgspec.structs.replace(
            candidate.build, plugins=tuple(tried(candidate.build.name, plugin) for plugin in candidate.build.plugins)
        )
        for candidate in candidates
    ]


def with_libfabrics(found: Fabrics, loader: Loader) -> Fabrics:
    """Each libfabric the loader could take."""
    seen = []
    for path in loader.all("libfabric.so.1"):
        links = loader.links(path)
        seen.append((str(path), highest(links.defines) if links else None))
    return msgspec.structs.replace(found, libfabrics=tuple(seen))


def unread(facts: Facts) -> list[NotLooked]:
    """What ought to be readable and was not. Pure."""
    missing = []
    if facts.memory.available is None:
        missing.append(NotLooked(what="memory", why="/proc/meminfo cannot be read", needed=True))
    if not facts.limits.read:
        missing.append(NotLooked(what="ulimit -l and -n", why="/proc/self/limits cannot be read", needed=True))
    processor = facts.processor
    if processor.busy is None or processor.steal is None:
        missing.append(NotLooked(what="busy and stolen time", why="/proc/stat cannot be read, or does not move"))
    if not processor.governors:
        hidden = "a virtual machine does not show it" if facts.place.hypervisor else "no cpufreq driver"
        missing.append(NotLooked(what="CPU frequency governor", why=f"no scaling_governor in /sys: {hidden}"))
    if processor.clock is None:
        missing.append(NotLooked(what="clock source", why="/sys/devices/system/clocksource cannot be read"))
    return missing


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def _text(path: Path | None) -> str | None:
    return str(path) if path is not None else None
