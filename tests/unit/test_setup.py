"""`make setup` on machines that lack something says what."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
INSTALL = ROOT / "requirements" / "install.py"


def test_without_venv_and_without_pip_it_says_what_to_install(tmp_path):
    for name in ("venv", "pip"):
        (tmp_path / f"{name}.py").write_text(f"raise SystemExit('No module named {name}')\n")
    done = subprocess.run(
        [sys.executable, str(INSTALL), str(tmp_path / "env")],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "neither a working venv (No module named venv) nor pip (No module named pip)" in done.stderr
    assert "apt-get install python3-venv" in done.stderr
    assert "Traceback" not in done.stderr


def test_pins_hold_hashes_and_no_address():
    locks = [*(ROOT / "requirements").glob("*.lock"), *(ROOT / "src/kvgauge/builds/pins").glob("*.lock")]
    assert len(locks) > 15
    for lock in locks:
        text = lock.read_text()
        assert "--hash=sha256:" in text
        assert "://" not in text
        assert "index" not in text.lower().replace("indexed", "")
