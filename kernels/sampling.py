"""Sampling on the device: penalties, temperature, top-k, top-p, min-p, a draw: ``cuda/sampling.cu``, ``search.cu``."""

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from headrace.errors import KernelError
from headrace.kernels.checks import element_type, require
from headrace.kernels.launch import Kernel, load
from headrace.kernels.logits import (
    SCAN_WARPS,
    THREADS,
    WARP,
    groups_a_thread,
    require_rows,
    scan_grid,
    search_grid,
    vector,
    workspace_floats,
)
from headrace.kernels.penalties import Penalties

#: The kernels' struct of that name.
_PARAMETERS = 14 * "P" + "q"


@dataclass(frozen=True, slots=True)
class SamplingParameters:
    """What rows ask for, by place, on the device, so that a captured graph reads what has changed since.

    Attributes:
        temperature: fp32 ``[num_places]``; 0 takes the most probable token.
        top_k: int32 ``[num_places]``; 0 keeps all.
        top_p: fp32 ``[num_places]``; 1 keeps all.
        min_p: fp32 ``[num_places]``; 0 keeps all.
        seed: int64 ``[num_places]``, the bits of an unsigned seed.
        position: int64 ``[num_places]``, of the token that is drawn, from the row's beginning.
        num_prompt_tokens: int64 ``[num_places]``; draws are numbered from here on.
    """

    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor
    seed: Tensor
    position: Tensor
    num_prompt_tokens: Tensor

    def __post_init__(self) -> None:
        shape = self.temperature.shape
        for name in ("temperature", "top_p", "min_p"):
            require(getattr(self, name), name, shape, torch.float32, alignment=4)
        require(self.top_k, "top_k", shape, torch.int32, alignment=4)
        for name in ("seed", "position", "num_prompt_tokens"):
            require(getattr(self, name), name, shape, torch.int64, alignment=8)


@dataclass(frozen=True, slots=True)
class Draws:
    """One step's tokens, on the device.

    Attributes:
        token_ids: int64 ``[num_rows]``.
        valid: bool ``[num_rows]``; False where logits are not numbers or all of them -inf: the token is then 0.
        last_token: int64 ``[num_places]``, where the next step reads a row's token; None where there is none.
    """

    token_ids: Tensor
    valid: Tensor
    last_token: Tensor | None = None

    @classmethod
    def empty(cls, num_rows: int, device: torch.device) -> "Draws":
        """Make room for one step's draws."""
        return cls(
            torch.empty(num_rows, dtype=torch.int64, device=device),
            torch.empty(num_rows, dtype=torch.bool, device=device),
        )


def sample(
    logits: Tensor,
    parameters: SamplingParameters,
    *,
    places: Tensor | None = None,
    penalties: Penalties | None = None,
    out: Draws | None = None,
    workspace: Tensor | None = None,
    all_greedy: bool = False,
    searches: bool = True,
) -> Draws:
    """Draw one token a row, by the rules of ``workers/engine/sampling.py`` and with its random numbers.

    Order: penalties, temperature, top-k, top-p, min-p; ties go to the smaller token. A row's draw depends on nothing
    but the row. The host waits for nothing, and the call may be captured.

    Args:
        logits: fp32, fp16 or bf16 ``[num_rows, vocab]``, rows contiguous; not changed. The fastest rows begin at
            multiples of 16 bytes.
        parameters: by place.
        places: int64 ``[num_rows]``, each once; a row whose place is -1 is passed over. Default: row by row.
        penalties: by place; None where no row has any, which saves reading them.
        out: where to. Default: new tensors.
        workspace: fp32, at least ``workspace_floats``. Default: a new tensor.
        all_greedy: the caller knows that every temperature is 0: the same tokens by less work.
        searches: launch the kernels for rows whose top_p or min_p keeps hundreds of tokens and that have no top_k.
            Without them such a row gets the same token by one block's work, which is slower.

    Raises:
        KernelError: shapes, dtypes or devices do not fit.
    """
    num_rows, vocab = logits.shape
    out = Draws.empty(num_rows, logits.device) if out is None else out
    if workspace is None:
        workspace = torch.empty(workspace_floats(num_rows, vocab), dtype=torch.float32, device=logits.device)
    _check(logits, parameters, places, penalties, out, workspace)
    form = logits.device, element_type(logits, "logits"), vector(logits), penalties is not None
    state = _arguments(parameters, places, penalties, out)
    rows = (logits, logits.stride(0), vocab)
    grid, block = scan_grid(vocab, num_rows), (SCAN_WARPS * WARP,)
    if all_greedy:
        scan, pick = _greedy_kernels(*form)
        scan(grid, block, *rows, workspace, *state)
        pick((num_rows,), (WARP,), out.token_ids, out.valid, workspace, vocab, *state)
    else:
        scan, pick = _kernels(*form, groups_a_thread(vocab))
        scan(grid, block, *rows, workspace, *state)
        pick((num_rows,), (THREADS,), out.token_ids, out.valid, *rows, workspace, int(searches), *state)
        if searches:
            bins, sums, search_pick = _search_kernels(*form, groups_a_thread(vocab))
            bins(search_grid(vocab, num_rows), (THREADS,), *rows, workspace, *state)
            sums(grid, block, *rows, workspace, *state)
            search_pick((num_rows,), (THREADS,), out.token_ids, out.valid, *rows, workspace, *state)
    return out


