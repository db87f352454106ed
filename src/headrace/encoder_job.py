"""The canonical job of a request to an encoder: its texts as token ids, and what is to be made of them.

As with ``headrace.job``, the scheduler writes it, workers read it, and nobody changes it in between.
"""

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass
from typing import Any, Self

import msgpack

from headrace.encoder_request import Pooling, Task
from headrace.errors import DecodeError


@dataclass(frozen=True, slots=True)
class EncoderParams:
    """What is to be made of the texts; None stands for what the model's folder says.

    Attributes:
        pooling: how token states become one vector.
        normalize: divide a vector by its length.
        dimensions: numbers of a vector that are kept; 0 keeps all.
        top: how many labels, documents or candidates are told; 0 tells all.
        pairs: of ``rerank``: each text is a query and a document; else the first is the query.
        floats: vectors are told as lists, and not as packed bytes; None: as the encoding has it.
    """

    pooling: Pooling | None = None
    normalize: bool | None = None
    dimensions: int = 0
    top: int = 0
    pairs: bool = False
    floats: bool | None = None


@dataclass(frozen=True, slots=True)
class EncoderJob:
    """What a worker needs to compute one request to an encoder.

    Attributes:
        task: what is asked.
        lengths: tokens of each text, at least one text, each at least one token.
        firsts: tokens of each text's first segment, special tokens around it included; its length where it has one.
        token_ids: of all texts, one behind the other: little-endian 32-bit integers.
        params: what is to be made of them.
        revision: of the model and its tokenizer; a worker that serves another one does not start the job.
        cache_key: under which the answer is kept for requests that come again; "" not at all.
    """

    task: Task
    lengths: tuple[int, ...]
    firsts: tuple[int, ...]
    token_ids: bytes
    params: EncoderParams
    revision: str
    cache_key: str = ""

    @property
    def num_tokens(self) -> int:
        """Of all texts."""
        return len(self.token_ids) // _ID_BYTES

    def texts(self) -> Iterator["array[int]"]:
        """The token ids of each text, of 32 bits."""
        ids, begin = array("i", self.token_ids), 0
        for length in self.lengths:
            yield ids[begin : begin + length]
            begin += length

    def encode(self) -> bytes:
        """Serialise for ``job:<id>``."""
        encoded: bytes = msgpack.packb(
            {
                "task": self.task,
                "lengths": self.lengths,
                "firsts": self.firsts,
                "token_ids": self.token_ids,
                "params": astuple(self.params),
                "revision": self.revision,
                "cache_key": self.cache_key,
            }
        )
        return encoded

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read what ``encode`` wrote.

        Raises:
            DecodeError: the bytes are not a job of this version, or its lengths are not its tokens'.
        """
        try:
            fields: dict[str, Any] = msgpack.unpackb(data, use_list=False)
            fields["params"] = EncoderParams(*fields["params"])
            job = cls(**fields)
            fits = sum(job.lengths) == job.num_tokens and len(job.lengths) == len(job.firsts) > 0
        except (ValueError, TypeError, KeyError, msgpack.UnpackException) as error:
            raise DecodeError(f"not a job of this version: {error}") from error
        if not fits:
            raise DecodeError("not a job of this version: its lengths are not those of its tokens")
        return job


_ID_BYTES = array("i").itemsize


def pack_ids(texts: Sequence[Sequence[int]]) -> bytes:
    """Token ids of texts, one behind the other, as ``EncoderJob.token_ids`` holds them."""
    ids = array("i")
    for text in texts:
        ids.extend(text)
    return ids.tobytes()
