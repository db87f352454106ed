"""What a benchmark is: a name, and what brings its figures."""

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from headrace.bench.bench import Bench
from headrace.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured value.

    Attributes:
        metric: what it is.
        value: the median where several rounds were measured.
        unit: its unit.
        rounds: measurements behind it.
        peer: what it is compared with; "" for nothing.
        peer_value: that one's value.
    """

    metric: str
    value: float
    unit: str
    rounds: int = 1
    peer: str = ""
    peer_value: float | None = None

    @classmethod
    def median(
        cls, metric: str, values: Sequence[float], unit: str, peer: str = "", peer_value: float | None = None
    ) -> "Figure":
        """The median of some rounds, at least one."""
        return cls(metric, statistics.median(values), unit, len(values), peer, peer_value)


def beside_vllm(value: float | None) -> tuple[str, float | None]:
    """Name vLLM 0.24.0 with CUDA graphs, measured on one H200 on another day, as a peer; none without a value."""
    return ("vLLM 0.24.0, another day", value) if value is not None else ("", None)


@dataclass(frozen=True, slots=True)
class Case:
    """One benchmark.

    Attributes:
        name: as in docs/bench/results.jsonl, such as ``decode/L8B/1``.
        shape: whose weights it wants.
        measure: brings its figures.
    """

    name: str
    shape: str
    measure: Callable[[Bench], Iterable[Figure]]


def select(cases: Sequence[Case], patterns: Sequence[str], shapes: Sequence[str]) -> list[Case]:
    """Pick cases by name, in the order of the catalogue.

    Args:
        cases: all there are.
        patterns: names, with * and ? as in a shell; ``decode`` stands for ``decode/*``. None: all cases.
        shapes: whose cases; none: of every shape.

    Raises:
        ConfigurationError: a shape or pattern fits no case.
    """
    known = sorted({case.shape for case in cases})
    if strangers := sorted(set(shapes) - set(known)):
        raise ConfigurationError(f"--shapes {' '.join(strangers)}: there is none; known are {', '.join(known)}")
    of_shapes = [case for case in cases if not shapes or case.shape in shapes]
    for pattern in patterns:
        if not any(_fits(case.name, pattern) for case in of_shapes):
            kinds = sorted({case.name.partition("/")[0] for case in of_shapes})
            raise ConfigurationError(f"--cases {pattern}: no case has such a name; there are {', '.join(kinds)}")
    return [case for case in of_shapes if not patterns or any(_fits(case.name, pattern) for pattern in patterns)]


def _fits(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) or name.startswith(pattern.rstrip("/") + "/")