def _check(
    logits: Tensor,
    parameters: SamplingParameters,
    places: Tensor | None,
    penalties: Penalties | None,
    out: Draws,
    workspace: Tensor,
) -> None:
    num_rows, vocab = logits.shape
    require_rows(logits)
    num_places = parameters.temperature.shape[0]
    require(places, "places", (num_rows,), torch.int64, alignment=8)
    if places is None and num_places < num_rows:
        raise KernelError(f"{num_rows} rows of logits, parameters of {num_places}")
    if penalties is not None and (
        penalties.slots.shape[0] != num_places or penalties.counts.shape[1] != vocab + vocab % 2
    ):
        raise KernelError(f"penalties are of {penalties.slots.shape[0]} rows and {penalties.counts.shape[1]} tokens")
    require(out.token_ids, "out.token_ids", (num_rows,), torch.int64, alignment=8)
    require(out.valid, "out.valid", (num_rows,), torch.bool, alignment=1)
    require(out.last_token, "out.last_token", (num_places,), torch.int64, alignment=8)
    if workspace.dtype != torch.float32 or workspace.numel() < workspace_floats(num_rows, vocab):
        raise KernelError(f"the workspace is not fp32 [{workspace_floats(num_rows, vocab)}]")
    if workspace.data_ptr() % 8:
        raise KernelError("the workspace does not begin at a multiple of 8 bytes")


def _arguments(
    parameters: SamplingParameters, places: Tensor | None, penalties: Penalties | None, out: Draws
) -> tuple[Tensor | int | None, ...]:
    """In the order of the kernels' ``Parameters``."""
    return (
        places,
        parameters.temperature,
        parameters.top_p,
        parameters.min_p,
        None if penalties is None else penalties.repetition,
        None if penalties is None else penalties.presence,
        None if penalties is None else penalties.frequency,
        parameters.top_k,
        parameters.position,
        parameters.num_prompt_tokens,
        parameters.seed,
        None if penalties is None else penalties.counts,
        None if penalties is None else penalties.slots,
        out.last_token,
        0 if penalties is None else penalties.counts.shape[1],
    )


@functools.cache
def _kernels(device: torch.device, element: str, vec: int, penalised: bool, groups: int) -> tuple[Kernel, Kernel]:
    macros = _macros(element, vec, penalised, groups)
    return (
        load("sampling", "sample_scan", "PqiP" + _PARAMETERS, device, **macros),
        load("sampling", "sample_pick", "PPPqiPi" + _PARAMETERS, device, **macros),
    )


@functools.cache
def _search_kernels(
    device: torch.device, element: str, vec: int, penalised: bool, groups: int
) -> tuple[Kernel, Kernel, Kernel]:
    macros = _macros(element, vec, penalised, groups)
    return (
        load("search", "search_bins", "PqiP" + _PARAMETERS, device, **macros),
        load("search", "search_sums", "PqiP" + _PARAMETERS, device, **macros),
        load("search", "search_pick", "PPPqiP" + _PARAMETERS, device, **macros),
    )


def _macros(element: str, vec: int, penalised: bool, groups: int) -> dict[str, Any]:
    return {
        "DTYPE": element,
        "VEC": vec,
        "PENALISED": int(penalised),
        "THREADS": THREADS,
        "GROUPS_A_THREAD": groups,
    }


@functools.cache
def _greedy_kernels(device: torch.device, element: str, vec: int, penalised: bool) -> tuple[Kernel, Kernel]:
    macros: dict[str, Any] = {"DTYPE": element, "VEC": vec, "PENALISED": int(penalised)}
    return (
        load("greedy", "greedy_scan", "PqiP" + _PARAMETERS, device, **macros),
        load("greedy", "greedy_pick", "PPPi" + _PARAMETERS, device, **macros),
    )
