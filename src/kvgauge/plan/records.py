"""A plan and what it expands to. Frozen records; reading them is read.py, expanding them expand.py."""

from typing import Any, Literal

import msgspec

from kvgauge.builds.records import BuildSource

Backend = Literal["UCX", "LIBFABRIC", "unobserved"]
Fabric = Literal["efa", "ib", "tcp", "shm", "cuda", "unobserved"]
UNOBSERVED: Literal["unobserved"] = "unobserved"  # of a server that is measured from outside; no plan says so
BACKENDS: tuple[Backend, ...] = ("UCX", "LIBFABRIC")
FABRICS: tuple[Fabric, ...] = ("efa", "ib", "tcp", "shm", "cuda")
LoadShape = Literal["single", "wave", "closed", "constant", "poisson", "gamma", "ramp", "burst", "steps", "trace"]
OPEN_LOADS: tuple[LoadShape, ...] = ("constant", "poisson", "gamma", "ramp", "burst", "steps", "trace")
Api = Literal["completions", "chat"]
PromptKind = Literal["tokens", "text"]
Expect = Literal["valid", "invalid", "failed", "unusable"]  # unusable: invalid or failed, whichever it is here
Operation = Literal["READ", "WRITE"]
LoadWorkers = int | Literal["auto"]
Mode = Literal["runs", "paired"]


class Ramp(msgspec.Struct, frozen=True, kw_only=True):
    """A rate, in requests per second, that changes evenly from one to the other, and then stays."""

    from_rate: float
    to_rate: float
    over_s: float


class Burst(msgspec.Struct, frozen=True, kw_only=True):
    """`size` requests at the same moment, again every `every_s`."""

    size: int
    every_s: float


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """A rate, in requests per second, and how long it holds. 0: a pause."""

    rate: float
    for_s: float


class Steps(msgspec.Struct, frozen=True, kw_only=True):
    """Rates one after another. arrivals: evenly spaced, or at random with these rates."""

    steps: tuple[Step, ...]
    arrivals: Literal["constant", "poisson"] = "constant"

    @property
    def span_s(self) -> float:
        return sum(step.for_s for step in self.steps)


class Capacity(msgspec.Struct, frozen=True, kw_only=True):
    """A rate that a pilot finds: this share of the requests per second that the slowest of the tests that may be
    compared answers in the closed cell `of`."""

    share: float
    of: str


class Conversation(msgspec.Struct, frozen=True, kw_only=True):
    """Requests that follow one another: each turn's holds all that was said before.

    turns            how many a session has, on average; of a dataset the most
    turns_stddev     of a normal distribution, rounded, at least 1
    delay_ms         from the end of an answer to the next turn, on average
    delay_ms_stddev  of a normal distribution, cut off at 0
    history          what stands in it as the model's part: its own answers, or those that the dataset recorded
    """

    turns: float | None
    turns_stddev: float = 0.0
    delay_ms: float = 0.0
    delay_ms_stddev: float = 0.0
    history: Literal["answers", "recorded"] = "answers"


class TraceFile(msgspec.Struct, frozen=True, kw_only=True):
    """A trace that a cell replays: which file, and what stands in it. Its requests are read when they are needed.

    path    as the plan names it; one that is relative starts at the plan's folder
    span_s  from the first request to the last, as recorded
    """

    path: str
    sha256: str
    requests: int
    span_s: float
    input_tokens_mean: float
    input_tokens_max: int
    output_tokens_mean: float
    output_tokens_max: int


class DatasetFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file of prompts that a cell sends in turn: which, and what stands in it. It is read when it is needed.

    path                as the plan names it; one that is relative starts at the plan's folder
    turns_mean, _most   that the user takes in a conversation; 1 for a prompt that stands alone
    whole_words_max     of a conversation, recorded answers included
    words_mean          of its prompts, punctuation marks counted too; only a tokenizer could say how many tokens
    output_tokens_mean  of the prompts that state one; None when none does
    """

    path: str
    sha256: str
    prompts: int
    words_mean: float
    words_max: int
    output_tokens_mean: float | None
    output_tokens_max: int | None
    turns_mean: float = 1.0
    turns_most: int = 1
    whole_words_max: int = 0


class TokenizerFile(msgspec.Struct, frozen=True, kw_only=True):
    """The tokenizer.json that is a test's model's. path: as the plan names it, with the file's name."""

    path: str
    sha256: str


