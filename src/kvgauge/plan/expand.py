"""A plan to its runs, in the order they happen, and roughly how long they take. Pure: the seed is the plan's."""

import hashlib
from collections.abc import Sequence
from math import ceil

import msgspec

from kvgauge.failures import PlanError
from kvgauge.models import MODELS, Model, descriptors, transfer_bytes
from kvgauge.plan.conversation import turns_mean
from kvgauge.plan.nodes import nearest
from kvgauge.plan.open import offered, rate, span_s
from kvgauge.plan.paired import refuse_one_arm
from kvgauge.plan.read import rehearsal, slug
from kvgauge.plan.records import UNOBSERVED, Cell, Plan, Run, Test, UntilSteady

# The duration model: rough, for "how long will this take", never for a result. Two cores, one machine, and the
# embedded target's compute for an H100, whatever GPU the test names.
START_S = 2.0  # processes up, pool allocated and registered, first connection
START_AGENT_S = 0.15  # each rank
STEP_S, STEP_LAYER_S = 1.0e-3, 20e-6  # a decode step beyond reading the weights
PREFILL_S, PREFILL_LAYER_S = 2.0e-3, 150e-6  # a prefill beyond its arithmetic
ALL_REDUCE_LAYER_S = 20e-6  # both of a layer, where there is more than one rank
WEIGHTS_BYTES_PER_S = 2.3e12  # 70% of 3.35 TB/s
PREFILL_PARAMETERS_PER_S = 2.5e14  # active parameters x tokens: 2 operations each, at half of 989 TFLOP/s
TRANSFER_BYTES_PER_S = {  # all ranks together
    "tcp": 0.9e9,
    "shm": 3.0e9,
    "efa": 20e9,
    "ib": 20e9,
    "cuda": 20e9,
    UNOBSERVED: 20e9,
}
DESCRIPTOR_S = 2e-6  # posting, completing and checking one descriptor
CHARACTERS_PER_TOKEN = 4
OF_UNKNOWN = "Llama-3.1-8B"  # for the duration of a model that a server names as it likes
COLD_ROOM_S = 60  # for what a first request takes beyond its cold start, when a time-out is suggested
STEADY_BATCHES, STEADY_REQUESTS = 10, 3  # the fewest that show a steady load, and how many requests one lasts
UNDER_WAY_LEAST = 16  # what an open load is given room for, however low its rate


def _digest(*parts: object) -> bytes:
    """The same bytes on every machine and Python version, which `random` does not promise."""
    return hashlib.sha256("/".join(map(str, parts)).encode()).digest()


def _orders(plan: Plan) -> list[list[Test]]:
    """The tests in the order of each repetition.

    For every two repetitions an order is drawn from the seed, to be taken once as drawn and once backwards: over the
    plan the mean place of every test is the same, so a machine that slows down steadily favours none, and no test
    always runs after the same neighbour. When each is taken is drawn too. Were the two neighbours, differences would
    resemble each other wherever a run resembles the one before it, and intervals be too narrow: of equal tests 6 in
    100 were found to differ, for 5 so (docs/calibration.md, autocorrelated).
    """
    taken = []
    for repetition in range(plan.repetitions):
        pair, second = divmod(repetition, 2)
        drawn = _drawn(plan, pair)
        taken.append((_digest("turn", plan.seed, repetition), drawn[::-1] if second else drawn))
    return [order for _, order in sorted(taken, key=lambda one: one[0])]


def _drawn(plan: Plan, pair: int) -> list[Test]:
    return sorted(plan.tests, key=lambda test: _digest("order", plan.seed, pair, test.name))


def expand(plan: Plan) -> list[Run]:
    """Every run of the plan in the order they happen: repetition k of all tests is over before k + 1 of any.

    A run's seed depends on the repetition only, so that the tests of one repetition are paired:
    they get the same prompts at the same due times.
    """
    runs: list[Run] = []
    for repetition, order in enumerate(_orders(plan), 1):
        seed = int.from_bytes(_digest("run", plan.seed, repetition)[:4]) >> 1
        for test in order:
            name = f"r{repetition}-{slug(test.name)}"
            runs.append(
                Run(run_id=name, test=test, repetition=repetition, order=len(runs), seed=seed, cells=plan.cells)
            )
    return runs


