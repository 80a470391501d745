"""NIXL builds: which plugins load, why others do not, what `kvgauge builds test` found of them. Pure."""

import re
from collections.abc import Iterator

from kvgauge.doctor.needs import Needs
from kvgauge.doctor.records import Facts, Finding, FoundBuild, Level, NotLooked, Plugin

# Which libfabric brings which symbol version: libfabric.map.in of each release.
FABRIC_SINCE = {
    "FABRIC_1.6": "libfabric 1.17 or later",
    "FABRIC_1.7": "libfabric 1.20 or later",
    "FABRIC_1.8": "libfabric 2.0 or later",
    "FABRIC_1.9": "libfabric 2.5 or later",
    "FABRIC_1.10": "a libfabric later than 2.6 (main of August 2026 has it)",
}
READ_ONLY = "all it links to is there (read, not opened)"
GB200_LIBFABRIC = (2, 5)
# LIBFABRIC of releases between these, the second left out: over which fabric, what was seen, where that stands.
KNOWN_TROUBLES: tuple[tuple[tuple[int, ...], tuple[int, ...], str, str, str], ...] = (
    ((0,), (1, 0, 0), "tcp", "it reports DONE for blocks that are wrong", "docs/builds.md"),
    (
        (1, 2, 0),
        (1, 3, 2),
        "efa",
        "WRITEs were reported never to end (up to 16 descriptors, or the last of a set: FI_MORE that nobody flushes)",
        "ai-dynamo/nixl#1862, #1921 and #1966; the mend is not in 1.3.1",
    ),
)


def judge(facts: Facts, needs: Needs) -> Iterator[Finding]:
    if not facts.builds:
        yield Finding(
            key="builds.none",
            level="note",
            area="builds",
            seen="no NIXL build: none in kvgauge's cache, in this Python environment, or where engines install it",
            needed="one; `kvgauge run` installs what its plan names (about 250 MB each, a package index)",
            remedy="kvgauge builds install --reference",
            source="docs/builds.md",
        )
    good: dict[tuple[str, str], list[str]] = {}
    for build in facts.builds:
        for plugin in build.plugins:
            finding = _plugin(build, plugin, facts, needs)
            if finding.level == "ok" and build.origin == "published":
                how = f"loads{_versions(plugin)}" if plugin.loads else READ_ONLY
                good.setdefault((plugin.backend, how), []).append(build.name)
            else:
                yield finding
            yield from _verdict(build, plugin.backend, needs)
        yield from _empty(build, needs)
        yield from _grace(build, facts)
        yield from _release(build, needs)
    for (backend, how), names in good.items():
        seen = f"{backend} of NIXL {', '.join(names)} in kvgauge's cache: {how}"
        yield Finding(key="builds.load", level="ok", area="builds", seen=seen, source="dlopen in a process of its own")
    yield from _not_installed(facts, needs)


def not_looked(facts: Facts, needs: Needs) -> Iterator[NotLooked]:
    """Plugins that did not open in their time: whether they hang or the machine was busy is not known."""
    for build in facts.builds:
        for plugin in build.plugins:
            if plugin.attempt is not None and plugin.attempt.ended == "no end":
                yield NotLooked(
                    what=f"whether {plugin.backend} of {_name(build)} opens",
                    why=plugin.attempt.detail,
                    needed=wanted(build, plugin.backend, needs),
                )


def wanted(build: FoundBuild, backend: str, needs: Needs) -> bool:
    """Whether what is asked for needs this build to carry that backend."""
    if needs.plan is not None:
        return any(
            test.build == build.name and test.backend == backend and test.expect == "valid" for test in needs.plan.tests
        )
    return build.origin == "environment" and backend in needs.backends


