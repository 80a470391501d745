"""What the same machine can do without NIXL: a copy in memory, a plain TCP stream, a copy on the device."""

import os
import socket
import time
from contextlib import suppress

import numpy as np

from kvgauge.failures import TransferError
from kvgauge.xfer.cuda import Device

COPY_BYTES_MAX = 256 << 20
CHUNK_BYTES = 1 << 20
STREAM_TIMEOUT_S = 5.0
NONCE_BYTES = 16


def host_copy(size_bytes: int, duration_s: float) -> tuple[int, int]:
    """(bytes, ns) of copies from one host buffer into another, both of the transfer's size, again and again."""
    words = max(1, min(size_bytes, COPY_BYTES_MAX) // 8)
    source, destination = np.ones(words, dtype=np.uint64), np.zeros(words, dtype=np.uint64)
    np.copyto(destination, source)  # its pages are there before the clock runs
    done, began = 0, time.monotonic_ns()
    while True:
        np.copyto(destination, source)
        done += words * 8
        took = time.monotonic_ns() - began
        if took >= duration_s * 1e9:
            return done, took


def device_copy(gpu: Device, size_bytes: int, duration_s: float) -> tuple[int, int]:
    """The same on a GPU. raises TransferError"""
    size = min(size_bytes, COPY_BYTES_MAX)
    source, destination = gpu.allocate(size), gpu.allocate(size)
    try:
        gpu.copy(destination, source, size)
        gpu.finish()
        done, began = 0, time.monotonic_ns()
        until = began + int(duration_s * 1e9)
        while time.monotonic_ns() < until or done == 0:
            for _ in range(8):
                gpu.copy(destination, source, size)
            gpu.finish()
            done += 8 * size
        return done, time.monotonic_ns() - began
    finally:
        gpu.free(source)
        gpu.free(destination)


def listen(host: str) -> socket.socket:
    """A socket that waits for one stream, on a port the kernel chose. raises OSError"""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    server = socket.socket(family, socket.SOCK_STREAM)
    try:
        server.bind((host, 0))
        server.listen(4)
    except OSError:
        server.close()
        raise
    server.settimeout(0.2)
    return server


def take_stream(server: socket.socket, nonce: bytes) -> tuple[int, int]:
    """(bytes, ns from the first to the last) of the stream that begins with `nonce`; strangers are hung up on.

    raises TransferError when none comes
    """
    until = time.monotonic() + STREAM_TIMEOUT_S
    with server:
        while time.monotonic() < until:
            try:
                peer, _ = server.accept()
            except TimeoutError:
                continue
            with peer:
                peer.settimeout(STREAM_TIMEOUT_S)
                with suppress(OSError):
                    if _nonce(peer) == nonce:
                        return _drain(peer)
    raise TransferError(f"no TCP stream came within {STREAM_TIMEOUT_S:g} s: is its port behind a firewall?")


def _nonce(peer: socket.socket) -> bytes:
    got = b""
    while len(got) < NONCE_BYTES and (part := peer.recv(NONCE_BYTES - len(got))):
        got += part
    return got


def _drain(peer: socket.socket) -> tuple[int, int]:
    buffer = bytearray(CHUNK_BYTES)
    count, done = peer.recv_into(buffer), 0
    began = last = time.monotonic_ns()
    while count and last - began < STREAM_TIMEOUT_S * 1e9:
        count = peer.recv_into(buffer)
        done += count
        last = time.monotonic_ns()
    return done, max(1, last - began)


def send_stream(host: str, port: int, nonce: bytes, duration_s: float) -> None:
    """Send zeros there for so long. raises OSError"""
    data = memoryview(bytes(CHUNK_BYTES))
    with socket.create_connection((host, port), timeout=STREAM_TIMEOUT_S) as stream:
        stream.sendall(nonce)
        until = time.monotonic() + duration_s
        while time.monotonic() < until:
            stream.sendall(data)
        stream.shutdown(socket.SHUT_WR)
        with suppress(OSError):
            stream.recv(1)  # until the other side has read everything and closed


def new_nonce() -> bytes:
    return os.urandom(NONCE_BYTES)
