import pytest
import torch

from headrace.kernels.ragged import Ragged, Segment
from headrace.kernels.reference import ReferenceOperations
from headrace.memory.kv_cache import KVCache
from headrace.workers.engine.segments import segments_of

REFERENCE = ReferenceOperations()

KV_HEADS, GROUP, HEAD_DIM, LAYERS = 2, 3, 8, 2


@pytest.mark.parametrize(("num_inputs", "num_outputs"), [(576, 960), (1536, 576), (33, 7)])
@pytest.mark.parametrize("biased", [False, True])
def test_a_product_is_right_and_has_the_same_bits_in_every_batch(
    num_inputs: int, num_outputs: int, biased: bool
) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(64, num_inputs), torch.randn(num_outputs, num_inputs)
    bias = torch.randn(num_outputs) if biased else None
    packed = REFERENCE.pack_linear(weight, bias)
    with torch.inference_mode():
        full = REFERENCE.linear(x, packed)
        expected = torch.nn.functional.linear(x.double(), weight.double(), None if bias is None else bias.double())
        assert (full - expected).abs().max() < 2e-6 * num_inputs
        for num_tokens in (1, 2, 3, 20):
            assert torch.equal(REFERENCE.linear(x[:num_tokens], packed), full[:num_tokens])


def test_a_product_is_right_where_torch_has_no_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch._C, "_has_mkldnn", False)
    torch.manual_seed(0)
    x, weight, bias = torch.randn(3, 33), torch.randn(7, 33), torch.randn(7)
    packed = REFERENCE.pack_linear(weight, bias)
    assert not packed.weight.is_mkldnn
    assert torch.allclose(REFERENCE.linear(x, packed), x @ weight.T + bias, atol=1e-5)


@pytest.mark.parametrize("window", [None, 1, 2, 5, 9, 14, 15, 100])
def test_attention_sees_each_row_s_own_context_up_to_each_token_and_no_more_than_a_window_of_it(
    window: int | None,
) -> None:
    torch.manual_seed(1)
    cache = KVCache(
        num_layers=LAYERS, num_pages=16, page_size=4, num_kv_heads=KV_HEADS, head_dim=HEAD_DIM, dtype=torch.float32
    )
    cache.storage.normal_()
    # (pages, tokens new, tokens in all): decoding, a first chunk, later chunks, a first token; runs and single pages.
    rows = [
        ((10, 11, 12), 1, 9),
        ((1, 0), 6, 6),
        ((3, 4, 5, 6), 4, 15),
        ((15,), 1, 1),
        ((7, 2, 14, 13), 1, 14),
        ((8, 9, 2, 7), 10, 15),
    ]
    segments: list[Segment] = []
    num_tokens = 0
    for page_ids, num_new, num_context in rows:
        segments += segments_of(cache, page_ids, num_context - num_new, num_context, first_query=num_tokens)
        num_tokens += num_new
    nothing = torch.empty(0, dtype=torch.int64)
    batch = Ragged(nothing, nothing, nothing, nothing, tuple(segments), cache.layers)
    query = torch.randn(num_tokens, KV_HEADS, GROUP, HEAD_DIM)
    with REFERENCE.step(batch):
        seen = REFERENCE.attention(query.flatten(1, 2), 1, window=window).view(query.shape)

    token = 0
    for page_ids, num_new, num_context in rows:
        slots = torch.tensor([page * 4 + offset for page in page_ids for offset in range(4)])
        for position in range(num_context - num_new, num_context):
            first = 0 if window is None else max(0, position - window + 1)
            keys, values = cache.layers[1][:, slots[first : position + 1]].double()
            for head in range(KV_HEADS):
                weights = (query[token, head].double() @ keys[:, head].T / HEAD_DIM**0.5).softmax(dim=-1)
                assert torch.allclose(seen[token, head].double(), weights @ values[:, head], atol=1e-5)
            token += 1


def test_writing_fills_the_slots_and_no_others() -> None:
    kv = torch.zeros(2, 8, KV_HEADS, HEAD_DIM)
    qkv = torch.randn(3, KV_HEADS * (GROUP + 2), HEAD_DIM)
    nothing = torch.empty(0, dtype=torch.int64)
    with REFERENCE.step(Ragged(nothing, nothing, nothing, torch.tensor([6, 0, 3]), (), (kv,))):
        query = REFERENCE.rotary_kv(qkv.flatten(1, 2), 0, KV_HEADS * GROUP)
    assert torch.equal(query, qkv[:, : KV_HEADS * GROUP])
    for token, slot in enumerate([6, 0, 3]):
        assert torch.equal(kv[:, slot].flatten(0, 1), qkv[token, KV_HEADS * GROUP :])
    assert kv[:, [1, 2, 4, 5, 7]].abs().sum() == 0


def test_a_norm_adds_into_the_residual_stream() -> None:
    x, residual, weight = torch.randn(3, 16), torch.randn(3, 16), torch.randn(16)
    total = (x + residual).double()
    normed = REFERENCE.rms_norm(x, weight, 1e-5, residual=residual)
    expected = total / (total.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt() * weight
    assert torch.equal(residual.double(), total)
    assert torch.allclose(normed.double(), expected, atol=1e-5)
