"""A plan for one server, from the numbers of a command line. Pure: whatever a plan file would refuse is refused here.

The server is measured from outside, so the one test's backend, fabric and build are `unobserved`.
"""

import json
import re
from collections.abc import Callable, Sequence

import msgspec

from kvgauge.failures import PlanError, UsageError
from kvgauge.plan.cells import read_cells
from kvgauge.plan.nodes import parse
from kvgauge.plan.read import GOODPUT_MS_MAX
from kvgauge.plan.records import UNOBSERVED, Goodput, Plan, Primary, Test, TokenizerFile
from kvgauge.plan.tokenizer import read_tokenizer

SOURCE = "command line"
OBJECTIVES = {"ttft": "ttft_ms", "tpot": "tpot_ms", "e2el": "e2e_latency_ms"}
_MS = re.compile(r"[0-9]{1,9}(\.[0-9]{1,6})?")
_SHARE = re.compile(r"[0-9]+(\.[0-9]+)?%")
# What the reader of plans calls things, and the flag they came from.
FLAGS = {
    "concurrency": "--concurrency",
    "requests": "--request-count",
    "duration_s": "--benchmark-duration",
    "rate": "--request-rate",
    "burstiness": "--burstiness",
    "input_tokens": "--isl",
    "output_tokens": "--osl",
    "prompt": "--prompt",
    "warmup_requests": "--warmup-request-count",
    "warmup": "--warmup",
    "limit_s": "--warmup",
    "trace": "--trace",
    "half_width": "--until",
    "metric": "--until",
    "load": "--arrival-pattern",
    "dataset": "--dataset",
    "api": "--endpoint-type",
    "shared_prefix_tokens": "--shared-prefix",
    "sessions": "--conversation-num",
    "conversation": "--conversation-turn-mean",
    "turns": "--conversation-turn-mean",
    "turns_stddev": "--conversation-turn-stddev",
    "delay_ms": "--conversation-turn-delay-mean",
    "delay_ms_stddev": "--conversation-turn-delay-stddev",
    "history": "--conversation-history",
    "steps": "--rate-steps",
    "for_s": "--rate-steps",
    "arrivals": "--arrival-pattern",
    "until": "--until",
    "prompt_kind": "--prompt-kind",
}
IN_MESSAGES = ("sessions", "duration_s", "conversation", "warmup_requests")  # named by messages about other flags


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """The load of `kvgauge load`. None: not given.

    concurrency  slots; with request rates the most that may be under way
    requests     for all concurrencies or rates, or one number for each
    goodput      NAME:MS each
    steps        (rate, seconds) each
    warmup       steady, or steady:SECONDS
    sessions     conversations, as `requests`
    until        (metric, half width as the user wrote it): stop when the mean is known so well
    """

    concurrency: tuple[int, ...] = ()
    requests: tuple[int, ...] = ()
    duration_s: float | None = None
    rates: tuple[float, ...] = ()
    pattern: str | None = None
    burstiness: float | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    prompt: str | None = None
    warmup_requests: int | None = None
    warmup: str | None = None
    trace: str | None = None
    speed_up: float | None = None
    until: tuple[str, str] | None = None
    repetitions: int = 1
    seed: int = 1
    dataset: str | None = None
    api: str | None = None
    stream: bool = True
    shared_prefix_tokens: int | None = None
    ignore_eos: bool = True
    goodput: tuple[str, ...] = ()
    steps: tuple[tuple[float, float], ...] = ()
    sessions: tuple[int, ...] = ()
    turns: float | None = None
    turns_stddev: float | None = None
    delay_ms: float | None = None
    delay_ms_stddev: float | None = None
    history: str | None = None
    quick_ack: bool = False
    prompt_kind: str | None = None
    tokenizer: str | None = None

    @property
    def in_sessions(self) -> bool:
        """Whether any flag asks for conversations."""
        given = (self.turns, self.turns_stddev, self.delay_ms, self.delay_ms_stddev, self.history)
        return bool(self.sessions) or any(value is not None for value in given)


