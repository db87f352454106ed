from itertools import accumulate

import torch
from hypothesis import given
from hypothesis import strategies as st

from headrace.kernels.cuda_encoder_batch import MOST_PADDED_TOKENS, image_like, pack_cuda, padded_size
from headrace.kernels.encoder_attention import plan_items


@given(num_tokens=st.integers(1, MOST_PADDED_TOKENS), num_rows=st.integers(1, 512))
def test_a_small_batch_is_padded_by_little_to_one_of_few_sizes(num_tokens: int, num_rows: int) -> None:
    size = padded_size(num_tokens, num_rows)
    assert size is not None
    assert size.num_rows >= num_rows
    assert 0 <= size.num_tokens - num_tokens < max(16, num_tokens / 16)
    # A batch that is padded already is not padded further.
    assert padded_size(size.num_tokens, num_rows) == size


def test_there_are_few_sizes() -> None:
    assert len({padded_size(num_tokens, 1) for num_tokens in range(1, MOST_PADDED_TOKENS + 1)}) <= 128


def test_large_batches_are_not_padded() -> None:
    assert padded_size(MOST_PADDED_TOKENS + 1, 1) is None
    assert padded_size(600, 513) is None


@given(lengths=st.lists(st.integers(1, 90), min_size=1, max_size=80), has_types=st.booleans())
def test_a_batch_holds_what_it_was_given_whatever_lies_beside_it(lengths: list[int], *, has_types: bool) -> None:
    num_tokens = sum(lengths)
    token_ids, positions, types = torch.randint(1, 1000, (3, num_tokens)).unbind()
    batch = pack_cuda(token_ids, positions, types if has_types else None, lengths, torch.device("cpu"))
    assert torch.equal(batch.token_ids, token_ids)
    assert torch.equal(batch.positions, positions)
    assert batch.type_ids is None if not has_types else torch.equal(batch.type_ids, types)  # type: ignore[arg-type]
    assert batch.starts.tolist() == [0, *accumulate(lengths)]
    assert batch.lengths == tuple(lengths)
    expected = plan_items(lengths)
    assert batch.items[: len(expected)].tolist() == expected.tolist()
    assert not batch.items[len(expected) :].any()
    assert all(x.data_ptr() % 16 == 0 for x in (batch.token_ids, batch.positions, batch.items))
    # And padded it is the same, with tokens and rows that are none behind it
    assert batch.padded is not None
    whole = image_like(batch)
    assert whole.token_ids.shape == (batch.padded.num_tokens,)
    assert torch.equal(whole.token_ids[:num_tokens], token_ids)
    assert torch.equal(whole.positions[:num_tokens], positions)
    assert not whole.token_ids[num_tokens:].any()
    assert whole.type_ids is not None
    assert torch.equal(whole.type_ids[:num_tokens], types if has_types else torch.zeros_like(types))
    assert whole.starts.shape == (batch.padded.num_rows + 1,)
    assert whole.starts[len(lengths) :].eq(num_tokens).all()
    assert whole.items.shape == batch.items.shape
    assert whole.image.data_ptr() != batch.image.data_ptr()
