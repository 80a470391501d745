"""SQL over run folders: what the views hold, and what a question cannot do."""

import re
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvgauge.cli.main import main
from kvgauge.evidence.facts import Evidence, Fact, Missing
from kvgauge.failures import KvgaugeError, SamplesError, UsageError
from kvgauge.plan.records import Cell, Plan, Primary, Test
from kvgauge.query.session import Session
from kvgauge.query.views import NAMES, VIEWS
from kvgauge.report.records import RunResult
from kvgauge.report.results import build, write
from kvgauge.samples.files import SampleWriter, parquet_path
from kvgauge.samples.records import Exchange, Transfer
from kvgauge.samples.series import MetricWriter
from kvgauge.stats.cells import cell_metrics

MS = 1_000_000
CELLS = (
    Cell(name="small", load="closed", concurrency=2, requests=3, output_tokens=4, warmup_requests=1, input_tokens=8),
    Cell(name="large", load="closed", concurrency=2, requests=3, output_tokens=4, warmup_requests=0, input_tokens=64),
)
TEST = Test(
    name="Baseline UCX", backend="UCX", fabric="tcp", build="1.5.0", patches="none", stand_in=None, model="Qwen3-0.6B",
    prefill_tp=1, decode_tp=1,
)  # fmt: skip
PLAN = Plan(
    name="made up", source="a test", tests=(TEST,), cells=CELLS, repetitions=3, rehearsal=True,
    primary=Primary(metric="ttft_ms_mean", cell="large"),
)  # fmt: skip


def exchange(run_id, cell, seq, *, warmup=False, failure=None):
    due_ns = 10_000 * MS + seq * 100 * MS
    arrivals = () if failure else tuple(due_ns + (20 + seq + 5 * index) * MS for index in range(4))
    return Exchange(
        seq=seq, run_id=run_id, cell=cell, warmup=warmup, slot=0, worker=0, host="here", clock="monotonic",
        stamp_source="kernel", due_ns=due_ns, sent_ns=due_ns + MS, arrivals_ns=arrivals, done_ns=None, tokens_in=8,
        tokens_out=len(arrivals), tokens_source="usage", status=200, failure=failure, request_id=f"{cell}-{seq}",
    )  # fmt: skip


def transfer(request_id):
    return Transfer(
        request_id=request_id, prefill_worker=0, decode_worker=0, operation="READ", backend="UCX", prompt_tokens=8,
        pairs=1, descriptors=1, bytes_expected=64, bytes_listed=64, bytes_moved=64, posted_ns=5 * MS,
        transferred_ns=8 * MS, post_ns=1, checked_ns=1, pieces=1, pieces_wrong=0,
    )  # fmt: skip


def result(run_id, repetition, cell, status, exchanges=()):
    metrics = cell_metrics(exchanges, [], 0, 1000 * MS) if exchanges else {}
    return RunResult(
        run_id=run_id, repetition=repetition, cell=cell, concurrency=2 if cell else None, seed=1, status=status,
        reasons=("asked for efa, got tcp",) if status == "invalid" else (), metrics=metrics,
        proved={"backend": "UCX"} if cell is None else {},
    )  # fmt: skip


def make_folder(folder):
    """Three runs: a valid one, an invalid one, one that is under way (streams on disk)."""
    given_results = []
    for repetition, status in ((1, "valid"), (2, "invalid")):
        run_id = f"r{repetition}-baseline-ucx"
        exchanges = [exchange(run_id, cell.name, seq, warmup=seq == 0) for cell in CELLS for seq in range(4)]
        with SampleWriter(folder / "runs" / run_id) as writer:
            for each in exchanges:
                writer.add_exchange(each)
            writer.add_transfer(run_id, transfer("small-1"))
            with MetricWriter(folder / "runs" / run_id, run_id) as metrics:
                metrics.add([("kvgauge:up", "", "gauge", 1.0)], source="http://a", stamps_ns=(1, 2, 3), detail=None)
        given_results.append(result(run_id, repetition, None, status))
        given_results += [
            result(run_id, repetition, cell.name, status, [e for e in exchanges if e.cell == cell.name])
            for cell in CELLS
        ]
        nothing = Missing(reason="nothing counts them here")
        seen = Evidence(
            backends={"UCX": 1}, providers=("tcp",), facts=(Fact(name="nixl_version", value="1.5.0", shown_by="a line"),),
            connections=(), handshakes_nixl=1, handshakes_efa=nothing, wire_bytes=9, gpu_memory_bytes=nothing,
            build_sha256={"plugin": "ab"}, machine=nothing,
        )  # fmt: skip
        (folder / "runs" / run_id / "evidence.json").write_bytes(msgspec.json.encode(seen))
    writer = SampleWriter(folder / "runs" / "r3-baseline-ucx")
    writer.add_exchange(exchange("r3-baseline-ucx", "small", 1))
    writer.flush()
    writer._close_streams()
    results = build(PLAN, {TEST.name: given_results}, {"host": "here"})
    test = results.tests[0]
    runs = tuple(msgspec.structs.replace(run, run_id=run.run_id or "r3-baseline-ucx") for run in test.runs)
    write(msgspec.structs.replace(results, tests=(msgspec.structs.replace(test, runs=runs),)), folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("query") / "first")


