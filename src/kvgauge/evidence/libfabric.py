"""libfabric's own log (FI_LOG_LEVEL=info) to facts. Pure.

    libfabric:<pid>:<epoch>:<prefix>:<provider>:<subsystem>:<function>():<line><<level>> <message>

The EFA provider writes one line for each peer endpoint whose handshake came: at info level since it is called efa_rdm,
at debug level when it was rxr. It is another count than NIXL's, which is of agents.
"""

import re
from collections.abc import Iterator

from kvgauge.evidence.nixl import Seen

LINE = re.compile(
    r"libfabric:(?P<pid>\d+):\d+:[^:]*:(?P<provider>[^:]+):(?P<subsystem>[^:]+):"
    r"(?P<function>\w+)\(\):(?P<line>\d+)<(?P<level>\w+)> (?P<message>.*)"
)
_HANDSHAKE = re.compile(r"HANDSHAKE received from (?:peer with explicit fi_addr )?(\d+)")
_RULES = (
    ("peer_host", re.compile(r"Received peer host id: (i-[0-9a-f]+)")),
    ("efa_devices", re.compile(r"g_efa_selected_device_cnt=(\d+)")),
    ("efa_devices_listed", re.compile(r"ibv_get_device_list returns total_device_cnt=(\d+)")),
    ("hmem_missing", re.compile(r"Hmem iface (FI_HMEM_\w+) not supported")),
    ("provider_library", re.compile(r"registering provider: (\w+ \([\d.]+\))")),
    ("opened", re.compile(r"Opened fabric: (\S+)")),
)


def read(line: str) -> Iterator[Seen]:
    """What one line says: `efa_handshake` has the process and the peer's address, for distinct ones to be counted."""
    if match := _HANDSHAKE.search(line):
        at = LINE.search(line)
        yield "efa_handshake", f"{at['pid'] if at else '?'}/{match[1]}"
        return
    at = LINE.search(line)
    message = at["message"] if at is not None else line
    for name, pattern in _RULES:
        if match := pattern.search(message):
            yield name, match[1]
            return
