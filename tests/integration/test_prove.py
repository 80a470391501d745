"""`kvgauge prove` against the embedded stack: real transfers, one of a thousand skipped on purpose."""

import pytest

from kvgauge.cli.main import main
from scene import held_blocks, make_cell, make_test

pytestmark = pytest.mark.nixl
EVERY = 1_000
SMALL = ("--isl", "16", "--osl", "2", "--concurrency", "8")


def prove(url, target, *flags):
    logs = ",".join(str(path) for path in sorted(target._log_folder.glob("*-0.log")))
    return main(["prove", url, *SMALL, "--fabric", "tcp", "--log", logs, *flags])


def test_one_skipped_transfer_in_a_thousand_is_found_and_none_is_invented(embedded, capsys):
    test = make_test()
    cell = make_cell(concurrency=16, input_tokens=128, output_tokens=8)
    target, endpoint = embedded(test, cell, compute=0.0, recompute_every=EVERY)
    _, reference = embedded(test, cell, compute=0.0)  # another stack: nothing is its own reference
    assert prove(endpoint.url, target, "--requests", "100", "--backend", "UCX", "--answers", "4",
                 "--reference", reference.url) == 0  # fmt: skip
    page = capsys.readouterr().out
    assert "expected 1.75 MiB a request, moved 1.75 MiB a request, all 100 requests over UCX/tcp" in page
    target.phases()

    assert prove(endpoint.url, target, "--requests", str(EVERY), "--answers", "0", "--seconds", "300") == 1
    page = capsys.readouterr().out
    assert f"1 of {EVERY} requests moved no KV" in page
    assert f"verdict: contradicted (1 of {EVERY} requests moved no KV)" in page
    assert f"{(EVERY - 1) * 16 * 114_688:,} bytes, {EVERY - 1} transfers" in " ".join(page.split())
    assert len(target.phases()) == 1 + EVERY - 1  # the first request warms up, and is not in the sum
    assert held_blocks(target) == {}
