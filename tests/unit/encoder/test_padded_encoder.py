"""The runtime that pads says the same as the one that packs, so that only their times differ."""

import pytest
import torch
from tests.unit.encoder.tiny import TINY_BERT

from headrace.errors import KernelError
from headrace.kernels.encoder_reference import EncoderReference
from headrace.kernels.encoder_table import Pooling
from headrace.testing.padded_encoder import PaddedReference
from headrace.testing.state_dict import RandomWeights
from headrace.workers.encoder.items import Embedding, EncoderItem
from headrace.workers.encoder.loading import LoadedEncoder, build_encoder
from headrace.workers.encoder.pooling import Sentences
from headrace.workers.encoder.runner import EncoderRunner

CPU = torch.device("cpu")


def vectors(table: EncoderReference, items: list[EncoderItem]) -> torch.Tensor:
    encoder = build_encoder(TINY_BERT, RandomWeights(CPU, spread=0.3), (), table, torch.float32)
    results = EncoderRunner(LoadedEncoder(encoder, Sentences(), None)).run(items)
    return torch.stack([result.vector for result in results if isinstance(result, Embedding)])


@pytest.mark.parametrize("pooling", ["cls", "mean", "max", "last"])
@pytest.mark.parametrize("normalise", [False, True])
def test_vectors_of_padded_rows_are_those_of_packed_ones(pooling: Pooling, normalise: bool) -> None:
    drawn = torch.Generator().manual_seed(0)
    lengths = (3, 1, 17, 17, 9)
    rows = [tuple(torch.randint(1, 50, (length,), generator=drawn).tolist()) for length in lengths]
    items = [EncoderItem("embed", row, pooling=pooling, normalise=normalise) for row in rows]
    items.append(EncoderItem("embed", (7, 8), type_ids=(0, 1), pooling=pooling, normalise=normalise))
    difference = vectors(PaddedReference(), items) - vectors(EncoderReference(), items)
    assert difference.abs().max() < 1e-5


def test_every_row_is_computed_as_long_as_the_longest() -> None:
    ids = torch.tensor([5, 6, 7, 8])
    batch = PaddedReference().pack(ids, torch.tensor([0, 0, 1, 2]), None, [1, 3])
    assert batch.token_ids.tolist() == [5, 0, 0, 6, 7, 8]
    assert batch.positions.tolist() == [0, 0, 0, 0, 1, 2]
    assert (batch.lengths, batch.starts.tolist()) == ((1, 3), [0, 3, 6])


def test_a_batch_of_another_table_is_refused() -> None:
    packed = EncoderReference().pack(torch.tensor([5]), torch.tensor([0]), None, [1])
    with pytest.raises(KernelError, match="another table"):
        PaddedReference().pool(torch.ones(1, 4), packed, "mean", normalise=False)