@pytest.fixture(scope="module")
def session(folder):
    with Session([folder]) as session:
        yield session


def ask(session, sql):
    return list(session.ask(sql).rows())


def test_latencies_in_a_question_are_those_of_the_records(session):
    rows = ask(session, "SELECT seq, ttft_ms, e2e_latency_ms, tpot_ms, late_ms FROM requests "
                        "WHERE run_id = 'r1-baseline-ucx' AND cell = 'large' AND NOT warmup ORDER BY seq")  # fmt: skip
    for seq, ttft_ms, e2e_ms, tpot_ms, late_ms in rows:
        same = exchange("r1-baseline-ucx", "large", seq)
        assert (ttft_ms, e2e_ms, tpot_ms, late_ms) == (same.ttft_ns / MS, same.e2e_ns / MS, 5.0, 1.0)
    assert [row[0] for row in rows] == [1, 2, 3]


def test_the_mean_of_a_cell_is_the_mean_of_its_requests(session):
    found = ask(session, "SELECT c.cell, c.ttft_ms_mean, avg(r.ttft_ms) FROM cells c JOIN requests r "
                         "USING (run_id, cell) WHERE NOT r.warmup AND c.valid GROUP BY ALL")  # fmt: skip
    assert len(found) == 2
    for _, mean, by_request in found:
        assert mean == pytest.approx(by_request)


def test_invalid_runs_are_in_and_say_so(session):
    rows = ask(session, "SELECT run_id, run_status, valid, reasons FROM runs ORDER BY run_id")
    assert rows[1] == ("r2-baseline-ucx", "invalid", False, "asked for efa, got tcp")
    assert ask(session, "SELECT DISTINCT valid, cell_status FROM requests WHERE run_id LIKE 'r2%'") == [
        (False, "invalid")
    ]


def test_a_run_that_is_under_way_can_be_asked(session):
    assert ask(session, "SELECT run_status, samples FROM runs WHERE repetition = 3") == [("pending", "streams")]
    assert ask(session, "SELECT seq, ttft_ms, valid FROM requests WHERE run_id LIKE 'r3%'") == [(1, 21.0, False)]


def test_arrivals_transfers_metrics_evidence_and_summaries_have_their_rows(session):
    assert ask(session, "SELECT DISTINCT gap_ms FROM arrivals WHERE gap_ms IS NOT NULL") == [(5.0,)]
    assert ask(session, 'SELECT count(*) FROM arrivals WHERE gap_ms IS NULL AND "index" > 0') == [(0,)]
    assert ask(session, "SELECT transfer_ms, backend, run_status FROM transfers WHERE run_id LIKE 'r1%'") == [
        (3.0, "UCX", "valid")
    ]
    assert ask(session, "SELECT name, value FROM metrics WHERE run_id LIKE 'r1%'") == [("kvgauge:up", 1.0)]
    assert ask(session, "SELECT value, shown_by FROM evidence WHERE name = 'handshakes_efa'")[0] == (
        None,
        "nothing counts them here",
    )
    assert ask(session, "SELECT n, unit FROM summary WHERE cell = 'large' AND metric = 'ttft_ms_mean'") == [(1, "ms")]
    assert ask(
        session,
        "SELECT n, unit, reason IS NULL FROM estimates WHERE metric = 'ttft_ms_mean' AND cell = 'large' AND valid",
    ) == [(3, "ms", True)]


@pytest.mark.parametrize("view", VIEWS, ids=lambda view: view.name)
def test_every_view_has_the_columns_it_lists_and_no_others(session, view):
    assert session.ask(f"SELECT * FROM {view.name} LIMIT 0").columns == tuple(view.columns)


def test_every_view_and_every_column_of_its_own_is_in_the_documentation():
    text = (Path(__file__).parents[2] / "docs" / "query.md").read_text()
    for view in VIEWS:
        section = text.partition(f"\n## {view.name}")[2].partition("\n## ")[0]
        assert section, view.name
        lacking = [
            name for name, meaning in view.columns.items()
            if meaning != "as in docs/samples.md" and not meaning.startswith("point of ") and f"`{name}`" not in section
        ]  # fmt: skip
        assert lacking == [], view.name