def _plugin(build: FoundBuild, plugin: Plugin, facts: Facts, needs: Needs) -> Finding:
    loads, whose = plugin.loads, _name(build)
    key = f"builds.{plugin.backend.lower()}"
    if loads is True or (loads is None and plugin.attempt is None):
        how = f"loads{_versions(plugin)}" if loads else READ_ONLY
        return Finding(
            key=key, level="ok", area="builds", seen=f"{plugin.backend} of {whose}: {how}", source=plugin.path
        )
    asked = wanted(build, plugin.backend, needs)
    level: Level = "problem" if asked else "note" if build.origin == "published" and needs.plan is None else "warning"
    if plugin.attempt is not None and plugin.attempt.ended in ("crashed", "no end"):
        hung = plugin.attempt.ended == "no end"  # or the machine is busy: `not_looked` says so too
        return Finding(
            key=key,
            level="warning" if hung else level,
            area="builds",
            seen=f"{plugin.backend} of {whose} does not come up: {plugin.attempt.detail}",
            needed="a plugin that opens within a second",
            remedy="kvgauge builds test on an idle machine; if it is the same there, another build",
            source=f"dlopen of {plugin.path} in a process of its own",
        )
    reason, remedy = _why(plugin, facts)
    return Finding(
        key=key,
        level=level,
        area="builds",
        seen=f"{plugin.backend} of {whose} does not load: {reason}",
        needed=f"a plugin that loads: NIXL says only `unsupported backend '{plugin.backend}'` or NIXL_ERR_NOT_FOUND",
        remedy=remedy,
        source=plugin.path,
    )


def _name(build: FoundBuild) -> str:
    if build.origin == "published":
        return f"NIXL {build.name} (kvgauge's cache)"
    return f"NIXL {build.version} ({build.name})" if build.version and build.version not in build.name else build.name


def _versions(plugin: Plugin) -> str:
    attempt = plugin.attempt
    if attempt is None:
        return ""
    version = f"libfabric {attempt.libfabric}" if plugin.backend == "LIBFABRIC" and attempt.libfabric else ""
    version = f"UCX {attempt.ucx}" if plugin.backend == "UCX" and attempt.ucx else version
    return f" with {version}" if version else ""


def _why(plugin: Plugin, facts: Facts) -> tuple[str, str]:
    """(reason, remedy): what the loader said where it was asked, and what the headers say besides."""
    said = plugin.attempt.detail if plugin.attempt is not None and plugin.attempt.ended == "refused" else ""
    lacking = [f"not found: {', '.join(plugin.missing)}"] if plugin.missing else []
    # the loader stops at the first thing it misses; the headers name them all
    told = not said or ("cannot open shared object" in said and lacking)
    reason = "; ".join([*lacking, *plugin.too_old] if told else [said])
    both = f"{said} {' '.join(plugin.missing)} {' '.join(plugin.too_old)}"
    remedies = []
    if "FABRIC_" in both and plugin.wants:
        offers = f", this one offers {plugin.offers}" if plugin.offers else ""
        remedies.append(
            f"it wants {plugin.wants}{offers}: {FABRIC_SINCE.get(plugin.wants, 'a newer libfabric')}, or a NIXL built "
            "against the libfabric that is here"
        )
    elif "libfabric.so" in both:
        remedies.append("libfabric is in no NIXL wheel: install it (EFA installer, libfabric1 package)")
    if "libcuda.so" in both:
        remedies.append(
            "libcuda.so.1 comes with an NVIDIA driver: --gpus all, or the NVIDIA runtime class"
            + ("" if facts.gpus.there else "; without a GPU, kvgauge's own builds get a stand-in, engines do not")
        )
    if "libhwloc" in both:
        remedies.append("install hwloc (libhwloc15): no NIXL wheel brings it")
    if "libcudart" in both:
        remedies.append("install nvidia-cuda-runtime of that CUDA version, or the CUDA toolkit")
    if "GLIBC" in both:
        remedies.append("the plugin was built on a newer distribution: take a newer image, or build it here")
    if "undefined symbol" in both or re.search(r"-[0-9a-f]{8}\.so", " ".join(plugin.missing)):
        remedies.append("plugin and core are of different NIXL builds: take both from one wheel or install")
    if not remedies:
        remedies.append("install what is missing, or take another build: `kvgauge builds` lists them")
    return short(reason), "; ".join(remedies)


def short(reason: str) -> str:
    """File names in place of long paths."""
    return re.sub(r"(?:/[^\s/:()']+){3,}/([^\s/:()']+)", r"\1", reason)


