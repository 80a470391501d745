"""One NIXL agent: registered memory, peers, prepared descriptor lists. Times what connecting costs.

A thin edge over the wheel's own API, which differs a little from version to version (facts checked on 0.9 to 1.5).
"""

import inspect
import time
from typing import Any, Literal

from kvgauge.failures import TransferError
from kvgauge.kv.layout import Int32, UInt64

State = Literal["DONE", "PROC", "ERR"]
Handle = Any


class Agent:
    """An agent with one backend. Without its progress thread the owner must call `poll` often, on both sides."""

    def __init__(self, api: Any, name: str, backend: str, *, progress_thread: bool) -> None:
        wanted = {
            "enable_prog_thread": progress_thread,
            "capture_telemetry": True,
            "backends": [backend],
        }
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

    def register(self, address: int, size_bytes: int) -> None:
        """Make host memory reachable for peers. raises TransferError"""
        try:
            self._registered.append(self._agent.register_memory([(address, size_bytes, 0, "")], "DRAM"))
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

    def prepare(self, descriptors: UInt64, peer: str | None = None) -> Any:
        """A prepared descriptor list of our own memory, or of a connected peer's. raises TransferError"""
        try:
            return self._agent.prep_xfer_dlist(peer or "NIXL_INIT_AGENT", descriptors, "DRAM")
        except Exception as error:
            raise TransferError(f"{self.name} cannot prepare {len(descriptors)} descriptors: {_text(error)}") from error

    def post(
        self, operation: str, local: tuple[Any, Int32], remote: tuple[Any, Int32], notification: bytes
    ) -> tuple[Handle, State]:
        """Start one transfer between rows of prepared lists. raises TransferError"""
        try:
            handle = self._agent.make_prepped_xfer(operation, local[0], local[1], remote[0], remote[1], notification)
            return handle, self._agent.transfer(handle)
        except Exception as error:
            raise TransferError(f"{self.name} cannot post a {operation}: {_text(error)}") from error

    def state(self, handle: Handle) -> State:
        """Progress and state of one transfer; ERR also when asking raised."""
        try:
            state: State = self._agent.check_xfer_state(handle)
        except Exception:
            return "ERR"
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
        """Give a transfer back; one that still runs is cancelled where the backend can."""
        try:
            self._agent.release_xfer_handle(handle)
        except Exception as error:
            raise TransferError(f"{self.name} cannot release a transfer: {_text(error)}") from error

    def poll(self) -> list[bytes]:
        """Drive progress and return the notifications that arrived."""
        try:
            arrived = self._agent.get_new_notifs()
        except Exception as error:
            raise TransferError(f"{self.name} cannot poll {self.backend}: {_text(error)}") from error
        return [note for notes in arrived.values() for note in notes]


def _text(error: Exception) -> str:
    return str(error) or type(error).__name__
