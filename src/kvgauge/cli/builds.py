"""`kvgauge builds`: which NIXL builds are known and installed, and installing them."""

import argparse


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser("builds", help="list and install NIXL builds")
    actions = parser.add_subparsers(metavar="ACTION")
    parser.set_defaults(run=show)
    adding = actions.add_parser("install", help="install published builds into the user's cache folder")
    adding.add_argument("version", nargs="*", help="for example 1.5.0")
    adding.add_argument("--reference", action="store_true", help="all that the reference plan needs")
    adding.add_argument("--quiet", action="store_true", help="say nothing when everything is installed")
    adding.set_defaults(run=install)


def show(_args: argparse.Namespace) -> int:
    from kvgauge.builds.install import cache_folder, installed
    from kvgauge.builds.pins import NOTES, known_versions

    print(f"folder: {cache_folder()}")
    for version in known_versions():
        build = installed(version)
        state = "installed" if build else "-"
        plugin = build.sha256.get("plugin_libfabric", "")[:12] if build else ""
        print(f"NIXL {version:8} {state:10} {plugin:13} {NOTES.get(version, '')}".rstrip())
    return 0


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
