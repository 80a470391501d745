"""`kvgauge builds`: which NIXL builds are known and installed, installing, hashing and testing them."""

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvgauge.builds.records import Build
    from kvgauge.builds.verdicts import Verdict

EXIT_NOT_ALL_WORK = 1


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser("builds", help="list, install, hash and test NIXL builds")
    actions = parser.add_subparsers(metavar="ACTION")
    parser.set_defaults(run=show)
    adding = actions.add_parser("install", help="install published builds into the user's cache folder")
    adding.add_argument("version", nargs="*", help="for example 1.5.0")
    adding.add_argument("--reference", action="store_true", help="all that the reference plan needs")
    adding.add_argument("--quiet", action="store_true", help="say nothing when everything is installed")
    adding.set_defaults(run=install)
    testing = actions.add_parser(
        "test", help="move real blocks in several shapes, check every byte, keep the verdict (exit 1: not all work)"
    )
    _name_builds(testing)
    testing.add_argument("--all", action="store_true", help="every published version, installed if need be")
    testing.add_argument("--backend", choices=("UCX", "LIBFABRIC"), help="only this one (default: both)")
    testing.add_argument(
        "--timeout", type=float, default=20.0, metavar="S", help="of each step: a start, a connection, a transfer (20)"
    )
    testing.add_argument("--json", action="store_true", help="verdicts with every transfer, as JSON")
    testing.set_defaults(run=test)
    hashing = actions.add_parser("hash", help="the sha256 of the files that make a build what it is")
    _name_builds(hashing)
    hashing.set_defaults(run=hashes)


def _name_builds(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("build", nargs="*", metavar="V", help="a published version, or a wheel file (*.whl)")
    parser.add_argument("--plugin-dir", metavar="DIR", help="a folder of NIXL plugins, with --core")
    parser.add_argument("--core", metavar="V|DIR", help="what opens them: a version, or a folder with the package")


def show(_args: argparse.Namespace) -> int:
    from kvgauge.builds.install import cache_folder, installed
    from kvgauge.builds.own import found_in_cache
    from kvgauge.builds.pins import NOTES, known_versions
    from kvgauge.builds.verdicts import status_line

    print(f"folder: {cache_folder()}")
    print("hash: of the LIBFABRIC plugin; verdicts: of `kvgauge builds test`, READ and WRITE over tcp on this machine")
    print(_row("NIXL", "", "hash", "UCX", "LIBFABRIC", ""))
    for version in known_versions():
        build = installed(version)
        print(
            _line(version, build, NOTES.get(version, ""))
            if build
            else _row(version, "-", "", "", "", NOTES.get(version, ""))
        )
    for own in found_in_cache():
        print(f"NIXL {own.version}: {status_line(own)}")
    return 0


def _line(name: str, build: "Build", note: str) -> str:
    from kvgauge.builds.verdicts import said

    plugin = build.sha256.get("plugin_libfabric", "")[:12]
    return _row(name, "installed", plugin, said(build, "UCX"), said(build, "LIBFABRIC"), note)


def _row(name: str, state: str, plugin: str, ucx: str, libfabric: str, note: str) -> str:
    return f"{name:8} {state:10} {plugin:13} {ucx:12} {libfabric:15} {note}".rstrip()


def install(args: argparse.Namespace) -> int:
    """raises BuildError, UsageError"""
    from kvgauge.builds.install import install as install_build
    from kvgauge.failures import UsageError

    versions = list(args.version)
    if args.reference:
        from kvgauge.plan import load_plan

        plan = load_plan(None, quick=False, tests=[])
        versions += [test.build for test in plan.tests]
    if not versions:
        raise UsageError("name a version, or say --reference; `kvgauge builds` lists what there is")
    for version in dict.fromkeys(versions):
        build = install_build(version, lambda line: print(line, flush=True))
        if not args.quiet:
            print(f"NIXL {version}: {build.folder}")
    return 0


def hashes(args: argparse.Namespace) -> int:
    """raises BuildError, UsageError"""
    for build in _named(args, []):
        print(f"build {build.name}: NIXL {build.version}, {build.identity}")
        for role, digest in sorted(build.sha256.items()):
            print(f"  {role:16} {digest}")
    return 0


def test(args: argparse.Namespace) -> int:
    """raises BuildError, UsageError"""
    import sys

    import msgspec

    from kvgauge.builds.pins import known_versions
    from kvgauge.builds.selftest import try_build
    from kvgauge.builds.verdicts import BACKENDS
    from kvgauge.failures import UsageError
    from kvgauge.target.interfaces import first_outward

    if args.timeout <= 0:
        raise UsageError("--timeout must be above 0 s")
    outward = first_outward()
    wanted = (args.backend,) if args.backend else BACKENDS
    found: dict[str, list[Verdict]] = {}
    for build in _named(args, list(known_versions()) if args.all else []):

        def say(verdict: "Verdict", name: str = build.name) -> None:
            print(_said(name, verdict), flush=True, file=sys.stderr if args.json else sys.stdout)

        found[build.name] = try_build(build, wanted, outward[0] if outward else None, timeout_s=args.timeout, say=say)
    if args.json:
        print(msgspec.json.format(msgspec.json.encode(found)).decode())
    works = all(verdict.outcome == "works" for verdicts in found.values() for verdict in verdicts)
    return 0 if works else EXIT_NOT_ALL_WORK


def _said(name: str, verdict: "Verdict") -> str:
    detail = f": {verdict.detail}" if verdict.detail else ""
    return f"NIXL {name:8} {verdict.backend:9} {verdict.operation:5} {verdict.outcome}{detail} ({verdict.took_s:.1f} s)"


def _named(args: argparse.Namespace, versions: list[str]) -> "list[Build]":
    """The builds the command line names. raises BuildError, UsageError"""
    import sys

    from kvgauge.builds.own import find
    from kvgauge.builds.records import BuildSource
    from kvgauge.failures import UsageError

    if (args.plugin_dir is None) != (args.core is None):
        raise UsageError("--plugin-dir and --core go together: plugins need a core that opens them")
    named: dict[str, BuildSource | None] = dict.fromkeys(versions)
    for name in args.build:
        source = BuildSource(wheel=name) if name.endswith(".whl") else None
        named[source.label if source else name] = source
    if args.plugin_dir is not None:
        source = BuildSource(plugin_dir=args.plugin_dir, core=args.core)
        named[source.label] = source
    if not named:
        raise UsageError("name a version, a wheel file, or --plugin-dir and --core; `kvgauge builds` lists versions")
    return [find(name, source, lambda line: print(line, flush=True, file=sys.stderr)) for name, source in named.items()]
