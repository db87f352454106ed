"""Whether tokens are the reference's, where sums by other ways may part on the border between two tokens."""

from dataclasses import replace

from torch import Tensor

from headrace.kernels import reference_sampling as reference
from headrace.kernels.penalties import Penalties
from headrace.kernels.reference_sampling import Kept
from headrace.kernels.sampling import SamplingParameters

#: How far sums may be off, as a share.
SLACK = 1e-5


def keepings(logits: Tensor, asked: SamplingParameters, penalties: Penalties | None = None) -> list[Kept]:
    """What is kept, and what is if the filters' borders are moved by as much as sums may be off."""
    slackened = []
    for factor in (1.0, 1 - SLACK, 1 + SLACK):
        top_p = asked.top_p.where(asked.top_p >= 1, (asked.top_p * factor).clamp(max=1 - 2**-23))
        moved = replace(asked, top_p=top_p, min_p=asked.min_p * factor)
        slackened.append(reference.keep(logits, moved, penalties))
    return slackened


def is_near(one: Kept, row: int, token_id: int, slack: float) -> bool:
    """Whether a row draws a token, or would if the token's borders lay elsewhere by ``slack``, a share of all mass."""
    mass, end = one.mass[row, token_id].item(), one.cumulative[row, token_id].item()
    target, slack_mass = one.target[row].item(), slack * one.cumulative[row, -1].item()
    return mass > 0 and end - mass - slack_mass <= target <= end + slack_mass


def assert_near(kept: list[Kept], row: int, token_id: int) -> None:
    """Assert that a row's token is the reference's, or one whose border its random number all but falls on."""
    borders = [(one.cumulative[row, token_id].item(), one.mass[row, token_id].item(), one.target[row]) for one in kept]
    if not any(is_near(one, row, token_id, 2 * SLACK) for one in kept):
        raise AssertionError(f"row {row} has token {token_id}; its mass, end, and the number drawn: {borders}")


def assert_same_draws(token_ids: Tensor, kept: list[Kept]) -> None:
    """Assert that all rows' tokens are the reference's, but for a few on borders."""
    off = (token_ids != kept[0].token_ids).nonzero()[:, 0].tolist()
    for row in off:
        assert_near(kept, row, int(token_ids[row]))
    if len(off) > 2 + len(token_ids) // 50:
        raise AssertionError(f"{len(off)} of {len(token_ids)} rows have other tokens than the reference: {off}")
