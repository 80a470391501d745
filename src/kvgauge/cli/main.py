"""The command line: one file a command, imported when it is asked for, so that help is quick.

Exit codes: 0 fine; 1 worse, or a failed gate; 2 usage; 3 a run invalid or failed that the plan did not expect;
4 undecided; 130 interrupted.
"""

import argparse
import importlib
import os
import sys

from kvgauge import __version__
from kvgauge.failures import KvgaugeError

COMMANDS = ("run", "plan", "serve", "report", "builds")
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
    args = parser.parse_args(argv)
    try:
        code: int = args.run(args)
        sys.stdout.flush()
    except KvgaugeError as error:
        print(f"kvgauge: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader has left; nothing is wrong
        return 0
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        print(f"kvgauge: {error.strerror or error}{where}", file=sys.stderr)
        return KvgaugeError.exit_code
    except KeyboardInterrupt:
        print("kvgauge: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except Exception as error:
        print(f"kvgauge: a mistake of kvgauge's own: {_keep(error)}", file=sys.stderr)
        return KvgaugeError.exit_code
    return code


def _keep(error: Exception) -> str:
    """Put the traceback into a file, and say in a line what happened and where that file is."""
    import tempfile
    import traceback

    with tempfile.NamedTemporaryFile("w", prefix="kvgauge-", suffix=".txt", delete=False) as file:
        file.write("".join(traceback.format_exception(error)))
    return f"{type(error).__name__}: {str(error)[:200]} (please report it with {file.name})"


if __name__ == "__main__":
    sys.exit(main())
