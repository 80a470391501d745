"""Whether this machine has an NVIDIA GPU: NIXL then refuses a UCX_TLS that could not carry a GPU's memory."""

from pathlib import Path

NVIDIA, DISPLAY_CLASSES = "0x10de", ("0x0300", "0x0302")  # VGA and 3D controllers


def nvidia_gpu(root: Path = Path("/")) -> bool:
    """By PCI's list, as NIXL looks, whatever driver is loaded. False where there is no such list."""
    for device in (root / "sys/bus/pci/devices").glob("*"):
        try:
            vendor = (device / "vendor").read_text().strip()
            if vendor == NVIDIA and (device / "class").read_text().startswith(DISPLAY_CLASSES):
                return True
        except OSError:
            continue
    return False
