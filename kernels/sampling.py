"""Sampling on the device: penalties, temperature, top-k, top-p, min-p and a draw: ``cuda/sampling.cu``."""

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from headrace.errors import KernelError
from headrace.kernels.checks import element_type, require
from headrace.kernels.launch import Kernel, load

_SEGMENT, _GROUPS_A_SEGMENT = 1024, 16
_SCAN_WARPS, _WARP, _THREADS = 4, 32, 512
# A block holds all groups' greatest in registers; this many a thread are enough for 1.5 million tokens.
_MOST_GROUPS_A_THREAD = 48
#: The kernels' struct of that name.
_PARAMETERS = 11 * "P" + "q"


@dataclass(frozen=True, slots=True)
class SamplingParameters:
    """What rows ask for, on the device, so that a captured graph reads what has changed since.

    Attributes:
        temperature: fp32 ``[num_rows]``; 0 takes the most probable token.
        top_k: int32 ``[num_rows]``; 0 keeps all.
        top_p: fp32 ``[num_rows]``; 1 keeps all.
        min_p: fp32 ``[num_rows]``; 0 keeps all.
        seed: int64 ``[num_rows]``, the bits of an unsigned seed.
        position: int32 ``[num_rows]``, tokens generated before this one.
    """

    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor
    seed: Tensor
    position: Tensor

    def __post_init__(self) -> None:
        shape = self.temperature.shape
        for name in ("temperature", "top_p", "min_p"):
            require(getattr(self, name), name, shape, torch.float32, alignment=4)
        for name in ("top_k", "position"):
            require(getattr(self, name), name, shape, torch.int32, alignment=4)
        require(self.seed, "seed", shape, torch.int64, alignment=8)


@dataclass(frozen=True, slots=True)
class Penalties:
    """Penalties on tokens that have been there, and the counts that they rest on.

    Attributes:
        repetition: fp32 ``[num_rows]``; 1 changes nothing.
        presence: fp32 ``[num_rows]``; 0 changes nothing.
        frequency: fp32 ``[num_rows]``; 0 changes nothing.
        counts: int16 ``[num_slots, vocab]``, see ``count_tokens``; sampling adds what it draws.
        slots: int32 ``[num_rows]``, a row's line in ``counts``; -1: the row has no penalties.
    """

    repetition: Tensor
    presence: Tensor
    frequency: Tensor
    counts: Tensor
    slots: Tensor

    def __post_init__(self) -> None:
        shape = self.slots.shape
        for name in ("repetition", "presence", "frequency"):
            require(getattr(self, name), name, shape, torch.float32, alignment=4)
        require(self.slots, "slots", shape, torch.int32, alignment=4)
        require(self.counts, "counts", self.counts.shape, torch.int16, alignment=4)
        if self.counts.shape[1] % 2:
            raise KernelError("counts has an odd number of columns; add one that no token uses")


@dataclass(frozen=True, slots=True)
class Draws:
    """One step's tokens, on the device.

    Attributes:
        token_ids: int64 ``[num_rows]``.
        valid: bool ``[num_rows]``; False where logits are not numbers or all of them -inf: the token is then 0.
        logprobs: fp32 ``[num_rows]``, the tokens' log probabilities after penalties and temperature (greedy rows: at
            temperature 1), before top-k, top-p and min-p; None where not asked for.
    """

    token_ids: Tensor
    valid: Tensor
    logprobs: Tensor | None = None

    @classmethod
    def empty(cls, num_rows: int, device: torch.device, *, logprobs: bool = False) -> "Draws":
        """Make room for one step's draws."""
        return cls(
            torch.empty(num_rows, dtype=torch.int64, device=device),
            torch.empty(num_rows, dtype=torch.bool, device=device),
            torch.empty(num_rows, dtype=torch.float32, device=device) if logprobs else None,
        )


def workspace_floats(num_rows: int, vocab_size: int) -> int:
    """Floats of scratch memory that ``sample`` needs."""
    return num_rows * _num_segments(vocab_size) * (2 + _GROUPS_A_SEGMENT)


