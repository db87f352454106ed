"""How probable tokens are to the model itself, on the device: ``cuda/logprobs.cu``.

``rank`` looks at a step's logits before anything of the requests changes them; ``tell`` looks up what was then drawn.
"""

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from headrace.errors import KernelError
from headrace.kernels.checks import element_type, require
from headrace.kernels.launch import Kernel, load
from headrace.kernels.logit_edits import Edits
from headrace.kernels.logits import (
    SCAN_WARPS,
    THREADS,
    WARP,
    groups_a_thread,
    require_rows,
    scan_grid,
    vector,
    workspace_floats,
)

#: Most tokens that ``rank`` can tell about.
MOST_TOP = 32


@dataclass(frozen=True, slots=True)
class LogprobResults:
    """One step's logarithms, on the device; rows that do not ask leave theirs as they were.

    Attributes:
        chosen: fp32 ``[num_rows]``, of the drawn tokens.
        top_ids: int32 ``[num_rows, most_top]``, the most probable tokens, falling; equal ones by id.
        top_logprobs: fp32 ``[num_rows, most_top]``, theirs.
        scales: fp32 ``[num_rows, 2]``, scratch: what ``rank`` leaves for ``tell``.
    """

    chosen: Tensor
    top_ids: Tensor
    top_logprobs: Tensor
    scales: Tensor

    def __post_init__(self) -> None:
        num_rows, most_top = self.top_ids.shape
        require(self.chosen, "chosen", (num_rows,), torch.float32, alignment=4)
        require(self.top_ids, "top_ids", (num_rows, most_top), torch.int32, alignment=4)
        require(self.top_logprobs, "top_logprobs", (num_rows, most_top), torch.float32, alignment=4)
        require(self.scales, "scales", (num_rows, 2), torch.float32, alignment=8)
        if most_top > MOST_TOP:
            raise KernelError(f"{most_top} tokens a row are more than {MOST_TOP}")


def rank(logits: Tensor, places: Tensor, num_top: Tensor, out: LogprobResults, workspace: Tensor) -> None:
    """Find the most probable tokens of rows that ask, and what their logarithms are told by.

    No vocabulary is sorted, the host waits for nothing, and a row's results depend on nothing but the row.

    Args:
        logits: fp32, fp16 or bf16 ``[num_rows, vocab]``, rows contiguous.
        places: int64 ``[num_rows]``; a row whose place is -1 does not ask.
        num_top: int32 ``[num_places]``, how many tokens to tell about beside the chosen one; -1: the row does not ask.
        out: of at least as many rows.
        workspace: fp32, at least ``logits.workspace_floats``.

    Raises:
        KernelError: shapes, dtypes or devices do not fit.
    """
    num_rows, vocab = logits.shape
    _check(logits, places, num_top, out)
    if workspace.dtype != torch.float32 or workspace.numel() < workspace_floats(num_rows, vocab):
        raise KernelError(f"the workspace is not fp32 [{workspace_floats(num_rows, vocab)}]")
    scan, top, _ = _kernels(logits.device, element_type(logits, "logits"), vector(logits), groups_a_thread(vocab))
    rows = (logits, logits.stride(0), vocab, workspace, places, num_top)
    scan(scan_grid(vocab, num_rows), (SCAN_WARPS * WARP,), *rows)
    most_top = out.top_ids.shape[1]
    top((num_rows,), (THREADS,), out.scales, out.top_ids, out.top_logprobs, most_top, *rows)


def tell(logits: Tensor, places: Tensor, num_top: Tensor, token_ids: Tensor, edits: Edits, out: LogprobResults) -> None:
    """Tell about the tokens drawn.

    Args:
        logits: those that ``rank`` has seen, after ``edits`` at most.
        places: as for ``rank``.
        num_top: as for ``rank``.
        token_ids: int64 ``[num_rows]``, what was drawn.
        edits: what was changed in the logits.
        out: what ``rank`` was given.

    Raises:
        KernelError: shapes, dtypes or devices do not fit.
    """
    num_rows, vocab = logits.shape
    _check(logits, places, num_top, out)
    require(token_ids, "token_ids", (num_rows,), torch.int64, alignment=8)
    element = element_type(logits, "logits")
    *_, chosen = _kernels(logits.device, element, vector(logits), groups_a_thread(vocab))
    chosen(
        (-(-num_rows * WARP // THREADS),),
        (THREADS,),
        *(out.chosen, token_ids, out.scales, logits, logits.stride(0), num_rows, places, num_top),
        *(edits.bias_ids, edits.unbiased, edits.num_biases, edits.bias_ids.shape[1]),
    )


def _check(logits: Tensor, places: Tensor, num_top: Tensor, out: LogprobResults) -> None:
    num_rows = logits.shape[0]
    require_rows(logits)
    require(places, "places", (num_rows,), torch.int64, alignment=8)
    require(num_top, "num_top", num_top.shape, torch.int32, alignment=4)
    if out.chosen.shape[0] < num_rows:
        raise KernelError(f"{num_rows} rows of logits, room for {out.chosen.shape[0]}")


@functools.cache
def _kernels(device: torch.device, element: str, vec: int, groups: int) -> tuple[Kernel, Kernel, Kernel]:
    macros: dict[str, Any] = {
        "DTYPE": element,
        "VEC": vec,
        "PENALISED": 0,
        "THREADS": THREADS,
        "GROUPS_A_THREAD": groups,
    }
    return (
        load("logprobs", "logprob_scan", "PqiPPP", device, **macros),
        load("logprobs", "logprob_top", "PPPiPqiPPP", device, **macros),
        load("logprobs", "logprob_chosen", "PPPPqiPPPPPi", device, **macros),
    )
