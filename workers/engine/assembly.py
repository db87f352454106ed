"""An engine for a device, put together from its parts."""

import torch

from headrace.kernels.planned import PlannedOperations
from headrace.kernels.ragged import Ragged
from headrace.kernels.table import Table
from headrace.memory.budget import KVShape, Needs, hold
from headrace.memory.pool import Pool
from headrace.workers.engine.engine import Engine
from headrace.workers.engine.host_steps import HostSteps
from headrace.workers.engine.loading import LoadedModel
from headrace.workers.engine.models.model import Model
from headrace.workers.engine.room import Room
from headrace.workers.engine.row_state import RowState
from headrace.workers.engine.runner import Runner
from headrace.workers.engine.settings import DEFAULT_PAGE_SIZE

# Large: attention reads no run beyond a chunk's end, and what is not written to costs nothing.
_CHUNK_BYTES = 256 << 20


def host_engine(
    loaded: LoadedModel,
    operations: Table[Ragged],
    *,
    max_rows: int,
    kv_tokens: int,
    step_tokens: int,
    page_size: int = DEFAULT_PAGE_SIZE,
    chunk_bytes: int = _CHUNK_BYTES,
    overtaking_rows: int = 0,
) -> Engine:
    """Make an engine on the CPU.

    Args:
        loaded: the model.
        operations: the table that the model was loaded for; if it plans where results lie, they lie in the pool.
        max_rows: rows in flight at once.
        kv_tokens: tokens that the key-value memory holds, rounded up to whole pages.
        step_tokens: tokens computed in one step at most, >= ``max_rows``.
        page_size: tokens of a page.
        chunk_bytes: of a chunk of the memory, about.
        overtaking_rows: rows that may begin before one that came earlier, because they ask for more; see ``Waiting``.
    """
    model = loaded.model
    shape = kv_shape(model, page_size)
    row_tokens = min(kv_tokens, model.config.max_positions)
    budget = hold(shape, needs(model, row_tokens, step_tokens, max_rows), kv_tokens, chunk_bytes)
    # Reserved, not touched: the operating system commits what is written to.
    storage = torch.empty(budget.num_bytes, dtype=torch.uint8)
    pool = Pool(storage, budget, shape, model.dtype)
    rows = RowState(max_rows, shape.pages_for(row_tokens))
    runner = Runner(HostSteps(model, pool.kv_cache, operations, rows))
    room = Room(pool, operations) if isinstance(operations, PlannedOperations) else None
    return Engine(
        loaded,
        runner,
        pool.pages,
        max_rows=max_rows,
        step_tokens=step_tokens,
        kv_tokens=kv_tokens,
        row_tokens=row_tokens,
        room=room,
        overtaking_rows=overtaking_rows,
    )


def kv_shape(model: Model, page_size: int) -> KVShape:
    """Say what a model's keys and values take."""
    config = model.config
    return KVShape(config.num_layers, config.num_kv_heads, config.head_dim, page_size, model.dtype.itemsize)


def needs(model: Model, row_tokens: int, step_tokens: int, max_rows: int) -> Needs:
    """Estimate what a model's longest step and its shortest one write: more than was ever traced.

    Args:
        model: whose.
        row_tokens: tokens of the longest request.
        step_tokens: tokens of the longest step.
        max_rows: rows of a step.
    """

    def step_bytes(num_tokens: int, num_sampled: int) -> int:
        config = model.config
        # At once at most: the residual stream, what is normed or attended, and gate and up, or queries, keys, values.
        width = 8 * config.hidden_size + 3 * config.intermediate_size
        # Logits, in fp32 too.
        return num_tokens * width * model.dtype.itemsize + num_sampled * config.vocab_size * (model.dtype.itemsize + 4)

    return Needs(row_tokens, step_bytes(step_tokens, max_rows), step_bytes(1, 1))