class Until(msgspec.Struct, frozen=True, kw_only=True):
    """Stop as soon as the mean of `metric` is known within this share of itself: half_width / mean, at 95 %."""

    metric: str
    half_width: float


class UntilSteady(msgspec.Struct, frozen=True, kw_only=True):
    """Warm-up that ends when the load is steady; after `limit_s` it is measured all the same, and said to be unsteady.

    at_least_s  nothing is measured before
    """

    limit_s: float
    at_least_s: float = 0.0


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    """One load applied to a started target.

    concurrency    slots of a closed load; of an open one (OPEN_LOADS) how many requests may be under way; with
                   `conversation` how many sessions, their delays included
    prompt         literal text, the same for each request; or None
    input_tokens   length of a prompt that is unique to each request, when there is neither `prompt` nor a file
    dataset        prompts from a file, in its order, from the first again when all were sent
    api            which of the two OpenAI endpoints is asked
    stream         False: one JSON body at the end, so that nothing is known of first tokens
    prompt_kind    of unique prompts: token ids, or words that are one token each
    shared_prefix_tokens  of input_tokens, how many the prompts have in common at their start
    prefixes       how many such starts there are; requests take them in turn
    ignore_eos     ask for output_tokens to the last; False: the model may end its answer before
    extra_body     what else stands in each request's JSON
    output_tokens  of each answer; of a trace the longest
    requests       measured requests, all slots together; where `duration_s` or `until` ends the cell, the most; with
                   `conversation` about how many its sessions will be
    sessions       measured conversations, at most; None without `conversation`
    rate           requests per second of constant, poisson and gamma; None while a pilot is to find it (`capacity`)
    burstiness     shape of gamma: 1 is poisson, below 1 comes in clusters, above 1 is more even
    speed_up       a trace's time is divided by this
    duration_s     nothing becomes due later than this; None: no such end
    until          an end that the measured values decide, within `requests` and `duration_s`
    steady         warm-up until the load is steady, in one offer with what is measured; None: `warmup_requests`
    """

    name: str
    load: LoadShape
    concurrency: int
    requests: int
    output_tokens: int
    warmup_requests: int
    prompt: str | None = None
    input_tokens: int | None = None
    rate: float | None = None
    capacity: Capacity | None = None
    burstiness: float | None = None
    ramp: Ramp | None = None
    burst: Burst | None = None
    trace: TraceFile | None = None
    speed_up: float = 1.0
    duration_s: float | None = None
    until: Until | None = None
    steady: UntilSteady | None = None
    steps: Steps | None = None
    conversation: Conversation | None = None
    sessions: int | None = None
    dataset: DatasetFile | None = None
    api: Api = "completions"
    stream: bool = True
    prompt_kind: PromptKind = "tokens"
    shared_prefix_tokens: int = 0
    prefixes: int = 1
    ignore_eos: bool = True
    extra_body: dict[str, Any] = {}

    @property
    def is_open(self) -> bool:
        """Whether requests become due by the clock, whatever has ended."""
        return self.load in OPEN_LOADS


class ColdStart(msgspec.Struct, frozen=True, kw_only=True):
    """What a first run costs beyond a warm one; modelled by the embedded target (docs/compute.md).

    compile_s        kernels: the first step of every prefill and every decode worker process, once
    graph_capture_s  a CUDA graph: the first decode step of each batch size from 1 to `graph_batch_max`, on each worker
    connect_s        the first connection of each pair of a prefill and a decode worker
    """

    compile_s: float = 0.0
    graph_capture_s: float = 0.0
    graph_batch_max: int = 16
    connect_s: float = 0.0

    @property
    def line(self) -> str:
        """`compile 20 s a worker, graph capture 0.4 s for each batch size 1-16, first connection 1.5 s a pair`"""
        said = []
        if self.compile_s:
            said.append(f"compile {self.compile_s:g} s a worker")
        if self.graph_capture_s:
            said.append(f"graph capture {self.graph_capture_s:g} s for each batch size 1-{self.graph_batch_max}")
        if self.connect_s:
            said.append(f"first connection {self.connect_s:g} s a pair")
        return ", ".join(said) or "nothing"


