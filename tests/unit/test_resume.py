"""Going on where a run was cut off: what is read back, what is refused, and who may be at work in a folder."""

import msgspec
import pytest

from kvgauge import resume
from kvgauge.failures import SamplesError, UsageError
from kvgauge.plan.expand import expand
from kvgauge.plan.records import ColdStart, Plan, Primary
from kvgauge.report import results as results_files
from kvgauge.report.records import RunResult
from scene import make_cell, make_test

PLAN = Plan(
    name="p", source="plan.yaml", tests=(make_test(name="A"),), cells=(make_cell(name="c"), make_cell(name="d")),
    repetitions=3, primary=Primary(metric="ttft_ms_mean", cell="c"),
)  # fmt: skip
CONDITIONS = resume.Conditions(
    kvgauge="1", machine={"cores": 2, "host": "h"}, builds={"1.5.0": {"libnixl": "aa", "ucx": "bb"}}, target="embedded"
)


def result(run, cell, status):
    return RunResult(
        run_id=run.run_id, repetition=run.repetition, cell=cell, concurrency=2, seed=1, status=status, reasons=(), metrics={}
    )  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    """A folder as a run leaves it: the first run whole, the second cut off, the third not begun."""
    made = tmp_path / "run"
    made.mkdir()
    resume.write_start(made, PLAN, CONDITIONS)
    first, second, _ = expand(PLAN)
    given = [result(first, cell, "valid") for cell in (None, "c", "d")]
    given += [result(second, None, "interrupted"), result(second, "c", "valid"), result(second, "d", "interrupted")]
    results_files.write(results_files.build(PLAN, {"A": given}, {}, expand(PLAN)), made)
    return made


def test_whole_runs_are_kept_and_those_cut_off_are_not(folder):
    saved = resume.load(folder)
    assert (saved.plan, saved.conditions) == (PLAN, CONDITIONS)
    assert saved.run_ids == {expand(PLAN)[0].run_id}
    assert [run.cell for run in saved.done["A"]] == [None, "c", "d"]


def test_a_folder_cut_off_before_its_first_results_has_nothing_done(folder):
    (folder / results_files.RESULTS_JSON).unlink()
    assert resume.load(folder).run_ids == set()


def test_a_folder_that_no_run_made_is_refused_with_what_is_missing(tmp_path):
    with pytest.raises(UsageError, match=r"cannot be resumed: .*plan\.json is not there"):
        resume.load(tmp_path)


def test_damaged_files_are_told_apart_from_missing_ones(folder):
    (folder / results_files.RESULTS_JSON).write_text("{")
    with pytest.raises(SamplesError):
        resume.load(folder)
    (folder / "conditions.json").write_text("{")
    with pytest.raises(UsageError, match="damaged"):
        resume.load(folder)


def test_a_folder_from_before_cold_starts_goes_on_and_one_with_a_cold_start_keeps_it(folder):
    saved = folder / resume.PLAN
    old = msgspec.json.decode(saved.read_bytes())
    del old["tests"][0]["cold_start"]
    saved.write_bytes(msgspec.json.encode(old))
    assert resume.load(folder).plan == PLAN
    cold = msgspec.structs.replace(PLAN, tests=(make_test(name="A", cold_start=ColdStart(compile_s=0.3)),))
    resume.write_start(folder, cold, CONDITIONS)
    resume.refuse_changes(resume.load(folder), cold, CONDITIONS)
    assert resume.load(folder).plan == cold


def test_the_same_experiment_may_go_on_under_another_path_of_its_plan(folder):
    saved = resume.load(folder)
    resume.refuse_changes(saved, None, CONDITIONS)
    resume.refuse_changes(saved, msgspec.structs.replace(PLAN, source="elsewhere.yaml"), CONDITIONS)


@pytest.mark.parametrize(
    ("plan", "conditions", "words"),
    [
        ({"repetitions": 4}, {}, "the plan changed"),
        ({}, {"kvgauge": "2"}, "kvgauge (was 1, is 2)"),
        ({}, {"machine": {"cores": 4, "host": "h"}}, "cores (was 2, is 4)"),
        ({}, {"options": {"prove": "yes"}}, "prove (was None, is yes)"),
        ({}, {"target": "http://x"}, "the target (was embedded, is http://x)"),
        ({}, {"builds": {"1.5.0": {"libnixl": "aa", "ucx": "cc"}}}, "ucx of build 1.5.0"),
        ({}, {"builds": {}}, "libnixl of build 1.5.0, ucx of build 1.5.0"),
        ({"tests": (make_test(name="A", cold_start=ColdStart(compile_s=1)),)}, {}, "the plan changed"),
        ({"seed": 9}, {"kvgauge": "2"}, "the plan, kvgauge (was 1, is 2) changed"),
    ],
)
def test_everything_that_changed_is_named_and_nothing_goes_on(folder, plan, conditions, words):
    saved = resume.load(folder)
    with pytest.raises(UsageError) as caught:
        resume.refuse_changes(
            saved, msgspec.structs.replace(PLAN, **plan), msgspec.structs.replace(CONDITIONS, **conditions)
        )
    assert words in str(caught.value)
    assert "Begin a new run instead" in str(caught.value)


def test_two_cannot_be_at_work_in_one_folder_and_the_next_one_can(tmp_path):
    with (
        resume.held(tmp_path),
        pytest.raises(UsageError, match="another kvgauge is at work"),
        resume.held(tmp_path),
    ):
        raise AssertionError
    with resume.held(tmp_path):
        pass


def test_the_samples_of_a_run_that_was_cut_off_are_kept_beside_the_run_that_takes_its_place(tmp_path):
    resume.put_aside(tmp_path / "r1")
    for content in ("first", "second"):
        (tmp_path / "r1").mkdir()
        (tmp_path / "r1" / "samples").write_text(content)
        resume.put_aside(tmp_path / "r1")
    kept = sorted(path.name for path in tmp_path.iterdir())
    assert kept == ["r1.cut-1", "r1.cut-2"]
    assert (tmp_path / "r1.cut-2" / "samples").read_text() == "second"


def test_an_option_that_is_not_given_again_has_changed(folder):
    saved = resume.load(folder)
    begun = msgspec.structs.replace(saved, conditions=msgspec.structs.replace(CONDITIONS, options={"prove": "yes"}))
    with pytest.raises(UsageError, match=r"prove \(was yes, is None\)"):
        resume.refuse_changes(begun, None, CONDITIONS)
