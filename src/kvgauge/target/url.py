"""A deployment that is already there: measured as it stands, never started, stopped or changed.

Nothing here sees the transport. What runs behind the URL is what the plan's test says, on the user's word, and every
result says "unproved"; unless a proof was asked for: then it says what that found.
"""

from collections.abc import Callable

from kvgauge.evidence import machine
from kvgauge.evidence.clocks import Clocks, changes, read_clocks
from kvgauge.evidence.facts import Evidence, Fact, Missing, Proving
from kvgauge.failures import TargetError
from kvgauge.plan.records import Run, Test
from kvgauge.samples.records import Transfer
from kvgauge.target.contract import Endpoint

READY_TIMEOUT_S = 30.0
UNPROVED = (
    "a url target sees requests and answers only: which backend and fabric carried the KV cache is unproved, "
    "the plan's word stands for it"
)
UNCOUNTED = "not counted of a url target; proof.json has what the proof found in the workers' logs"


class UrlTarget:
    """wait_ready, models   how to ask the server; given, so that this module needs no HTTP of its own
    proxy                what stands before it, without a password
    prove                finds out, after a run's last cell and untimed, what its KV moved over; None: nobody asked"""

    def __init__(
        self,
        url: str,
        *,
        wait_ready: Callable[[str, float], None],
        models: Callable[[str], list[str]],
        model: str | None = None,
        proxy: str | None = None,
        prove: Callable[[Test, str], Proving] | None = None,
    ) -> None:
        self._url, self._wait_ready, self._models, self._model = url, wait_ready, models, model
        self._proxy, self._prove = proxy, prove
        self._run: tuple[Test, str] | None = None
        self._before: machine.Snapshot | None = None
        self._clocks: Clocks | None = None

    def prepare(self, test: Test) -> None:  # noqa: ARG002 - the contract gives it
        """raises LoadError when nothing answers there."""
        self._wait_ready(self._url, READY_TIMEOUT_S)

    def start(self, run: Run) -> Endpoint:
        """raises TargetError when the model is not served, or several are and none was named."""
        served = self._models(self._url)
        model = self._model or (served[0] if len(served) == 1 else run.test.model)
        if model not in served:
            raise TargetError(
                f"{self._url} serves {', '.join(served) or 'no model'}, not {model}: name one of them with --model"
            )
        self._before, self._clocks = machine.read_snapshot(machine.own_pid()), read_clocks()
        self._run = run.test, model
        return Endpoint(url=self._url, model=model, fresh=False, same_clock=False)

    def evidence(self) -> Evidence:
        """Nothing of the transport, but what a proof finds; of this machine, what the client used."""
        after, clocks = machine.read_snapshot(machine.own_pid()), read_clocks()
        url = Fact(name="url", value=self._url, shown_by="the command line")
        way = () if self._proxy is None else (Fact(name="proxy", value=self._proxy, shown_by="the command line"),)
        proving = self._prove(*self._run) if self._prove is not None and self._run is not None else None
        elsewhere = Missing(reason=UNPROVED if proving is None else UNCOUNTED)
        return Evidence(
            backends={},
            providers=(),
            facts=(url, *way, *changes(self._clocks or clocks, clocks)),
            connections=(),
            handshakes_nixl=elsewhere,
            handshakes_efa=elsewhere,
            wire_bytes=elsewhere,
            gpu_memory_bytes=Missing(reason="the deployment's GPUs are not on this machine"),
            build_sha256={},
            machine=machine.use(self._before or after, after),
            unobserved=UNPROVED if proving is None else None,
            proving=proving,
        )

    def phases(self) -> list[Transfer]:
        return []

    def trouble(self) -> str | None:
        """Whatever goes wrong there shows in the answers."""
        return None

    def mend(self) -> list[str]:
        """Somebody else's deployment: nothing is started again there."""
        return []

    def serving(self) -> bool:
        """Whether it answers is for its requests to show."""
        return True

    def wait_serving(self) -> None:
        """As `serving`."""

    def stop(self) -> None:
        """It is not ours to stop."""

    def restore(self) -> None:
        """Nothing was changed."""
