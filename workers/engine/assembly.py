"""An engine for a device, put together from its parts."""

from headrace.kernels.ragged import Ragged
from headrace.kernels.table import Table
from headrace.memory.kv_cache import KVCache
from headrace.memory.pages import Pages
from headrace.workers.engine.engine import Engine
from headrace.workers.engine.host_steps import HostSteps
from headrace.workers.engine.loading import LoadedModel
from headrace.workers.engine.row_state import RowState
from headrace.workers.engine.runner import Runner
from headrace.workers.engine.settings import DEFAULT_PAGE_SIZE


def host_engine(
    loaded: LoadedModel,
    operations: Table[Ragged],
    *,
    max_rows: int,
    kv_tokens: int,
    step_tokens: int,
    page_size: int = DEFAULT_PAGE_SIZE,
) -> Engine:
    """Make an engine on the CPU.

    Args:
        loaded: the model.
        operations: the table that the model was loaded for.
        max_rows: rows in flight at once.
        kv_tokens: tokens that the key-value memory holds, rounded up to whole pages.
        step_tokens: tokens computed in one step at most, >= ``max_rows``.
        page_size: tokens of a page.
    """
    config = loaded.model.config
    pages = Pages(-(-kv_tokens // page_size), page_size)
    kv_cache = KVCache(
        num_layers=config.num_layers,
        num_pages=pages.num_pages,
        page_size=page_size,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        dtype=loaded.model.dtype,
    )
    row_tokens = min(kv_tokens, config.max_positions)
    rows = RowState(max_rows, pages.pages_for(row_tokens))
    runner = Runner(HostSteps(loaded.model, kv_cache, operations, rows))
    return Engine(
        loaded,
        runner,
        pages,
        max_rows=max_rows,
        step_tokens=step_tokens,
        kv_tokens=kv_tokens,
        row_tokens=row_tokens,
    )
