"""all-MiniLM-L6-v2 as sentence-transformers computes it, in float32 and in int8."""

import logging

import pytest
import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor

import headrace
from headrace.workers.encoder.assembly import Precision, load_for
from headrace.workers.encoder.items import Embedding, EncoderItem
from headrace.workers.encoder.runner import EncoderRunner
from headrace.workers.model_store.store import ModelFolder

TEXTS = [
    "A man is eating food.",
    "A man eats something.",
    "The girl is carrying a baby.",
    "",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich.",
    "😀 and 漢字",
    "The quick brown fox jumps over the lazy dog. " * 40,
]


@pytest.fixture(scope="module")
def oracle(minilm: ModelFolder) -> SentenceTransformer:
    torch.set_num_threads(1)
    return SentenceTransformer(str(minilm.path), device="cpu")


def runner_of(folder: ModelFolder, precision: Precision) -> EncoderRunner:
    return EncoderRunner(load_for(folder.path, torch.device("cpu"), precision))


def vectors(runner: EncoderRunner, oracle: SentenceTransformer, texts: list[str] = TEXTS) -> Tensor:
    rows = oracle.tokenizer(texts, truncation=True, max_length=runner.text_tokens)["input_ids"]
    results = runner.run([EncoderItem("embed", tuple(row)) for row in rows])
    return torch.stack([result.vector for result in results if isinstance(result, Embedding)])


def test_similarities_are_those_of_sentence_transformers(minilm: ModelFolder, oracle: SentenceTransformer) -> None:
    runner = runner_of(minilm, "float32")
    assert (runner.width, runner.text_tokens, set(runner.kinds)) == (384, 256, {"embed"})
    ours, theirs = vectors(runner, oracle), torch.tensor(oracle.encode(TEXTS))
    assert (ours - theirs).abs().max() < 1e-5
    assert (ours @ ours.T - theirs @ theirs.T).abs().max() < 1e-5
    assert 0.8 < ours[0] @ ours[1] < 1
    assert ours[0] @ ours[2] < 0.3


def test_sentence_transformers_may_hold_an_accelerated_model(oracle: SentenceTransformer) -> None:
    theirs = oracle.encode(TEXTS)
    original = oracle[0].auto_model
    oracle[0].auto_model = headrace.accelerate(original)
    try:
        ours = oracle.encode(TEXTS, batch_size=4)
    finally:
        oracle[0].auto_model = original
    assert abs(ours - theirs).max() < 1e-5


def test_int8_tells_its_loss_and_does_not_lose_more(
    minilm: ModelFolder, oracle: SentenceTransformer, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        runner = runner_of(minilm, "int8")
    (told,) = [record.getMessage() for record in caplog.records if record.name == "headrace.workers.encoder"]
    assert told.startswith("int8: vectors of 12 texts have a cosine of 0.99")
    ours, theirs = vectors(runner, oracle), torch.tensor(oracle.encode(TEXTS))
    assert 0.99 < (ours * theirs).sum(dim=1).min() < 0.99999, "the products are in 8 bits, and good ones"
    assert (ours @ ours.T - theirs @ theirs.T).abs().max() < 0.02
    assert torch.equal(ours[:1], vectors(runner, oracle, TEXTS[:1]))
