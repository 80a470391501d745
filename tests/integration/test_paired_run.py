"""A paired plan as a user runs it: two embedded stacks side by side, real processes."""

import json

import pytest

from kvgauge.cli.main import main
from kvgauge.samples.read import load_exchanges, load_transfers

pytestmark = pytest.mark.nixl

PLAN = """
name: pairs
mode: paired
repetitions: 1
primary: {metric: ttft_ms_mean, cell: p}
defaults: {fabric: tcp, backend: UCX, model: Qwen3-0.6B, patches: none, build: 1.5.0}
tests:
  - {name: as it is}
  - {name: slower, planted: {prefill_pct: 5}}
cells:
  - {name: p, load: closed, concurrency: 2, input_tokens: 64, output_tokens: 2, requests: 24}
"""


def test_two_stacks_side_by_side_each_prove_their_own(tmp_path, capsys):
    path, out = tmp_path / "plan.yaml", tmp_path / "out"
    path.write_text(PLAN)
    assert main(["run", str(path), "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "planted: modelled prefill +5 %" in shown
    assert "mode paired" in shown
    results = json.loads((out / "results.json").read_text())
    assert {run["status"] for test in results["tests"] for run in test["runs"]} == {"valid"}
    sent = 0
    for name in ("r1-as-it-is", "r1-slower"):
        exchanges, transfers = load_exchanges(out / "runs" / name), load_transfers(out / "runs" / name)
        assert {each.request_id for each in exchanges} == {each.request_id for each in transfers}
        sent += len(exchanges)
    assert sent == 24 + 2 * 2
    (gain,) = [row for row in results["tests"][1]["gains"] if row["primary"]]
    assert gain["verdict"] == "cannot tell"
    assert "pairs of requests: an interval needs at least 200" in gain["reason"]
    assert main(["compare", str(out)]) == 4
    assert "mode paired" in capsys.readouterr().out
    assert main(["query", "SELECT n_counts FROM gains WHERE primary_metric", str(out)]) == 0
    assert "pairs of requests" in capsys.readouterr().out
    assert main(["run", "--resume", str(out)]) == 0


@pytest.mark.parametrize(
    ("urls", "said"),
    [
        (["http://127.0.0.1:1"], "of a paired plan say whose it is"),
        (["as it is=http://127.0.0.1:1"], "no --url for 'slower'"),
        (["as it is=http://127.0.0.1:1", "slower=http://127.0.0.1:1"], "the other test runs there too"),
        (["as it was=http://127.0.0.1:1"], "no test is called 'as it was'"),
        (["as it is=http://127.0.0.1:1", "slower=http://127.0.0.1:2"], "planted of slower"),
    ],
)
def test_urls_say_whose_they_are(tmp_path, capsys, urls, said):
    path = tmp_path / "plan.yaml"
    path.write_text(PLAN)
    flags = [part for url in urls for part in ("--url", url)]
    assert main(["run", str(path), "--out", str(tmp_path / "out"), *flags]) == 2
    assert said in capsys.readouterr().err
