"""Our encoders against transformers', on tiny random models of every family."""

from pathlib import Path

import pytest
import torch
from tests.model.tiny_encoders import CONFIGS, make_encoder, texts
from transformers import PreTrainedModel

from headrace.kernels.encoder_reference import EncoderReference
from headrace.workers.encoder.items import EncoderItem
from headrace.workers.encoder.loading import LoadedEncoder, load_encoder
from headrace.workers.encoder.runner import EncoderRunner

TOLERANCE = 1e-4


@pytest.fixture(scope="module", params=list(CONFIGS))
def models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[PreTrainedModel, Path]:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("encoder")
    return make_encoder(request.param, folder=folder), folder


@pytest.fixture(scope="module")
def loaded(models: tuple[PreTrainedModel, Path]) -> LoadedEncoder:
    return load_encoder(models[1], EncoderReference(), torch.float32)


def hidden_states(loaded: LoadedEncoder, rows: list[tuple[int, ...]]) -> list[torch.Tensor]:
    batch = EncoderRunner(loaded).pack([EncoderItem("embed", row) for row in rows])
    with torch.inference_mode():
        return list(torch.split_with_sizes(loaded.encoder.model.forward(batch), [len(row) for row in rows]))


def test_hidden_states_of_packed_rows_are_those_of_transformers_row_by_row(
    models: tuple[PreTrainedModel, Path], loaded: LoadedEncoder
) -> None:
    rows = texts(1, 512, 2, 17, 64, 17, 3, 255, 64)
    for row, ours in zip(rows, hidden_states(loaded, rows), strict=True):
        with torch.inference_mode():
            theirs = models[0](torch.tensor([row])).last_hidden_state[0]
        assert theirs.std() > 0.3, "hidden states that are all alike would prove nothing"
        assert (ours - theirs).abs().max() < TOLERANCE
