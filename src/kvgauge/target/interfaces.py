"""Which interface libfabric's tcp provider may bind: it refuses loopback, so one is chosen knowingly."""

import fcntl
import socket
import struct

SIOCGIFADDR, SIOCGIFFLAGS = 0x8915, 0x8913
IFF_UP, IFF_LOOPBACK, IFF_RUNNING = 0x1, 0x8, 0x40


def first_outward() -> tuple[str, str] | None:
    """(name, IPv4 address) of the first interface that is up and not loopback; None when there is none.

    Up means running too: libfabric passes over an interface whose carrier the kernel has not noticed yet.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _index, name in socket.if_nameindex():
            asked = struct.pack("256s", name.encode()[:15])
            try:
                flags = struct.unpack("H", fcntl.ioctl(probe, SIOCGIFFLAGS, asked)[16:18])[0]
                raw = fcntl.ioctl(probe, SIOCGIFADDR, asked)[20:24]
            except OSError:
                continue  # no address
            if flags & (IFF_UP | IFF_RUNNING | IFF_LOOPBACK) == IFF_UP | IFF_RUNNING:
                return name, socket.inet_ntoa(raw)
    return None


def holding(address: str) -> str | None:
    """The interface that has this IPv4 address; None where none has, or it is not an address."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _index, name in socket.if_nameindex():
            try:
                raw = fcntl.ioctl(probe, SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))[20:24]
            except OSError:
                continue  # no address
            if socket.inet_ntoa(raw) == address:
                return name
    return None


def towards(host: str, port: int) -> str | None:
    """Our IPv4 address on the way to a host; None where there is no way. Nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((host, port))
        except OSError:
            return None
        own: str = probe.getsockname()[0]
        return own


def main() -> None:
    """Print it, for a parent that asks from outside this network namespace: `python -m kvgauge.target.interfaces`."""
    print(*first_outward() or ())


if __name__ == "__main__":
    main()
