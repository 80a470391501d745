"""What the processes of the embedded stack say to each other: msgpack arrays by msgspec over pyzmq, never pickle.

    frontend -> prefill   Prefill, Release
    frontend -> decode    Decode, Reserve (WRITE only), Abort
    prefill  -> frontend  Prefilled, Written (WRITE only)
    decode   -> frontend  Reserved (WRITE only), Tokens, Started, Refused, Released
    worker   -> parent    Ready, Report, Beat, Died;         parent -> worker    Peers, Ask, Stop
    frontend -> parent    Listening, Open, Moved, Beat, Died;  parent -> frontend  Open, Down, Up, Stop

`key` is the request's 64-bit nonce: it also stamps the request's blocks. Times are monotonic ns of this host.
"""

import msgspec

from kvgauge.builds.records import Build
from kvgauge.kv.transfer import WorkerInfo
from kvgauge.plan.records import ColdStart
from kvgauge.samples.records import Connection, Transfer
from kvgauge.serve.cold import Paid

PARENT_VARIABLE = "KVGAUGE_PARENT_PID"
BEAT_NS = 500_000_000  # every process says so often that it still turns


class Spec(msgspec.Struct, frozen=True, kw_only=True):
    """Everything one worker process is started with; arrives on its standard input.

    generation  how often this worker was started before: its agents' names must differ from those that died
    recompute_every  for tests: decode answers each so-many-th request without fetching its KV; 0: never
    """

    role: str  # prefill or decode
    index: int
    model: str
    tp: int
    prefill_tp: int
    decode_tp: int
    kv_dtype: str
    blocks: int
    backend: str | None  # None: no NIXL at all, for measuring the stack itself
    build: Build | None
    progress_thread: bool
    operation: str
    full_check: bool
    gpu: str
    compute: float  # multiplies modelled compute time; 0: none
    control: str  # zmq endpoints
    inbox: str
    outbox: str
    transfer_timeout_s: float
    max_batch: int = 256
    max_batch_tokens: int = 8192
    generation: int = 0
    recompute_every: int = 0
    cold_start: ColdStart | None = None
    slowed: float = 1.0  # multiplies modelled steps of this worker: a test's `planted`


class FrontendSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Everything the frontend process is started with; arrives on its standard input.

    max_tokens  prompt and answer together may hold this many
    """

    host: str
    port: int
    model: str
    operation: str
    max_tokens: int
    control: str
    inbox: str
    prefill: tuple[str, ...]  # the workers' inboxes
    decode: tuple[str, ...]


class Prefill(msgspec.Struct, tag="prefill", array_like=True, frozen=True):
    """decode_worker: who will want the blocks."""

    key: int
    digest: int
    prompt_tokens: int
    decode_worker: int = 0
    decode_blocks: list[int] | None = None  # WRITE: where the blocks go


class Release(msgspec.Struct, tag="release", array_like=True, frozen=True):
    """Prefill may free this request's blocks: decode will not read them (any more)."""

    key: int


class Prefilled(msgspec.Struct, tag="prefilled", array_like=True, frozen=True):
    key: int
    blocks: list[int]
    start_ns: int
    end_ns: int


class Written(msgspec.Struct, tag="written", array_like=True, frozen=True):
    """Prefill's account of a WRITE, or why there will be none; the frontend passes it on to that decode worker."""

    key: int
    decode_worker: int
    posted_ns: int
    post_ns: int
    descriptors: int
    bytes_listed: int
    bytes_moved: int | None
    backend: str
    failure: str | None
    settled: bool = True  # False: NIXL may still write; Settled follows when it cannot any more


class Settled(msgspec.Struct, tag="settled", array_like=True, frozen=True):
    """A WRITE that was given up has let go of its blocks on both sides."""

    key: int
    decode_worker: int


def called_off(key: int, decode_worker: int, why: str = "called off: nobody waits for it any more") -> Written:
    """What decode is told when a WRITE it has reserved blocks for will not come."""
    return Written(key, decode_worker, 0, 0, 0, 0, None, "none", why)


