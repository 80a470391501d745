"""The procedure: ask, read counters, send unique prompts, read counters again, read logs. Bounded by a time.

It changes nothing there: it sends requests that any client could send, and GETs /metrics. Files and counters of this
machine are only read.
"""

import platform
import secrets
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path

import msgspec

from kvgauge.evidence import counters, efa, logs, trtllm
from kvgauge.evidence.counters import Counted
from kvgauge.evidence.prometheus import Key, parse
from kvgauge.evidence.sums import Claim, Geometry
from kvgauge.evidence.transport import Want
from kvgauge.failures import LoadError
from kvgauge.load import site as sites
from kvgauge.load.answers import UNREADABLE, error_message
from kvgauge.load.asking import PATHS
from kvgauge.load.drive import Driver
from kvgauge.load.headers import NO_HEADERS, Headers
from kvgauge.load.prompts import TOKEN_ID_HIGH, TOKEN_ID_LOW, body_of, sample_text, words
from kvgauge.load.tls import Tls
from kvgauge.models import MODELS, copies, kv_bytes_per_token
from kvgauge.plan.records import Cell
from kvgauge.prove.answers import Answered
from kvgauge.prove.answers import claim as answers_claim
from kvgauge.prove.judge import Observed, Proof, judged
from kvgauge.samples.records import Exchange
from kvgauge.scrape.source import FETCH_TIMEOUT_S, origin_metrics

AFTER_S = 6.0  # kept for the scrapes and logs behind the requests
DRAIN_SHARE = 0.2  # of the time for requests, kept for those under way to end: one that is cut off spoils the sum
WARM_SHARE = 0.4  # of the time, at most, for the first answer: it waits for the workers to find each other
SETTLE_S, SETTLE_STEP_S = 4.0, 0.4  # exporters lag: NIXL's by 0.1 s, an engine's by a step
IDLE_SHARE = 0.25  # of the time left, at most, for requests to end that we gave up: they would be counted
SCRAPE_TRIES = 3  # of a worker that was named, FETCH_TIMEOUT_S each
ANSWERS_SHARE = 0.25  # of the time, for greedy answers
ANSWER_WORDS, ANSWER_TOKENS, ASK_S = 64, 24, 10.0  # ASK_S: an answer's, or a tenth of all time
CSV_HEAD = 200

Series = dict[Key, float]


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """What to prove, and how.

    shape        bytes a token; None: by the model's name in our table, with kv_dtype and tp of the decode side
    logs         of the workers; TensorRT-LLM's CSV files among them
    token_ids    range the prompts' token ids are from; above the vocabulary servers refuse them
    """

    url: str
    model: str | None = None
    workers: tuple[str, ...] = ()
    logs: tuple[Path, ...] = ()
    reference: str | None = None
    reference_model: str | None = None
    seconds: float = 60.0
    requests: int = 200
    concurrency: int = 4
    input_tokens: int = 512
    output_tokens: int = 8
    answers: int = 16
    block_tokens: int = 16
    token_bytes: int | None = None
    kv_model: str | None = None
    kv_dtype: str = "bf16"
    tp: int = 1
    token_ids: tuple[int, int] = (TOKEN_ID_LOW, TOKEN_ID_HIGH)
    want: Want = Want()
    headers: Headers = NO_HEADERS
    tls: Tls | None = None


def prove(
    task: Task, say: Callable[[str], None] = lambda _line: None, stop: Callable[[], bool] = lambda: False
) -> Proof:
    """stop: asked often; True ends it early, with what there is.

    raises LoadError where nothing could be measured: no answer, no model, or every request failed"""
    began = time.monotonic()
    deadline = began + task.seconds
    model = _model(task)
    geometry, unknown = _geometry(task, model)
    late = _warm_up(task, model, WARM_SHARE * task.seconds)
    answers, unanswered = _answers(
        task, model, time.monotonic() + ANSWERS_SHARE * (deadline - time.monotonic()), say, stop
    )
    if late or unanswered:
        _wait_idle(task, time.monotonic() + IDLE_SHARE * (deadline - time.monotonic()))
    silent, before = _scrape(task)
    csv_before = {path: sum(1 for _ in _rows(path)) for path in task.logs if _is_csv(path)}
    efa_before = efa.read_ports()
    left_s = max(1.0, deadline - AFTER_S - time.monotonic())
    say(f"sending up to {task.requests} unique prompts of {task.input_tokens} tokens, for at most {left_s:.0f} s")
    exchanges = _load(task, model, left_s, stop)
    answered = [each for each in exchanges if each.failure is None]
    if not answered:
        first = exchanges[0].detail or exchanges[0].failure if exchanges else "none was sent"
        raise LoadError(f"none of {len(exchanges)} requests was answered, so nothing was measured; the first: {first}")
    say("reading counters and logs")
    after = _settled(task, before)
    efa_after = efa.read_ports()
    observed = Observed(
        prompts=tuple(_length(task, each) for each in answered),
        failed=tuple(_length(task, each) for each in exchanges if each.failure is not None),
        geometry=geometry,
        unknown=unknown,
        sources=after,
        silent=silent,
        logs=tuple(_log(path) for path in task.logs if not _is_csv(path)),
        csv={path.name: tuple(islice(_rows(path), skip, None)) for path, skip in csv_before.items()},
        efa=efa.moved(efa_before, efa_after) if efa_before else None,
        answers=answers,
        answers_wanted=task.reference is not None,
        want=task.want,
    )
    claims, verdict, headline = judged(observed)
    return Proof(
        url=task.url,
        model=model,
        verdict=verdict,
        headline=headline,
        claims=tuple(claims),
        requests=len(answered),
        failed=len(exchanges) - len(answered),
        took_s=round(time.monotonic() - began, 3),
    )


