"""`kvgauge query` as a process of its own: interrupted, piped."""

import signal
import subprocess
import sys
import time

from kvgauge.peers.find import find
from kvgauge.peers.write import write_run


def imported(tmp_path, samples_folder):
    folder = tmp_path / "imported"
    write_run(find([samples_folder / "aiperf-0.13"]), folder)
    return folder


def test_ctrl_c_ends_a_question(tmp_path, samples_folder):
    folder = imported(tmp_path, samples_folder)
    sql = "SELECT count(*) FROM range(100000000000) a, range(100) b"
    process = subprocess.Popen(
        [sys.executable, "-m", "kvgauge", "query", sql, str(folder), "--timeout", "60"],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        time.sleep(2.5)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=20)
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
