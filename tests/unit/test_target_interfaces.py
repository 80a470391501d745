"""Which interface is chosen where loopback does not do: the first that is up and has an address."""

import socket
import struct

import pytest

from kvgauge.target import interfaces

UP, LOOPBACK = interfaces.IFF_UP | interfaces.IFF_RUNNING, interfaces.IFF_LOOPBACK


@pytest.fixture
def machine(monkeypatch):
    """A machine whose interfaces are {name: (flags, address or None)}."""

    def has(given):
        def ioctl(_probe, what, asked):
            flags, address = given[asked.rstrip(b"\0").decode()]
            if what == interfaces.SIOCGIFFLAGS:
                return b"\0" * 16 + struct.pack("H", flags) + b"\0" * 238
            if address is None:
                raise OSError(99, "Cannot assign requested address")
            return b"\0" * 20 + socket.inet_aton(address) + b"\0" * 232

        monkeypatch.setattr(interfaces.fcntl, "ioctl", ioctl)
        monkeypatch.setattr(interfaces.socket, "if_nameindex", lambda: list(enumerate(given, 1)))

    return has


def test_loopback_those_that_are_down_and_those_without_an_address_are_passed_over(machine):
    machine(
        {
            "lo": (UP | LOOPBACK, "127.0.0.1"),
            "eth0": (0, "10.0.0.1"),
            "veth0": (interfaces.IFF_UP, "10.0.0.2"),  # no carrier
            "eth1": (UP, None),
            "eth2": (UP, "10.0.0.3"),
            "eth3": (UP, "10.0.0.4"),
        }
    )
    assert interfaces.first_outward() == ("eth2", "10.0.0.3")


def test_a_machine_with_loopback_alone_has_none(machine):
    machine({"lo": (UP | LOOPBACK, "127.0.0.1")})
    assert interfaces.first_outward() is None


def test_this_machines_own_is_up_and_not_loopback():
    found = interfaces.first_outward()
    assert found is None or not found[1].startswith("127.")


def test_an_address_is_found_on_its_interface_and_another_on_none():
    assert interfaces.holding("127.0.0.1") == "lo"
    assert interfaces.holding("203.0.113.9") is None
    assert interfaces.holding("no address") is None


def test_the_way_to_loopback_is_from_loopback_and_to_no_host_there_is_none():
    assert interfaces.towards("127.0.0.1", 9) == "127.0.0.1"
    assert interfaces.towards("no.such.host.invalid", 9) is None