def _model(task: Task) -> str:
    if task.model is not None:
        return task.model
    return _only_model(task.url, task.headers, task.tls)


def _only_model(url: str, headers: Headers, tls: Tls | None) -> str:
    served = sites.models(url, headers=headers, tls=tls)
    if len(served) != 1:
        raise LoadError(f"{url} serves {', '.join(served) or 'no model'}: name the one to ask with --model")
    return served[0]


def _geometry(task: Task, served: str) -> tuple[Geometry | None, str | None]:
    """What a token is, or why that is not known."""
    if task.token_bytes is not None:
        return Geometry(token_bytes=task.token_bytes, block_tokens=task.block_tokens, copies=1, said="as given"), None
    name = task.kv_model or _known(served)
    if name is None:
        return None, f"{served} is not in kvgauge's table of models"
    known = MODELS[name]
    return (
        Geometry(
            token_bytes=kv_bytes_per_token(known, task.kv_dtype),
            block_tokens=task.block_tokens,
            copies=copies(known, task.tp),
            said=f"{name}, {task.kv_dtype}",
        ),
        None,
    )


def _known(served: str) -> str | None:
    """`Qwen/Qwen3-0.6B`, `/models/qwen3-0.6b` and `Qwen3-0.6B-Instruct` are models we know."""
    last = served.rstrip("/").rpartition("/")[2].lower()
    found = [name for name in MODELS if last == name.lower() or last == f"{name.lower()}-instruct"]
    return found[0] if found else None


def _length(task: Task, exchange: Exchange) -> int:
    """As the server counted it; where it did not, as it was asked."""
    return task.input_tokens if exchange.tokens_in is None else exchange.tokens_in


# -- requests


def _load(task: Task, model: str, seconds: float, stop: Callable[[], bool]) -> list[Exchange]:
    cell = Cell(
        name=f"prove-{secrets.token_hex(4)}",  # no cache has seen these prompts, whoever proved here before
        load="closed",
        concurrency=task.concurrency,
        requests=task.requests,
        output_tokens=task.output_tokens,
        warmup_requests=0,
        input_tokens=task.input_tokens,
    )
    exchanges: list[Exchange] = []
    with Driver(
        task.url,
        model,
        host=platform.node(),
        tls=task.tls,
        headers=task.headers,
        token_ids=task.token_ids,
        request_timeout_s=max(5.0, min(60.0, seconds)),
        stagger_s=0.0,
    ) as driver:
        until = time.monotonic() + seconds
        last = until - DRAIN_SHARE * seconds
        driver.run_cell(
            cell,
            run_id="prove",
            seed=secrets.randbits(31),
            on_exchange=exchanges.append,
            stop=lambda: stop() or time.monotonic() > until,
            enough=lambda: time.monotonic() > last,
        )
    return [each for each in exchanges if each.failure != "unsent"]


def _answers(
    task: Task, model: str, deadline: float, say: Callable[[str], None], stop: Callable[[], bool]
) -> tuple[Claim | None, bool]:
    """(about greedy answers, one request at a time, as many as the time allows; whether one did not come)"""
    if task.answers == 0:
        return None, False
    routes = [(task.url, model, task.headers, task.tls)]
    if task.reference is not None:
        named = task.reference_model or _only_model(task.reference, NO_HEADERS, None)
        routes.append((task.reference, named, NO_HEADERS, None))
    say(f"asking {task.answers} greedy prompts twice{' of each' if len(routes) > 1 else ''}")
    known = [(sites.site_of(url, tls, headers=headers), named) for url, named, headers, tls in routes]
    got: list[Answered] = []
    troubles: list[str] = []
    ask = partial(_ask, deadline=deadline, troubles=troubles, most_s=max(ASK_S, task.seconds / 10))
    for number in range(task.answers):
        if stop() or time.monotonic() > deadline:
            break
        prompt = f"{sample_text(_text_cell(number), ANSWER_WORDS, words())} {number}. In other words:"
        both = [(ask(*route, prompt), ask(*route, prompt)) for route in known]
        got.append(Answered(url=both[0], reference=both[1] if len(both) > 1 else None))
    return answers_claim(got, troubles[0] if troubles else None), bool(troubles)


