"""A GPU that does everything as late as it may, on a CPU: what the host writes over too early shows in the tokens.

Its tensors are ordinary ones that say they are on a GPU. Whatever is launched waits until the host waits for an event
behind it; page-locked memory is read and written only then, the host's other memory at once. Kernels are references.
"""

import dataclasses
from collections import deque
from collections.abc import Callable, Hashable
from contextlib import nullcontext
from copy import copy
from typing import Any

import pytest
import torch
from tests.unit.engine.device_on_cpu import Kernels, Stream, tell_host
from torch import Tensor
from torch.overrides import TorchFunctionMode

from headrace.kernels import reference_sampling, reference_state, row_state
from headrace.workers.engine import device_results, device_rules, device_sampling, device_steps, state_memory
from headrace.workers.engine.device_steps import DeviceSteps
from headrace.workers.engine.step_packing import Packed

GPU = torch.device("cuda", 0)
#: Of what a step calls of torch: what waits its turn, and what only says where memory is.
_QUEUED = frozenset({"copy_", "zero_", "fill_"})
_MAKES = frozenset({"empty", "zeros", "tensor", "arange"})
_AT_ONCE = frozenset(
    {"__get__", "__getitem__", "__len__", "view", "size", "dim", "numel", "flatten", "unflatten", "transpose", "unbind"}
    | {
        "data_ptr",
        "unsqueeze",
        "as_strided",
        "stride",
        "element_size",
        "storage_offset",
        "split_with_sizes",
        "is_contiguous",
    }
)


class _Late(Tensor):
    """On the GPU."""

    is_cuda = property(lambda self: True)
    device = property(lambda self: GPU)


class _Locked(Tensor):
    """In page-locked memory of the host."""


class LateGPU(TorchFunctionMode):
    """Entered, all of torch's operations go through it.

    Attributes:
        most_waiting: launches that waited at once, at most.
    """

    def __init__(self) -> None:
        super().__init__()
        self.most_waiting = 0
        self._queue: deque[Callable[[], object]] = deque()
        self._num_launched = self._num_done = 0
        self._captured: list[Callable[[], object]] | None = None
        self._is_running = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Make tensors where they are wanted, and put off what is to be put off."""
        kwargs, name = dict(kwargs or {}), func.__name__
        if self._is_running:
            return func(*args, **kwargs)
        if name in _MAKES:
            locked, on_gpu = kwargs.pop("pin_memory", False), kwargs.get("device") == GPU
            if on_gpu:
                del kwargs["device"]
            made: Tensor = func(*args, **kwargs)
            return made.as_subclass(_Locked if locked else _Late) if locked or on_gpu else made
        if not any(issubclass(kind, _Late) for kind in types) or name in _AT_ONCE:
            return func(*args, **kwargs)
        if name not in _QUEUED:
            raise NotImplementedError(f"a step calls {name}, of which is not known whether it may wait: see _QUEUED")
        target, *rest = args
        given = [_plain(x) if isinstance(x, _Late | _Locked) else _copied(x) for x in rest]
        self.launch(lambda: func(_plain(target), *given))
        return target

    def launch(self, work: Callable[[], object]) -> None:
        """Put work at the end of the queue, or into the graph that is captured."""
        if self._captured is not None:
            self._captured.append(work)
            return
        self._queue.append(work)
        self._num_launched += 1
        self.most_waiting = max(self.most_waiting, len(self._queue))

    def later(self, reference: Callable[..., object]) -> Callable[..., None]:
        """A kernel's reference as a launch of it."""

        def launched(*args: Any, **kwargs: Any) -> None:
            here, named = _plain(args), {name: _plain(value) for name, value in kwargs.items()}
            self.launch(lambda: reference(*here, **named))

        return launched

    def capture(self, launch: Callable[[], None]) -> list[Callable[[], object]]:
        """What is launched, in a list instead of in the queue."""
        captured: list[Callable[[], object]] = []
        self._captured = captured
        launch()
        self._captured = None
        return captured

    def mark(self) -> int:
        """The end of the queue."""
        return self._num_launched

    @torch.inference_mode()
    def run(self, mark: int | None = None) -> None:
        """Do what was launched before a mark, or everything."""
        self._is_running = True
        while self._queue and self._num_done < (self._num_launched if mark is None else mark):
            self._num_done += 1
            self._queue.popleft()()
        self._is_running = False