def test_two_folders_are_asked_together_and_told_apart(folder, tmp_path):
    second = make_folder(tmp_path / "second")
    with Session([folder, second]) as session:
        rows = ask(session, "SELECT folder, count(*) FROM requests GROUP BY ALL ORDER BY 1")
    assert rows == [("first", 17), ("second", 17)]


@pytest.mark.parametrize(
    ("sql", "said"),
    [
        ("SELECT * FROM read_csv('/etc/passwd')", r"read_csv\(\) is not answered"),
        ("SELECT * FROM read_text('/etc/passwd')", r"read_text\(\) is not answered"),
        ("SELECT * FROM glob('/etc/*')", r"glob\(\) is not answered"),
        ("SELECT * FROM '/etc/passwd'", "does not exist"),
        ("WITH t AS (SELECT * FROM read_blob('/etc/passwd')) SELECT * FROM t", r"read_blob\(\) is not answered"),
        ("SELECT (SELECT count(*) FROM parquet_scan('/etc/passwd'))", r"parquet_scan\(\) is not answered"),
        ("SELECT * FROM query('SELECT 1')", r"query\(\) is not answered"),
        ("SELECT * FROM arrow_scan(1, 2, 3)", r"arrow_scan\(\) is not answered"),
        ("FROM duckdb_secrets()", r"duckdb_secrets\(\) is not answered"),
        ("ATTACH '/tmp/a.db'", "only SELECT is answered"),
        ("COPY runs TO '/tmp/a.csv'", "only SELECT is answered"),
        ("INSTALL httpfs", "only SELECT is answered"),
        ("LOAD httpfs", "only SELECT is answered"),
        ("SET memory_limit = '1TB'", "only SELECT is answered"),
        ("CREATE TABLE t (a INT)", "only SELECT is answered"),
        ("DROP VIEW requests", "only SELECT is answered"),
        ("EXPLAIN ANALYZE SELECT 1", "only SELECT is answered"),
        ("CALL pragma_version()", "only SELECT is answered"),
        ("SELECT 1; SELECT 2", "2 statements"),
        ("", "0 statements"),
        ("SELECT " + "1," * 60_000 + "1", "characters"),
    ],
)  # fmt: skip
def test_a_question_reads_the_views_and_nothing_else(session, sql, said):
    with pytest.raises(UsageError, match=said):
        ask(session, sql)


@pytest.mark.parametrize("sql", ["SELECT * FROM read_csv('/etc/passwd')", "SELECT * FROM read_text('/etc/passwd')", "COPY runs TO '/tmp/kvgauge-query.csv'",
                                 "ATTACH '/tmp/kvgauge-query.db'", "INSTALL httpfs", "LOAD httpfs", "SET enable_external_access = true"])  # fmt: skip
def test_duckdb_itself_refuses_files_even_when_a_question_is_not_looked_through(session, sql):
    import duckdb

    with pytest.raises(duckdb.Error, match=r"disabled|locked|Permission"):
        session._db.execute(sql).fetchall()


def test_an_unknown_column_is_answered_with_the_columns_there_are(session):
    with pytest.raises(UsageError) as error:
        ask(session, "SELECT ttft FROM requests")
    assert "ttft_ms" in str(error.value)
    assert "\n" not in str(error.value)


def test_an_unknown_view_is_answered_with_the_views_there_are(session):
    with pytest.raises(UsageError, match="Views: runs, cells"):
        ask(session, "SELECT * FROM request")


def test_a_question_that_takes_too_long_ends(folder):
    with Session([folder], timeout_s=0.3) as session, pytest.raises(SamplesError, match=r"no answer within 0\.3 s"):
        ask(session, "SELECT count(*) FROM range(100000000000) a, range(100) b")


def test_rows_that_take_too_long_to_come_end_too(folder):
    with Session([folder], timeout_s=0.3) as session:
        rows = session.ask("SELECT a.range FROM range(100000000000) a, range(100) b WHERE hash(a.range) > 0").rows()
        with pytest.raises(SamplesError, match="no answer within"):
            for _ in rows:
                pass