def plan_of(asked: Asked, model: str, read_file: Callable[[str], bytes]) -> Plan:
    """The plan that offers this load.

    model      as the server calls it
    read_file  gives the bytes of a trace; raises OSError
    raises     UsageError that names the flag
    """
    primary = "ttft_ms_mean" if asked.stream else "e2e_latency_ms_mean"
    metric = asked.until[0] if asked.until is not None else primary
    text = json.dumps([_cell(asked)])  # JSON is YAML: one set of checks serves plans and flags
    if asked.until is not None and _SHARE.fullmatch(asked.until[1]):
        text = text.replace(json.dumps(asked.until[1]), asked.until[1])  # 2% is no number in JSON
    value = parse(text, SOURCE)
    try:
        cells = read_cells(value, read_file, metric)
    except PlanError as error:
        raise UsageError(_of_flag(str(error), in_steps=bool(asked.steps))) from None
    test = Test(
        name=model,
        backend=UNOBSERVED,
        fabric=UNOBSERVED,
        build=UNOBSERVED,
        patches="none",
        stand_in=None,
        model=model,
        prefill_tp=1,
        decode_tp=1,
        tokenizer=_tokenizer(asked.tokenizer, read_file),
    )
    return Plan(
        name="load",
        source=SOURCE,
        tests=(test,),
        cells=cells,
        repetitions=asked.repetitions,
        primary=Primary(metric=primary, cell=cells[0].name),
        seed=asked.seed,
        goodput=_goodput(asked.goodput),
        quick_ack=asked.quick_ack,
    )


def _tokenizer(path: str | None, read_file: Callable[[str], bytes]) -> TokenizerFile | None:
    try:
        return None if path is None else read_tokenizer(path, read_file)
    except UsageError as error:
        raise UsageError(f"--tokenizer: {error}") from None


def _cell(asked: Asked) -> dict[str, object]:
    """The one entry of `cells` that the flags stand for."""
    load = _load(asked)
    cell: dict[str, object] = {"name": _name(asked, load), "load": load}
    if load == "trace":
        cell["trace"] = asked.trace
        if asked.speed_up is not None:
            cell["speed_up"] = asked.speed_up
    else:
        cell["output_tokens"] = 128 if asked.output_tokens is None else asked.output_tokens
        cell |= {"prompt": asked.prompt} if asked.prompt is not None else {}
        cell |= {"dataset": asked.dataset} if asked.dataset is not None else {}
        if asked.input_tokens is not None or (asked.prompt is None and asked.dataset is None):
            cell["input_tokens"] = 512 if asked.input_tokens is None else asked.input_tokens
    wanted = {"api": asked.api, "prompt_kind": asked.prompt_kind, "shared_prefix_tokens": asked.shared_prefix_tokens}
    cell |= {key: value for key, value in wanted.items() if value is not None}
    cell |= {"stream": asked.stream, "ignore_eos": asked.ignore_eos}
    if asked.steps:
        cell["steps"] = [{"rate": rate, "for_s": for_s} for rate, for_s in asked.steps]
        cell |= {"arrivals": asked.pattern} if asked.pattern is not None else {}
    if asked.in_sessions:
        cell["conversation"] = _conversation(asked)
    if asked.rates:
        cell["rate"] = _one_or_all(asked.rates)
        if asked.burstiness is not None:
            cell["burstiness"] = asked.burstiness
    if asked.concurrency or load == "closed":
        cell["concurrency"] = _one_or_all(asked.concurrency or (1,))
    if asked.warmup_requests is not None:
        cell["warmup_requests"] = asked.warmup_requests
    if asked.warmup is not None:
        cell["warmup"] = _warmup(asked.warmup)
    return cell | _end(asked, load)


def _warmup(text: str) -> object:
    """steady, or steady:SECONDS; what is neither is left for the reader of plans to refuse."""
    word, separator, limit_s = text.partition(":")
    if not separator or word != "steady":
        return text
    return {"until": word, "limit_s": float(limit_s) if _MS.fullmatch(limit_s) else limit_s}


