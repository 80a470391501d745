"""Network interfaces and ports: what LIBFABRIC's tcp provider would bind, and whether ports suffice. Pure."""

from collections.abc import Iterator

from kvgauge.doctor.needs import Needs
from kvgauge.doctor.records import Facts, Finding, Interface

PORTS_OF_ENGINES = {
    8000: "HTTP of vLLM and Dynamo",
    5600: "vLLM's NIXL side channel",
    9090: "NIXL's Prometheus exporter",
}
VIRTUAL = ("docker", "br-", "virbr", "cni", "podman", "flannel")


def judge(facts: Facts, needs: Needs) -> Iterator[Finding]:
    yield from _loopback(facts)
    yield from _bound(facts, needs)
    yield from _ports(facts, needs)


def _loopback(facts: Facts) -> Iterator[Finding]:
    loopback = [interface for interface in facts.network.interfaces if interface.loopback]
    if facts.network.interfaces and not any(interface.up for interface in loopback):
        yield Finding(
            key="network.loopback",
            level="problem",
            area="network",
            seen="the loopback interface is down",
            needed="it up: kvgauge's servers listen on 127.0.0.1",
            remedy="ip link set lo up",
            source="/sys/class/net/lo",
        )


def _bound(facts: Facts, needs: Needs) -> Iterator[Finding]:
    network = facts.network
    chosen = facts.variables.get("FI_TCP_IFACE")
    outward = [each for each in network.interfaces if each.up and not each.loopback and each.address]
    asked = ("LIBFABRIC", "tcp") in needs.asked
    if not network.interfaces:
        return
    if network.bound is None:
        yield Finding(
            key="network.bound",
            level="problem" if asked else "note",
            area="network",
            seen="no interface but loopback is up with an IPv4 address",
            needed="one: libfabric's tcp provider refuses loopback (fi_enable fails: Bad file descriptor)",
            remedy="give this network namespace one (a veth pair will do), or use UCX, which can stay on loopback",
            source="/sys/class/net; SIOCGIFADDR",
        )
        return
    bound = next((each for each in outward if each.name == network.bound), None)
    shown = _shown(bound) if bound else network.bound
    others = [each.name for each in outward if each.name != network.bound]
    among = f" of {len(outward)} ({', '.join(others[:6])} too)" if others else ""
    doubtful = bound is not None and (bound.wireless or bound.name.startswith(VIRTUAL))
    said = f"; FI_TCP_IFACE={chosen}, which engines obey and kvgauge's own workers do not see" if chosen else ""
    yield Finding(
        key="network.bound",
        level="note" if doubtful or others else "ok",
        area="network",
        seen=f"over tcp, LIBFABRIC of kvgauge's workers would listen, unauthenticated, on {shown}{among}{said}",
        needed="a wired interface towards the other host"
        if doubtful
        else "the interface you mean: it is the first that is up"
        if others
        else "",
        remedy="FI_TCP_IFACE=NAME for engines; for kvgauge's workers, run in a network namespace with one interface"
        if doubtful or others
        else "",
        source="/sys/class/net; SIOCGIFADDR; docs/decisions/0002",
    )


def _shown(interface: Interface) -> str:
    parts = [str(interface.address)]
    parts += [f"{interface.speed_mbit:,} Mbit/s"] if interface.speed_mbit else []
    parts += [f"MTU {interface.mtu}"] if interface.mtu else []
    parts += ["wireless"] if interface.wireless else []
    return f"{interface.name} ({', '.join(parts)})"


def _ports(facts: Facts, needs: Needs) -> Iterator[Finding]:
    ports = facts.network.ports
    if ports is None:
        return
    low, high = ports
    count = max(0, high - low + 1)
    wanted = 2 * (needs.connections or 0)  # a connection made anew for each request leaves one in TIME_WAIT
    inside = [f"{port} ({what})" for port, what in PORTS_OF_ENGINES.items() if low <= port <= high]
    short = count < wanted
    yield Finding(
        key="network.ports",
        level="problem" if count < (needs.connections or 0) else "warning" if short else "note" if inside else "ok",
        area="network",
        seen=f"{count:,} ephemeral ports ({low}-{high})",
        needed=f"{wanted:,} for {needs.connections} requests at a time, those in TIME_WAIT counted"
        if short
        else f"a range without the ports servers listen on: {', '.join(inside)} may be taken by an outgoing connection"
        if inside
        else "",
        remedy="sysctl net.ipv4.ip_local_reserved_ports with the ports of your servers"
        if inside and not short
        else "sysctl net.ipv4.ip_local_port_range='32768 60999'"
        if short
        else "",
        source="/proc/sys/net/ipv4/ip_local_port_range; ip(7)",
    )
