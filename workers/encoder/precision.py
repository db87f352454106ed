"""What int8 costs in accuracy: answers to sample texts beside those in float32."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from headrace.workers.encoder.items import Classes, Embedding, EncoderItem
from headrace.workers.encoder.loading import LoadedEncoder
from headrace.workers.encoder.runner import EncoderRunner
from headrace.workers.text.encoder_tokenizer import EncoderTokenizer

SAMPLE_TEXTS = (
    "A man is eating food.",
    "Somebody eats a meal.",
    "The new movie is awesome, and its music even better.",
    "I waited for an hour and nobody answered the telephone.",
    "How do I reset the password of my account?",
    "Where can I change my login?",
    "The river carries the water past the mill and down to the sea.",
    "Interest rates were left as they are, the central bank said on Tuesday.",
    "def add(a, b): return a + b",
    "Die Sitzung beginnt um neun Uhr im großen Saal.",
    "It rained in the morning. At noon the sky cleared, and in the evening we sat in the garden until it was dark.",
    "Water boils at a lower temperature in the mountains, because the pressure of the air is lower there.",
)
"""Pairs that mean the same and texts that mean something else, short and long."""


@dataclass(frozen=True, slots=True)
class AccuracyLoss:
    """How answers differ from those in float32.

    Attributes:
        num_texts: that were compared.
        mean_cosine: of the two vectors of a text.
        min_cosine: of the two that are farthest apart.
        max_similarity_error: of the cosines of all pairs of texts.
        max_score_error: of all classes' scores; None where the model does not classify.
    """

    num_texts: int
    mean_cosine: float
    min_cosine: float
    max_similarity_error: float
    max_score_error: float | None

    def __str__(self) -> str:
        scores = "" if self.max_score_error is None else f", scores of classes by at most {self.max_score_error:.4f}"
        return (
            f"vectors of {self.num_texts} texts have a cosine of {self.mean_cosine:.5f} to float32's, at least "
            f"{self.min_cosine:.5f}; similarities differ by at most {self.max_similarity_error:.4f}{scores}"
        )


def compare(folder: Path, exact: LoadedEncoder, quantised: LoadedEncoder) -> AccuracyLoss:
    """Compute the sample texts twice.

    Args:
        folder: of the model, with its tokenizer.
        exact: in float32.
        quantised: the same model.

    Raises:
        ModelError: the tokenizer cannot be read.
    """
    runners = EncoderRunner(exact), EncoderRunner(quantised)
    rows = _sample(folder)
    truth, ours = (_vectors(runner, rows) for runner in runners)
    cosines = (truth * ours).sum(dim=1)
    errors = (truth @ truth.T - ours @ ours.T).abs()
    scores = [_scores(runner, rows) for runner in runners] if "classify" in runners[0].kinds else None
    return AccuracyLoss(
        num_texts=len(rows),
        mean_cosine=float(cosines.mean()),
        min_cosine=float(cosines.min()),
        max_similarity_error=float(errors.max()),
        max_score_error=None if scores is None else float((scores[0] - scores[1]).abs().max()),
    )


def _sample(folder: Path) -> list[tuple[int, ...]]:
    texts = EncoderTokenizer.from_folder(folder).encode_batch(SAMPLE_TEXTS, truncate=True)
    return [tuple(text.ids) for text in texts]


def _vectors(runner: EncoderRunner, rows: list[tuple[int, ...]]) -> Tensor:
    results = runner.run([EncoderItem("embed", row, normalise=True) for row in rows])
    return torch.stack([result.vector for result in results if isinstance(result, Embedding)])


def _scores(runner: EncoderRunner, rows: list[tuple[int, ...]]) -> Tensor:
    results = runner.run([EncoderItem("classify", row) for row in rows])
    return torch.tensor([result.scores for result in results if isinstance(result, Classes)])
