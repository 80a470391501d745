"""A worker's first run: kernels to compile, CUDA graphs to capture, slow first connections. Modelled; docs/compute.md.

Pure: says how much longer a step or a connection takes, and remembers what is paid. Waiting is the worker's own step
clock (and the mover's, for connections), so that its message loop goes on meanwhile.
"""

import msgspec

from kvgauge.plan.records import ColdStart

STEPS_COMPILED = 2  # of one request: its prefill step and its first decode step


class Paid(msgspec.Struct, array_like=True, frozen=True):
    """What one worker process has paid so far. `graphs`: the batch sizes captured, in the order they came."""

    compile_ns: int
    graphs: list[int]
    graphs_ns: int

    @property
    def line(self) -> str:
        """`compile 20 s; graphs of batch sizes 1, 2, 5: 1.2 s`"""
        said = [f"compile {self.compile_ns / 1e9:g} s"] if self.compile_ns else []
        if self.graphs:
            sizes = ", ".join(map(str, sorted(self.graphs)))
            said.append(f"graphs of batch sizes {sizes}: {self.graphs_ns / 1e9:g} s")
        return "; ".join(said)


class Cold:
    """What one worker process has still to pay; a worker that is started again begins with a new one.

    start    None: nothing
    compute  multiplies compile and capture as it does every modelled step, 0 takes them away; not connections
    """

    def __init__(self, start: ColdStart | None, compute: float) -> None:
        start = start or ColdStart()
        self._compile_ns = round(start.compile_s * 1e9 * compute)
        self._capture_ns = round(start.graph_capture_s * 1e9 * compute)
        self._batch_max = start.graph_batch_max
        self._connect_ns = connect_ns(start)
        self._compiled = False
        self._graphs: list[int] = []

    def prefill_ns(self) -> int:
        """What a prefill step that begins now takes beyond a warm one."""
        return self._compile()

    def decode_ns(self, sequences: int) -> int:
        """What a decode step of so many sequences that begins now takes beyond a warm one.

        Above the largest captured batch a step runs without a graph: it captures nothing, now or later.
        """
        due_ns = self._compile()
        if self._capture_ns and sequences <= self._batch_max and sequences not in self._graphs:
            self._graphs.append(sequences)
            due_ns += self._capture_ns
        return due_ns

    def _compile(self) -> int:
        due_ns = 0 if self._compiled else self._compile_ns
        self._compiled = True
        return due_ns

    @property
    def patience_ns(self) -> int:
        """Most that a request may wait for others' cold starts: what waits for it is kept that much longer."""
        return STEPS_COMPILED * self._compile_ns + self._batch_max * self._capture_ns + self._connect_ns

    @property
    def paid(self) -> Paid:
        compile_ns = self._compile_ns if self._compiled else 0
        return Paid(compile_ns, list(self._graphs), len(self._graphs) * self._capture_ns)


def connect_ns(start: ColdStart | None) -> int:
    """What the first connection of a pair of workers takes beyond NIXL's own."""
    return round(start.connect_s * 1e9) if start is not None else 0
