"""The built wheel in an environment of its own: what a user gets from `pip install`."""

import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(folder), str(ROOT)],
        check=True,
        capture_output=True,
    )
    return next(folder.glob("kvgauge-*.whl"))


def test_the_wheel_carries_code_plans_pins_and_reference_data_and_no_tests(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    for wanted in ("plan/reference.yaml", "report/reference-results.json", "builds/pins/nixl-1.5.0.lock", "py.typed",
                   "tokens/qwen3.vocabulary.xz"):  # fmt: skip
        assert f"kvgauge/{wanted}" in names
    assert not [name for name in names if name.startswith("tests/")]
    for text in ("LICENSE", "NOTICE"):
        assert any(name.endswith(f"licenses/{text}") for name in names)
    assert wheel.stat().st_size < 2 << 20


def test_the_wheel_works_outside_the_source_tree(wheel, tmp_path):
    home = tmp_path / "env"
    venv.create(home, system_site_packages=False, with_pip=False)
    site = next((home / "lib").glob("python*/site-packages"))
    zipfile.ZipFile(wheel).extractall(site)
    # The dependencies are those of this environment: what is tested is that the wheel itself is whole.
    here = next(path for path in map(Path, sys.path) if path.name == "site-packages")
    (site / "dependencies.pth").write_text(f"{here}\n")
    python = home / "bin" / "python"
    code = "from kvgauge.tokens import qwen; import kvgauge; assert qwen.tokenizer().count('Hello') == 1; print(kvgauge.__file__)"
    shown = subprocess.run([python, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert shown.startswith(str(site))
    for arguments in (["--version"], ["plan", "--quick"], ["report", "--reference"], ["builds"]):
        done = subprocess.run(
            [python, "-m", "kvgauge", *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, (arguments, done.stderr)
