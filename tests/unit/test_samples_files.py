import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kvgauge.failures import SamplesError
from kvgauge.samples import files
from kvgauge.samples.files import SampleWriter, seal
from kvgauge.samples.read import load_exchanges, load_transfers
from kvgauge.samples.records import Exchange, Phases, Transfer
from kvgauge.samples.schema import CUT_OFF_KEY, OURS, VERSION_KEY, schema_of

PHASES = Phases(clock="monotonic", host="h", received_ns=-5, prefill_start_ns=2, written_ns=1 << 62)


def exchange(seq, arrivals=3, **changes):
    given = {
        "seq": seq,
        "run_id": "r1",
        "cell": "c",
        "warmup": seq == 0,
        "slot": 1,
        "worker": 0,
        "host": "h",
        "clock": "monotonic",
        "stamp_source": "user",
        "due_ns": 10**18 + seq,
        "sent_ns": 10**18 + seq + 1,
        "arrivals_ns": tuple(10**18 + seq + 100 * index for index in range(arrivals)),
        "done_ns": 10**18 + 999,
        "tokens_in": 5,
        "tokens_out": 9,
        "tokens_source": "usage",
        "status": 200,
    }
    return Exchange(**{**given, **changes})


def transfer(request_id, **changes):
    given = {
        "request_id": request_id,
        "prefill_worker": 0,
        "decode_worker": 1,
        "operation": "READ",
        "backend": "UCX",
        "prompt_tokens": 512,
        "pairs": 1,
        "descriptors": 1792,
        "bytes_expected": 1 << 40,
        "bytes_listed": 1 << 40,
        "bytes_moved": None,
        "posted_ns": 5,
        "transferred_ns": 9,
        "post_ns": 1,
        "checked_ns": 2,
        "pieces": 4,
        "pieces_wrong": 0,
    }
    return Transfer(**{**given, **changes})


EXCHANGES = [
    exchange(0),
    exchange(1, arrivals=0, failure="connect", detail="refused", status=None, tokens_in=None, done_ns=None),
    exchange(2, arrivals=1, phases=PHASES, request_id="req-2"),
    exchange(2, arrivals=2, cell="other"),
    exchange(2, arrivals=2, run_id="r2"),
]


def test_what_was_added_comes_back_from_parquet(tmp_path):
    with SampleWriter(tmp_path / "new" / "folder") as writer:
        for each in EXCHANGES:
            writer.add_exchange(each)
        writer.add_transfer("r1", transfer("a"))
        writer.add_transfer("r2", transfer("b", failure="wrong block", transferred_ns=None))
    folder = tmp_path / "new" / "folder"
    assert load_exchanges(folder) == EXCHANGES
    assert load_exchanges(folder, run_id="r2") == EXCHANGES[-1:]
    assert [each.request_id for each in load_transfers(folder)] == ["a", "b"]
    assert load_transfers(folder, run_id="r1") == [transfer("a")]
    assert sorted(path.name for path in folder.iterdir()) == [f"{kind}.parquet" for kind in sorted(OURS)]


def test_an_empty_run_leaves_empty_files(tmp_path):
    SampleWriter(tmp_path).finish()
    assert load_exchanges(tmp_path) == []
    assert load_transfers(tmp_path) == []


def test_samples_can_be_read_while_the_run_lasts(tmp_path):
    writer = SampleWriter(tmp_path)
    assert load_exchanges(tmp_path) == []
    writer.add_exchange(EXCHANGES[0])
    writer.flush()
    assert load_exchanges(tmp_path) == EXCHANGES[:1]
    writer.add_exchange(EXCHANGES[1])
    writer.finish()
    assert load_exchanges(tmp_path) == EXCHANGES[:2]


def test_a_sample_reaches_the_disk_within_a_second_of_ticks(tmp_path):
    now_ns = [0]
    writer = SampleWriter(tmp_path, clock_ns=lambda: now_ns[0])
    writer.add_exchange(EXCHANGES[0])
    for now_ns[0] in range(0, 1_000_000_000, 100_000_000):
        writer.flush_due()
        assert load_exchanges(tmp_path) == []
    now_ns[0] = 1_000_000_000
    writer.flush_due()
    assert load_exchanges(tmp_path) == EXCHANGES[:1]


def test_an_exception_leaves_streams_that_can_be_read_and_sealed(tmp_path):
    def stopped():
        with SampleWriter(tmp_path) as writer:
            writer.add_exchange(EXCHANGES[0])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert load_exchanges(tmp_path) == EXCHANGES[:1]
    seal(tmp_path)
    assert load_exchanges(tmp_path) == EXCHANGES[:1]
    seal(tmp_path)
    assert not list(tmp_path.glob("*.arrows"))


