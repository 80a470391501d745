"""`kvgauge prove` against Dynamo's mocker, which answers, counts and moves nothing."""

from kvgauge.cli.main import main


def test_a_mocker_is_contradicted_by_its_own_log_and_no_bytes_are_claimed(fast, capsys):
    logs = ",".join(str(path) for path in sorted(fast.folder.glob("*.log")))
    workers = ",".join(f"http://127.0.0.1:{fast._port + number}/metrics" for number in (1, 2))
    code = main(["prove", fast.url, "--seconds", "15", "--requests", "20", "--answers", "4", "--token-ids", "0-4000",
                 "--kv-model", "Qwen3-0.6B", "--workers", workers, "--log", logs])  # fmt: skip
    page = capsys.readouterr().out
    assert code == 1, page
    assert "CONTRADICTED  engine: the workers are mockers" in page
    assert "not proved    bytes: nobody that was asked counts KV bytes" in page
    assert "20 requests answered" in page
