"""How steps were launched: what a GPU's host did for them. Pure."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Launches:
    """Numbers of steps.

    Attributes:
        num_replayed: launched as a graph.
        num_captured: launched kernel by kernel, and once more to be captured, which takes as long as several.
        num_by_kernel: launched kernel by kernel.
    """

    num_replayed: int = 0
    num_captured: int = 0
    num_by_kernel: int = 0

    def since(self, before: "Launches") -> "Launches":
        """Those behind an earlier moment."""
        return Launches(
            self.num_replayed - before.num_replayed,
            self.num_captured - before.num_captured,
            self.num_by_kernel - before.num_by_kernel,
        )
