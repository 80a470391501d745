"""A router for one prefill and one decode worker of vLLM, which can leave out the KV transfer of every Nth request.

    python vllm_proxy.py PORT PREFILL_URL DECODE_URL [--skip-every N]

Standard library only. Prefill computes a request's first token and says where its KV blocks are
(`kv_transfer_params`); decode gets the request and those, and fetches them. Left out, decode computes the prompt
itself, and the answer is the same: nothing but counters can tell. Whatever is no completion goes to decode.
"""

import argparse
import http.client
import http.server
import itertools
import json
import sys
import threading
import urllib.parse

TIMEOUT_S = 120.0
ASKED = {
    "do_remote_decode": True,
    "do_remote_prefill": False,
    "remote_engine_id": None,
    "remote_block_ids": None,
    "remote_host": None,
    "remote_port": None,
}
COMPLETIONS = ("/v1/completions", "/v1/chat/completions")
READ_BYTES = 1 << 16


class Router(http.server.ThreadingHTTPServer):
    """skip_every: of the completions, counted from the first, each Nth goes to decode without its KV; 0: none"""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, port: int, prefill: str, decode: str, skip_every: int) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.prefill, self.decode, self._skip_every = prefill, decode, skip_every
        self._numbers, self._lock = itertools.count(1), threading.Lock()

    def skips(self) -> bool:
        with self._lock:
            number = next(self._numbers)
        return self._skip_every > 0 and number % self._skip_every == 0


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Router

    def do_GET(self) -> None:
        self._pass_on(self.server.decode, "GET", None)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path in COMPLETIONS:
            try:
                body, refused = self._prefilled(body)
            except (OSError, http.client.HTTPException) as error:
                refused = 503, json.dumps({"error": {"message": f"prefill: {error}"}}).encode()
            if refused is not None:
                self._whole(*refused)
                return
        self._pass_on(self.server.decode, "POST", body)

    def _prefilled(self, body: bytes) -> tuple[bytes, tuple[int, bytes] | None]:
        """The request as decode gets it; or what prefill answered instead of 200."""
        request = json.loads(body)
        first = {key: value for key, value in request.items() if key not in ("stream_options", "min_tokens")}
        length = {name: 1 for name in ("max_tokens", "max_completion_tokens") if name in request} or {"max_tokens": 1}
        first |= {"stream": False, "kv_transfer_params": ASKED, **length}
        asking = self._connection(self.server.prefill)
        try:
            asking.request("POST", self.path, json.dumps(first), self._head())
            answer = asking.getresponse()
            said = answer.read()
        finally:
            asking.close()
        if answer.status != 200:
            return body, (answer.status, said)
        if not self.server.skips():
            request["kv_transfer_params"] = json.loads(said)["kv_transfer_params"]
        return json.dumps(request).encode(), None

    def _pass_on(self, to: str, method: str, body: bytes | None) -> None:
        """What it answers, piece by piece as it comes."""
        asking = self._connection(to)
        try:
            asking.request(method, self.path, body, self._head())
            answer = asking.getresponse()
            self.send_response(answer.status)
            self.send_header("Content-Type", answer.getheader("Content-Type", "application/json"))
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            while piece := answer.read1(READ_BYTES):
                self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            self.wfile.write(b"0\r\n\r\n")
        except (OSError, http.client.HTTPException) as error:
            print(f"{method} {self.path}: {error}", file=sys.stderr, flush=True)
            self.close_connection = True
        finally:
            asking.close()

    def _whole(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _head(self) -> dict[str, str]:
        kept = ("Content-Type", "X-Request-Id", "Authorization")
        return {name: self.headers[name] for name in kept if self.headers[name] is not None}

    def _connection(self, url: str) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(urllib.parse.urlsplit(url).netloc, timeout=TIMEOUT_S)

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - the name is the base class's
        """Nothing: a line a request says no more than decode's own log."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("port", type=int)
    parser.add_argument("prefill")
    parser.add_argument("decode")
    parser.add_argument("--skip-every", type=int, default=0, metavar="N")
    args = parser.parse_args()
    Router(args.port, args.prefill, args.decode, args.skip_every).serve_forever()


if __name__ == "__main__":
    main()
