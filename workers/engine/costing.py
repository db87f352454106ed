"""An engine process's cost keeper, put together from its settings, its model and its device."""

from collections.abc import Callable
from pathlib import Path

import torch

from headrace.workers.costs.cost_file import CostFile, CostKey
from headrace.workers.engine.cost_keeper import CostKeeper
from headrace.workers.engine.device_name import device_name
from headrace.workers.engine.engine import Engine
from headrace.workers.engine.measurement import Extent
from headrace.workers.engine.models.model import Shape
from headrace.workers.engine.settings import EngineSettings
from headrace.workers.engine.text_scratch import TextScratch

#: Prompts of so many full steps are measured together at most; more cost as many tokens do.
_MAX_STEPS = 4
#: Of a step as it is measured: longer ones cost as much a token.
_MAX_STEP_TOKENS = 2048


def keep_costs(
    settings: EngineSettings, shape: Shape, device: torch.device, make_engine: Callable[[int], Engine]
) -> CostKeeper:
    """Make the keeper of an engine's costs.

    Args:
        settings: of the process.
        shape: of its model.
        device: that computes.
        make_engine: makes one more engine over the same model, given the tokens of its key-value memory.
    """
    name = device_name(device, settings.num_threads)
    precision = f"{settings.dtype}-deterministic" if settings.deterministic else settings.dtype
    key = CostKey(name, settings.revision, precision, settings.page_size, settings.step_tokens)
    max_tokens = min(settings.kv_tokens, _MAX_STEPS * min(settings.step_tokens, _MAX_STEP_TOKENS))
    extent = Extent(
        max_length=max(1, min(shape.max_positions, settings.kv_tokens, settings.row_tokens) - 1),
        max_rows=settings.max_rows,
        max_tokens=max_tokens,
    )
    # Each row also draws a token, and its last page is seldom full.
    kv_tokens = max_tokens + settings.max_rows * (settings.page_size + 1)
    return CostKeeper(
        extent,
        lambda: TextScratch(make_engine(kv_tokens), shape.vocab_size),
        worker_class=key.worker_class,
        budget_ms=settings.measure_ms,
        file=CostFile(Path(settings.costs_dir), key) if settings.costs_dir else None,
    )
