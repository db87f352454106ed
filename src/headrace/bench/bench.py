"""What cases share: the machine, the engine that is made once for several of them, and how long they may take."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from headrace.bench.machine import Limits, Machine
from headrace.bench.model_folder import write_model
from headrace.bench.workload import Requests
from headrace.errors import ConfigurationError
from headrace.workers.engine.engine import Engine
from headrace.workers.garbage import look_at_all, look_seldom


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is measured.

    Attributes:
        rounds: of which a case tells the median, >= 1.
        budget_s: after which a case begins no further round; its first is always measured.
        num_requests: of the throughput and of what is compared with it.
        step_tokens: of engines; 0: a worker's default.
    """

    rounds: int = 5
    budget_s: float = 120.0
    num_requests: int = 256
    step_tokens: int = 0

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.budget_s <= 0:
            raise ConfigurationError(f"{self.rounds} rounds within {self.budget_s:g} s: at least 1, and above 0 s")


class Bench:
    """One run over some cases. At most one engine is in the GPU's memory at a time; use it in a ``with``.

    Args:
        machine: where engines compute.
        shapes: config.json of each shape.
        effort: how much is measured.
        folder: where models are written; default: the system's folder for temporary files.

    Attributes:
        machine: as given.
        shapes: as given.
        effort: as given.
        results: values by case and metric, of the cases measured so far.
    """

    def __init__(
        self, machine: Machine, shapes: Mapping[str, Mapping[str, Any]], effort: Effort, folder: Path | None = None
    ) -> None:
        self.machine = machine
        self.shapes = shapes
        self.results: dict[tuple[str, str], float] = {}
        self.effort = effort
        self._folder = folder
        self._engine: tuple[str, Limits, Engine] | None = None
        self._models: dict[str, TemporaryDirectory[str]] = {}
        self._num_requests_asked = 0

    def __enter__(self) -> "Bench":
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
        for model in self._models.values():
            model.cleanup()

    def vocab_size(self, shape: str) -> int:
        """Of a shape's model."""
        return int(self.shapes[shape]["vocab_size"])

    def requests(self, shape: str) -> Requests:
        """Give what makes a shape's requests, whose prompts nobody had before: an engine would find them again."""
        self._num_requests_asked += 1
        return Requests(self.vocab_size(shape), seed=self._num_requests_asked)

    def rounds(self) -> Iterator[int]:
        """Number the rounds of a case, as many as there is time for; the time runs from the first."""
        begin_s = time.perf_counter()
        for number in range(self.effort.rounds):
            yield number
            if time.perf_counter() - begin_s > self.effort.budget_s:
                return

    def engine(self, shape: str, limits: Limits | None = None) -> Engine:
        """Give an engine with random weights, the last one if it was made for the same.

        Args:
            shape: whose.
            limits: what it must hold; default: as a worker's engine.
        """
        limits = limits or Limits()
        if self.effort.step_tokens:
            limits = replace(limits, step_tokens=self.effort.step_tokens)
        if self._engine is None or self._engine[:2] != (shape, limits):
            self.release()
            self._engine = (shape, limits, self.machine.engine(self.shapes[shape], limits))
            look_seldom()  # as an engine's process does
        engine = self._engine[2]
        engine.clear()
        return engine

    def release(self) -> None:
        """Give the engine's memory back, for processes that bring engines of their own."""
        self._engine = None
        look_at_all()
        self.machine.release()

    @contextmanager
    def model(self, shape: str) -> Iterator[Path]:
        """A shape's folder as a model is served from, written when it is first asked for; no engine is held then."""
        self.release()
        if shape not in self._models:
            for other in self._models.values():
                other.cleanup()
            self._models.clear()
            folder = TemporaryDirectory(prefix=f"headrace-{shape}-", dir=self._folder)
            try:
                write_model(Path(folder.name), self.shapes[shape], self.machine.device, self.machine.dtype)
            except BaseException:
                folder.cleanup()  # or another case would serve half a model
                raise
            self._models[shape] = folder
            self.machine.release()
        yield Path(self._models[shape].name)
