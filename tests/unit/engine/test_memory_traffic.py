"""What a step allocates and what it copies, counted."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from headrace.job import SamplingParams
from headrace.kernels.planned import PlannedOperations
from headrace.kernels.ragged import Ragged
from headrace.kernels.reference import ReferenceOperations
from headrace.kernels.table import Table
from headrace.memory.planner import Buffer, lay_out, lower_bound_bytes
from headrace.workers.channel import Add
from headrace.workers.engine import host_steps
from headrace.workers.engine.assembly import host_engine
from headrace.workers.engine.engine import Engine
from headrace.workers.engine.loading import LoadedModel, load

REFERENCE = ReferenceOperations()

Params = Callable[..., SamplingParams]
NUM_ROWS, NUM_LAYERS = 64, 2
NOTABLE_BYTES = 4096


def decoding(engine: Engine, params: Params, num_rows: int, num_prompt: int, max_tokens: int = 200) -> Engine:
    """Fill an engine with rows that decode."""
    for row in range(num_rows):
        prompt = tuple(3 + (row * 7 + i * i) % 90 for i in range(num_prompt))
        engine.add(Add(row, prompt, (), params(max_tokens=max_tokens)))
    while len(engine.step().tokens) < num_rows:
        pass
    return engine


def allocations(engine: Engine) -> list[int]:
    """Sizes of what torch allocates in one step, in bytes, as its profiler sees it."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        engine.step()
    assert profile.profiler is not None
    events = profile.profiler.kineto_results.events()
    return [event.nbytes() for event in events if event.name() == "[memory]" and event.nbytes() > 0]


def test_a_decode_step_allocates_nothing_of_note_once_its_lengths_have_been_seen(
    model_dir: Path, params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    # oneDNN's products have memory of their own; every other table writes where it is told.
    monkeypatch.setattr(torch._C, "_has_mkldnn", False)
    sizes: dict[str, list[int]] = {}
    tables: dict[str, Table[Ragged]] = {
        "planned": PlannedOperations(REFERENCE),
        "not planned": REFERENCE,
    }
    for name, operations in tables.items():
        loaded = load(model_dir, operations, torch.float32)
        engine = host_engine(loaded, operations, max_rows=NUM_ROWS, kv_tokens=NUM_ROWS * 256, step_tokens=256)
        decoding(engine, params, NUM_ROWS, 20)
        engine.step()
        sizes[name] = [size for size in allocations(engine) if size >= NOTABLE_BYTES]
    assert len(sizes["not planned"]) > 20, "the count sees allocations"
    # What is left: what the rows see, which torch's bag of embeddings does not write where it is told, once a layer;
    # where the rows' scores begin, and the logits' copy that is drawn from, once a step.
    assert sum(sizes["planned"]) < 0.2 * sum(sizes["not planned"])
    assert len(sizes["planned"]) <= 2 + NUM_LAYERS


class CopiedBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes that operations write, other than those of attention.

    Of attention it keeps the most numbers that one operation wrote: scores are many, keys or values would be more.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0
        self.most_in_attention = 0
        self._attending = False
        attend = ReferenceOperations.attention

        def attention(*args: Any, **kwargs: Any) -> torch.Tensor:
            self._attending = True
            try:
                return attend(*args, **kwargs)
            finally:
                self._attending = False

        monkeypatch.setattr(ReferenceOperations, "attention", attention)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.is_view:
            return result
        if self._attending:
            dense = [t.numel() for t in tensors(result) if t.layout is torch.strided]
            self.most_in_attention = max(self.most_in_attention, *dense, 0)
        else:
            self.total += sum(t.nbytes for t in tensors(result))
        return result


def tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from tensors(item)


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("scattered", [False, True])
def test_a_decode_step_copies_as_much_for_a_long_context_as_for_a_short_one(
    loaded: LoadedModel,
    make_engine: Callable[..., Engine],
    params: Params,
    scattered: bool,
    together: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The keys and values of a step's own tokens are written, and those of no other token, whatever its context."""
    if not together:
        monkeypatch.setattr(host_steps, "MAX_TOGETHER_TOKENS", 0)
    totals: list[int] = []
    for num_prompt in (40, 400):
        engine = make_engine(max_rows=3, kv_tokens=2048, step_tokens=512)
        if scattered:
            # Small rows come and go first, so that the long ones must take what lies about.
            for row in range(100, 140):
                engine.add(Add(row, (row - 90, *range(3, 17)), (), params(max_tokens=1 + row % 3)))
            while engine.has_rows:
                engine.step()
        decoding(engine, params, 3, num_prompt)
        engine.step()
        with monkeypatch.context() as patches, CopiedBytes(patches) as copied:
            engine.step()
        totals.append(copied.total)
        keys, _ = one_token(loaded)[0]
        assert 0 < copied.most_in_attention < 3 * num_prompt * keys.numel()
    # index_copy_ returns the whole layer that it writes into: the same in both.
    assert totals[1] == totals[0]


def one_token(loaded: LoadedModel) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Keys and values of one token in every layer."""
    config = loaded.model.config
    one = torch.empty(config.num_kv_heads, config.head_dim)
    return [(one, one)] * config.num_layers


@pytest.mark.parametrize("num_sampled_of", [lambda n: 0, lambda n: 1, lambda n: n])
def test_the_traced_plan_is_close_to_the_liveness_bound_for_every_length(
    model_dir: Path, params: Params, num_sampled_of: Callable[[int], int]
) -> None:
    operations = PlannedOperations(REFERENCE)
    engine = host_engine(
        load(model_dir, operations, torch.float32), operations, max_rows=4, kv_tokens=512, step_tokens=16
    )
    decoding(engine, params, 3, 40, max_tokens=9)
    lengths_of = ((n, num_sampled_of(n)) for n in (1, 2, 3, 7, 16, 33, 100, 512))
    seen = {lengths: operations.results(*lengths) for lengths in lengths_of}
    for lengths, results in seen.items():
        for result in results:
            assert result.shape[0] in lengths
            assert result.first_op < result.last_op or result is results[-1]
        buffers = [Buffer(r.first_op, r.last_op, r.dtype.itemsize * torch.Size(r.shape).numel()) for r in results]
        assert sum(lay_out(buffers).chunk_bytes) <= max(2 << 20, 1.5 * lower_bound_bytes(buffers))
