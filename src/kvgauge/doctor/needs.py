"""What is asked of the machine: by a plan or, without one, by its devices and variables. Pure."""

import msgspec

from kvgauge.doctor.records import Facts
from kvgauge.load.open_files import needed as files_needed
from kvgauge.plan.records import Plan, Test

EMBEDDED_FABRIC = "tcp"  # all that kvgauge's own workers use
CLIENT_AND_FRONTEND_CORES = 2


class Needs(msgspec.Struct, frozen=True, kw_only=True):
    """asked  (backend, fabric) pairs that have to work: what keeps one of them from working is a problem
    why    each pair's reason, in words
    tests  of the plan; empty without one
    """

    looked_for: str
    asked: tuple[tuple[str, str], ...] = ()
    why: tuple[str, ...] = ()
    plan: Plan | None = None

    @property
    def backends(self) -> frozenset[str]:
        return frozenset(backend for backend, _ in self.asked)

    @property
    def fabrics(self) -> frozenset[str]:
        return frozenset(fabric for _, fabric in self.asked)

    @property
    def rdma(self) -> list[str]:
        """The fabrics asked for that register memory with a device."""
        return sorted(self.fabrics & {"efa", "ib"})

    @property
    def embedded(self) -> tuple[Test, ...]:
        """Tests that kvgauge's own workers can run here."""
        return tuple(test for test in self.plan.tests if test.fabric == EMBEDDED_FABRIC) if self.plan else ()

    @property
    def engines(self) -> bool:
        """Whether engines other than kvgauge's own workers are meant: all that is not a plan over tcp."""
        return self.plan is None or len(self.embedded) < len(self.plan.tests)

    @property
    def files(self) -> int | None:
        """Open files of the busiest process."""
        return files_needed(self.plan, embedded=bool(self.embedded)) if self.plan else None

    @property
    def connections(self) -> int | None:
        """The most requests under way at a time."""
        return max((cell.concurrency for cell in self.plan.cells), default=None) if self.plan else None

    @property
    def cores(self) -> float:
        """Cores that spin at a time: client and frontend, and each agent's progress thread where a test wants them."""
        spinning = [
            test.prefill_workers * test.prefill_tp + test.decode_workers * test.decode_tp
            for test in self.embedded
            if test.progress_thread
        ]
        return CLIENT_AND_FRONTEND_CORES + max(spinning, default=0)


def of_plan(plan: Plan) -> Needs:
    asked = tuple(dict.fromkeys((test.backend, test.fabric) for test in plan.tests if test.expect == "valid"))
    return Needs(
        looked_for=f"plan {plan.name} ({plan.source})",
        asked=asked,
        why=tuple(f"{backend} over {fabric}" for backend, fabric in asked),
        plan=plan,
    )


def of_machine(facts: Facts) -> Needs:
    """Without a plan: what the devices and the variables say this machine is for."""
    found: dict[tuple[str, str], str] = {}
    variables = facts.variables
    efa, ib = facts.fabrics.of("efa"), facts.fabrics.of("mlx5")
    fabric = "efa" if efa else "ib" if ib else None
    for name in ("TRTLLM_NIXL_KVCACHE_BACKEND", "SGLANG_DISAGGREGATION_NIXL_BACKEND"):
        if (backend := variables.get(name, "").strip()) in ("UCX", "LIBFABRIC"):
            found.setdefault((backend, fabric or "tcp"), f"{name}={backend}")
    if "efa" in variables.get("FI_PROVIDER", "").split(","):
        found.setdefault(("LIBFABRIC", "efa"), "FI_PROVIDER names efa")
    words = variables.get("UCX_TLS", "").split(",")
    if "srd" in words:
        found.setdefault(("UCX", "efa"), "UCX_TLS names srd")
    elif not efa and {"ib", "rc", "rc_x", "rc_v", "dc", "dc_x", "rc_mlx5", "dc_mlx5", "rc_verbs"} & set(words):
        found.setdefault(("UCX", "ib"), "UCX_TLS names InfiniBand transports")
    if efa:
        found.setdefault(("LIBFABRIC", "efa"), f"{len(efa)} EFA devices are here")
    if ib:
        found.setdefault(("UCX", "ib"), f"{len(ib)} mlx5 devices are here")
    return Needs(
        looked_for="this machine",
        asked=tuple(found),
        why=tuple(f"{backend} over {over} ({reason})" for (backend, over), reason in found.items()),
    )
