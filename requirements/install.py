"""Makes the environment that the Makefile uses. Plain python3, standard library only.

    python3 requirements/install.py VENV          kvgauge and what its development needs
    python3 requirements/install.py VENV LOCK     what that lock file holds, and nothing else

Everything is pinned with hashes (requirements/dev.lock), in a .txt by versions alone; which index serves it is the
machine's own setting.
"""

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent
NEEDED = (3, 11)


def fail(message: str) -> None:
    sys.exit(f"make setup: {message}")


def tried(*command: str) -> str | None:
    """None when the command succeeded, else the last line it printed."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return None
    return (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()[-1]


def make_venv(venv: Path) -> None:
    """A virtual environment, through the standard library or, where Debian split that off, through pip."""
    without_venv = tried(sys.executable, "-m", "venv", "--clear", str(venv))
    if without_venv is None:
        return
    helper = venv.parent / f"{venv.name}-helper"
    pip = [sys.executable, "-m", "pip", "install", "-q", "--require-hashes", "--target", str(helper)]
    without_pip = tried(*pip, "-r", str(HERE / "virtualenv.lock"))
    if without_pip is not None:
        fail(
            f"{sys.executable} has neither a working venv ({without_venv}) nor pip ({without_pip}). "
            "Install one of them (Debian, Ubuntu: apt-get install python3-venv), then run make setup again."
        )
    made = subprocess.run(
        [sys.executable, "-m", "virtualenv", "-q", "--clear", str(venv)],
        env={"PYTHONPATH": str(helper), "PATH": "/usr/bin:/bin"},
        check=False,
    )
    if made.returncode != 0:
        fail(f"virtualenv could not make {venv} (its message stands above)")


def install(venv: Path, lock: Path | None) -> None:
    python = venv / "bin" / "python"
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "-q", "--no-deps"]
    lock_file = lock or HERE / "dev.lock"
    steps = [[*pip, *(["--require-hashes"] if lock_file.suffix == ".lock" else []), "-r", str(lock_file)]]
    if lock is None:
        steps.append([*pip, "--no-build-isolation", "-e", str(ROOT)])
    for step in steps:
        if subprocess.run(step, check=False).returncode != 0:
            fail(f"this step failed (its message stands above): {' '.join(step)}")


def main() -> None:
    if sys.version_info < NEEDED:
        have = ".".join(map(str, sys.version_info[:3]))
        fail(f"{sys.executable} is Python {have}; 3.11 or newer is needed. Try: make PYTHON=python3.12 setup")
    if sys.platform != "linux":
        fail(f"kvgauge's embedded target runs on Linux (NIXL has no other wheels); this is {sys.platform}")
    venv = Path(sys.argv[1]).absolute()
    make_venv(venv)
    install(venv, Path(sys.argv[2]) if len(sys.argv) > 2 else None)
    (venv / "ready").touch()


if __name__ == "__main__":
    main()
