"""What an encoder answers: vectors, labels, a ranking, candidates; as dataclasses, and as they stand in a result.

Vectors are packed, little-endian float32, in MessagePack, and lists of numbers in JSON, unless the request asked for
the other form. All else is the same in both.
"""

from array import array
from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from headrace.errors import DecodeError
from headrace.wire import Encoding

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Embeddings:
    """A vector a text.

    Attributes:
        packed: each vector's numbers, little-endian float32.
    """

    packed: tuple[bytes, ...]

    @property
    def vectors(self) -> tuple["array[float]", ...]:
        """Every vector as an array of floats."""
        return tuple(array("f", vector) for vector in self.packed)

    @property
    def vector(self) -> "array[float]":
        """The first vector: of a request with one text, the only one."""
        return array("f", self.packed[0])

    def numpy(self) -> "NDArray[Any]":
        """All vectors. Shape ``[num_texts, dimensions]``, float32; needs numpy."""
        import numpy as np

        return np.frombuffer(b"".join(self.packed), "<f4").reshape(len(self.packed), -1)

    def fields(self, encoding: Encoding = "json", floats: bool | None = None) -> dict[str, Any]:
        """As it stands in a result.

        Args:
            encoding: of the result.
            floats: as lists; False: packed, in JSON in base64; None: as the encoding has it.
        """
        if floats if floats is not None else encoding == "json":
            return {"embeddings": [_shortest(vector) for vector in self.vectors]}
        if encoding == "json":
            return {"embeddings": [b64encode(vector).decode() for vector in self.packed]}
        return {"embeddings": self.packed}

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Self:
        """Read any of the forms that ``fields`` gives."""
        return cls(tuple(_packed(vector) for vector in fields["embeddings"]))


@dataclass(frozen=True, slots=True)
class Label:
    """One label of a text."""

    label: str
    score: float


@dataclass(frozen=True, slots=True)
class Classification:
    """Labels a text, the highest score first."""

    labels: tuple[tuple[Label, ...], ...]

    def fields(self) -> dict[str, Any]:
        """As it stands in a result."""
        return {"labels": [[{"label": each.label, "score": each.score} for each in text] for text in self.labels]}

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Self:
        """Read what ``fields`` gives."""
        return cls(tuple(tuple(Label(each["label"], each["score"]) for each in text) for text in fields["labels"]))


@dataclass(frozen=True, slots=True)
class Ranked:
    """One document: its place in the request, from 0, and its score."""

    index: int
    score: float


@dataclass(frozen=True, slots=True)
class Ranking:
    """Documents, the highest score first."""

    documents: tuple[Ranked, ...]

    def fields(self) -> dict[str, Any]:
        """As it stands in a result."""
        return {"documents": [{"index": each.index, "score": each.score} for each in self.documents]}

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Self:
        """Read what ``fields`` gives."""
        return cls(tuple(Ranked(each["index"], each["score"]) for each in fields["documents"]))


@dataclass(frozen=True, slots=True)
class Candidate:
    """A token that may stand for a mask: its id, its text, its probability."""

    id: int
    text: str
    score: float


@dataclass(frozen=True, slots=True)
class Mask:
    """One mask of a text.

    Attributes:
        position: among the text's tokens, special ones included, from 0.
        candidates: the likeliest first.
    """

    position: int
    candidates: tuple[Candidate, ...]


@dataclass(frozen=True, slots=True)
class Filling:
    """The masks of every text, in order."""

    masks: tuple[tuple[Mask, ...], ...]

    def fields(self) -> dict[str, Any]:
        """As it stands in a result."""
        return {"masks": [[_mask_fields(mask) for mask in text] for text in self.masks]}

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Self:
        """Read what ``fields`` gives."""
        return cls(tuple(tuple(_mask(mask) for mask in text) for text in fields["masks"]))


Answer = Embeddings | Classification | Ranking | Filling
_KINDS: Mapping[str, type[Answer]] = {
    "embeddings": Embeddings,
    "labels": Classification,
    "documents": Ranking,
    "masks": Filling,
}


def read_answer(fields: Mapping[str, Any]) -> Answer:
    """Read a ``done.result``; which kind it is shows in its name.

    Raises:
        DecodeError: it is none.
    """
    try:
        (name,) = fields
        return _KINDS[name].of(fields)
    except (ValueError, TypeError, KeyError) as error:
        raise DecodeError(f"not an encoder's result: {error}") from error


def _shortest(vector: "array[float]") -> list[float]:
    """The numbers with nine digits, which tell any two of float32 apart."""
    return [float(f"{number:.9g}") for number in vector]


def _packed(vector: Any) -> bytes:
    if isinstance(vector, bytes):
        return vector
    return b64decode(vector, validate=True) if isinstance(vector, str) else array("f", vector).tobytes()


def _mask_fields(mask: Mask) -> dict[str, Any]:
    candidates = [{"id": each.id, "text": each.text, "score": each.score} for each in mask.candidates]
    return {"position": mask.position, "candidates": candidates}


def _mask(fields: Mapping[str, Any]) -> Mask:
    candidates = (Candidate(each["id"], each["text"], each["score"]) for each in fields["candidates"])
    return Mask(fields["position"], tuple(candidates))