class Planted(msgspec.Struct, frozen=True, kw_only=True):
    """A slow-down that is put into the embedded target's modelled compute on purpose: a truth to be found.

    prefill_pct, decode_pct  by how much longer each modelled step takes; negative: shorter
    """

    prefill_pct: float = 0.0
    decode_pct: float = 0.0

    @property
    def line(self) -> str:
        """`modelled prefill +1 %, modelled decode -2 %`"""
        steps = (("prefill", self.prefill_pct), ("decode", self.decode_pct))
        return ", ".join(f"modelled {step} {pct:+g} %" for step, pct in steps if pct)

    def factor(self, role: str) -> float:
        """What that role's modelled steps are multiplied by."""
        return 1 + (self.prefill_pct if role == "prefill" else self.decode_pct) / 100


class Test(msgspec.Struct, frozen=True, kw_only=True):
    """A row of the plan: what is varied.

    patches       what the row stands for, as the plan's author calls it
    build         which NIXL carries it; `stand_in` says so when that is not what `patches` names
    build_source  where a build of the user's own lies, and then `build` is its label; None: a published version
    cold_start    what its workers' first run costs; None: nothing
    planted       a slow-down that its modelled compute is given on purpose; None: none
    tokenizer     the model's own, from a file: for counting where a server sends no usage, and for prompts
    baseline      tests it is compared with (names); empty for the first baseline, which is compared with nothing
    """

    __test__ = False  # pytest: not a test class

    name: str
    backend: Backend
    fabric: Fabric
    build: str
    patches: str
    stand_in: str | None
    model: str
    prefill_tp: int
    decode_tp: int
    prefill_workers: int = 1
    decode_workers: int = 1
    kv_dtype: str = "bf16"
    operation: Operation = "READ"
    progress_thread: bool = False
    full_check: bool = False
    gpu: str = "H100"
    expect: Expect = "valid"
    baseline: tuple[str, ...] = ()
    build_source: BuildSource | None = None
    cold_start: ColdStart | None = None
    planted: Planted | None = None
    tokenizer: TokenizerFile | None = None


class Primary(msgspec.Struct, frozen=True, kw_only=True):
    """The one metric, in the one cell, that decides; declared before anything runs."""

    metric: str
    cell: str


class Goodput(msgspec.Struct, frozen=True, kw_only=True):
    """What a request must stay within to count as good, each in ms; None: not asked for. All of them, together."""

    ttft_ms: float | None = None
    tpot_ms: float | None = None
    e2e_latency_ms: float | None = None


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What to vary, how often, and what decides.

    gain_within_pct  stop before `repetitions` once every primary gain is known within +- so many percentage points;
                     in mode paired: end the primary cell of a repetition as soon as its gain is
    mode             runs: one target after another; paired: both tests' targets at once, one load for both
    """

    name: str
    source: str
    tests: tuple[Test, ...]
    cells: tuple[Cell, ...]
    repetitions: int
    primary: Primary
    seed: int = 1
    quick: bool = False
    goodput: Goodput | None = None
    gain_within_pct: float | None = None
    quick_ack: bool = False  # the client's kernel acknowledges every read at once (docs/stamps.md)
    rehearsal: bool = False  # every test runs over tcp or shm: nothing here transfers to EFA
    load_workers: LoadWorkers = 1  # processes that offer a cell
    mode: Mode = "runs"


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """One test, one repetition, on a freshly started target; it goes through every cell in turn."""

    run_id: str
    test: Test
    repetition: int  # 1-based; repetition k of every test is over before k + 1 of any starts
    order: int  # 0-based place in the whole plan; -1: a pilot, before all of them
    seed: int
    cells: tuple[Cell, ...]
