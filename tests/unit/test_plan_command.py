import argparse
import json
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from kvgauge.cli import plan as command
from kvgauge.failures import PlanError
from kvgauge.plan import load_plan


def ran(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    command.add_parser(parser.add_subparsers())
    args = parser.parse_args(["plan", *arguments])
    return args.run(args)


def test_it_prints_tests_cells_runs_the_estimate_and_that_it_is_a_rehearsal(capsys):
    assert ran("--quick") == 0
    printed = capsys.readouterr().out
    for expected in (
        "rehearsal: fabric tcp for every test; nothing here transfers to EFA",
        "6 tests x 3 repetitions = 18 runs of 12 cells",
        "decides: ttft_ms_mean in cell 512x128-10",
        "estimated time: about",
        "160.0 MiB",
        "40,960 x 4 KiB",
        "r3-production",
        "(stand-in: NIXL 1.4.1, not the patches)",
    ):
        assert expected in printed


def test_json_holds_the_plan_its_runs_and_the_estimate(capsys):
    assert ran("--json", "--test", "Production", "--test", "Baseline UCX") == 0
    whole = json.loads(capsys.readouterr().out)
    assert (whole["schema"], len(whole["runs"]), whole["plan"]["name"]) == (1, 10, "reference")
    assert whole["runs"][0].keys() == {"run_id", "test", "repetition", "order", "seed"}
    assert whole["estimate_s"] > 0


def test_an_unknown_test_is_an_error_before_anything_is_printed(capsys):
    with pytest.raises(PlanError):
        ran("--test", "Producton")
    assert not capsys.readouterr().out


def test_names_are_printed_literally(tmp_path, capsys):
    path = tmp_path / "p.yaml"
    path.write_text(
        "name: '[red]x'\nprimary: {metric: ttft_ms_mean, cell: c}\n"
        "tests: [{name: '[bold]T[/]', backend: UCX, fabric: shm, build: 1.5.0, model: Qwen3-0.6B, prefill_workers: 2}]\n"
        "cells: [{name: c, load: single, concurrency: 1, requests: 1, prompt: '[i]', output_tokens: 1}]\n"
    )
    assert ran(str(path)) == 0
    printed = capsys.readouterr().out
    assert "[red]x" in printed
    assert "[bold]T[/]" in printed
    assert "'[i]'" in printed
    assert "1 (2 prefill, 1 decode)" in printed


def test_a_plan_that_leaves_the_machine_is_no_rehearsal():
    plan = load_plan(None, False, [])
    assert command.rehearsal_line(msgspec.structs.replace(plan, rehearsal=False)) is None
    shm = msgspec.structs.replace(plan.tests[0], name="S", fabric="shm")
    mixed = msgspec.structs.replace(plan, tests=(*plan.tests, shm))
    assert command.rehearsal_line(mixed) == "rehearsal: fabrics shm and tcp only; nothing here transfers to EFA"


@pytest.mark.parametrize(
    ("seconds", "said"), [(12.4, "12 s"), (89, "89 s"), (290, "5 min"), (3_599, "1 h 00 min"), (4_200, "1 h 10 min")]
)
def test_durations_are_said_as_people_say_them(seconds, said):
    assert command.duration(seconds) == said


def test_importing_the_command_and_the_records_imports_no_yaml_and_no_tables():
    code = (
        "import sys, kvgauge.cli.plan, kvgauge.plan.records, kvgauge.plan.metrics, kvgauge.models;"
        "print([name for name in ('yaml', 'rich', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def test_what_is_modelled_of_a_first_run_is_shown(capsys):
    example = Path(__file__).parents[2] / "examples" / "cold-start.yaml"
    assert ran(str(example)) == 0
    printed = capsys.readouterr().out
    line = "compile 2 s a worker, graph capture 0.25 s for each batch size 1-8, first connection 1 s a pair"
    assert f"cold start modelled: {line}" in printed
    cold = load_plan(example, quick=False, tests=[])
    one = msgspec.structs.replace(cold, tests=(cold.tests[0], msgspec.structs.replace(cold.tests[1], cold_start=None)))
    assert command.cold_lines(one) == [f"cold start modelled for UCX: {line}"]
    assert command.cold_lines(load_plan(None, quick=False, tests=[])) == []
