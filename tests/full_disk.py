"""A plan on a small disk of its own that fills up: run inside `unshare -m`, says what happened as JSON.

unshare -m python full_disk.py FOLDER WHEN PLAN     WHEN: start, or when this glob below the run's folder matches
"""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

SIZE = "48m"


def others_here():
    """Command lines of the other processes that live in this mount namespace."""
    own, found = Path("/proc/self/ns/mnt").readlink(), []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if int(process.name) != os.getpid() and (process / "ns/mnt").readlink() == own:
                found.append((process / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue
    return found


def fill(path):
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(1 << 20))
        except OSError:
            return


def kvgauge(*arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "kvgauge", "run", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def main(folder, when, plan):
    disk, out = folder / "disk", folder / "disk" / "out"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "none", disk], check=True)
    if when == "start":
        fill(disk / "filler")
    running = kvgauge(plan, "--out", out)
    until = time.monotonic() + 50
    while when != "start" and running.poll() is None and time.monotonic() < until:
        if any(out.glob(when)):
            fill(disk / "filler")
            break
        time.sleep(0.01)
    printed, said = running.communicate(timeout=60)
    told = {"code": running.returncode, "printed": printed, "said": said, "left": others_here()}
    shutil.copytree(out, folder / "copy")
    (disk / "filler").unlink()
    if when != "start":
        again = kvgauge("--resume", out)
        told["resumed"] = (again.communicate(timeout=60)[1], again.returncode)
        shutil.copytree(out, folder / "resumed")
    (folder / "told.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
