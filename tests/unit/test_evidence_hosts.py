"""What a host says beside its logs: EFA's counters, NVML's words, TensorRT-LLM's files."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvgauge.evidence import efa, nvml, trtllm


def port(folder, device, number="1", vendor="0x1d0f", **values):
    counters = folder / device / "ports" / number / "hw_counters"
    counters.mkdir(parents=True)
    (folder / device / "device").mkdir(exist_ok=True)
    (folder / device / "device" / "vendor").write_text(vendor + "\n")
    for name, value in values.items():
        (counters / name).write_text(f"{value}\n")
    return counters


def test_efa_ports_are_found_by_vendor_and_a_missing_counter_is_left_out_from_source(tmp_path):
    """linux drivers/infiniband/hw/efa/efa_verbs.c; older kernels have no rdma_write_*."""
    port(tmp_path, "rdmap79s0", tx_bytes=10, rx_bytes=20, rdma_read_bytes=5)
    port(tmp_path, "mlx5_0", vendor="0x15b3", tx_bytes=99)
    assert efa.read_ports(tmp_path) == {"rdmap79s0/1": {"tx_bytes": 10, "rx_bytes": 20, "rdma_read_bytes": 5}}
    assert efa.read_ports(tmp_path / "none") == {}


def test_what_efa_moved_is_the_growth_of_all_ports_and_the_rails_are_those_that_grew():
    before = {f"rdmap{n}/1": {"tx_bytes": 100, "rx_bytes": 1_000, "rdma_read_bytes": 7} for n in range(4)}
    after = {name: dict(values) for name, values in before.items()}
    for n in (0, 2):
        after[f"rdmap{n}/1"]["rx_bytes"] += 500
        after[f"rdmap{n}/1"]["rdma_read_bytes"] += 400
    after["rdmap9/1"] = {"tx_bytes": 10**9}  # was not there before: nothing is known of its growth
    got = efa.moved(before, after)
    assert (got.wire_bytes, got.rdma_bytes, got.rails) == (1_000, 800, ("rdmap0/1", "rdmap2/1"))
    assert got.resets == ()


def test_a_counter_that_fell_was_reset_and_counts_nothing():
    got = efa.moved({"a/1": {"tx_bytes": 100, "rx_bytes": 5}}, {"a/1": {"tx_bytes": 3, "rx_bytes": 9}})
    assert got.resets == ("a/1 tx_bytes",)
    assert got.wire_bytes == 4
    assert efa.moved({}, {}).wire_bytes is None


@settings(max_examples=30)
@given(st.text(max_size=80))
def test_no_text_in_sysfs_breaks_the_reading(text):
    with tempfile.TemporaryDirectory() as folder:
        counters = port(Path(folder), "rdmap0")
        (counters / "tx_bytes").write_bytes(text.encode("utf-8", "surrogatepass"))
        efa.read_ports(Path(folder))


SMI = """0, NVIDIA H100 80GB HBM3, 570.133.20, 70659, 81559
1, NVIDIA H100 80GB HBM3, 570.133.20, [N/A], 81559
not a row
"""


def test_memory_and_names_of_gpus_are_read_from_source():
    """nvidia-smi --query-gpu, its documented form"""
    first, second = nvml.gpus(SMI.splitlines())
    assert (first.index, first.memory_used_bytes, first.memory_total_bytes) == (0, 70_659 << 20, 81_559 << 20)
    assert (second.driver, second.memory_used_bytes) == ("570.133.20", None)


OLDER = """RequestID,Delay(ms),Duration(ms),Bandwidth(Gbps),Delay(ms),Duration(ms),Bandwidth(Gbps)
7,0.5,10,23.4881,0.6,10,23.4881
8,0.5,20,11.744,,,
"""
NEWER = """RequestID,RequestInfo,Preparation,Preprocess,Transmissions,Postprocess,Delay,Duration,Bandwidth(Gbps)
7,0.1,0.2,0.3,10,0.1,0.5,10,46.9762
"""


def test_both_headers_of_tensorrt_llm_are_read_by_name_from_source():
    """NVIDIA/TensorRT-LLM cpp/tensorrt_llm/batch_manager/dataTransceiver.cpp (TransferSession::exportMeasure), and the
    header its tests asked for before"""
    seven, eight = trtllm.rows(OLDER.splitlines())
    assert (seven.request_id, seven.peers, eight.peers) == ("7", 2, 1)
    assert seven.size_bytes == pytest.approx(56 << 20, rel=trtllm.DIGITS_SHARE)
    (new,) = trtllm.rows(NEWER.splitlines())
    assert (new.request_id, new.duration_ms) == ("7", 10)
    assert new.size_bytes == pytest.approx(56 << 20, rel=trtllm.DIGITS_SHARE)


def test_a_header_again_and_rows_that_are_cut_are_taken_as_they_are():
    lines = [*NEWER.splitlines(), "9,0.1,0.2", "x,y", "", *OLDER.splitlines()]
    assert [row.request_id for row in trtllm.rows(lines)] == ["7", "7", "8"]
    assert list(trtllm.rows(["7,1,2,3"])) == []  # no header: not one of these files


CELLS = st.sampled_from(
    ["1", "nan", "inf", "-1", "1e400", '"', "", "7", "Duration", "Bandwidth(Gbps)", "RequestID", "\x00"]
)


@given(st.lists(st.lists(CELLS | st.text(max_size=4), max_size=12).map(",".join), max_size=8))
def test_no_row_breaks_the_files(lines):
    for row in trtllm.rows(["RequestID,Duration,Bandwidth(Gbps)", *lines]):
        assert row.request_id
    nvml.gpus(lines)
