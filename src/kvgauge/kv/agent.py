"""One NIXL agent: registered memory, peers, prepared descriptor lists. Times what connecting costs.

A thin edge over the wheel's own API, which differs a little from version to version (facts checked on 0.9 to 1.5).
"""

import inspect
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Literal

from kvgauge.failures import TransferError
from kvgauge.kv.layout import Int32, UInt64

State = Literal["DONE", "PROC", "ERR"]
Handle = Any

# When a peer dies, LIBFABRIC reports each of its cancelled operations by itself, thousands perhaps, as a failure of
# whatever is asked of the rail next: the poll, or the state of another transfer. And a transfer released before its
# last such report has come is written to after it was freed: others then seem done without having moved a byte.
# So after an error the rail is polled until it is clean, and nothing that failed is released before it was quiet.
RAIL_QUIET_NS = 1_000_000_000
RAIL_DRAIN_NS = 10_000_000  # of one poll: requests with other peers go on meanwhile
RAIL_GIVE_UP_NS = 30_000_000_000


class Agent:
    """An agent with one backend. Without its progress thread the owner must call `poll` often, on both sides."""

    def __init__(
        self, api: Any, name: str, backend: str, *, progress_thread: bool, threads: int = 0, telemetry: bool = True
    ) -> None:
        """threads  of the backend's own, where it has such (NIXL's num_threads); 0: none"""
        wanted = {
            "enable_prog_thread": progress_thread,
            "capture_telemetry": telemetry,
            "backends": [backend],
        } | ({"num_threads": threads} if threads else {})
        known = inspect.signature(api.nixl_agent_config.__init__).parameters
        self.name = name
        self.backend = backend
        self._api = api
        try:
            config = api.nixl_agent_config(**{key: value for key, value in wanted.items() if key in known})
            self._agent = api.nixl_agent(name, config)
        except Exception as error:  # the wheel raises its own types, one per status code
            raise TransferError(f"NIXL agent {name} did not start with {backend}: {_text(error)}") from error
        self._registered: list[Any] = []
        self._rail = backend == "LIBFABRIC"  # one for all transfers, errors included
        self._error_ns = -RAIL_QUIET_NS  # the rail's last error
        self._failing_ns: int | None = None  # since when every poll has failed
        self._suspects: set[int] = set()  # transfers that met an error, their own or another's
        self._kept: list[Handle] = []  # to be released once the rail is quiet
        self._leaving: list[tuple[str, Sequence[Any]]] = []  # peers to be forgotten then

    @property
    def wheel(self) -> Any:
        """The wheel's own agent, for a loop in which one more Python call would be measured too."""
        return self._agent

    def register(self, address: int, size_bytes: int, memory: str = "DRAM", device: int = 0) -> None:
        """Make host memory (DRAM) or that of a GPU (VRAM) reachable for peers. raises TransferError"""
        try:
            self._registered.append(self._agent.register_memory([(address, size_bytes, device, "")], memory))
        except Exception as error:
            raise TransferError(f"{self.backend} cannot register {size_bytes} bytes: {_text(error)}") from error

    @property
    def metadata(self) -> bytes:
        """What a peer needs to reach this agent; only complete after `register`."""
        return bytes(self._agent.get_agent_metadata())

    def connect(self, metadata: bytes) -> tuple[str, int, int | None]:
        """Add a peer and connect to it: (its name, ns in add_remote_agent, ns in make_connection or None).

        raises TransferError
        """
        began = time.monotonic_ns()
        try:
            name = self._agent.add_remote_agent(metadata)
            added = time.monotonic_ns()
            peer = name.decode() if isinstance(name, bytes) else str(name)
            if not hasattr(self._agent, "make_connection"):
                return peer, added - began, None
            self._agent.make_connection(peer)
        except Exception as error:
            raise TransferError(f"{self.name} cannot connect over {self.backend}: {_text(error)}") from error
        return peer, added - began, time.monotonic_ns() - added

    def tell(self, peer: str, note: bytes) -> None:
        """Send a notification that belongs to no transfer. raises TransferError"""
        try:
            self._agent.send_notif(peer, note)
        except Exception as error:
            raise TransferError(f"{self.name} cannot notify {peer}: {_text(error)}") from error

    def prepare(self, descriptors: UInt64, peer: str | None = None, memory: str = "DRAM") -> Any:
        """A prepared descriptor list of our own memory, or of a connected peer's. raises TransferError"""
        try:
            return self._agent.prep_xfer_dlist(peer or "NIXL_INIT_AGENT", descriptors, memory)
        except Exception as error:
            raise TransferError(f"{self.name} cannot prepare {len(descriptors)} descriptors: {_text(error)}") from error

    def forget(self, peer: str, prepared: Sequence[Any]) -> None:
        """Drop a peer that has ended and the lists prepared for it. A build that cannot leaves them until we end."""
        self._leaving.append((peer, prepared))
        self._tidy()

    def _quiet(self) -> bool:
        return not self._rail or time.monotonic_ns() - self._error_ns >= RAIL_QUIET_NS

    def _tidy(self) -> None:
        """Do what had to wait for the rail to be quiet."""
        if not (self._kept or self._leaving) or not self._quiet():
            return
        for handle in self._kept:
            with suppress(Exception):
                self._agent.release_xfer_handle(handle)
        for peer, prepared in self._leaving:
            for handle in prepared:
                with suppress(Exception):
                    self._agent.release_dlist_handle(handle)
            with suppress(Exception):  # AttributeError in a build without the call; else the peer was never whole
                self._agent.remove_remote_agent(peer)
        self._kept, self._leaving = [], []

    def post(
        self, operation: str, local: tuple[Any, Int32], remote: tuple[Any, Int32], notification: bytes
    ) -> tuple[Handle, State]:
        """Start one transfer between rows of prepared lists. raises TransferError"""
        try:
            handle = self._agent.make_prepped_xfer(operation, local[0], local[1], remote[0], remote[1], notification)
        except Exception as error:
            raise TransferError(f"{self.name} cannot prepare a {operation}: {_text(error)}") from error
        try:
            return handle, self._agent.transfer(handle)
        except Exception as error:
            with suppress(TransferError):
                self.release(handle)
            raise TransferError(f"{self.name} cannot post a {operation}: {_text(error)}") from error

    def state(self, handle: Handle) -> State:
        """Progress and state of one transfer; ERR also when asking raised, and only when it may be released."""
        if self._failing_ns is not None:
            return "PROC"
        if id(handle) in self._suspects:
            return "ERR" if self._quiet() else "PROC"
        try:
            state: State = self._agent.check_xfer_state(handle)
        except Exception:
            state = "ERR"
        if state == "ERR" and self._rail:
            self._error_ns = self._failing_ns = time.monotonic_ns()
            self._suspects.add(id(handle))
            return "PROC"
        return state

    def used_backend(self, handle: Handle) -> str:
        """Which backend NIXL says carries this transfer."""
        try:
            return str(self._agent.query_xfer_backend(handle))
        except Exception as error:
            return f"unknown ({_text(error)})"

    def moved_bytes(self, handle: Handle) -> int | None:
        """What NIXL's own telemetry counted for this transfer; None where this build keeps none."""
        try:
            return int(self._agent.get_xfer_telemetry(handle).totalBytes)
        except Exception:
            return None

    def release(self, handle: Handle) -> None:
        """Give a transfer back; one that still runs is cancelled where the backend can. raises TransferError"""
        self._suspects.discard(id(handle))
        if not self._quiet():
            self._kept.append(handle)
            return
        try:
            self._agent.release_xfer_handle(handle)
        except Exception as error:
            raise TransferError(f"{self.name} cannot release a transfer: {_text(error)}") from error

    def poll(self) -> list[bytes]:
        """Drive progress and return the notifications that arrived. raises TransferError"""
        began_ns = time.monotonic_ns()
        while isinstance(arrived := self._poll(), Exception):
            now_ns = self._error_ns = time.monotonic_ns()
            self._failing_ns = self._failing_ns or now_ns
            if not self._rail or now_ns - self._failing_ns > RAIL_GIVE_UP_NS:
                raise TransferError(f"{self.name} cannot poll {self.backend}: {_text(arrived)}") from arrived
            if now_ns - began_ns > RAIL_DRAIN_NS:
                return []
        self._failing_ns = None
        self._tidy()
        return [note for notes in arrived.values() for note in notes]

    def _poll(self) -> dict[Any, list[bytes]] | Exception:
        try:
            arrived: dict[Any, list[bytes]] = self._agent.get_new_notifs()
        except Exception as error:
            return error
        return arrived


def _text(error: Exception) -> str:
    return str(error) or type(error).__name__
