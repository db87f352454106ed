"""What requests change in their own logits before all else: biases and forbidden tokens: ``cuda/logit_edits.cu``."""

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from headrace.kernels.checks import element_type, require
from headrace.kernels.device import open_device
from headrace.kernels.launch import Kernel, load
from headrace.kernels.logits import require_rows

_THREADS = 512
WORD_BITS = 32


@dataclass(frozen=True, slots=True)
class Edits:
    """Biases and forbidden tokens, by place.

    Attributes:
        bias_ids: int32 ``[num_places, most_biases]``, no token twice in a place.
        biases: fp32 ``[num_places, most_biases]``, finite.
        num_biases: int32 ``[num_places]``, how many of a place's mean anything.
        forbidden: int32 ``[num_places, num_words]``, a bit a token, the lowest first.
        num_forbidden: int32 ``[num_places]``, how many of a place's words have any bit set.
        unbiased: fp32 ``[num_places, most_biases]``, where the logits that biases are added to are kept.
    """

    bias_ids: Tensor
    biases: Tensor
    num_biases: Tensor
    forbidden: Tensor
    num_forbidden: Tensor
    unbiased: Tensor

    def __post_init__(self) -> None:
        num_places, most_biases = self.bias_ids.shape
        require(self.bias_ids, "bias_ids", (num_places, most_biases), torch.int32, alignment=4)
        require(self.biases, "biases", (num_places, most_biases), torch.float32, alignment=4)
        require(self.unbiased, "unbiased", (num_places, most_biases), torch.float32, alignment=4)
        require(self.forbidden, "forbidden", (num_places, self.forbidden.shape[1]), torch.int32, alignment=4)
        for name in ("num_biases", "num_forbidden"):
            require(getattr(self, name), name, (num_places,), torch.int32, alignment=4)


def num_words(vocab_size: int) -> int:
    """Words of a bit for each token."""
    return -(-vocab_size // WORD_BITS)


def edit_logits(logits: Tensor, places: Tensor, edits: Edits) -> None:
    """Add biases in place, then forbid: a forbidden token's logit is -inf. Sums are rounded to the logits' dtype.

    Args:
        logits: fp32, fp16 or bf16 ``[num_rows, vocab]``, rows contiguous.
        places: int64 ``[num_rows]``, each once; a row whose place is -1 is passed over.
        edits: by place.

    Raises:
        KernelError: shapes, dtypes or devices do not fit.
    """
    num_rows, vocab = logits.shape
    require_rows(logits)
    require(places, "places", (num_rows,), torch.int64, alignment=8)
    require(edits.forbidden, "forbidden", (edits.forbidden.shape[0], num_words(vocab)), torch.int32, alignment=4)
    columns = (edits.bias_ids, edits.biases, edits.num_biases, edits.forbidden, edits.num_forbidden, edits.unbiased)
    kernel = _kernel(logits.device, element_type(logits, "logits"))
    sizes = edits.bias_ids.shape[1], edits.forbidden.shape[1]
    # Few rows are cut among many blocks; of many rows, each block would read all biases for itself.
    most_blocks = max(1, open_device(logits.get_device()).num_sms // max(1, num_rows))
    turns = -(-num_words(vocab) // (_THREADS * most_blocks))
    grid = -(-num_words(vocab) // (_THREADS * turns)), num_rows
    kernel(grid, (_THREADS,), logits, logits.stride(0), vocab, places, *columns, *sizes, _THREADS * turns)


@functools.cache
def _kernel(device: torch.device, element: str) -> Kernel:
    params = "PqiP" + 6 * "P" + "iii"
    return load("logit_edits", "edit_logits", params, device, DTYPE=element, THREADS=_THREADS)
