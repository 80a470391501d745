"""A load worker: a process that is told over a private socket what to offer, and leaves files.

`python -P -m kvgauge.load.worker FD PARENT`; member.py starts it, orders.py holds what is said. It ends when the other
end of the socket does.
"""

import os
import select
import signal
import socket
import sys
import time
from collections import deque
from pathlib import Path
from types import FrameType

import msgspec

from kvgauge.failures import KvgaugeError, SamplesError
from kvgauge.load.drive import Driver
from kvgauge.load.headers import Headers
from kvgauge.load.kept import Kept, KeptWriter
from kvgauge.load.orders import (
    Alive,
    Done,
    Enough,
    Failed,
    Go,
    Line,
    Offer,
    Order,
    Ready,
    Setup,
    Stop,
    ToWorker,
    Up,
    Wave,
    WaveOver,
)
from kvgauge.load.proxy import Proxy
from kvgauge.load.texts import Said
from kvgauge.load.tls import Tls
from kvgauge.load.work import Begin
from kvgauge.parent import die_with_parent

ALIVE_S = 0.5
SEND_TIMEOUT_S = 60.0


class ConductorGone(Exception):
    """Nobody is there to work for."""


class Orders:
    """What the conductor says, sorted; and the `Pace` of the driver. stopped, enough: of the cell under way"""

    def __init__(self, line: Line) -> None:
        self._line = line
        self._decode = msgspec.msgpack.Decoder(ToWorker).decode
        self._inbox: deque[ToWorker] = deque()
        self._alive_s = 0.0
        self.stopped = self.enough = False

    def say(self, message: Order) -> None:
        self._line.send(message)

    def listen(self) -> None:
        """Sort what has come. raises ConductorGone"""
        for frame in self._line.frames():
            message = self._decode(frame)
            if isinstance(message, Stop):
                self.stopped = True
            elif isinstance(message, Enough):
                self.enough = True
            else:
                if isinstance(message, Offer):  # what was said of the last cell no longer holds
                    self.stopped = self.enough = False
                    self._inbox.clear()
                self._inbox.append(message)
        if self._line.ended:
            raise ConductorGone

    def alive(self) -> None:
        if (now_s := time.monotonic()) - self._alive_s >= ALIVE_S:
            self._alive_s = now_s
            self.say(Alive())

    def stop(self) -> bool:
        self.listen()
        self.alive()
        return self.stopped

    def next(self, *, in_cell: bool) -> ToWorker | None:
        """Wait for what comes next. None: Stop came, of the cell under way"""
        while True:
            self.listen()
            if in_cell and self.stopped:
                return None
            if self._inbox:
                return self._inbox.popleft()
            if in_cell:
                self.alive()
            poll = select.poll()
            poll.register(self._line.fileno(), select.POLLIN)
            poll.poll(ALIVE_S * 1e3)

    def begin(self, typical_ns: int | None) -> Begin | None:
        self.say(Ready(typical_ns=typical_ns))
        go = self.next(in_cell=True)
        return Begin(go.start_ns, go.stagger_ns) if isinstance(go, Go) else None

    def wave(self, ended_ns: int) -> int | None:
        self.say(WaveOver(ended_ns=ended_ns))
        wave = self.next(in_cell=True)
        return wave.due_ns if isinstance(wave, Wave) else None


def offer_share(driver: Driver, offer: Offer, orders: Orders) -> Done:
    """Offer our part of one cell; its exchanges go to the file. raises LoadError, SamplesError, ConductorGone"""
    writer = KeptWriter(Path(offer.path))
    said: list[Said] = []  # of the exchange that is handed over next
    try:
        load = driver.run_cell(
            offer.cell,
            run_id=offer.run_id,
            seed=offer.seed,
            on_exchange=lambda _exchange: None,
            account=lambda exchange, sent, fresh: writer.add(Kept(exchange, sent, fresh, said.pop() if said else None)),
            keep_text=said.append,
            tick=writer.flush,
            stop=orders.stop,
            enough=lambda: orders.enough,
            requests=offer.trace or offer.dataset,
            share=offer.share,
            pace=orders,
        )
        writer.flush()
    finally:
        writer.close()
    return Done(cpu_s=load.cpu_s, finished=not load.interrupted, clock_steps=load.clock_steps, open=load.open)


def driver_of(setup: Setup) -> Driver:
    """raises LoadError"""
    tls = None
    if setup.tls is not None:
        ca_file, insecure = setup.tls
        tls = Tls(ca_file=None if ca_file is None else Path(ca_file), insecure=insecure)
    return Driver(
        setup.url,
        setup.model,
        host=setup.host,
        tls=tls,
        headers=Headers(setup.plain, setup.secret),
        token_ids=setup.token_ids,
        worker=setup.index,
        quick_ack=setup.quick_ack,
        proxy=Proxy(setup.proxy) if setup.proxy is not None else None,
        **setup.timeouts_s,  # type: ignore[arg-type]
    )


def main(descriptor: int, parent: int) -> int:
    die_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the conductor's to handle
    signal.signal(signal.SIGTERM, _end)
    orders = Orders(Line(socket.socket(fileno=descriptor), send_timeout_s=SEND_TIMEOUT_S))
    try:
        setup = orders.next(in_cell=False)
        assert isinstance(setup, Setup), "the first order is Setup"
        with driver_of(setup) as driver:
            orders.say(Up())
            while True:
                offer = orders.next(in_cell=False)
                if isinstance(offer, Offer):
                    orders.say(offer_share(driver, offer, orders))
    except ConductorGone:
        return 0
    except KvgaugeError as error:
        orders.say(Failed(said=str(error), disk=isinstance(error, SamplesError)))
        return 1
    except Exception as error:
        orders.say(Failed(said=f"a mistake of kvgauge's own: {type(error).__name__}: {error}"))
        raise


def _end(_number: int, _frame: FrameType | None) -> None:
    os._exit(128 + signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2])))
