"""Vega-Lite specifications to SVG, offline: vl-convert carries the renderer, no browser and no node is asked for.

The renderer is a JavaScript engine; should it crash or hang, it does so in a process of its own.
"""

import json
import subprocess
import sys
from collections.abc import Mapping

from kvgauge.failures import ReportError

SECONDS_MAX = 120.0  # the first chart of a busy machine takes a few
SVG_BYTES_MAX = 64 << 20
SAID_MAX = 200


def svg(spec: Mapping[str, object]) -> bytes:
    """The picture, text as text. raises ReportError"""
    command = [sys.executable, "-P", "-m", "kvgauge.report.charts"]  # -P: nothing comes from the current folder
    try:
        done = subprocess.run(
            command, input=json.dumps(spec).encode(), capture_output=True, timeout=SECONDS_MAX, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise ReportError(f"vl-convert gave none within {SECONDS_MAX:g} s") from error
    except OSError as error:
        raise ReportError(f"vl-convert did not start: {error.strerror or error}") from error
    if done.returncode != 0 or not done.stdout.startswith(b"<svg"):
        lines = done.stderr.decode("utf-8", "replace").splitlines()
        said = [line for line in lines if line.strip() and not line.startswith((" ", "Traceback"))] or ["no word"]
        how = f"was killed by signal {-done.returncode}" if done.returncode < 0 else f"ended with {done.returncode}"
        raise ReportError(f"vl-convert {how}: {said[-1][:SAID_MAX]}")
    if len(done.stdout) > SVG_BYTES_MAX:
        raise ReportError(f"it would take {len(done.stdout) >> 20} MiB; at most {SVG_BYTES_MAX >> 20} are written")
    return done.stdout


def _child() -> None:
    import vl_convert

    made = vl_convert.vegalite_to_svg(json.load(sys.stdin), allowed_base_urls=[])
    sys.stdout.buffer.write(made.encode())


if __name__ == "__main__":
    _child()