def _warm_up(task: Task, model: str, seconds: float) -> bool:
    """One request, whatever comes of it: what fails here fails again where it is told. returns whether it failed"""
    site = sites.site_of(task.url, task.tls, headers=task.headers)
    prompt = sample_text(_text_cell(-1), ANSWER_WORDS, words())
    return _ask(site, model, prompt, deadline=time.monotonic() + seconds, troubles=[], most_s=seconds) is None


def _text_cell(number: int) -> Cell:
    return Cell(name=f"prove-answers-{number}", load="single", concurrency=1, requests=1, warmup_requests=0,
                output_tokens=ANSWER_TOKENS, input_tokens=ANSWER_WORDS, stream=False, ignore_eos=False)  # fmt: skip


class _Choice(msgspec.Struct):
    text: str


class _Whole(msgspec.Struct):
    choices: list[_Choice]


def _ask(
    site: sites.Site, model: str, prompt: str, *, deadline: float, troubles: list[str], most_s: float
) -> str | None:
    """The answer; None, and why among the troubles, when there is none."""
    body = body_of(_text_cell(0), model=model, prompt=prompt, max_tokens=ANSWER_TOKENS)
    left_s = max(1.0, min(most_s, deadline - time.monotonic()))
    try:
        status, said = sites.ask(site, PATHS["completions"], body=body, timeout_s=left_s)
        if status == 200:
            return msgspec.json.decode(said, type=_Whole).choices[0].text
        troubles.append(f"{site.url}: HTTP {status}: {error_message(said)}")
    except (OSError, LoadError, IndexError, *UNREADABLE) as error:
        troubles.append(f"{site.url}: {getattr(error, 'strerror', None) or error or type(error).__name__}")
    return None


# -- counters, logs


def _scrape(task: Task) -> tuple[tuple[str, ...], dict[str, Series]]:
    """(why sources are silent, series by source). The server's own /metrics may be missing without a word."""
    own = origin_metrics(task.url)

    def tries(url: str) -> int:
        return SCRAPE_TRIES if url in task.workers else 1

    silent, found = [], {}
    urls = list(dict.fromkeys((own, *task.workers)))
    with ThreadPoolExecutor(min(16, len(urls))) as pool:
        answers = list(pool.map(lambda url: _fetch(url, task.tls if url == own else None, tries(url)), urls))
    for url, (values, why) in zip(urls, answers, strict=True):
        if values:
            found[url] = values
        elif url in task.workers:
            silent.append(f"{url} gave no series: {why or 'not Prometheus text'}")
    again = counters.told_again({url: found[url] for url in (*task.workers, own) if url in found})
    return tuple(silent), {url: values for url, values in found.items() if url not in again}


def _fetch(url: str, tls: Tls | None, tries: int) -> tuple[Series, str | None]:
    """Its series; or none, and why. A busy server may be slow to answer: it is asked again."""
    for left in reversed(range(tries)):
        try:
            status, body = sites.ask(sites.site_of(url, tls), "", timeout_s=FETCH_TIMEOUT_S)
            return (parse(body).values, None) if status == 200 else ({}, f"HTTP {status}")
        except (OSError, LoadError) as error:
            if not (left and isinstance(error, TimeoutError)):
                return {}, getattr(error, "strerror", None) or str(error)
    return {}, None


def _wait_idle(task: Task, until: float) -> None:
    """Until two scrapes find nobody at work, or until then."""
    calm = 0
    while calm < 2 and time.monotonic() < until:
        _, found = _scrape(task)
        calm = 0 if any(counters.at_work(series) for series in found.values()) else calm + 1
        time.sleep(SETTLE_STEP_S)


def _settled(task: Task, before: dict[str, Series]) -> tuple[Counted, ...]:
    """Counted once two scrapes agree: what ended last may not be in the first."""
    until = time.monotonic() + SETTLE_S
    last: tuple[Counted, ...] | None = None
    while True:
        _, after = _scrape(task)
        now = tuple(
            counters.counted(url, before.get(url, {}), series) for url, series in after.items() if url in before
        )
        if (last is not None and [each.values for each in now] == [each.values for each in last]) or (
            time.monotonic() > until
        ):
            return now
        last = now
        time.sleep(SETTLE_STEP_S)


def _log(path: Path) -> logs.LogFacts:
    lines, cut = logs.read_file(path)
    return logs.scan(lines, path.name, cut)


def _is_csv(path: Path) -> bool:
    with path.open("rb") as file:
        return trtllm.is_header(file.read(CSV_HEAD).decode("utf-8", "replace"))


def _rows(path: Path) -> Iterator[trtllm.SentRow]:
    lines, _ = logs.read_file(path)
    return trtllm.rows(lines)