def select(plan: Plan, names: Sequence[str]) -> Plan:
    """The plan with only the named tests, in the plan's order; baselines that are not among them are dropped.

    No names: the plan as it is. PlanError for a name no test has.
    """
    if not names:
        return plan
    known = [test.name for test in plan.tests]
    for name in names:
        if name not in known:
            raise PlanError(f"no test is called {name!r}; {nearest(name, known)}", source=plan.source)
    kept = tuple(
        msgspec.structs.replace(test, baseline=tuple(name for name in test.baseline if name in names))
        for test in plan.tests
        if test.name in names
    )
    selected = msgspec.structs.replace(plan, tests=kept, rehearsal=rehearsal(kept))
    refuse_one_arm(selected)
    return selected


def prompt_tokens(cell: Cell) -> int:
    """Prompt tokens of one request: of a trace, and of a conversation's turns, the mean; of a literal prompt a guess,
    since the target's tokenizer decides."""
    if cell.trace is not None:
        return round(cell.trace.input_tokens_mean)
    before = (turns_mean(cell) - 1) / 2  # turns whose text and answer stand before a turn, on average
    if cell.dataset is not None:
        return max(1, round(cell.dataset.words_mean + before * (cell.dataset.words_mean + cell.output_tokens)))
    if cell.input_tokens is not None:
        return round(cell.input_tokens + before * (cell.input_tokens + cell.output_tokens))
    return -(-len(cell.prompt or "") // CHARACTERS_PER_TOKEN)


def _layers_s(model: Model, tp: int, layer_s: float) -> float:
    return model.layers * (layer_s + (ALL_REDUCE_LAYER_S if tp > 1 else 0.0))


def _step_s(model: Model, tp: int) -> float:
    """One decode step of a few sequences."""
    weights_s = model.parameters_active * 2 / (tp * WEIGHTS_BYTES_PER_S)
    return STEP_S + weights_s + _layers_s(model, tp, STEP_LAYER_S)


def _prefill_s(model: Model, tp: int, tokens: int) -> float:
    """One prompt."""
    return (
        PREFILL_S
        + tokens * model.parameters_active / (tp * PREFILL_PARAMETERS_PER_S)
        + _layers_s(model, tp, PREFILL_LAYER_S)
    )


def _transfer_s(test: Test, model: Model, tokens: int) -> float:
    moved = transfer_bytes(model, test.kv_dtype, tokens, test.decode_tp)
    pieces = descriptors(model, tokens, test.prefill_tp, test.decode_tp)
    return moved / TRANSFER_BYTES_PER_S[test.fabric] + pieces * DESCRIPTOR_S


def _request_s(test: Test, cell: Cell) -> tuple[float, float]:
    """(what requests wait for one after another, what they do at the same time) of one request, in s."""
    model = MODELS.get(test.model, MODELS[OF_UNKNOWN])
    tokens = prompt_tokens(cell)
    answer_tokens = cell.trace.output_tokens_mean if cell.trace is not None else cell.output_tokens
    prefill_s = _prefill_s(model, test.prefill_tp, tokens) / test.prefill_workers
    return prefill_s + _transfer_s(test, model, tokens), answer_tokens * _step_s(model, test.decode_tp)


def cell_s(test: Test, cell: Cell) -> float:
    """Rough seconds one cell takes: rounds of `concurrency` requests, which decode together.

    Transfers of a round queue for the same cores and so do its prefills for each prefill worker; warm-up included.
    An open load takes as long as its due times, or as its requests in a queue, whichever is more. With `until`, the
    most it can take.
    """
    queued_s, decode_s = _request_s(test, cell)
    slots = min(cell.concurrency, UNDER_WAY_LEAST) if cell.is_open else cell.concurrency
    warmup_s = -(-cell.warmup_requests // slots) * decode_s + cell.warmup_requests * queued_s
    if cell.steady is not None:
        warmup_s = steady_s(cell.steady, queued_s + decode_s)
    delays_s = (turns_mean(cell) - 1) * cell.conversation.delay_ms / 1e3 if cell.conversation is not None else 0.0
    if cell.is_open:
        return warmup_s + max(span_s(cell), offered(cell) * queued_s) + queued_s + decode_s + delays_s
    measured_s = -(-cell.requests // cell.concurrency) * decode_s + cell.requests * queued_s
    measured_s += -(-(cell.sessions or 0) // cell.concurrency) * delays_s
    if cell.duration_s is not None:
        measured_s = min(measured_s, cell.duration_s + cell.concurrency * queued_s + decode_s)
    return warmup_s + measured_s


def steady_s(steady: UntilSteady, request_s: float) -> float:
    """Roughly what it takes to see that a load is steady: ten batches of three requests each, a second each at least,
    and one more request for the end of what is under way."""
    least_s = STEADY_BATCHES * max(1.0, STEADY_REQUESTS * request_s)
    return min(steady.limit_s, max(steady.at_least_s, 1.5 * least_s)) + request_s


def under_way(test: Test, cell: Cell) -> int:
    """How many requests of a cell to have room for: its concurrency. Of an open load twice what Little's law gives
    (rate x time of a request) and its largest burst, within its concurrency: beyond that, requests queue."""
    if not cell.is_open:
        return cell.concurrency
    expected = ceil(2 * rate(cell) * turns_mean(cell) * sum(_request_s(test, cell)))
    burst = cell.burst.size if cell.burst is not None else 0
    return min(cell.concurrency, max(UNDER_WAY_LEAST, expected, burst))


def cold_wait_s(test: Test, cells: Sequence[Cell]) -> float:
    """Most that one request may wait for the modelled cold start: its prefill worker compiles, the pair connects, its
    decode worker compiles and captures every batch size that these cells can reach."""
    cold = test.cold_start
    if cold is None:
        return 0.0
    sizes = min(cold.graph_batch_max, max((under_way(test, cell) for cell in cells), default=0))
    return 2 * cold.compile_s + cold.connect_s + sizes * cold.graph_capture_s


def refuse_long_cold_starts(plan: Plan, request_timeout_s: float) -> None:
    """PlanError when a request would be given up while its worker still imitates a cold start.

    The first request of every run would fail after having kept the machine busy for minutes, and nothing would tell
    that from a broken build. A test that is expected to end otherwise than valid may do so.
    """
    for test in plan.tests:
        wait_s = cold_wait_s(test, plan.cells)
        if test.cold_start is not None and wait_s >= request_timeout_s and test.expect == "valid":
            raise PlanError(
                f"test {test.name!r}: a first request can wait {wait_s:g} s for its cold start (two workers compile "
                f"{test.cold_start.compile_s:g} s each, one after the other), and requests are given up after "
                f"{request_timeout_s:g} s: pass --request-timeout {wait_s + COLD_ROOM_S:.0f}, or declare less",
                source=plan.source,
            )


def _cold_s(test: Test, cells: Sequence[Cell]) -> float:
    """Rough seconds that a run's cold starts add: workers that get requests together are cold together."""
    cold = test.cold_start
    if cold is None or not cells:
        return 0.0
    together, most = cells[0].concurrency, max(cell.concurrency for cell in cells)
    pairs = test.prefill_workers * test.decode_workers
    sizes = min(cold.graph_batch_max, -(-most // test.decode_workers))
    compiles = sum(-(-workers // together) for workers in (test.prefill_workers, test.decode_workers))
    return compiles * cold.compile_s + -(-pairs // together) * cold.connect_s + sizes * cold.graph_capture_s


def run_s(test: Test, cells: Sequence[Cell]) -> float:
    """Rough seconds of one run: start, then every cell in turn, cold starts on top."""
    ranks = test.prefill_tp * test.prefill_workers + test.decode_tp * test.decode_workers
    return START_S + ranks * START_AGENT_S + sum(cell_s(test, cell) for cell in cells) + _cold_s(test, cells)


def pilot_cells(plan: Plan) -> tuple[Cell, ...]:
    """The closed cells that each test goes through once before all runs, because rates of open ones are shares of what
    they answer."""
    wanted = {cell.capacity.of for cell in plan.cells if cell.capacity is not None}
    return tuple(cell for cell in plan.cells if cell.name in wanted)


def estimate_s(plan: Plan) -> float:
    """Rough seconds of the whole plan, pilots included, without installing builds. Good to a factor of about two."""
    first = pilot_cells(plan)
    pilots_s = sum(run_s(test, first) for test in plan.tests) if first else 0.0
    each = [run_s(test, plan.cells) for test in plan.tests]
    return pilots_s + plan.repetitions * (max(each) if plan.mode == "paired" else sum(each))
