"""What one server is asked: where it is, what its model is called, and the requests that a cell is made of."""

from kvgauge.failures import LoadError
from kvgauge.load.answers import Asked
from kvgauge.load.lengths import TextLengths
from kvgauge.load.prompts import TOKEN_ID_HIGH, TOKEN_ID_LOW, Bodies
from kvgauge.load.sessions import Sessions
from kvgauge.load.site import Site, context_tokens
from kvgauge.load.work import Limits
from kvgauge.plan.records import Api, Cell
from kvgauge.plan.trace import FileRequest
from kvgauge.samples.records import Clock
from kvgauge.tokens.choose import Chosen

PATHS: dict[Api, str] = {"completions": "/v1/completions", "chat": "/v1/chat/completions"}
CLOCK: Clock = "monotonic"


class Asking:
    """Makes the requests of one server's cells, and what their records have in common.

    host, worker  of the records: this host, and which load worker it is
    token_ids     the range that prompts of ids are drawn from
    tokenizer     the model's own, where the user gave it: text prompts get their length by it
    """

    def __init__(
        self,
        site: Site,
        model: str,
        *,
        host: str,
        worker: int = 0,
        token_ids: tuple[int, int] = (TOKEN_ID_LOW, TOKEN_ID_HIGH),
        tokenizer: Chosen | None = None,
    ) -> None:
        self.site, self._model, self._host, self._worker = site, model, host, worker
        size = tokenizer.tokenizer.size if tokenizer is not None else token_ids[1] + 1
        self._token_ids = token_ids[0], min(token_ids[1], size - 1)
        self._texts = TextLengths(site, model, tokenizer)
        self._context_asked = False
        self._context_tokens: int | None = None

    def bodies(self, cell: Cell, seed: int, requests: tuple[FileRequest, ...]) -> Bodies | Sessions:
        """The bodies of a cell, or its conversations. requests: those of the trace or the dataset that it sends"""
        known, added = self._texts.made(cell)
        if cell.conversation is None:
            return Bodies(
                cell,
                model=self._model,
                seed=seed,
                token_ids=self._token_ids,
                requests=requests,
                added=added,
                known=known,
            )
        if not self._context_asked:
            self._context_asked, self._context_tokens = True, context_tokens(self.site, self._model)
        return Sessions(
            cell,
            cell.conversation,
            model=self._model,
            seed=seed,
            requests=requests,
            added=added,
            known=known,
            context_tokens=self._context_tokens,
        )

    def asked(self, cell: Cell, run_id: str) -> Asked:
        """What the records of all its requests have in common."""
        tls = self.site.tls
        return Asked(
            run_id=run_id,
            cell=cell.name,
            seq=0,
            warmup=False,
            slot=0,
            worker=self._worker,
            host=self._host,
            clock=CLOCK,
            tls=None if tls is None else "unverified" if tls.insecure else "verified",
            due_ns=0,
            sent_ns=0,
        )


def limits_of(*, request_s: float, connect_s: float, stall_s: float, first_token_s: float | None = None) -> Limits:
    """How long anything may take; nothing longer than the request. raises LoadError for what is not above 0"""
    if min(request_s, stall_s, connect_s) <= 0:
        raise LoadError("every timeout must be above 0 s")
    first_token_s = request_s if first_token_s is None else first_token_s
    return Limits(
        connect_ns=int(min(connect_s, request_s) * 1e9),
        first_token_ns=int(min(first_token_s, request_s) * 1e9),
        stall_ns=int(min(stall_s, request_s) * 1e9),
        request_ns=int(request_s * 1e9),
    )
