"""Rows' tokens beside those of another way to compute them, in fp32: the same, or parted by rounding at a near tie.

Sums in another order, as another batch or another cut of a prompt brings them, move a logit by some millionths. Where
two tokens are equally likely up to that, or a random number falls on the border between two, either token may come, and
the rest of the text with it. A model in fp64 tells such rows from wrong ones.
"""

import copy
from collections.abc import Sequence as TokenIds

import torch
from torch import Tensor
from transformers import PreTrainedModel

from headrace.kernels.sampling import SamplingParameters
from headrace.testing.draws import is_near, keepings
from headrace.workers.channel import Add
from headrace.workers.engine.row_rules import RowRules
from headrace.workers.engine.sequence import Sequence

#: How far fp32 may move a logit, and a border between two tokens as a share of what is kept. In 18,000 distributions of
#: the model of ``headrace.testing.gpu_soak`` the greatest differences to fp64 were 5.5e-6 and 5.7e-7.
SLACK = 1e-5
#: More rows than one of so many do not part by rounding.
ROWS_A_TIE = 1_000


class NearTies:
    """Compares rows, and counts those that parted at a near tie.

    Args:
        oracle: the model, by transformers. A copy in fp64 is made when it is needed for the first time; in it
            transformers still computes norms' means and the angles of rotation in fp32.

    Attributes:
        num_parted: rows that had other tokens, by a near tie.
    """

    def __init__(self, oracle: PreTrainedModel) -> None:
        self._oracle = oracle
        self._exact: PreTrainedModel | None = None
        ends = oracle.config.eos_token_id
        self._eos_ids = frozenset(ends if isinstance(ends, list) else [] if ends is None else [ends])
        self.num_parted = 0

    def assert_same(self, add: Add, found: list[int], alone: list[int], *, dropped: bool = False) -> None:
        """Assert that a row has the tokens that it gets alone, up to a near tie at most.

        Where they part, every token of both must be what the exact model chooses behind the tokens before it, or be
        within rounding of it.

        Args:
            add: the row.
            found: its tokens.
            alone: what it gets alone.
            dropped: whether it was ended before its time.
        """
        expected = alone[: len(found)] if dropped else alone
        if found == expected:
            return
        parted = any(ours != theirs for ours, theirs in zip(found, expected, strict=False))
        if not parted:
            raise AssertionError(f"{len(found)} tokens instead of {len(expected)}: {add}")
        ends = self._row(add, ()).stop_ids
        if not (dropped or len(found) == add.params.max_tokens or found[-1] in ends):
            raise AssertionError(f"ended by nothing: {add}")
        for token_ids in (found, expected):
            self.assert_near(add, token_ids)
        self.num_parted += 1

    def assert_few(self, num_rows: int) -> None:
        """Assert that hardly any of ``num_rows`` rows parted: one of 1,000, or of what is left of a thousand."""
        most = -(-num_rows // ROWS_A_TIE)
        if self.num_parted > most:
            raise AssertionError(f"{self.num_parted} of {num_rows} rows parted, more than {most}: rounding is rarer")

    @torch.inference_mode()
    def assert_near(self, add: Add, token_ids: TokenIds[int]) -> None:
        """Assert that each token of a row's output is the exact model's choice, or within rounding of it."""
        if self._exact is None:
            self._exact = copy.deepcopy(self._oracle).double()
        ids = [*add.prompt_ids, *add.output_ids, *token_ids]
        logits = self._exact(torch.tensor([ids])).logits[0, -1 - len(token_ids) : -1]
        for index, token_id in enumerate(token_ids):
            assert_near_choice(self._row(add, token_ids[:index]), logits[index], token_id)

    def _row(self, add: Add, token_ids: TokenIds[int]) -> Sequence:
        """A row behind these tokens of its output."""
        return Sequence(add.row, add.prompt_ids, (*add.output_ids, *token_ids), add.params, self._eos_ids)


def assert_near_choice(row: Sequence, logits: Tensor, token_id: int) -> None:
    """Assert that a token is what a row chooses next, or that rounding may have chosen it.

    Args:
        row: with its tokens so far.
        logits: exact ones, fp64 ``[vocab]``, before the row's rules.
        token_id: chosen from others, in fp32.
    """
    logits, rules = logits.clone(), RowRules.of(row, len(logits))
    if rules is not None:
        rules.apply(logits, row)
    asked = _asked(row)
    top_k = 1 if row.params.temperature <= 0 else row.params.top_k
    kept = [one for order in _near_orders(logits, top_k) for one in keepings(order[None], asked)]
    if any(is_near(one, 0, token_id, SLACK) for one in kept):
        return
    exact = kept[0]
    total = float(exact.cumulative[0, -1])
    share, end, drawn = (
        float(of) / total for of in (exact.mass[0, token_id], exact.cumulative[0, token_id], exact.target)
    )
    raise AssertionError(
        f"row {row.row} has token {token_id} behind {row.num_output_tokens} tokens, and exact logits give "
        f"{int(exact.token_ids)}: {drawn:.9f} was drawn, the token has {end - share:.9f} to {end:.9f}: {row.params}"
    )


def _asked(row: Sequence) -> SamplingParameters:
    of = row.params
    return SamplingParameters(
        torch.tensor([of.temperature], dtype=torch.float32),
        torch.tensor([of.top_k], dtype=torch.int32),
        *(torch.tensor([value], dtype=torch.float32) for value in (of.top_p, of.min_p)),
        *(torch.tensor([value]) for value in (of.seed, len(row.token_ids), row.num_prompt_tokens)),
    )


def _near_orders(logits: Tensor, top_k: int) -> list[Tensor]:
    """Logits, and what rounding may make of them where two may change places at the end of the ``top_k`` greatest."""
    orders = [logits]
    if not 0 < top_k < len(logits):
        return orders
    values, ids = logits.sort(descending=True, stable=True)
    near = ((values[:top_k] - values[top_k]) <= 2 * SLACK).nonzero()[:, 0].tolist()
    beyond = ((values[top_k - 1] - values[top_k:]) <= 2 * SLACK).nonzero()[:, 0].tolist()
    for inside in near:
        for outside in beyond:
            swapped, later = logits.clone(), int(ids[top_k + outside])
            # A hair more than they differ: equal ones would stay in the order of their ids.
            swapped[later] = values[inside] + SLACK / 1e3
            swapped[ids[inside]] = values[top_k + outside] - SLACK / 1e3
            orders.append(swapped)
    return orders
