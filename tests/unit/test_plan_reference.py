import msgspec
import pytest

from kvgauge.failures import PlanError
from kvgauge.plan import load_plan
from kvgauge.plan.expand import estimate_s
from kvgauge.plan.metrics import METRICS
from kvgauge.plan.reference import quick, reference

PLAN = reference(("1.2.0", "1.4.1", "1.5.0"))
QUICK = quick(PLAN)


def test_the_six_tests_are_those_of_the_specification():
    rows = [
        (t.name, t.backend, t.patches, t.model, t.prefill_tp, t.decode_tp, t.build, t.stand_in, t.baseline)
        for t in PLAN.tests
    ]
    both, stand_in = ("Baseline UCX", "Baseline LIBFABRIC"), "stand-in: NIXL {}, not the patches"
    new, newer = stand_in.format("1.4.1"), stand_in.format("1.5.0")
    three = "11 stability + 3 performance"
    assert rows == [
        ("Baseline UCX", "UCX", "none", "Qwen3-0.6B", 1, 1, "1.2.0", None, ()),
        ("Baseline LIBFABRIC", "LIBFABRIC", "none", "Qwen3-0.6B", 1, 1, "1.2.0", None, ("Baseline UCX",)),
        ("Patched LIBFABRIC", "LIBFABRIC", "11 stability", "Qwen3-0.6B", 1, 1, "1.4.1", new, both),
        ("Optimized LIBFABRIC", "LIBFABRIC", three, "Qwen3-0.6B", 1, 1, "1.5.0", newer, both),
        ("Multi-GPU", "LIBFABRIC", "all", "Llama-3.1-8B", 1, 1, "1.5.0", newer, both),
        ("Production", "LIBFABRIC", "all", "Llama-3.1-70B", 8, 8, "1.5.0", newer, both),
    ]
    assert all(test.fabric == "tcp" and test.expect == "valid" for test in PLAN.tests)
    assert PLAN.rehearsal


def test_the_literal_cells_and_the_deciding_one_are_there():
    assert [cell.name for cell in PLAN.cells] == [
        "single",
        *(f"{load}-{slots}" for load in ("wave", "closed", "512x128") for slots in (1, 5, 10, 20)),
        "512x128-open",
    ]
    by_name = {cell.name: cell for cell in PLAN.cells}
    single, wave, deciding = by_name["single"], by_name["wave-20"], by_name["512x128-10"]
    assert (single.load, single.prompt, single.output_tokens, single.requests) == ("single", "Hello", 100, 30)
    assert (wave.load, wave.prompt, wave.output_tokens, wave.requests) == ("wave", "Explain AI", 50, 100)
    assert (deciding.load, deciding.prompt, deciding.input_tokens, deciding.output_tokens) == ("closed", None, 512, 128)
    assert [by_name[f"512x128-{slots}"].requests for slots in (1, 5, 10, 20)] == [30, 50, 100, 200]
    assert (PLAN.primary.metric, PLAN.primary.cell, PLAN.repetitions) == ("ttft_ms_mean", "512x128-10", 5)


def test_quick_keeps_tests_and_all_cells_but_those_heavier_than_the_deciding_one_and_fits_five_minutes():
    assert QUICK.tests == PLAN.tests
    assert [cell.name for cell in QUICK.cells] == [
        cell.name for cell in PLAN.cells if cell.name not in ("512x128-20", "512x128-open")
    ]
    assert (QUICK.repetitions, QUICK.quick, PLAN.quick) == (3, True, False)
    assert estimate_s(QUICK) < 270


def test_quick_keeps_every_slot_busy_whole_waves_and_a_second_round_where_it_decides():
    for cell in QUICK.cells:
        assert cell.requests >= cell.concurrency
        assert cell.load != "wave" or cell.requests % cell.concurrency == 0
    assert {cell.name: cell.requests for cell in QUICK.cells if cell.requests > cell.concurrency} == {
        "single": 2,
        "512x128-10": 20,
    }


def test_quick_warms_up_once_for_each_size_of_prompt():
    assert [cell.name for cell in QUICK.cells if cell.warmup_requests] == ["single", "512x128-1"]


def test_quick_never_asks_for_more_than_the_plan():
    few = msgspec.structs.replace(PLAN, repetitions=1, cells=(msgspec.structs.replace(PLAN.cells[0], requests=1),))
    assert (quick(few).repetitions, quick(few).cells[0].requests) == (1, 1)
    assert quick(QUICK) == QUICK


def test_load_plan_gives_the_reference_plan_selected_and_quick():
    plan = load_plan(None, True, ["Production"])
    assert [test.name for test in plan.tests] == ["Production"]
    assert plan.quick
    assert load_plan(None, False, []) == PLAN


def test_load_plan_reads_a_file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("name: x\nnmae: y\n")
    with pytest.raises(PlanError, match=r"mine\.yaml:2: .*did you mean 'name'"):
        load_plan(path, False, [])
    with pytest.raises(PlanError, match="cannot be read: Is a directory"):
        load_plan(tmp_path, False, [])
    with pytest.raises(PlanError, match="cannot be read: No such file"):
        load_plan(tmp_path / "none.yaml", False, [])


def test_every_metric_has_a_unit_a_direction_and_a_meaning():
    assert len(METRICS) == 5 * 5 + 4
    assert all(name == metric.name and metric.unit and metric.meaning for name, metric in METRICS.items())
    assert {name for name, metric in METRICS.items() if metric.better == "higher"} == {
        "output_token_throughput_tok_s",
        "request_throughput_req_s",
        "goodput_req_s",
        "goodput_share_pct",
    }
