"""What the device that computes is called, so that machines of one fleet can be told apart by their costs."""

import platform
import re
from pathlib import Path

import torch

_CPU_INFO = Path("/proc/cpuinfo")


def device_name(device: torch.device, num_threads: int) -> str:
    """Name a device.

    Args:
        device: of the model's tensors.
        num_threads: of one operation, where it is a CPU.

    Returns:
        Letters, digits and ``_.@+-``: a GPU's name, or a CPU's model and how many of its threads compute.
    """
    if device.type == "cuda":
        return _plain(torch.cuda.get_device_name(device))
    return f"{_plain(_cpu_model())}-x{num_threads}"


def _cpu_model() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", _CPU_INFO.read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found.group(1) if found else platform.processor() or platform.machine()


def _plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.@+-]+", "-", name).strip("-")