def test_streams_cut_at_any_byte_give_their_complete_batches(tmp_path):
    whole = tmp_path / "whole"
    writer = SampleWriter(whole)
    for seq in range(12):
        writer.add_exchange(exchange(seq, arrivals=20, phases=PHASES))
        writer.add_transfer("r1", transfer(f"t{seq}"))
        if seq % 3 == 2:
            writer.flush()
    everything = load_exchanges(whole)
    content = {kind: (whole / f"{kind}.arrows").read_bytes() for kind in OURS}
    rng, seen = random.Random(7), set()
    for attempt in range(150):
        cut = tmp_path / str(attempt)
        cut.mkdir()
        for kind in OURS:
            kept = rng.randrange(len(content[kind]) + 1) if rng.random() < 0.7 else len(content[kind])
            (cut / f"{kind}.arrows").write_bytes(content[kind][:kept])
        got = load_exchanges(cut)
        assert got == everything[: len(got)]
        assert len(got) % 3 == 0
        assert len(load_transfers(cut)) % 3 == 0
        seen.add(len(got))
        if attempt % 10 == 0:
            seal(cut)
            assert load_exchanges(cut) == got
    assert seen == {0, 3, 6, 9, 12}


def test_parquet_of_a_killed_run_says_so(tmp_path):
    writer = SampleWriter(tmp_path)
    writer.add_exchange(EXCHANGES[0])
    writer.flush()
    seal(tmp_path)
    assert CUT_OFF_KEY in pq.read_schema(tmp_path / "exchanges.parquet").metadata


def test_a_full_disk_is_one_clear_error(tmp_path):
    (tmp_path / "exchanges.arrows").symlink_to("/dev/full")
    with pytest.raises(SamplesError, match=r"No space left.*Make room"), SampleWriter(tmp_path) as writer:
        writer.add_exchange(EXCHANGES[0])


def test_after_a_failed_write_nothing_is_appended_to_the_torn_batch(tmp_path):
    writer = SampleWriter(tmp_path)
    writer.add_exchange(EXCHANGES[0])
    writer.flush()
    stream = writer._streams["exchanges"]

    class Full:
        def write_batch(self, _):
            with (tmp_path / "exchanges.arrows").open("ab") as file:
                file.write(b"\xff\xff\xff\xff\x10")  # what fitted
            raise OSError(28, "No space left on device")

        def close(self):
            raise AssertionError("a torn stream must not be ended")

    stream._writer = Full()
    writer.add_exchange(EXCHANGES[2])
    for _ in range(2):
        with pytest.raises(SamplesError, match="No space left"):
            writer.flush()
    with pytest.raises(SamplesError, match="No space left"):
        writer.add_exchange(EXCHANGES[2])
    stream.close()
    assert load_exchanges(tmp_path) == EXCHANGES[:1]


def test_samples_are_never_overwritten(tmp_path):
    SampleWriter(tmp_path).finish()
    with pytest.raises(SamplesError, match="never overwritten"):
        SampleWriter(tmp_path)


def test_a_secret_that_a_server_quotes_does_not_reach_the_disk(tmp_path):
    with SampleWriter(tmp_path, secrets=["sk-12345", ""]) as writer:
        writer.add_exchange(exchange(1, failure="status", detail="HTTP 401: bad key sk-12345"))
        writer.flush()
        assert b"sk-12345" not in (tmp_path / "exchanges.arrows").read_bytes()
    assert load_exchanges(tmp_path)[0].detail == "HTTP 401: bad key ***"


@pytest.mark.parametrize("suffix", ["parquet", "arrows"])
def test_an_unknown_schema_version_is_refused(tmp_path, suffix):
    SampleWriter(tmp_path).finish()
    schema = schema_of("exchanges")
    table = schema.with_metadata({**schema.metadata, VERSION_KEY: b"99"}).empty_table()
    (tmp_path / "exchanges.parquet").unlink()
    if suffix == "parquet":
        pq.write_table(table, tmp_path / "exchanges.parquet")
    else:
        with pa.ipc.new_stream(str(tmp_path / "exchanges.arrows"), table.schema):
            pass
    with pytest.raises(SamplesError, match="schema version 99"):
        load_exchanges(tmp_path)


def test_files_of_another_program_are_refused(tmp_path):
    SampleWriter(tmp_path).finish()
    pq.write_table(pa.table({"a": [1]}), tmp_path / "exchanges.parquet")
    with pytest.raises(SamplesError, match="another program"):
        load_exchanges(tmp_path)
    (tmp_path / "exchanges.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(SamplesError, match="cannot be read"):
        load_exchanges(tmp_path)


def test_files_that_do_not_belong_together_are_refused(tmp_path):
    for name, arrivals in (("a", 2), ("b", 3)):
        with SampleWriter(tmp_path / name) as writer:
            writer.add_exchange(exchange(1, arrivals=arrivals))
    (tmp_path / "a" / "arrivals.parquet").replace(tmp_path / "b" / "arrivals.parquet")
    with pytest.raises(SamplesError, match="should have 3 arrivals and has 2"):
        load_exchanges(tmp_path / "b")


def test_a_folder_without_samples_is_refused(tmp_path):
    with pytest.raises(SamplesError, match="holds no"):
        load_exchanges(tmp_path)


def test_many_flushes_become_few_row_groups(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "ROW_GROUP_ROWS", 10)
    with SampleWriter(tmp_path) as writer:
        for seq in range(25):
            writer.add_exchange(exchange(seq))
            writer.flush()
    assert pq.ParquetFile(tmp_path / "exchanges.parquet").num_row_groups == 3
    assert len(load_exchanges(tmp_path)) == 25
