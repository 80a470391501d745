"""The clients that are compared: how each is started, and what it said, matched with the server's requests."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from truth import Times, Truth, read_side

HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One closed loop. flood: chunks to each stream in turn, as fast as sockets take them; 0: paced."""

    streams: int
    requests: int
    warmup: int
    tokens: int
    flood: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What a tool reported of its measured requests.

    numbers   the server's number of each request
    ttft_ns   from just before its last byte was sent to its first content, as the tool reports it; as long as numbers
    chunks    content chunks that it stamped, all together; None where it does not tell
    ended_ns  its last end; None where it does not tell
    cpu_s     processor seconds of the measured part, where the tool knows them better than we
    """

    numbers: Times
    ttft_ns: Times
    chunks: int | None = None
    ended_ns: int | None = None
    cpu_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """A run that is over: what the server wrote down, what was asked for, where the tool wrote."""

    truth: Truth
    setting: Setting
    folder: Path
    log: Path


class Tool(Protocol):
    name: str

    def command(self, port: int, setting: Setting, folder: Path) -> list[str]:
        """How it is started; what it writes goes below `folder`."""

    def read(self, run: Finished) -> Said:
        """What it said. raises ValueError, KeyError or OSError for what cannot be read."""


class Floor:
    """The bare C reader."""

    def __init__(self, binary: Path, stamps: str) -> None:
        self.name, self._binary, self._stamps = f"floor ({stamps} stamps)", binary, stamps

    def command(self, port: int, setting: Setting, folder: Path) -> list[str]:
        options = {
            "port": port,
            "streams": setting.streams,
            "requests": setting.requests,
            "warmup": setting.warmup,
            "chunks": setting.tokens + 2,
            "stamps": self._stamps,
            "out": folder / "reader.bin",
        }
        return [str(self._binary), *(word for name, value in options.items() for word in (f"--{name}", str(value)))]

    def read(self, run: Finished) -> Said:
        side = read_side(run.folder / "reader.bin")
        measured = side.warmup == 0
        if not (side.chunks[measured] == run.setting.tokens + 2).all():
            raise ValueError("the bare reader did not see every chunk")
        words = run.log.read_text().split()
        summary = dict(zip(words[::2], map(float, words[1::2]), strict=True))
        return Said(
            numbers=side.number[measured],
            ttft_ns=(np.abs(side.first_ns) - side.sending_ns)[measured],
            chunks=int(side.chunks[measured].sum()) - 2 * int(measured.sum()),
            ended_ns=int(side.end_ns.max()),
            cpu_s=summary["user"] + summary["system"],
        )


class Kvgauge:
    """Our load driver, in a process of its own."""

    name = "kvgauge"

    def command(self, port: int, setting: Setting, folder: Path) -> list[str]:
        options = {
            "streams": setting.streams,
            "requests": setting.requests,
            "warmup": setting.warmup,
            "tokens": setting.tokens,
            "out": folder / "drive.json",
        }
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        return [sys.executable, str(HERE / "drive.py"), f"http://127.0.0.1:{port}", *words]

    def read(self, run: Finished) -> Said:
        said = json.loads((run.folder / "drive.json").read_bytes())
        times = np.array([row[1:] for row in said["requests"]], dtype=np.int64)
        return Said(
            numbers=np.array([int(row[0].removeprefix("cmpl-"), 16) for row in said["requests"]], dtype=np.int64),
            ttft_ns=times[:, 2] - times[:, 0],
            chunks=int(times[:, 5].sum()),
            ended_ns=int(times[:, 4].max()),
            cpu_s=said["cpu_s"],
        )
