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
    except KeyboardInterrupt:
        print("kvgauge: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader has left; nothing is wrong
        return 0
    return code


if __name__ == "__main__":
    sys.exit(main())