def sample(
    logits: Tensor,
    parameters: SamplingParameters,
    *,
    penalties: Penalties | None = None,
    out: Draws | None = None,
    workspace: Tensor | None = None,
    all_greedy: bool = False,
) -> Draws:
    """Draw one token a row, by the rules of ``workers/engine/sampling.py`` and with its random numbers.

    Order: penalties, temperature, top-k, top-p, min-p; ties go to the smaller token. A row's draw depends on nothing
    but the row. The host waits for nothing, and the call may be captured.

    Args:
        logits: fp32, fp16 or bf16 ``[num_rows, vocab]``, rows contiguous; not changed. The fastest rows begin at
            multiples of 16 bytes.
        parameters: of at least as many rows.
        penalties: None where no row has any, which saves reading them.
        out: where to. Default: new tensors.
        workspace: fp32, at least ``workspace_floats``. Default: a new tensor.
        all_greedy: the caller knows that every temperature is 0, and asks for no log probabilities: the same tokens by
            less work.

    Raises:
        KernelError: shapes, dtypes or devices do not fit.
    """
    num_rows, vocab = logits.shape
    out = Draws.empty(num_rows, logits.device) if out is None else out
    if workspace is None:
        workspace = torch.empty(workspace_floats(num_rows, vocab), dtype=torch.float32, device=logits.device)
    _check(logits, parameters, penalties, out, workspace)
    vec = _vector(logits)
    kernels = _kernels(logits.device, element_type(logits, "logits"), vec, penalties is not None, _groups(vocab))
    sample_scan, sample_pick, greedy_scan, greedy_pick = kernels
    state = _arguments(parameters, penalties)
    rows = (logits, logits.stride(0), vocab)
    grid, block = (-(-_num_segments(vocab) // _SCAN_WARPS), num_rows), (_SCAN_WARPS * _WARP,)
    if all_greedy:
        if out.logprobs is not None:
            raise KernelError("all_greedy leaves out what log probabilities rest on")
        greedy_scan(grid, block, *rows, workspace, *state)
        greedy_pick((num_rows,), (_WARP,), out.token_ids, out.valid, workspace, vocab, *state)
    else:
        sample_scan(grid, block, *rows, workspace, *state)
        results = (out.token_ids, out.valid, out.logprobs)
        sample_pick((num_rows,), (_THREADS,), *results, *rows, workspace, *state)
    return out


def edit_logits(logits: Tensor, token_ids: Tensor, values: Tensor) -> None:
    """Add to single logits in place: logit biases, and bans (-inf); the sum is rounded to the logits' dtype.

    Args:
        logits: fp32, fp16 or bf16 ``[num_rows, vocab]``, rows contiguous.
        token_ids: int32 ``[num_rows, num_edits]``, no token twice in a row; negative ones are passed over.
        values: fp32 ``[num_rows, num_edits]``.

    Raises:
        KernelError: shapes, dtypes or devices do not fit.
    """
    num_rows, vocab = logits.shape
    num_edits = token_ids.shape[1]
    require(token_ids, "token_ids", (num_rows, num_edits), torch.int32, alignment=4)
    require(values, "values", (num_rows, num_edits), torch.float32, alignment=4)
    _require_rows(logits)
    kernel = _kernel(logits.device, element_type(logits, "logits"), "edit_logits", "PqiPPi")
    blocks = num_rows if num_edits else 0
    kernel((blocks,), (_THREADS,), logits, logits.stride(0), vocab, token_ids, values, num_edits)


def count_tokens(counts: Tensor, token_ids: Tensor, num_prompt_tokens: int) -> None:
    """Begin a row's counts: a token's count is how often it was generated, plus 0x8000 if the prompt has it.

    Args:
        counts: int16 ``[vocab]``, the row's line of ``Penalties.counts``; overwritten.
        token_ids: int64 ``[num_tokens]``, the prompt and what was generated after it.
        num_prompt_tokens: how many of them are the prompt.

    Raises:
        KernelError: shapes, dtypes or devices do not fit.
    """
    (num_tokens,) = token_ids.shape
    require(counts, "counts", counts.shape, torch.int16, alignment=4)
    require(token_ids, "token_ids", (num_tokens,), torch.int64, alignment=8)
    counts.zero_()
    kernel = _kernel(counts.device, "float", "count_tokens", "PiPii")
    blocks = -(-num_tokens // _THREADS)
    kernel((blocks,), (_THREADS,), counts, counts.shape[0], token_ids, num_tokens, num_prompt_tokens)


def _num_segments(vocab_size: int) -> int:
    return -(-vocab_size // _SEGMENT)


def _groups(vocab_size: int) -> int:
    """Groups a thread, rounded up so that few kernels serve all vocabularies."""
    groups = -(-_num_segments(vocab_size) * _GROUPS_A_SEGMENT // _THREADS)
    if groups > _MOST_GROUPS_A_THREAD:
        raise KernelError(f"a vocabulary of {vocab_size} tokens is larger than sampling can take")
    return groups


def _vector(logits: Tensor) -> int:
    """Elements that every row lets move together."""
    element_bytes = logits.element_size()
    vec = 16 // element_bytes
    while logits.stride(0) % vec or logits.data_ptr() % (vec * element_bytes):
        vec //= 2
    return vec


def _require_rows(logits: Tensor) -> None:
    if logits.stride(1) != 1:
        raise KernelError("the rows of logits are not contiguous")


def _check(
    logits: Tensor,
    parameters: SamplingParameters,
    penalties: Penalties | None,
    out: Draws,
    workspace: Tensor,
) -> None:
    num_rows, vocab = logits.shape
    _require_rows(logits)
    if parameters.temperature.shape[0] < num_rows:
        raise KernelError(f"{num_rows} rows of logits, parameters of {parameters.temperature.shape[0]}")
    if penalties is not None and (
        penalties.slots.shape[0] < num_rows or penalties.counts.shape[1] != vocab + vocab % 2
    ):
        raise KernelError(f"penalties are of {penalties.slots.shape[0]} rows and {penalties.counts.shape[1]} tokens")
    require(out.token_ids, "out.token_ids", (num_rows,), torch.int64, alignment=8)
    require(out.valid, "out.valid", (num_rows,), torch.bool, alignment=1)
    require(out.logprobs, "out.logprobs", (num_rows,), torch.float32, alignment=4)
    if workspace.dtype != torch.float32 or workspace.numel() < workspace_floats(num_rows, vocab):
        raise KernelError(f"the workspace is not fp32 [{workspace_floats(num_rows, vocab)}]")


def _arguments(parameters: SamplingParameters, penalties: Penalties | None) -> tuple[Tensor | int | None, ...]:
    """In the order of the kernels' ``Parameters``."""
    return (
        parameters.temperature,
        parameters.top_p,
        parameters.min_p,
        None if penalties is None else penalties.repetition,
        None if penalties is None else penalties.presence,
        None if penalties is None else penalties.frequency,
        parameters.top_k,
        parameters.position,
        parameters.seed,
        None if penalties is None else penalties.counts,
        None if penalties is None else penalties.slots,
        0 if penalties is None else penalties.counts.shape[1],
    )


@functools.cache
def _kernels(device: torch.device, element: str, vec: int, penalised: bool, groups: int) -> tuple[Kernel, ...]:
    macros: dict[str, Any] = {
        "DTYPE": element,
        "VEC": vec,
        "PENALISED": int(penalised),
        "THREADS": _THREADS,
        "GROUPS_A_THREAD": groups,
    }
    return (
        load("sampling", "sample_scan", "PqiP" + _PARAMETERS, device, **macros),
        load("sampling", "sample_pick", "PPPPqiP" + _PARAMETERS, device, **macros),
        load("sampling", "greedy_scan", "PqiP" + _PARAMETERS, device, **macros),
        load("sampling", "greedy_pick", "PPPi" + _PARAMETERS, device, **macros),
    )


@functools.cache
def _kernel(device: torch.device, element: str, entry: str, params: str) -> Kernel:
    # The file's other kernels want these macros: any will do.
    return load(
        "sampling", entry, params, device, DTYPE=element, VEC=1, PENALISED=0, THREADS=_THREADS, GROUPS_A_THREAD=1
    )