def _conversation(asked: Asked) -> dict[str, object]:
    wanted = {
        "turns": asked.turns,
        "turns_stddev": asked.turns_stddev,
        "delay_ms": asked.delay_ms,
        "delay_ms_stddev": asked.delay_ms_stddev,
        "history": asked.history,
    }
    given: dict[str, object] = {key: value for key, value in wanted.items() if value is not None}
    if "turns" not in given and asked.dataset is None:
        given["turns"] = 1
    return given


def _goodput(objectives: Sequence[str]) -> Goodput | None:
    """raises UsageError for what is not NAME:MS"""
    limits: dict[str, float] = {}
    for text in objectives:
        name, _, number = text.partition(":")
        if name not in OBJECTIVES or not _MS.fullmatch(number) or not 0 < float(number) <= GOODPUT_MS_MAX:
            raise UsageError(
                f"--goodput: expected {', '.join(OBJECTIVES)} with ms, such as ttft:200, got {text[:60]!r}"
            )
        limits[OBJECTIVES[name]] = float(number)
    return Goodput(**limits) if limits else None


def _load(asked: Asked) -> str:
    if asked.trace is not None:
        if asked.rates or asked.steps:
            raise UsageError("--trace has its own times: leave rates away, or stretch it with --speed-up")
        return "trace"
    if asked.steps:
        if asked.rates or asked.burstiness is not None:
            raise UsageError("--rate-steps are rates already: leave --request-rate and --burstiness away")
        return "steps"
    if not asked.rates:
        if asked.pattern is not None or asked.burstiness is not None:
            raise UsageError("--arrival-pattern and --burstiness go with --request-rate: give it, or leave them away")
        return "closed"
    if asked.pattern is not None:
        return asked.pattern
    return "poisson" if asked.burstiness is None else "gamma"


def _name(asked: Asked, load: str) -> str:
    if load == "trace":
        return "trace"
    lengths = f"{asked.input_tokens or 512}x"
    if asked.prompt is not None or asked.dataset is not None:
        lengths = "prompt-x" if asked.dataset is None else "dataset-x"
    several = load if len(asked.rates) > 1 or load != "closed" else ""
    return "-".join(filter(None, (f"{lengths}{asked.output_tokens or 128}", several)))


def _end(asked: Asked, load: str) -> dict[str, object]:
    if asked.until is not None:
        if not asked.requests and asked.duration_s is None:
            raise UsageError("--until may never be reached: give a limit too, --request-count or --benchmark-duration")
        most: dict[str, object] = {"metric": asked.until[0], "half_width": asked.until[1]}
        if asked.requests:
            most["at_most_requests"] = asked.requests[0]
        if asked.duration_s is not None:
            most["at_most_s"] = asked.duration_s
        return {"until": most}
    end: dict[str, object] = {}
    if asked.requests:
        end["requests"] = _one_or_all(asked.requests)
    if asked.sessions:
        end["sessions"] = _one_or_all(asked.sessions)
    if asked.duration_s is not None:
        end["duration_s"] = asked.duration_s
    if not end and load == "closed" and asked.in_sessions:
        end["sessions"] = _one_or_all([10 * concurrency for concurrency in asked.concurrency or (1,)])
    elif not end and load not in ("trace", "steps"):
        if asked.in_sessions:
            return {"sessions": 100}
        end["requests_per_slot" if load == "closed" else "requests"] = 10 if load == "closed" else 100
    return end


def _one_or_all(numbers: Sequence[float]) -> object:
    return numbers[0] if len(numbers) == 1 else list(numbers)


def _of_flag(message: str, *, in_steps: bool) -> str:
    """`command line:1: input_tokens: expected ...` -> `--isl: expected ...`"""
    said = message.removeprefix(f"{SOURCE}:1: ").removeprefix(f"{SOURCE}: ")
    key, separator, rest = said.partition(": ")
    flags = FLAGS | {"rate": "--rate-steps"} if in_steps else FLAGS
    if not separator or key not in flags:
        return said
    for name in IN_MESSAGES:
        rest = rest.replace(f"`{name}`", flags[name])
    return f"{flags[key]}: {rest}"
