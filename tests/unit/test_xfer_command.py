"""Flags to workloads, fabrics to environments, exit codes: nothing is started here but fakes."""

import json
import types

import numpy as np
import pytest

from kvgauge.builds.records import Build
from kvgauge.cli import xfer as command
from kvgauge.cli.main import main
from kvgauge.failures import ReportError, TransferError, UsageError
from kvgauge.xfer import limits
from kvgauge.xfer.asked import REFERENCE, ROWS_MAX, Asked, workloads_of
from kvgauge.xfer.fabric import default_fabric, environment, read_extra
from kvgauge.xfer.files import Folder, slug
from kvgauge.xfer.measure import ORDER, Measured
from kvgauge.xfer.rounds import FAILURES_MAX, Setting, conduct


def names(**asked):
    return [work.name for work in workloads_of(Asked(**asked))]


def test_nothing_asked_is_the_three_models_of_the_reference_plan():
    assert names() == ["Qwen3-0.6B 512 tok", "Llama-3.1-8B 512 tok", "Llama-3.1-70B 512 tok TP8"]
    assert len(REFERENCE) == 3


def test_a_sweep_is_every_combination_and_every_row_has_a_name_of_its_own():
    found = names(
        block_sizes=(4096, 65536), counts=(1, 64), depths=(1, 4), threads=(1, 2),
        patterns=("scattered", "contiguous"), operations=("READ", "WRITE"),
    )  # fmt: skip
    assert len(found) == len(set(found)) == 64
    assert found[-1] == "64 x 64 KiB contiguous WRITE depth 4 threads 2"
    assert names(models=("Qwen3-0.6B",), tokens=(16, 512), block_sizes=(64,), counts=(1,)) == [
        "Qwen3-0.6B 16 tok", "Qwen3-0.6B 512 tok", "1 x 64 B",
    ]  # fmt: skip


@pytest.mark.parametrize(("scheme", "sides"), [("pairwise", (1, 1)), ("many-to-one", (3, 1)), ("one-to-many", (1, 3))])
def test_schemes_say_how_many_processes_a_side_has(scheme, sides):
    (work,) = workloads_of(Asked(block_sizes=(64,), scheme=scheme, peers=3))
    assert (work.initiators, work.targets) == sides


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"models": ("Qwen3-0.6",)}, "did you mean 'Qwen3-0.6B'"),
        ({"models": ("Qwen3-0.6B:x",)}, "NAME or NAME:TP"),
        ({"models": ("Qwen3-0.6B:3",)}, "do not divide"),
        ({"models": ("Qwen3-0.6B",), "layers": 29}, "Qwen3-0.6B has 28"),
        ({"dtype": "bf61"}, "did you mean 'bf16'"),
        ({"tokens": (0,)}, "at least 1"),
        ({"scheme": "tp"}, "unknown scheme"),
        ({"block_sizes": (12,)}, "1 x 12 B|64 x 12 B"),
        ({"block_sizes": tuple(range(8, 8 * (ROWS_MAX + 2), 8))}, "at most 500"),
        ({"block_sizes": (64,), "depths": (0,)}, "at least 1"),
    ],
)
def test_what_cannot_be_is_refused(asked, said):
    with pytest.raises(UsageError, match=said):
        workloads_of(Asked(**asked))


def told(backend, fabric, memory="DRAM", interface=None, extra=None):
    return environment(backend, fabric, memory, interface, (1, 5), plugin_dir="/p", extra=extra or {})


def test_a_fabric_is_what_the_transports_are_told():
    assert told("UCX", "tcp")["UCX_TLS"] == "tcp,self"
    assert told("UCX", "tcp")["UCX_NET_DEVICES"] == "lo"
    assert told("UCX", "tcp", interface="eth9")["UCX_NET_DEVICES"] == "eth9"
    assert told("LIBFABRIC", "tcp", interface="eth9")["FI_TCP_IFACE"] == "eth9"
    assert told("UCX", "shm")["UCX_TLS"] == "tcp,sm,self"  # not without tcp: no peer failure handler
    assert told("UCX", "cuda", "VRAM")["UCX_TLS"] == "tcp,cuda_copy,cuda_ipc,sm,self"
    assert "UCX_TLS" not in told("UCX", "any")
    assert "FI_PROVIDER" not in told("LIBFABRIC", "any")
    assert told("UCX", "any", extra={"UCX_TLS": "rc"})["UCX_TLS"] == "rc"
    assert all(told("UCX", fabric)["NIXL_PLUGIN_DIR"] == "/p" for fabric in ("tcp", "shm", "any"))


