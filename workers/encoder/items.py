"""What an encoder is asked for and what it answers: the contract between requests and ``runner.EncoderRunner``.

An item is one row: one text, or one pair of texts for a cross-encoder, tokenised, with its special tokens. The runner
computes any mixture of items in one packed batch, in the order that suits it, and answers in the order of the items.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from headrace.kernels.encoder_table import Pooling

Kind = Literal["embed", "classify", "rerank", "fill"]


@dataclass(frozen=True, slots=True)
class EncoderItem:
    """One row to compute.

    Attributes:
        kind: what for; one of the model's ``EncoderRunner.kinds``.
        token_ids: with special tokens, 1 to ``EncoderRunner.max_tokens`` of them; quickest as an ``array("i")``.
        type_ids: as many, or none for all 0; a pair's second text has 1 where the model knows types.
        pooling: embed: how, instead of as the model's folder says.
        normalise: embed: whether, instead of as the model's folder says.
        top_k: fill: tokens told for each place, >= 1.
        places: fill: indices into ``token_ids``; none for wherever the mask's token stands.
    """

    kind: Kind
    token_ids: Sequence[int]
    type_ids: tuple[int, ...] = ()
    pooling: Pooling | None = None
    normalise: bool | None = None
    top_k: int = 5
    places: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Embedding:
    """Of a row asked to embed.

    Attributes:
        vector: fp32 ``[width]``, on the host.
    """

    vector: Tensor


@dataclass(frozen=True, slots=True)
class Classes:
    """Of a row asked to classify.

    Attributes:
        scores: one for each of ``EncoderRunner.labels``: probabilities that sum to 1 where one label holds, each for
            itself where several may, or plain numbers where the model was trained for regression.
    """

    scores: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Relevance:
    """Of a pair asked to rerank: larger is more relevant.

    Attributes:
        score: as the model's folder says, by default the logit's sigmoid.
        logit: before that.
    """

    score: float
    logit: float


@dataclass(frozen=True, slots=True)
class Fill:
    """What may stand in one place.

    Attributes:
        place: index into the row's tokens.
        token_ids: the most probable ones, most probable first.
        scores: their probabilities.
    """

    place: int
    token_ids: tuple[int, ...]
    scores: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Fills:
    """Of a row asked to fill.

    Attributes:
        fills: in the order of their places.
    """

    fills: tuple[Fill, ...]


Result = Embedding | Classes | Relevance | Fills
