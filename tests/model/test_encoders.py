"""Our encoders against transformers', on tiny random models of every family."""

from pathlib import Path

import pytest
import torch
from tests.model.tiny_encoders import CONFIGS, make_encoder, texts
from transformers import PreTrainedModel

from headrace.kernels.encoder_reference import EncoderReference
from headrace.workers.encoder.items import EncoderItem
from headrace.workers.encoder.loading import LoadedEncoder, load_encoder
from headrace.workers.encoder.model import Trace
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


def test_two_thousand_positions_are_as_good_as_five_hundred(tmp_path: Path) -> None:
    oracle = make_encoder("bert", folder=tmp_path, max_position_embeddings=2048)
    rows = texts(2048, 5, 1500)
    for row, ours in zip(
        rows, hidden_states(load_encoder(tmp_path, EncoderReference(), torch.float32), rows), strict=True
    ):
        with torch.inference_mode():
            assert (ours - oracle(torch.tensor([row])).last_hidden_state[0]).abs().max() < TOLERANCE


def test_a_row_gets_the_same_bits_alone_and_in_any_company(loaded: LoadedEncoder) -> None:
    rows = texts(9, 1, 30, 9, 200, 2, 30, 30)
    together = hidden_states(loaded, rows)
    for row, ours in zip(rows, together, strict=True):
        assert torch.equal(hidden_states(loaded, [row])[0], ours)


def test_hidden_states_and_attentions_are_those_of_transformers(tmp_path: Path) -> None:
    oracle = make_encoder("albert with groups", folder=tmp_path, attn_implementation="eager")
    encoder = load_encoder(tmp_path, EncoderReference(), torch.float32)
    rows, trace = texts(7, 12), Trace()
    batch = EncoderRunner(encoder).pack([EncoderItem("embed", row) for row in rows])
    with torch.inference_mode():
        encoder.encoder.model.forward(batch, trace)
        assert trace.hidden_states is not None
        assert trace.attentions is not None
        for number, (row, start) in enumerate(zip(rows, (0, 7), strict=True)):
            theirs = oracle(torch.tensor([row]), output_hidden_states=True, output_attentions=True)
            assert len(theirs.hidden_states) == len(trace.hidden_states) == 11
            for state, expected in zip(trace.hidden_states, theirs.hidden_states, strict=True):
                assert (state[start : start + len(row)] - expected[0]).abs().max() < TOLERANCE
            for weights, expected in zip(trace.attentions, theirs.attentions, strict=True):
                assert (weights[number] - expected[0]).abs().max() < TOLERANCE
