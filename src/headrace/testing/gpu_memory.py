"""What torch's own allocator does on a GPU while something runs."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch


@dataclass(slots=True)
class TorchMemory:
    """Filled in when the watch ends.

    Attributes:
        num_allocations: tensors' memory that was asked for, from what torch keeps or from the device.
        grown_bytes: by how much more the device's memory belongs to torch.
    """

    num_allocations: int = 0
    grown_bytes: int = 0


@contextmanager
def watch_torch(device: torch.device) -> Iterator[TorchMemory]:
    """Count what torch allocates until the block ends."""
    watched = TorchMemory()
    before = torch.cuda.memory_stats(device)
    yield watched
    after = torch.cuda.memory_stats(device)
    watched.num_allocations = after["allocation.all.allocated"] - before["allocation.all.allocated"]
    watched.grown_bytes = after["reserved_bytes.all.current"] - before["reserved_bytes.all.current"]