def test_a_question_that_needs_too_much_memory_ends(folder):
    with Session([folder], memory_gib=0.05) as session, pytest.raises(SamplesError, match=r"more than 0\.05 GiB"):
        ask(session, "SELECT list(range) FROM range(100000000)")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.one_of(
        st.text(max_size=80),
        st.lists(
            st.sampled_from(
                ["SELECT", "*", "FROM", *NAMES, "WHERE", "(", ")", ",", "a", "1", "'x", "GROUP BY", "ALL", ";", "--", "::DATE", "-", "9e99", "\x00", "\ud800", "UNION", "OVER", "DESCRIBE"]
            ),
            max_size=14,
        ).map(" ".join),
    )
)  # fmt: skip
def test_whatever_is_asked_gives_rows_or_one_line(session, sql):
    try:
        answer = session.ask(sql)
        for _, _ in zip(answer.rows(), range(100), strict=False):
            pass
    except KvgaugeError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT " + "(" * 5_000 + "1" + ")" * 5_000,
        "SELECT " + "- " * 5_000 + "1",
        "SELECT " + "abs(" * 900 + "1" + ")" * 900,
    ],
)
def test_a_deep_question_gives_rows_or_one_line(session, sql):
    try:
        assert len(ask(session, sql)) == 1
    except UsageError as error:
        assert "\n" not in str(error)


def test_damaged_parquet_is_named(tmp_path):
    folder = make_folder(tmp_path / "damaged")
    path = parquet_path(folder / "runs" / "r1-baseline-ucx", "exchanges")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(SamplesError, match=re.escape(str(path))):
        Session([folder])


def test_a_number_that_no_column_holds_is_answered_with_the_file_it_is_in(tmp_path, capsys):
    folder = make_folder(tmp_path / "edited")
    path = folder / "results.json"
    path.write_text(path.read_text().replace('"repetition": 1', f'"repetition": {10**19}', 1))
    assert main(["query", "SELECT 1", str(folder)]) == 3
    assert f"results.json of {folder} holds a number" in capsys.readouterr().err


def test_damaged_evidence_is_named(tmp_path):
    folder = make_folder(tmp_path / "damaged")
    path = folder / "runs" / "r1-baseline-ucx" / "evidence.json"
    path.write_text('{"backends": 3}')
    with pytest.raises(SamplesError, match=re.escape(str(path))):
        Session([folder])


def test_a_results_file_cannot_lead_out_of_its_folder(tmp_path):
    folder = make_folder(tmp_path / "wandering")
    text = (folder / "results.json").read_text()
    (folder / "results.json").write_text(text.replace("r1-baseline-ucx", "../../elsewhere"))
    with Session([folder]) as session:
        assert ask(session, "SELECT samples FROM runs WHERE repetition = 1") == [("none",)]


def test_the_answer_comes_as_a_table_as_csv_or_as_json(folder, capsys):
    sql = "SELECT run_id, ttft_ms_mean AS ms, CAST('nan' AS DOUBLE) AS no FROM cells WHERE cell = 'large' ORDER BY 1"
    assert main(["query", sql, str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["run_id", "ms", "no"]
    assert lines[2].split() == ["r1-baseline-ucx", "22", "nan"]
    assert lines[-1] == "3 rows"
    assert main(["query", sql, str(folder), "--format", "csv"]) == 0
    assert capsys.readouterr().out.splitlines()[1] == "r1-baseline-ucx,22.0,nan"
    assert main(["query", sql, str(folder), "--format", "json"]) == 0
    rows = msgspec.json.decode(capsys.readouterr().out)
    assert rows[0] == {"run_id": "r1-baseline-ucx", "ms": 22.0, "no": None}
    assert rows[2]["ms"] is None
    assert main(["query", "SELECT 1 WHERE false", str(folder), "--format", "json"]) == 0
    assert msgspec.json.decode(capsys.readouterr().out) == []


def test_rows_left_out_are_said(folder, capsys):
    assert main(["query", "SELECT seq FROM requests", str(folder), "--limit", "2"]) == 0
    seen = capsys.readouterr()
    assert seen.out.splitlines()[-1] == "2 rows"
    assert "first 2 rows" in seen.err


def test_text_of_others_cannot_steer_the_terminal(folder, capsys):
    assert main(["query", "SELECT chr(27) || '[31m' AS red", str(folder)]) == 0
    assert "\x1b" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["query"], 2, "no question"),
        (["query", "SELECT 1", "/nowhere/at/all"], 3, "not a folder"),
        (["query", "SELECT 1", "--limit", "0"], 2, "--limit"),
        (["query", "SELECT 1", "--timeout", "0"], 2, "--timeout"),
        (["query", "SELECT 1", "--memory", "nan"], 2, "--memory"),
    ],
)
def test_what_is_wrong_with_the_command_line_is_one_line(arguments, code, said, capsys):
    assert main(arguments) == code
    seen = capsys.readouterr().err
    assert said in seen
    assert seen.count("\n") == 1


def test_the_views_are_listed_without_any_run(capsys):
    assert main(["query", "--views"]) == 0
    listed = capsys.readouterr().out
    for view in VIEWS:
        assert f"\n{view.name}: " in f"\n{listed}"
