"""The rule that decides how far a kernel may be off: no number in it is guessed."""

import torch
from torch import Tensor


def assert_fair(actual: Tensor, truth: Tensor, peer: Tensor) -> None:
    """Check a kernel's result as flash-attention's tests do.

    Its error may be twice torch's own in the same dtype, plus twice what rounding 0.3 into the result and out of it
    again moves.

    Args:
        actual: the kernel's.
        truth: computed in fp64 or fp32.
        peer: torch's result in the kernel's dtype.
    """
    assert actual.dtype == peer.dtype
    assert actual.shape == truth.shape
    assert actual.isfinite().all()
    own = (actual.double() - truth.double()).abs().max().item() if actual.numel() else 0.0
    fair = (peer.double() - truth.double()).abs().max().item() if actual.numel() else 0.0
    rounding = (peer + 0.3 - 0.3 - peer).abs().max().item() if actual.numel() else 0.0
    assert own <= 2 * fair + 2 * rounding, f"error {own:.3g}, torch's own {fair:.3g}, rounding {rounding:.3g}"


def normal(*shape: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Rows of a wider tensor, whose other numbers are none."""
    wide = torch.full((*shape[:-1], shape[-1] + 16), torch.nan, device=device, dtype=dtype)
    wide[..., : shape[-1]].normal_()
    return wide[..., : shape[-1]]


def poisoned(like: Tensor) -> Tensor:
    """A result tensor full of NaN, in which an element that was not written shows."""
    return torch.full_like(like, torch.nan)


def up(x: Tensor | None) -> Tensor | None:
    """In fp64, for the truth."""
    return None if x is None else x.double()
