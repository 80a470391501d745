"""`kvgauge switch` as it is typed: what it prints, writes and ends with."""

import io
import json
import os
import sys
from pathlib import Path

import pytest

from kvgauge.cli.main import main

SAMPLES = Path(__file__).parents[1] / "samples" / "switch"
BEFORE = (SAMPLES / "vllm-deployment.yaml").read_text()
AFTER = (SAMPLES / "vllm-deployment.libfabric.yaml").read_text()
TO_LIBFABRIC = ["switch", "LIBFABRIC", "--fabric", "efa"]


@pytest.fixture
def manifest(tmp_path):
    path = tmp_path / "deploy.yaml"
    path.write_text(BEFORE)
    return path


def test_what_to_set_is_printed_in_three_forms(capsys):
    assert main(["switch", "UCX", "--framework", "dynamo-sglang", "--fabric", "ib", "--net-devices", "mlx5_0:1"]) == 0
    out = capsys.readouterr().out
    assert "export UCX_NET_DEVICES=mlx5_0:1\n" in out
    assert "export SGLANG_DISAGGREGATION_NIXL_BACKEND=UCX\n" in out
    assert main(["switch", "LIBFABRIC", "--framework", "vllm", "--profile", "reference", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["fabric"] == "efa"
    assert main(["switch", "UCX", "--framework", "trtllm", "--profile", "reference", "--format", "yaml"]) == 0
    seen = capsys.readouterr()
    assert "env:\n- name: NIXL_BACKEND\n  value: UCX\n" in seen.out
    assert 'this "UCX" profile is in truth TCP' in seen.err


def test_a_patched_manifest_goes_to_standard_output_and_the_file_stays(manifest, capsys):
    assert main([*TO_LIBFABRIC, "--patch", str(manifest)]) == 0
    seen = capsys.readouterr()
    assert seen.out == AFTER
    assert "UCX -> LIBFABRIC" in seen.err
    assert manifest.read_text() == BEFORE


def test_in_place_writes_the_file_keeps_its_mode_and_link_and_goes_back(manifest, tmp_path, capsys):
    manifest.chmod(0o640)
    link = tmp_path / "link.yaml"
    link.symlink_to(manifest)
    assert main([*TO_LIBFABRIC, "--patch", str(link), "--in-place"]) == 0
    assert manifest.read_text() == AFTER
    assert (manifest.stat().st_mode & 0o777, link.is_symlink()) == (0o640, True)
    assert main(["switch", "UCX", "--fabric", "tcp", "--patch", str(link), "--in-place"]) == 0
    assert manifest.read_bytes() == BEFORE.encode()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["deploy.yaml", "link.yaml"]
    assert capsys.readouterr().out == ""


def test_undo_needs_no_backend(manifest, capsys):
    manifest.write_text(AFTER)
    assert main(["switch", "--undo", "--patch", str(manifest)]) == 0
    assert capsys.readouterr().out == BEFORE


def test_standard_input_is_a_manifest_too(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(BEFORE.encode())))
    assert main([*TO_LIBFABRIC, "--patch", "-"]) == 0
    assert capsys.readouterr().out == AFTER


def test_diff_and_messages_show_changed_lines_and_no_other_value(manifest, capsys):
    secret = "        env:\n            - {name: HF_TOKEN, value: hf_secret}\n    "
    manifest.write_text(
        BEFORE.replace("          env:\n            # --- transport", f"  {secret}        # --- transport").replace(
            "exec vllm serve", "export API_KEY=hf_secret\n              exec vllm serve"
        )
    )
    assert main([*TO_LIBFABRIC, "--patch", str(manifest), "--diff"]) == 0
    seen = capsys.readouterr()
    assert "+            - name: FI_PROVIDER\n" in seen.out
    assert '-              value: "rc,cuda_copy,cuda_ipc,sm,self"' in seen.out
    assert "hf_secret" not in seen.out + seen.err
    assert "# kvgauge" not in seen.out


@pytest.mark.parametrize(("name", "code"), [("dynamo-trtllm-v1beta1.yaml", 1), ("vllm-deployment.yaml", 0)])
def test_check_ends_with_1_where_settings_contradict(name, code, capsys):
    assert main(["switch", "--check", str(SAMPLES / name)]) == code
    out = capsys.readouterr().out
    assert ("contradiction" in out) == bool(code)
    assert main(["switch", "--check", str(SAMPLES / name), "--format", "json"]) == code
    assert {w["backend"] for w in json.loads(capsys.readouterr().out)["workers"]} <= {"UCX", "LIBFABRIC"}


def test_check_of_the_environment_shows_known_variables_only(monkeypatch, capsys):
    for name in [n for n in os.environ if n.startswith(("UCX_", "FI_", "NIXL_", "TRTLLM_", "SGLANG_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("UCX_TLS", "tcp,sm")
    monkeypatch.setenv("MY_SECRET", "hidden")
    assert main(["switch", "--check", "env"]) == 0
    out = capsys.readouterr().out
    assert "in truth TCP" in out
    assert "hidden" not in out
    monkeypatch.setenv("TRTLLM_NIXL_KVCACHE_BACKEND", "LIBFABRIC")
    monkeypatch.setenv("NIXL_BACKEND", "LIBFABRIC")
    assert main(["switch", "--check", "env"]) == 1
    out = capsys.readouterr().out
    assert "TensorRT-LLM): LIBFABRIC over what it finds" in out
    assert "#10024" in out
    assert main(["switch", "--check", "env", "--framework", "vllm"]) == 0
    assert "which variables do not show" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "to what?"),
        (["UCX"], "which framework?"),
        (["UCX", "--framework", "dynamo", "--fabric", "tcp"], "say dynamo-vllm"),
        (["UCX", "--framework", "vllm"], "which network?"),
        (["UCX", "--in-place"], "need --patch"),
        (["UCX", "--undo", "--patch", "x"], "not both"),
        (["UCX", "--patch", "-", "--in-place"], "cannot be written back"),
        (["UCX", "--check", "env"], "--check changes nothing"),
        (["LIBFABRIC", "--framework", "vllm", "--fabric", "ib"], "use UCX there"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(arguments, says, capsys):
    assert main(["switch", *arguments]) == 2
    seen = capsys.readouterr()
    assert says in seen.err
    assert seen.err.count("\n") == 1
    assert seen.out == ""


def test_files_that_are_missing_binary_or_too_large_are_refused(tmp_path, capsys):
    assert main([*TO_LIBFABRIC, "--patch", str(tmp_path / "none.yaml")]) == 2
    assert "No such file" in capsys.readouterr().err
    binary = tmp_path / "b.yaml"
    binary.write_bytes(b"a: \xff\n")
    assert main([*TO_LIBFABRIC, "--patch", str(binary)]) == 2
    assert "not UTF-8" in capsys.readouterr().err
    binary.write_bytes(b"#" * (1 << 21))
    assert main([*TO_LIBFABRIC, "--patch", str(binary)]) == 2
    assert "more than 1048576 bytes" in capsys.readouterr().err
    assert main(["switch", "--check", str(SAMPLES.parent / "nixl-1.5.1-prometheus.txt")]) == 2


def test_a_refused_patch_leaves_the_file(manifest, capsys):
    manifest.write_text(BEFORE.replace("value: 'mlx5_0:1'", "valueFrom: {fieldRef: {fieldPath: a}}"))
    text = manifest.read_text()
    assert main([*TO_LIBFABRIC, "--patch", str(manifest), "--in-place"]) == 2
    assert "UCX_NET_DEVICES takes its value from elsewhere" in capsys.readouterr().err
    assert manifest.read_text() == text