def test_gpu_memory_asks_ucx_whether_it_only_emulates():
    assert default_fabric("VRAM") == "cuda"
    assert told("UCX", "cuda", "VRAM")["UCX_PROTO_INFO"] == "y"
    assert "UCX_PROTO_INFO" not in told("UCX", "tcp")
    assert "UCX_TLS" not in told("LIBFABRIC", "cuda", "VRAM")


def test_a_fabric_a_backend_does_not_have_is_refused():
    with pytest.raises(UsageError, match="LIBFABRIC has no fabric shm"):
        told("LIBFABRIC", "shm")
    for backend in ("UCX", "LIBFABRIC"):
        with pytest.raises(UsageError, match="fabric cuda carries GPU memory alone"):
            told(backend, "cuda", "DRAM")


def test_results_that_could_not_be_written_are_refused_before_anything_is_measured(tmp_path, capsys):
    for path in (tmp_path, tmp_path / "none" / "x.json"):
        assert main(["xfer", "--json", str(path)]) == 2
        assert "name a file" in capsys.readouterr().err


def test_only_the_transports_own_variables_pass():
    assert read_extra(["UCX_TLS=tcp", "FI_X=a=b"]) == {"UCX_TLS": "tcp", "FI_X": "a=b"}
    for word in ("LD_PRELOAD=/x.so", "PYTHONPATH=/x", "UCX_TLS", "NIXL_PLUGIN_DIR=/x"):
        with pytest.raises(UsageError, match="cannot use --env"):
            read_extra([word])


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--listen", "1", "--connect", "h:1"], "give one on each host"),
        (["--rounds", "0"], "--rounds: expected 1 to 1000, got 0"),
        (["--fabric", "rdma"], "unknown fabric 'rdma'"),
        (["--device", "0,1,2"], "one GPU, or two"),
        (["--listen", "0.0.0.0:1"], "every interface"),
        (["--connect", "127.0.0.1:1"], "set KVGAUGE_XFER_TOKEN"),
        (["--core", "1.5.0", "--block-size", "64"], "--core goes with --build FOLDER"),
        (["--count", "8"], "--count says how many blocks of --block-size"),
        (["--block-size", "64", "--tokens", "128"], "--tokens is of a model's KV"),
        (["--block-size", "64", "--kv-dtype", "fp8"], "--kv-dtype is of a model's KV"),
        (["--peers", "3"], "--scheme many-to-one or one-to-many"),
        (["--device", "1"], "goes with --memory vram"),
    ],
)
def test_a_wrong_command_line_ends_with_2_and_starts_nothing(argv, said, capsys, monkeypatch):
    monkeypatch.delenv("KVGAUGE_XFER_TOKEN", raising=False)
    assert main(["xfer", *argv]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("argv", [["--block-size", "4x"], ["--operation", "read"], ["--depth", "a"]])
def test_a_flag_that_cannot_be_read_ends_with_2(argv):
    with pytest.raises(SystemExit) as ended:
        main(["xfer", *argv])
    assert ended.value.code == 2


class Crew:
    pass


def faked(monkeypatch, fails):
    calls = []

    def one(_crew, number, backend, work, _pace, **_how):
        calls.append((number, work.name, backend))
        found = Measured(round=number, backend=backend, work=work)
        found.failure = "it hung" if (work.name, backend) in fails else None
        return found

    monkeypatch.setattr("kvgauge.xfer.rounds.measure", one)
    return calls


def test_backends_are_interleaved_and_the_first_changes_from_round_to_round(monkeypatch):
    calls = faked(monkeypatch, fails=())
    works = workloads_of(Asked(block_sizes=(64, 128), counts=(1,)))
    setting = Setting(workloads=works, backends=("UCX", "LIBFABRIC"), rounds=2, pace=None)
    conduct(setting, Crew(), None, lambda _line: None, [])
    assert [backend for _, _, backend in calls] == ["UCX", "LIBFABRIC"] * 2 + ["LIBFABRIC", "UCX"] * 2
    assert [number for number, _, _ in calls] == [1] * 4 + [2] * 4


def test_a_row_that_fails_again_and_again_is_left_and_the_others_go_on(monkeypatch):
    calls = faked(monkeypatch, fails={("1 x 64 B", "UCX")})
    works = workloads_of(Asked(block_sizes=(64, 128), counts=(1,)))
    said, found = [], []
    conduct(Setting(workloads=works, backends=("UCX",), rounds=5, pace=None), Crew(), None, said.append, found)
    assert calls.count((1, "1 x 64 B", "UCX")) == 1
    assert len([c for c in calls if c[1] == "1 x 64 B"]) == FAILURES_MAX
    assert len([c for c in calls if c[1] == "1 x 128 B"]) == 5
    assert len(found) == FAILURES_MAX + 5
    assert "FAILED: 1 x 64 B, UCX, round 2: it hung" in said


def test_a_folder_that_holds_something_is_not_written_into(tmp_path):
    (tmp_path / "x").write_text("mine")
    with pytest.raises(UsageError, match="name a new folder"):
        Folder(tmp_path)
    folder = Folder(tmp_path / "new")
    folder.write_results(b"{}")
    assert (tmp_path / "new" / "results.json").read_bytes() == b"{}"
    assert slug("Llama-3.1-70B 512 tok/TP8 ../x") == "llama-3.1-70b-512-tok-tp8-..-x"


def test_what_is_kept_of_the_flags_holds_no_value_of_env():
    args = types.SimpleNamespace(env=["UCX_SECRET=hidden"], rounds=2, run=None, json=None, out=None)
    kept = command._kept(args)
    assert "hidden" not in json.dumps(kept)
    assert kept == {"rounds": 2, "env": ["UCX_SECRET"]}


def test_a_copy_and_a_stream_are_measured_and_a_stranger_is_hung_up_on():
    import socket
    import threading

    done, took_ns = limits.host_copy(4096, 0.002)
    assert done % 4096 == 0
    assert took_ns >= 2_000_000
    nonce = limits.new_nonce()
    server = limits.listen("127.0.0.1")
    port = server.getsockname()[1]
    got = []
    taker = threading.Thread(target=lambda: got.append(limits.take_stream(server, nonce)))
    taker.start()
    with socket.create_connection(("127.0.0.1", port)) as stranger:
        stranger.sendall(b"x" * 64)
    limits.send_stream("127.0.0.1", port, nonce, 0.02)
    taker.join(10)
    assert got[0][0] >= limits.CHUNK_BYTES // 2
    assert got[0][1] > 0


def test_a_stream_that_never_comes_is_not_waited_for_without_end(monkeypatch):
    monkeypatch.setattr(limits, "STREAM_TIMEOUT_S", 0.3)
    with pytest.raises(limits.TransferError, match="no TCP stream came within"):
        limits.take_stream(limits.listen("127.0.0.1"), b"x" * 16)


def drawing(spec):
    """A renderer that takes no seconds: the rows it was told of, and no picture."""
    return json.dumps(spec).encode()


@pytest.fixture
def commanded(monkeypatch, tmp_path):
    """`kvgauge xfer` whose measurements are made up: fails(number, name) says which do not end well."""
    build = Build(name="1.5.0", version="1.5.0", folder="", module="", preload=(), libcuda="", sha256={"libnixl": "ab"})
    monkeypatch.setattr("kvgauge.builds.own.find", lambda *_: build)
    monkeypatch.setattr("kvgauge.xfer.tools.beside", lambda *_: [])
    monkeypatch.setattr("kvgauge.report.charts.svg", drawing)

    def go(*argv, fails=lambda _number, _name: None):
        def one(_crew, number, backend, work, _pace, **_how):
            found = Measured(
                round=number, backend=backend, work=work, load_ns=[1], agent_ns=[1], register_ns=[1], first_ns=9,
                merged=1, nixl_bytes=work.transfer_bytes, backends={backend}, blocks_checked=5,
                batches=[np.array([(0, 0, 1_000, 10, 1_010, 20, 5_000 + number, 30, 5_000, 0, 0, 0)], dtype=np.int64)],
                records=[np.ones((1, len(ORDER)), dtype=np.int64)], logs={"target-0": "a line\n"},
            )  # fmt: skip
            found.failure = fails(number, work.name)
            return found

        monkeypatch.setattr("kvgauge.xfer.rounds.measure", one)
        flags = ["--backend", "UCX", "--block-size", "64,128", "--count", "1", "--rounds", "2"]
        return main(["xfer", *flags, "--out", str(tmp_path / "out"), *argv]), tmp_path / "out"

    return go


def test_what_was_measured_is_printed_written_and_ends_with_0(commanded, tmp_path, capsys):
    code, out = commanded("--json", str(tmp_path / "r.json"))
    said = capsys.readouterr()
    assert code == 0
    assert "n=2 rounds, 2 transfers" in said.out
    assert "rehearsal: fabric tcp" in said.err
    whole = json.loads((tmp_path / "r.json").read_text())
    assert whole == json.loads((out / "results.json").read_text())
    assert [row["name"] for row in whole["rows"]] == ["1 x 64 B", "1 x 128 B"]
    assert min(path.name for path in (out / "timings").iterdir()) == "r1-1-x-128-b-UCX.parquet"
    assert (out / "logs" / "r2-1-x-64-b-UCX-target-0.log").read_text() == "a line\n"


def test_json_on_standard_output_is_json_alone_and_the_chart_is_named_elsewhere(commanded, capsys):
    code, out = commanded("--json", "-")
    said = capsys.readouterr()
    assert code == 0
    assert json.loads(said.out)["integrity"]["right"]
    assert said.err.splitlines()[-1] == f"chart: {out / 'chart.svg'}"


def test_a_session_leaves_a_chart_and_says_last_where_it_lies(commanded, capsys):
    _, out = commanded()
    assert capsys.readouterr().out.splitlines()[-2:] == [f"results: {out}", f"chart: {out / 'chart.svg'}"]
    assert "kvgauge xfer: NIXL 1.5.0, fabric tcp" in (out / "chart.svg").read_text()
    assert sorted(path.name for path in out.iterdir()) == ["chart.svg", "logs", "results.json", "timings"]


@pytest.mark.parametrize(
    ("error", "told"),
    [(ReportError("vl-convert was killed by signal 9: no word"), "vl-convert was killed by signal 9"),
     (OSError(28, "No space left on device"), "No space left on device"), (KeyError("row"), "KeyError: 'row'")],
)  # fmt: skip
@pytest.mark.parametrize(("fails", "code"), [(None, 0), ("it hung", 3)])
def test_a_chart_that_fails_is_one_line_and_neither_results_nor_exit_code_know_of_it(
    commanded, monkeypatch, capsys, error, told, fails, code
):
    def broken(_spec):
        raise error

    monkeypatch.setattr("kvgauge.report.charts.svg", broken)
    ended, out = commanded(fails=lambda _number, name: fails if "128" in name else None)
    said = capsys.readouterr()
    assert ended == code
    (line,) = [line for line in said.err.splitlines() if "chart" in line]
    assert line.startswith("kvgauge: no chart: ")
    assert told in line
    assert line.endswith(f"`kvgauge report {out}` tries again")
    assert said.out.splitlines()[-1] == f"results: {out}"
    assert len(json.loads((out / "results.json").read_text())["rows"]) == 2


def test_a_folder_is_shown_again_and_its_chart_drawn_again(commanded, capsys):
    _, out = commanded(fails=lambda _number, name: "it hung" if "128" in name else None)
    first = capsys.readouterr().out
    (out / "chart.svg").unlink()
    assert main(["report", str(out)]) == 0
    again = capsys.readouterr().out
    assert again.splitlines()[-1] == f"chart: {out / 'chart.svg'}"
    assert "note: rehearsal: fabric tcp" in again
    assert again.partition("note: ")[0] == first.partition("results: ")[0]
    assert "FAILED round 1: it hung" in (out / "chart.svg").read_text()
    assert main(["report", str(out), "--json"]) == 0
    assert capsys.readouterr().out == (out / "results.json").read_text()


def test_a_results_file_by_itself_is_shown_and_nothing_is_written_beside_it(commanded, tmp_path, capsys):
    commanded("--json", str(tmp_path / "r.json"))
    before = sorted(tmp_path.iterdir())
    capsys.readouterr()
    assert main(["report", str(tmp_path / "r.json")]) == 0
    assert "n=2 rounds" in capsys.readouterr().out
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("flag", ["--csv", "--reference"])
def test_what_only_run_has_is_refused_for_xfer(commanded, capsys, flag):
    _, out = commanded()
    assert main(["report", str(out), flag]) == 2
    assert f"{flag} goes with kvgauge run's" in capsys.readouterr().err


def test_results_that_this_kvgauge_cannot_read_are_refused_with_the_reason(tmp_path, capsys):
    for text, told in (
        ('{"kind": "xfer", "schema": 9}', "has schema 9"),
        ('{"kind": "xfer", "schema": 1}', "is not what kvgauge xfer wrote"),
    ):
        (tmp_path / "results.json").write_text(text)
        assert main(["report", str(tmp_path)]) == 3
        assert told in capsys.readouterr().err


def test_a_row_that_failed_ends_with_3_and_the_other_rows_are_there(commanded, capsys):
    code, out = commanded(fails=lambda _number, name: "it hung" if "128" in name else None)
    said = capsys.readouterr()
    assert code == 3
    assert "FAILED round 1: it hung" in said.out
    rows = json.loads((out / "results.json").read_text())["rows"]
    assert [(row["valid"], row["rounds"]) for row in rows] == [(True, 2), (False, 0)]


def test_an_interrupted_run_keeps_what_was_found(commanded, capsys):
    def fails(number, _name):
        if number == 2:
            raise KeyboardInterrupt

    code, out = commanded(fails=fails)
    assert code == 130
    said = capsys.readouterr()
    assert "interrupted: what follows" in said.err
    assert said.out.splitlines()[-1] == f"chart: {out / 'chart.svg'}"
    assert "1 of 2 rounds a row" in (out / "chart.svg").read_text()
    assert [row["rounds"] for row in json.loads((out / "results.json").read_text())["rows"]] == [1, 1]


def test_more_memory_than_there_is_is_refused_before_anything_starts(commanded, monkeypatch, capsys):
    monkeypatch.setattr("kvgauge.evidence.machine.read_available_memory", lambda: 1000)
    code, out = commanded()
    assert (code, out.exists()) == (2, False)
    assert "MiB are available: take fewer" in capsys.readouterr().err


def test_a_host_that_listens_says_its_token_once_and_does_not_wait_without_end(commanded, monkeypatch, capsys):
    monkeypatch.delenv("KVGAUGE_XFER_TOKEN", raising=False)
    code, out = commanded("--listen", f"127.0.0.1:{free_port()}", "--wait", "1")
    said = capsys.readouterr()
    assert (code, out.exists()) == (3, False)
    assert said.err.count("KVGAUGE_XFER_TOKEN=") == 1
    assert "nobody with this token came within 1 s" in said.err


def free_port():
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_gpu_memory_without_a_driver_ends_with_3_and_one_line(monkeypatch, capsys):
    def missing(*_):
        raise TransferError("memory VRAM needs an NVIDIA GPU and its driver; use --memory dram")

    monkeypatch.setattr("kvgauge.xfer.cuda.require", missing)
    assert main(["xfer", "--memory", "vram", "--block-size", "64"]) == 3
    assert "use --memory dram" in capsys.readouterr().err
