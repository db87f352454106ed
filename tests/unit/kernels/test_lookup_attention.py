import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.kernels.lookup_attention import LookupAttention
from headrace.kernels.ragged import Contexts

PAGE_SIZE, NUM_PAGES, MAX_PAGES = 4, 512, 90


def contexts_of(lengths: list[int], *, seed: int = 0) -> Contexts:
    """Give rows pages that lie about, and places in the page table in another order."""
    generator = torch.Generator().manual_seed(seed)
    free = torch.randperm(NUM_PAGES, generator=generator).tolist()
    rows = torch.randperm(len(lengths), generator=generator)
    table = torch.full((len(lengths), MAX_PAGES), NUM_PAGES - 1, dtype=torch.int32)
    for row, length in zip(rows.tolist(), lengths, strict=True):
        for page in range(-(-length // PAGE_SIZE)):
            table[row, page] = free.pop()
    return Contexts(tuple(lengths), rows, table, PAGE_SIZE, torch.clone)


def slots_of(contexts: Contexts, row: int) -> torch.Tensor:
    positions = torch.arange(contexts.lengths[row])
    return contexts.page_table[contexts.rows[row], positions // PAGE_SIZE] * PAGE_SIZE + positions % PAGE_SIZE


def alone(contexts: Contexts, row: int) -> Contexts:
    return Contexts((contexts.lengths[row],), contexts.rows[row : row + 1], contexts.page_table, PAGE_SIZE, torch.clone)


def attend(lookup: LookupAttention, query: torch.Tensor, memory: torch.Tensor, contexts: Contexts) -> torch.Tensor:
    out = torch.empty(query.shape)
    lookup.attend(query, memory, contexts, out)
    return out


@settings(max_examples=40)
@given(
    lengths=st.lists(st.integers(1, 300) | st.integers(1, 20), min_size=1, max_size=6),
    num_kv_heads=st.integers(1, 3),
    group=st.integers(1, 4),
    head_dim=st.sampled_from([4, 8, 24]),
    window=st.none() | st.integers(1, 200),
    seed=st.integers(0, 9),
)
def test_every_head_sees_its_row_s_tokens_and_its_numbers_do_not_depend_on_the_other_rows(
    lengths: list[int], num_kv_heads: int, group: int, head_dim: int, window: int | None, seed: int
) -> None:
    torch.manual_seed(seed)
    memory = torch.randn(2, NUM_PAGES * PAGE_SIZE, num_kv_heads, head_dim)
    # As they come from a product: queries beside keys and values.
    query = torch.randn(len(lengths), num_kv_heads * (group + 2), head_dim)[:, : num_kv_heads * group] * 3
    lookup = LookupAttention(num_kv_heads, group, window)
    contexts = contexts_of(lengths, seed=seed)
    seen = attend(lookup, query, memory, contexts)
    for row in range(len(lengths)):
        slots = slots_of(contexts, row)[-window if window else 0 :]
        keys, values = memory[:, slots].double().transpose(1, 2)
        queries = query[row].double().view(num_kv_heads, group, head_dim)
        expected = (queries @ keys.transpose(1, 2) / head_dim**0.5).softmax(dim=-1) @ values
        assert torch.allclose(seen[row].double(), expected.flatten(0, 1), atol=1e-5)
        assert torch.equal(attend(lookup, query[row : row + 1], memory, alone(contexts, row))[0], seen[row])


def test_a_row_without_numbers_spoils_no_other_row_and_no_later_step() -> None:
    torch.manual_seed(0)
    memory, query = torch.randn(2, NUM_PAGES * PAGE_SIZE, 2, 8), torch.randn(3, 4, 8)
    contexts = contexts_of([30, 200, 50])
    lookup = LookupAttention(2, 2, None)
    before = attend(lookup, query, memory, contexts)
    spoilt = memory.clone()
    spoilt[:, slots_of(contexts, 1)[7]] = torch.nan
    seen = attend(lookup, query, spoilt, contexts)
    assert seen[1].isnan().all()
    assert torch.equal(seen[[0, 2]], before[[0, 2]])
    assert torch.equal(attend(lookup, query, memory, contexts), before)


def test_scores_far_apart_neither_overflow_nor_vanish() -> None:
    torch.manual_seed(0)
    memory, query = torch.randn(2, NUM_PAGES * PAGE_SIZE, 2, 8), torch.randn(1, 4, 8) * 1000
    contexts = contexts_of([100])
    slots = slots_of(contexts, 0)
    seen = attend(LookupAttention(2, 2, None), query, memory, contexts)
    best = torch.einsum("hgd,shd->hgs", query[0].view(2, 2, 8), memory[0, slots]).argmax(dim=-1)
    expected = torch.stack([memory[1, slots][best[head], head] for head in range(2)])
    assert torch.allclose(seen[0].view(2, 2, 8), expected, atol=1e-4)
