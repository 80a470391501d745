"""`kvgauge query` as a process of its own: interrupted, piped."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from kvgauge.peers.find import find
from kvgauge.peers.write import write_run


def imported(tmp_path, samples_folder):
    folder = tmp_path / "imported"
    write_run(find([samples_folder / "aiperf-0.13"]), folder)
    return folder


def cpu_s(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_ctrl_c_ends_a_question(tmp_path, samples_folder):
    folder = imported(tmp_path, samples_folder)
    sql = "SELECT count(*) FROM range(100000000000) a, range(100) b"
    process = subprocess.Popen(
        [sys.executable, "-m", "kvgauge", "query", sql, str(folder), "--timeout", "60"],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 - a CI may start us ignoring it
    )
    try:
        until = time.monotonic() + 30
        while cpu_s(process.pid) < 2.0 and time.monotonic() < until:  # by then it counts: to start takes less
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=40)
    finally:
        process.kill()
    assert process.returncode == 130
    assert said == "kvgauge: interrupted\n"


def test_a_reader_that_leaves_early_is_no_error(tmp_path, samples_folder):
    folder = imported(tmp_path, samples_folder)
    command = f"{sys.executable} -m kvgauge query 'SELECT * FROM range(500000)' {folder} --format csv | head -n 2"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.splitlines() == ["range", "0"]
    assert done.stderr == ""
