"""The renderer in its own process: what it refuses, and how it ends."""

import http.server
import threading

import pytest

from kvgauge.failures import ReportError
from kvgauge.report import charts

POINT = {"mark": "point", "encoding": {"x": {"field": "x", "type": "quantitative"}}}


def test_a_specification_that_cannot_be_drawn_ends_as_one_line():
    with pytest.raises(ReportError, match=r"vl-convert ended with 1: \w+Error: ") as error:
        charts.svg({"mark": "nonsense"})
    assert "\n" not in str(error.value)


def test_a_renderer_that_takes_too_long_is_ended(monkeypatch):
    monkeypatch.setattr(charts, "SECONDS_MAX", 0.01)
    with pytest.raises(ReportError, match="gave none within"):
        charts.svg({"data": {"values": [{"x": 1}]}, **POINT})


def test_a_renderer_that_cannot_start_is_told(monkeypatch):
    monkeypatch.setattr("sys.executable", "/nowhere/python")
    with pytest.raises(ReportError, match="did not start: No such file"):
        charts.svg({"data": {"values": []}, **POINT})


def test_a_picture_larger_than_any_viewer_takes_is_not_written(monkeypatch):
    monkeypatch.setattr(charts, "SVG_BYTES_MAX", 100)
    with pytest.raises(ReportError, match="at most"):
        charts.svg({"data": {"values": [{"x": 1}]}, **POINT})


def test_the_renderer_fetches_nothing():
    asked = []

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'[{"x": 1}]')

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            with pytest.raises(ReportError):
                charts.svg({"data": {"url": f"http://127.0.0.1:{server.server_port}/x.json"}, **POINT})
        finally:
            server.shutdown()
    assert asked == []


def test_a_renderer_that_crashes_is_told_by_its_signal(monkeypatch, tmp_path):
    crash = tmp_path / "python"
    crash.write_text("#!/bin/sh\necho '# Fatal error in V8' >&2\nkill -SEGV $$\n")
    crash.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(crash))
    with pytest.raises(ReportError, match="was killed by signal 11: # Fatal error in V8"):
        charts.svg({"data": {"values": []}, **POINT})
