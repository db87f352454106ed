"""What a runner answers, against transformers and the definitions of the poolings."""

from array import array
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from tests.model.tiny_encoders import VOCAB, make_encoder, texts
from tokenizers.models import WordLevel
from torch import Tensor
from transformers import PreTrainedModel

from headrace.errors import InvalidRequestError
from headrace.kernels.encoder_reference import EncoderReference
from headrace.workers.encoder.items import Classes, Embedding, EncoderItem, Fills, Kind, Relevance, Result
from headrace.workers.encoder.loading import load_encoder
from headrace.workers.encoder.runner import EncoderRunner
from headrace.workers.text.encoder_tokenizer import EncoderTokenizer

ROWS = texts(6, 40, 1, 17, 6)
MASK_ID = 3


def runner_of(folder: Path, **options: int) -> EncoderRunner:
    return EncoderRunner(load_encoder(folder, EncoderReference(), torch.float32), **options)


def answers(runner: EncoderRunner, kind: Kind, rows: list[tuple[int, ...]] = ROWS, **options: Any) -> list[Result]:
    return runner.run([EncoderItem(kind, row, **options) for row in rows])


@torch.inference_mode()
def theirs(oracle: PreTrainedModel, rows: list[tuple[int, ...]] = ROWS) -> list[Any]:
    return [oracle(torch.tensor([row])) for row in rows]


def vectors(results: list[Result]) -> Tensor:
    assert all(isinstance(result, Embedding) for result in results)
    return torch.stack([result.vector for result in results if isinstance(result, Embedding)])


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("pooling", ["cls", "mean", "max", "last"])
def test_vectors_are_pooled_as_they_are_asked_for(tmp_path: Path, pooling: Any, normalise: bool) -> None:
    oracle = make_encoder("bert", folder=tmp_path)
    states = [output.last_hidden_state[0] for output in theirs(oracle)]
    pools = {
        "cls": lambda x: x[0],
        "mean": lambda x: x.sum(0) / len(x),
        "max": lambda x: x.max(0).values,
        "last": lambda x: x[-1],
    }
    expected = torch.stack([pools[pooling](state) for state in states])
    if normalise:
        expected = expected / expected.norm(dim=1, keepdim=True)
    ours = vectors(answers(runner_of(tmp_path), "embed", pooling=pooling, normalise=normalise))
    assert (ours - expected).abs().max() < 1e-5