def _copied(x: object) -> object:
    """Memory that is not page-locked is read before a copy's call returns."""
    return x.clone() if isinstance(x, Tensor) else x


def _plain(x: Any) -> Any:
    """The same memory as the host's."""
    if isinstance(x, Tensor):
        with torch._C.DisableTorchFunction():
            return x.as_subclass(Tensor)
    if dataclasses.is_dataclass(x) and not isinstance(x, type):
        made = copy(x)
        for field in dataclasses.fields(x):
            object.__setattr__(made, field.name, _plain(getattr(x, field.name)))
        return made
    return type(x)(map(_plain, x)) if type(x) in (tuple, list) else x


def copy_pages(pages: Tensor, moves: Tensor) -> None:
    """The reference of ``page_copy``."""
    source, target = moves.long().unbind(1)
    pages[:, target] = pages[:, source]


class _Event:
    """A place in the queue."""

    def __init__(self, gpu: LateGPU) -> None:
        self._gpu, self._mark = gpu, 0

    def record(self) -> None:
        self._mark = self._gpu.mark()

    def synchronize(self) -> None:
        self._gpu.run(self._mark)

    def elapsed_time(self, later: "_Event") -> float:
        return 1.0


class _Graphs:
    """Graphs of launches."""

    def __init__(self, gpu: LateGPU) -> None:
        self._gpu = gpu
        self._captured: dict[Hashable, list[Callable[[], object]]] = {}

    def run(self, key: Hashable, launch: Callable[[], None]) -> None:
        if key not in self._captured:
            launch()
            self._captured[key] = self._gpu.capture(launch)
            return
        for work in self._captured[key]:
            self._gpu.launch(work)


def _late_forward(gpu: LateGPU) -> Callable[[DeviceSteps, Packed], Tensor | None]:
    """``DeviceSteps._forward``, the whole pass as one launch."""
    logits: dict[int, Tensor] = {}  # where a graph finds them again

    def forward(steps: DeviceSteps, packed: Packed) -> Tensor | None:
        if packed.next_tokens is not None:
            steps.rows.next_tokens(packed.next_tokens)
        batch, num_sampled = _plain(packed.batch), len(packed.places)
        if num_sampled not in logits:
            logits[num_sampled] = torch.empty(num_sampled, steps._model.config.vocab_size, device=GPU)
        out = _plain(logits[num_sampled])

        def work() -> None:
            with steps._operations.step(batch):
                found = steps._model.forward(batch)
            if found is not None:
                out.copy_(found)

        gpu.launch(work)
        return logits[num_sampled] if num_sampled else None

    return forward


def install(gpu: LateGPU, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the GPU in the place of one."""
    kernels = Kernels()
    for name in ("sample", "rank", "tell"):
        monkeypatch.setattr(device_sampling, name, gpu.later(getattr(kernels, name)))
    monkeypatch.setattr(device_sampling, "edit_logits", gpu.later(reference_sampling.edit_logits))
    monkeypatch.setattr(device_rules, "count_tokens", gpu.later(reference_sampling.count_tokens))
    monkeypatch.setattr(device_results, "tell_host", gpu.later(tell_host))
    monkeypatch.setattr(state_memory, "change_words", gpu.later(reference_state.change_words))
    monkeypatch.setattr(row_state, "next_tokens", gpu.later(reference_state.next_tokens))
    monkeypatch.setattr(device_steps, "DecodeGraphs", lambda stream, keep: _Graphs(gpu))
    monkeypatch.setattr(DeviceSteps, "_forward", _late_forward(gpu))
    monkeypatch.setattr(torch.cuda, "Event", lambda **_: _Event(gpu))
    monkeypatch.setattr(torch.cuda, "stream", nullcontext)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: gpu.run())
    monkeypatch.setattr(Stream, "synchronize", lambda _: gpu.run())
