"""Opens one plugin and says how far it came: run by path in a process of its own, since a plugin may crash or hang.

Standard library only, and nothing of kvgauge: it runs with -I -S. One JSON object on standard input:
    {"stand_in": libcuda for a machine without one, or null, "preload": [paths], "plugin": path}
One on each line of standard output: {"step": path} before each, then {"opened": {...}} or {"refused": reason}.
"""

import ctypes
import json
import os
import re
import sys
from pathlib import Path


def say(message: dict[str, object]) -> None:
    print(json.dumps(message), flush=True)


def load(path: str, mode: int) -> ctypes.CDLL:
    say({"step": path})
    return ctypes.CDLL(path, mode=mode)


def main() -> None:
    spec = json.loads(sys.stdin.read())
    now = os.RTLD_NOW
    try:
        if spec["stand_in"] is not None:
            try:
                load("libcuda.so.1", now | os.RTLD_GLOBAL)
            except OSError:
                load(spec["stand_in"], now | os.RTLD_GLOBAL)
        for path in spec["preload"]:
            load(path, now | os.RTLD_GLOBAL)
        load(spec["plugin"], now)
    except OSError as error:
        say({"refused": str(error)})
        return
    say({"opened": versions()})


def versions() -> dict[str, str | None]:
    """Of the libfabric and UCX that are in this process now."""
    found: dict[str, str | None] = {"libfabric": None, "ucx": None}
    mapped = Path("/proc/self/maps").read_text()
    paths = dict.fromkeys(re.findall(r"(/.*\.so[^\s]*)$", mapped, re.MULTILINE))
    for path in paths:
        name = Path(path).name
        if name.startswith("libfabric.so") or re.match(r"libfabric-[0-9a-f]+\.so", name):
            version = ctypes.CDLL(path).fi_version()
            found["libfabric"] = f"{version >> 16}.{version & 0xFFFF}"
        elif name.startswith("libucp"):
            said = ctypes.CDLL(path).ucp_get_version_string
            said.restype = ctypes.c_char_p
            found["ucx"] = said().decode("ascii", "replace")
    return found


if __name__ == "__main__":
    main()