@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert", "albert"])
@pytest.mark.parametrize(
    ("problem", "function"),
    [
        (None, lambda logits: logits.softmax(-1)),
        ("single_label_classification", lambda logits: logits.softmax(-1)),
        ("multi_label_classification", lambda logits: logits.sigmoid()),
        ("regression", lambda logits: logits),
    ],
)
def test_classes_have_names_and_scores_as_the_problem_wants(
    tmp_path: Path, name: str, problem: str | None, function: Any
) -> None:
    oracle = make_encoder(
        name, "ForSequenceClassification", tmp_path, problem_type=problem, id2label={0: "good", 1: "bad", 2: "neither"}
    )
    runner = runner_of(tmp_path)
    assert runner.labels == ("good", "bad", "neither")
    assert runner.kinds == {"embed", "classify"}
    expected = function(torch.cat([output.logits for output in theirs(oracle)]))
    ours = torch.tensor([result.scores for result in answers(runner, "classify") if isinstance(result, Classes)])
    assert (ours - expected).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("said", "function"),
    [
        ({}, torch.sigmoid),
        ({"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}}, lambda logits: logits),
        ({"sbert_ce_default_activation_function": "torch.nn.modules.activation.Sigmoid"}, torch.sigmoid),
    ],
)
def test_pairs_are_scored_as_the_folder_says(tmp_path: Path, said: dict[str, Any], function: Any) -> None:
    oracle = make_encoder("bert", "ForSequenceClassification", tmp_path, num_labels=1, **said)
    types = [tuple(int(index > len(row) // 2) for index in range(len(row))) for row in ROWS]
    items = [EncoderItem("rerank", row, type_ids) for row, type_ids in zip(ROWS, types, strict=True)]
    results = runner_of(tmp_path).run(items)
    for row, type_ids, result in zip(ROWS, types, results, strict=True):
        with torch.inference_mode():
            logit = oracle(torch.tensor([row]), token_type_ids=torch.tensor([type_ids])).logits[0, 0]
        assert isinstance(result, Relevance)
        assert abs(result.logit - logit) < 1e-5
        assert abs(result.score - function(logit)) < 1e-5


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", ["bert", "xlm-roberta", "distilbert", "albert"])
def test_places_are_filled_with_the_most_probable_tokens(tmp_path: Path, name: str, tied: bool) -> None:
    oracle = make_encoder(name, "ForMaskedLM", tmp_path, tie_word_embeddings=tied)
    results = answers(runner_of(tmp_path), "fill", ROWS[:2], places=(4, 1), top_k=7)
    for output, result in zip(theirs(oracle, ROWS[:2]), results, strict=True):
        best = output.logits[0].softmax(-1).topk(7)
        assert isinstance(result, Fills)
        assert [fill.place for fill in result.fills] == [4, 1]
        for fill in result.fills:
            assert list(fill.token_ids) == best.indices[fill.place].tolist()
            assert (torch.tensor(fill.scores) - best.values[fill.place]).abs().max() < 1e-5


@pytest.mark.parametrize("named", ["tokenizer_config.json", "special_tokens_map.json"])
def test_masks_are_found_by_the_tokenizers_name_for_them(tmp_path: Path, named: str) -> None:
    make_encoder("bert", "ForMaskedLM", tmp_path)
    with pytest.raises(InvalidRequestError, match="no mask in the text"):
        answers(runner_of(tmp_path), "fill")
    # Not among the added tokens, and named by one of two files: the scheduler reads both.
    words = tokenizers.Tokenizer(WordLevel({"a": 0, "[MASK]": 9, "?": MASK_ID}, unk_token="a"))
    words.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / named).write_text('{"mask_token": {"content": "?"}}')
    assert EncoderTokenizer.from_folder(tmp_path).mask_id == MASK_ID
    (result,) = answers(runner_of(tmp_path), "fill", [(8, MASK_ID, 7, MASK_ID)])
    assert isinstance(result, Fills)
    assert [fill.place for fill in result.fills] == [1, 3]


def test_kinds_may_be_mixed_and_batches_cut_without_a_change_of_any_answer(tmp_path: Path) -> None:
    make_encoder("bert", "ForSequenceClassification", tmp_path, num_labels=1)
    kinds: list[Kind] = ["embed", "rerank", "classify"]
    items = [EncoderItem(kinds[number % 3], row) for number, row in enumerate(texts(*range(1, 40)))]
    runner, cut = runner_of(tmp_path), runner_of(tmp_path, batch_tokens=50)
    for ours, alone in zip(cut.run(items), (runner.run([item])[0] for item in items), strict=True):
        if isinstance(ours, Embedding):
            assert isinstance(alone, Embedding)
            assert torch.equal(ours.vector, alone.vector)
        else:
            assert ours == alone


def test_ids_have_the_same_answers_as_an_array_beside_tuples_and_without(tmp_path: Path) -> None:
    make_encoder("bert", folder=tmp_path)
    runner = runner_of(tmp_path)
    arrays = [EncoderItem("embed", array("i", row)) for row in ROWS]
    mixed = [EncoderItem("embed", ROWS[0]), *arrays[1:]]
    expected = vectors(answers(runner, "embed"))
    wide = [EncoderItem("embed", array("q", row)) for row in ROWS]
    for items in (arrays, mixed, wide):
        assert torch.equal(vectors(runner.run(items)), expected)


@pytest.mark.parametrize(
    ("item", "told"),
    [
        (EncoderItem("fill", (5,)), "cannot fill; it can embed"),
        (EncoderItem("embed", ()), "has 0 tokens, 1 to 520"),
        (EncoderItem("embed", (5,) * 521), "has 521 tokens, 1 to 520"),
        (EncoderItem("embed", (5, VOCAB)), f"0 to {VOCAB - 1}"),
        (EncoderItem("embed", (5, -1)), f"0 to {VOCAB - 1}"),
        (EncoderItem("embed", array("i", [5, VOCAB])), f"0 to {VOCAB - 1}"),
        (EncoderItem("embed", array("i", [5, -1])), f"0 to {VOCAB - 1}"),
        (EncoderItem("embed", array("q", [5, VOCAB])), f"0 to {VOCAB - 1}"),
        (EncoderItem("embed", array("i")), "has 0 tokens, 1 to 520"),
        (EncoderItem("embed", (5, 6), (0,)), "one a token"),
        (EncoderItem("embed", (5, 6), (0, 2)), "0 to 1"),
    ],
)
def test_what_a_model_cannot_compute_is_refused_before_anything_is_computed(
    tmp_path: Path, item: EncoderItem, told: str
) -> None:
    make_encoder("bert", folder=tmp_path)
    with pytest.raises(InvalidRequestError, match=told):
        runner_of(tmp_path).run([EncoderItem("embed", (5, 6)), item])


def test_places_and_numbers_outside_are_refused(tmp_path: Path) -> None:
    make_encoder("bert", "ForMaskedLM", tmp_path)
    for options, told in (({"places": (4,)}, "outside the text"), ({"top_k": 0, "places": (0,)}, "top_k must be 1 to")):
        with pytest.raises(InvalidRequestError, match=told):
            answers(runner_of(tmp_path), "fill", [(5, 6, 7, 8)], **options)
