"""The command line: one file a command, imported when it is asked for, so that help is quick.

Exit codes: 0 fine; 1 worse, or a failed gate; 2 usage; 3 a run invalid or failed that the plan did not expect;
4 undecided; 130 interrupted.
"""

import argparse
import errno
import importlib
import os
import sys

from kvgauge import __version__
from kvgauge.cli.pages import silence
from kvgauge.failures import KvgaugeError

COMMANDS = (
    "run", "load", "prove", "xfer", "plan", "serve", "report", "compare", "query", "imports", "builds", "doctor",
    "switch",
)  # fmt: skip
EXIT_INTERRUPTED = 130

EPILOG = (
    "exit codes: 0 fine; 1 worse, or a failed gate; 2 usage; 3 a run invalid or failed that the plan did not expect; "
    "4 undecided; 130 interrupted"
)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="kvgauge",
        description="Measures how the KV cache gets from prefill to decode through NIXL, over UCX or LIBFABRIC, and "
        "whether a switch made serving faster.",
        epilog=EPILOG,
    )
    parser.add_argument("--version", action="version", version=f"kvgauge {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name in COMMANDS:
        importlib.import_module(f"kvgauge.cli.{name}").add_parser(commands)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever started us
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115, PTH123 - it stays open as long as we run
    args = parser.parse_args(argv)
    try:
        code: int = args.run(args)
        sys.stdout.flush()
    except KvgaugeError as error:
        _say(str(error))
        return error.exit_code
    except (BrokenPipeError, SystemExit):  # rich turns the first into the second
        silence()
        return 0
    except OSError as error:
        _say(_seen(error))
        silence()  # what standard output did not take would be tried again at the very end
        return KvgaugeError.exit_code
    except KeyboardInterrupt:
        _say("interrupted")
        return EXIT_INTERRUPTED
    except Exception as error:
        _say(f"a mistake of kvgauge's own: {_keep(error)}")
        return KvgaugeError.exit_code
    return code


def _seen(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT) and error.filename is None:
        return f"output cannot be written: {error.strerror}; make room, or send it elsewhere"
    return f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}"


def _say(line: str) -> None:
    """One line on standard error; what came from elsewhere cannot steer the terminal."""
    shown = "".join(c if c.isprintable() else " " for c in line)
    print(f"kvgauge: {shown}", file=sys.stderr)


def _keep(error: Exception) -> str:
    """Put the traceback into a file, and say in a line what happened and where that file is."""
    import tempfile
    import traceback

    what = f"{type(error).__name__}: {str(error)[:200]}"
    try:
        with tempfile.NamedTemporaryFile("w", prefix="kvgauge-", suffix=".txt", delete=False) as file:
            file.write("".join(traceback.format_exception(error)))
    except OSError as full:
        return f"{what} (please report it; its details could not be kept: {full.strerror})"
    return f"{what} (please report it with {file.name})"


if __name__ == "__main__":
    sys.exit(main())