class Decode(msgspec.Struct, tag="decode", array_like=True, frozen=True):
    key: int
    digest: int
    prompt_tokens: int
    max_tokens: int
    prefill_worker: int
    blocks: list[int]  # READ: where the blocks lie


class Reserve(msgspec.Struct, tag="reserve", array_like=True, frozen=True):
    key: int
    digest: int
    prompt_tokens: int
    max_tokens: int
    prefill_worker: int


class Reserved(msgspec.Struct, tag="reserved", array_like=True, frozen=True):
    key: int
    decode_worker: int
    blocks: list[int]


class Abort(msgspec.Struct, tag="abort", array_like=True, frozen=True):
    key: int


class Started(msgspec.Struct, tag="started", array_like=True, frozen=True):
    """The request's KV is here and right; its first token follows with the next step."""

    key: int
    transfer: Transfer | None


class Tokens(msgspec.Struct, tag="tokens", array_like=True, frozen=True):
    """One decode step: a token for each key; `ended` are the keys whose last token this was."""

    step_ns: int
    keys: list[int]
    tokens: list[int]
    ended: list[int]


class Refused(msgspec.Struct, tag="refused", array_like=True, frozen=True):
    """The request failed in a worker; `kv` says whether its KV cache is to blame."""

    key: int
    reason: str
    kv: bool
    transfer: Transfer | None = None


class Released(msgspec.Struct, tag="released", array_like=True, frozen=True):
    """Decode is done with the request's blocks at prefill without having notified prefill through NIXL."""

    key: int


class Ready(msgspec.Struct, tag="ready", array_like=True, frozen=True):
    info: WorkerInfo
    pid: int
    start_ns: dict[str, int]  # what start-up cost: agents, pool, register


class Peers(msgspec.Struct, tag="peers", array_like=True, frozen=True):
    """The workers of the other side that are up, all of them. Told again when one has ended or is back."""

    workers: list[WorkerInfo]


class Report(msgspec.Struct, tag="report", array_like=True, frozen=True):
    """Facts so far: asked for by the parent with Ask."""

    connections: list[Connection]
    backends: dict[str, int]
    blocks_free: int
    blocks_total: int
    steps: int
    steps_late: int
    step_late_ns_max: int
    cold: Paid | None = None


class Listening(msgspec.Struct, tag="listening", array_like=True, frozen=True):
    """The frontend's address, once it is bound."""

    url: str
    pid: int


class Moved(msgspec.Struct, tag="moved", array_like=True, frozen=True):
    """A KV move that ended, well or not."""

    transfer: Transfer


class Open(msgspec.Struct, tag="open", array_like=True, frozen=True):
    """Every worker is ready: the frontend may say so. Sent back once it does, so that no request comes too early."""


class Down(msgspec.Struct, tag="down", array_like=True, frozen=True):
    """A worker has ended: nothing can be sent to it, and what it was doing will not be done. `how`: for its clients."""

    role: str
    index: int
    how: str


class Up(msgspec.Struct, tag="up", array_like=True, frozen=True):
    """A worker that was down is there again, and the other side knows it: it takes requests."""

    role: str
    index: int


class Ask(msgspec.Struct, tag="ask", array_like=True, frozen=True):
    pass


class Beat(msgspec.Struct, tag="beat", array_like=True, frozen=True):
    """It still turns: a process that is stopped, or caught in a call that never returns, does not say so."""


class Died(msgspec.Struct, tag="died", array_like=True, frozen=True):
    reason: str


class Stop(msgspec.Struct, tag="stop", array_like=True, frozen=True):
    pass


ToPrefill = Prefill | Release
ToDecode = Decode | Reserve | Abort | Written | Settled
ToFrontend = Prefilled | Written | Settled | Reserved | Started | Tokens | Refused | Released
ToParent = Ready | Report | Beat | Died | Listening | Open | Moved
FromParent = Peers | Ask | Stop | Open | Down | Up

encode = msgspec.msgpack.Encoder().encode
