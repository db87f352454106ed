"""Engines on the GPU, small ones."""

from functools import partial
from pathlib import Path

import torch

from headrace.job import SamplingParams
from headrace.workers.engine.device_engine import DeviceEngine, DeviceLimits
from headrace.workers.engine.loading import load
from headrace.workers.engine.plan import Chunk
from headrace.workers.engine.sequence import Sequence as Row

GREEDY = SamplingParams(16, 0, 0.0, 0, 1.0, 0.0, 0, (), (), True)


def engine_of(
    folder: Path,
    dtype: torch.dtype,
    *,
    max_rows: int,
    kv_tokens: int,
    step_tokens: int,
    row_tokens: int | None = None,
    cuda_graphs: bool = True,
    prompt_graphs: int = 0,
    deterministic: bool = False,
    rehearses: bool = False,
) -> DeviceEngine:
    """Make one that takes little memory, so that many may stand beside each other.

    It rehearses no more than it must: of each model, most sizes never come.
    """
    limits = DeviceLimits(
        max_rows=max_rows,
        row_tokens=row_tokens or kv_tokens,
        step_tokens=step_tokens,
        kv_tokens=kv_tokens,
        cuda_graphs=cuda_graphs,
        prompt_graphs=prompt_graphs,
        deterministic=deterministic,
        rehearses=rehearses,
    )
    device = torch.device("cuda")
    return DeviceEngine(partial(load, folder, device=device), device, dtype, limits)


@torch.inference_mode()
def logits_in_chunks(made: DeviceEngine, prompt: tuple[int, ...], lengths: list[int]) -> torch.Tensor:
    """Compute a prompt chunk by chunk, as the engine does: the logits behind each chunk ``[chunks, vocab]``."""
    sequence = Row(1 << 40, prompt, (), GREEDY, frozenset())
    pages = made.pool.pages
    seen: list[torch.Tensor] = []
    with torch.cuda.stream(made.steps.stream):
        start = 0
        for length in lengths:
            if pages.reserve(sequence.pages, start + length) < start + length:
                raise RuntimeError(f"no pages for {start + length} tokens: raise kv_tokens")
            made.steps.rows.forget()  # tokens are given, not drawn
            logits, _ = made.steps.compute([Chunk(sequence, start, length, samples=True, is_prefill=True)])
            if logits is None:
                raise RuntimeError("a chunk that samples gave no logits")
            seen.append(logits[:1].clone())
            start += length
    torch.cuda.synchronize()
    pages.end(sequence.pages)
    return torch.cat(seen)
