"""`kvgauge switch`: what a framework must be told to use UCX or LIBFABRIC, manifests patched so, settings checked."""

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvgauge.switch.check import Settings
    from kvgauge.switch.patch import Patched

EXIT_CONTRADICTS = 1
BYTES_MAX = 1 << 20

EPILOG = """examples:
  kvgauge switch LIBFABRIC --framework vllm --fabric efa
  kvgauge switch UCX --framework dynamo-trtllm --profile reference --format yaml
  kvgauge switch LIBFABRIC --fabric efa --patch deploy.yaml --diff
  kvgauge switch UCX --fabric tcp --patch deploy.yaml --in-place
  kvgauge switch --check deploy.yaml
  kvgauge switch --check env --framework trtllm

exit codes: 0 done, or settings that agree; 1 settings that contradict each other (--check); 2 what cannot be done"""


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "switch",
        help="what a framework needs for UCX or LIBFABRIC: printed, patched into a manifest, or checked",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("backend", nargs="?", choices=("UCX", "LIBFABRIC"), metavar="UCX|LIBFABRIC")
    parser.add_argument(
        "--framework",
        choices=("vllm", "trtllm", "sglang", "dynamo", "dynamo-vllm", "dynamo-trtllm", "dynamo-sglang"),
        help="found by itself in a manifest",
    )
    parser.add_argument("--fabric", choices=("efa", "ib", "tcp"), help="the network (reference: its own)")
    parser.add_argument(
        "--profile",
        choices=("reference", "minimal"),
        default="minimal",
        help="reference: as deployed, with what nobody reads; minimal: only what is read (default)",
    )
    parser.add_argument("--net-devices", metavar="LIST", help="UCX_NET_DEVICES, for example mlx5_0:1")
    parser.add_argument(
        "--format", choices=("shell", "yaml", "json"), default="shell", help="of what is printed (shell)"
    )
    patching = parser.add_argument_group("a manifest")
    patching.add_argument("--patch", metavar="FILE", help="print FILE (- for standard input) switched")
    patching.add_argument("--in-place", action="store_true", help="write it back instead")
    patching.add_argument("--diff", action="store_true", help="print only the lines that change")
    patching.add_argument("--container", action="append", default=[], metavar="NAME", help="only this one; repeatable")
    patching.add_argument("--service", action="append", default=[], metavar="NAME", help="only this one of a graph")
    patching.add_argument(
        "--overwrite", action="store_true", help="write the profile's values where the backend is in use already"
    )
    patching.add_argument("--undo", action="store_true", help="put back what the file was before it was switched")
    parser.add_argument(
        "--check", metavar="FILE|env", help="say what a manifest or this environment amounts to (exit 1: contradicts)"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """raises UsageError"""
    from kvgauge.failures import UsageError

    if args.check is not None:
        if args.backend or args.patch or args.in_place or args.undo:
            raise UsageError("--check changes nothing: give it alone, with --framework, --fabric or --format at most")
        if args.format == "yaml":
            raise UsageError("--check prints lines, or --format json")
        return check(args)
    if args.patch is None:
        if args.in_place or args.diff or args.undo or args.container or args.service or args.overwrite:
            raise UsageError("--in-place, --diff, --undo, --container, --service and --overwrite need --patch FILE")
        if args.backend is None:
            raise UsageError("to what? say UCX or LIBFABRIC, or --check FILE")
        return show(args)
    if (args.backend is None) != args.undo:
        raise UsageError("to what? say UCX or LIBFABRIC, or --undo, not both")
    if args.in_place and args.patch == "-":
        raise UsageError("standard input cannot be written back: leave --in-place out")
    return patch(args)


def show(args: argparse.Namespace) -> int:
    from kvgauge.failures import UsageError
    from kvgauge.switch.profiles import engine_of, wanted
    from kvgauge.switch.show import as_json, as_shell, as_yaml, line_of

    if args.framework is None:
        raise UsageError("which framework? say --framework (a manifest given with --patch shows its own)")
    want = wanted(engine_of(args.framework), args.backend, args.fabric, args.profile, net_devices=args.net_devices)
    sys.stdout.write({"shell": as_shell, "yaml": as_yaml, "json": as_json}[args.format](want))
    for remark in want.remarks:
        if remark.level == "warning":
            print(f"kvgauge: {line_of(remark)}", file=sys.stderr)
    return 0


def patch(args: argparse.Namespace) -> int:
    from kvgauge.switch.patch import Asked, put_back, switched
    from kvgauge.switch.show import difference

    text = _read(args.patch)
    if args.undo:
        patched = put_back(text)
    else:
        asked = Asked(
            backend=args.backend,
            fabric=args.fabric,
            profile=args.profile,
            engine=_engine(args.framework),
            containers=tuple(args.container),
            services=tuple(args.service),
            net_devices=args.net_devices,
            overwrite=args.overwrite,
        )
        patched = switched(text, asked)
    if args.diff:
        sys.stdout.write(difference(text, patched.text, args.patch))
    elif not args.in_place:
        sys.stdout.write(patched.text)
    if args.in_place and patched.text != text:
        _write(Path(args.patch), patched.text)
    _tell(patched)
    return 0


def _tell(patched: "Patched") -> None:
    from kvgauge.switch.show import line_of

    for line in (*patched.done, *(line_of(remark) for remark in patched.remarks)):
        print("kvgauge: " + "".join(c if c.isprintable() else " " for c in line), file=sys.stderr)


def check(args: argparse.Namespace) -> int:
    from kvgauge.switch.check import across, settings_of
    from kvgauge.switch.check import check as amount_of
    from kvgauge.switch.places import chosen, read
    from kvgauge.switch.show import check_json, check_lines, contradicts

    engine = _engine(args.framework)
    if args.check == "env":
        amounts = [amount_of(_environment(engine), args.fabric)]
    else:
        manifest = read(_read(args.check))
        picked = chosen(manifest, engine, tuple(args.container), tuple(args.service))
        amounts = [amount_of(settings_of(manifest, place, own), args.fabric) for place, own in picked]
    together = across(amounts)
    sys.stdout.write((check_json if args.format == "json" else check_lines)(amounts, together))
    return EXIT_CONTRADICTS if contradicts(amounts, together) else 0


def _environment(engine: str | None) -> "Settings":
    from kvgauge.switch.check import Settings, is_known
    from kvgauge.switch.table import SELECTORS

    known = {name: value for name, value in os.environ.items() if is_known(name)}
    named = [own for own, selector in SELECTORS.items() if selector in known]
    if engine is None and len(named) == 1:
        engine = named[0]
    return Settings(where="this environment", engine=engine, environment=known, command_line=False)


def _engine(framework: str | None) -> str | None:
    """None where a manifest decides: nothing said, or plain dynamo."""
    return None if framework in (None, "dynamo") else str(framework).removeprefix("dynamo-")


def _read(name: str) -> str:
    """raises UsageError for a file that is too large or no UTF-8; line ends stay as they are"""
    from kvgauge.failures import UsageError

    if name == "-":
        data = sys.stdin.buffer.read(BYTES_MAX + 1)
    else:
        try:
            with Path(name).open("rb") as file:
                data = file.read(BYTES_MAX + 1)
        except OSError as error:
            raise UsageError(f"{name}: cannot be read: {error.strerror or error}; name a manifest file") from None
    if len(data) > BYTES_MAX:
        raise UsageError(f"{name}: more than {BYTES_MAX} bytes; give the manifest of the workers alone")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise UsageError(f"{name}: not UTF-8 (byte {error.start}); save it as UTF-8") from None


def _write(path: Path, text: str) -> None:
    """The whole file or nothing: a new one is written beside it and takes its place, mode and link kept."""
    real = path.resolve()
    handle, temporary = tempfile.mkstemp(prefix=f".{real.name}.", dir=real.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(real.stat().st_mode & 0o7777)
        Path(temporary).replace(real)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
