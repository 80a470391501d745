"""overhead/'s pacing server and bare reader: protocol, schedule, accounting. No times but orders and counts."""

import http.client
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

OVERHEAD = Path(__file__).parents[2] / "overhead"
sys.path.insert(0, str(OVERHEAD))

from launch import Pacer, build, compiler, cores, run_client  # noqa: E402
from peers import tag_of  # noqa: E402
from tools import Finished, Floor, Kvgauge, Setting  # noqa: E402
from truth import held, inflation_ns, lateness_ns, prove, read_side, refill_ns  # noqa: E402

CC = compiler()
NOT_TESTED = "FIDELITY BENCH NOT TESTED: no C compiler (cc, gcc, clang, $CC, or pip install ziglang)"
needs_cc = pytest.mark.skipif(CC is None, reason=NOT_TESTED)
if CC is None:
    warnings.warn(NOT_TESTED, stacklevel=1)  # shown whatever pytest is told to be quiet about
TOKENS = 8
PACED = {"ttft-us": 5_000, "itl-us": 1_000, "tokens": TOKENS}


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    return build(CC, tmp_path_factory.mktemp("programs"))


def read_with(binary, pacer, folder, setting):
    log = folder / "log"
    run_client(Floor(binary, "kernel").command(pacer.port, setting, folder), cores().client, log, limit_s=60)
    return log


@needs_cc
def test_an_answer_is_a_stream_of_events_with_usage_and_its_request_is_written_down(programs, tmp_path):
    with Pacer(programs[0], tmp_path, cores().server, PACED) as pacer:
        client = http.client.HTTPConnection("127.0.0.1", pacer.port, timeout=20)
        client.request("GET", "/v1/models")
        assert [model["id"] for model in json.loads(client.getresponse().read())["data"]] == ["pacer"]
        for number in range(2):
            client.request(
                "POST", "/v1/completions", body=b'{"a": 1}' * 5_000, headers={"X-Request-ID": f"id-{number}"}
            )
            answer = client.getresponse()
            events = [line.removeprefix(b"data: ") for line in answer.read().splitlines() if line]
            assert answer.headers["Content-Type"].startswith("text/event-stream")
            assert events[-1] == b"[DONE]"
            chunks = [json.loads(event) for event in events[:-1]]
            assert [chunk["choices"][0]["text"] for chunk in chunks[:-1]] == [" word"] * TOKENS
            assert chunks[TOKENS - 1]["choices"][0]["finish_reason"] == "length"
            assert chunks[-1]["usage"]["completion_tokens"] == TOKENS
            assert {chunk["id"] for chunk in chunks} == {f"cmpl-{number:08x}"}
        client.request("POST", "/v1/elsewhere", body=b"")
        assert client.getresponse().status == 404
    truth = pacer.truth
    assert truth.whole().tolist() == [0, 1]
    assert truth.connection.tolist() == [0, 0]
    assert truth.tag.tolist() == [tag_of("id-0"), tag_of("id-1")]
    assert (truth.received_ns <= truth.heard_ns).all()


@needs_cc
def test_chunks_leave_in_order_and_never_early_and_the_kernel_agrees_with_the_server(programs, tmp_path):
    setting = Setting(streams=2, requests=6, warmup=2, tokens=TOKENS)
    with Pacer(programs[0], tmp_path, cores().server, PACED) as pacer:
        log = read_with(programs[1], pacer, tmp_path, setting)
    truth, side = pacer.truth, read_side(tmp_path / "reader.bin")
    assert len(truth.whole()) == len(side.number) == 8
    assert int(side.warmup.sum()) == 2
    assert (side.chunks == TOKENS + 2).all()
    assert (lateness_ns(truth) >= 0).all()
    assert (np.diff(truth.left_ns, axis=1) > 0).all()
    assert (truth.left_ns < truth.taken_ns).all()
    proof = prove(truth, side)
    assert proof.chunks > 0
    assert (proof.inside, proof.asked) == (1.0, 1.0)
    said = Floor(programs[1], "kernel").read(Finished(truth=truth, setting=setting, folder=tmp_path, log=log))
    assert (inflation_ns(truth, said.numbers, said.ttft_ns) > 0).all()
    assert said.chunks == 6 * TOKENS
    assert len(refill_ns(truth, said.numbers, setting.streams)) == 4
    assert (refill_ns(truth, said.numbers, setting.streams) > 0).all()


@needs_cc
def test_a_server_that_notes_chunks_too_early_is_found_out(programs, tmp_path):
    every, hold_us = 4, 3_000
    faulty = {**PACED, "ttft-us": 20_000, "itl-us": 10_000, "hold-every": every, "hold-us": hold_us}
    with Pacer(programs[0], tmp_path, cores().server, faulty) as pacer:
        read_with(programs[1], pacer, tmp_path, Setting(streams=1, requests=4, warmup=0, tokens=TOKENS))
    was_held, found, others = held(pacer.truth, read_side(tmp_path / "reader.bin"), every, hold_us * 1_000)
    assert was_held == found > others


@needs_cc
def test_a_flood_loses_no_chunk_and_a_full_server_says_so(programs, tmp_path):
    with Pacer(programs[0], tmp_path, cores().server, {"flood": 8, "tokens": 300, "requests": 21}) as pacer:
        read_with(programs[1], pacer, tmp_path, Setting(streams=4, requests=20, warmup=0, tokens=300))
        client = http.client.HTTPConnection("127.0.0.1", pacer.port, timeout=20)
        for status in (200, 503):
            client.request("POST", "/v1/completions", body=b"{}")
            answer = client.getresponse()
            answer.read()
            assert answer.status == status
    assert len(pacer.truth.whole()) == 21
    assert pacer.truth.refused == 1
    assert (read_side(tmp_path / "reader.bin").chunks == 302).all()


@needs_cc
def test_the_drivers_records_are_matched_with_the_servers_requests(programs, tmp_path):
    setting = Setting(streams=2, requests=6, warmup=2, tokens=TOKENS)
    with Pacer(programs[0], tmp_path, cores().server, PACED) as pacer:
        ran = run_client(Kvgauge().command(pacer.port, setting, tmp_path), cores().client, tmp_path / "log", limit_s=60)
    said = Kvgauge().read(Finished(truth=pacer.truth, setting=setting, folder=tmp_path, log=tmp_path / "log"))
    assert sorted(said.numbers.tolist()) == [2, 3, 4, 5, 6, 7]
    assert said.chunks == 6 * TOKENS
    assert (inflation_ns(pacer.truth, said.numbers, said.ttft_ns) > 0).all()
    assert ran.launched_ns < pacer.truth.received_ns[0] < ran.exited_ns


def test_without_a_compiler_it_says_what_is_lost(tmp_path):
    env = {name: value for name, value in os.environ.items() if name != "CC"} | {"PATH": str(tmp_path)}
    run = subprocess.run(
        [sys.executable, OVERHEAD / "fidelity.py"], capture_output=True, text=True, env=env, timeout=60, check=False
    )
    assert run.returncode == 0
    assert run.stdout.startswith("SKIPPED: no C compiler")