def _verdict(build: FoundBuild, backend: str, needs: Needs) -> Iterator[Finding]:
    verdict = build.verdicts.get(backend, "")
    if verdict in ("", "not tested") and backend == "LIBFABRIC" and "DONE" in build.note:
        verdict = f"nothing yet here, but elsewhere: {build.note}"
    bad = verdict not in ("", "works", "not tested") and "does not load" not in verdict
    if not bad or needs.plan is None:
        return
    tests = [test for test in needs.plan.tests if test.build == build.name and test.backend == backend]
    if tests:
        yield Finding(
            key="builds.verdict",
            level="problem" if any(test.expect == "valid" for test in tests) else "note",
            area="builds",
            seen=f"{backend} of {_name(build)}: `kvgauge builds test` found: {verdict}",
            needed="works; the plan uses it in " + ", ".join(test.name for test in tests),
            remedy="another build, or expect: unusable for that test",
            source="docs/builds.md, verdicts of this machine",
        )


def _empty(build: FoundBuild, needs: Needs) -> Iterator[Finding]:
    """A folder that is meant to hold plugins and does not hold one that is asked for."""
    if build.plugins and (build.origin != "environment" or needs.plan is not None):
        return
    missing = [backend for backend in sorted(needs.backends) if build.plugin(backend) is None]
    if build.plugins and not missing:
        return
    named = build.name.startswith("NIXL_PLUGIN_DIR=")
    what = (
        f"no {' and no '.join(f'libplugin_{backend}.so' for backend in missing)}"
        if build.plugins
        else "no plugin of UCX or LIBFABRIC"
    )
    yield Finding(
        key="builds.empty",
        level="problem" if named and not build.plugins else "warning",
        area="builds",
        seen=f"{build.name}: {what} in {build.folder}",
        needed="libplugin_*.so: NIXL_PLUGIN_DIR takes the place of the plugins beside libnixl"
        if named
        else "the plugin: without it NIXL only warns, `Skipping backend registration`",
        remedy="unset NIXL_PLUGIN_DIR, or name the folder that holds the .so files"
        if named
        else "a build with that plugin",
        source="docs/doctor.md, NIXL_PLUGIN_DIR",
    )


def _grace(build: FoundBuild, facts: Facts) -> Iterator[Finding]:
    """GB200 wants a libfabric that knows it."""
    if not any("GB200" in name for name in facts.gpus.names):
        return
    for plugin in build.plugins:
        version = plugin.attempt.libfabric if plugin.attempt else None
        if version and tuple(int(part) for part in version.split(".")[:2]) < GB200_LIBFABRIC:
            yield Finding(
                key="builds.gb200",
                level="warning",
                area="builds",
                seen=f"{_name(build)} gets libfabric {version} on a GB200",
                needed="2.5 or later: fi_mr_reg fails with EFAULT before",
                remedy="a newer libfabric",
                source="ofiwg/libfabric#12019",
            )


def _release(build: FoundBuild, needs: Needs) -> Iterator[Finding]:
    """What an engine's NIXL is known for. kvgauge's own builds have the verdicts of their self-test."""
    numbers = re.match(r"\d+(?:\.\d+)*", build.version or "")
    if build.origin != "environment" or numbers is None or build.plugin("LIBFABRIC") is None:
        return
    release = tuple(int(part) for part in numbers[0].split(".")[:3])
    for since, until, fabric, trouble, source in KNOWN_TROUBLES:
        if since <= release < until:
            yield Finding(
                key="builds.known",
                level="warning" if ("LIBFABRIC", fabric) in needs.asked else "note",
                area="builds",
                seen=f"LIBFABRIC of NIXL {build.version} ({build.folder}) over {fabric}: {trouble}",
                needed=f"NIXL {'.'.join(map(str, until))} or later, for LIBFABRIC",
                remedy="a newer NIXL, or UCX; `kvgauge builds test` moves blocks with it and compares every byte",
                source=source,
            )


def _not_installed(facts: Facts, needs: Needs) -> Iterator[Finding]:
    if needs.plan is None:
        return
    have = {build.name for build in facts.builds}
    tests = [test for test in needs.plan.tests if test.build_source is None and test.build not in have]
    for version in dict.fromkeys(test.build for test in tests):
        yield Finding(
            key="builds.not_installed",
            level="note",
            area="builds",
            seen=f"NIXL {version} is not installed yet, so its plugins were not looked at",
            needed="it; `kvgauge run` installs it before the first run (about 250 MB, a package index)",
            remedy=f"kvgauge builds install {version}",
            source="docs/builds.md",
        )
