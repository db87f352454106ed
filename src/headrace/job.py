"""The canonical job: a request after validation and tokenisation, as every worker executes it.

The scheduler writes it, workers read it, and nobody changes it in between: a request that moves from a lost worker
to another is computed from the same token ids, the same parameters and the same seed.
"""

from dataclasses import asdict, dataclass
from typing import Any, Self

import msgpack

from headrace.errors import DecodeError


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are chosen from logits, all values explicit.

    Attributes:
        max_tokens: tokens to generate at most, >= 1.
        min_tokens: stop ids (and the model's own end of sequence) have no chance before this many tokens.
        temperature: 0 is greedy; else logits are divided by it.
        top_k: keep the k most probable tokens; 0 keeps all.
        top_p: keep the smallest set of tokens whose probability reaches this, in (0, 1].
        min_p: keep tokens at least this share of the most probable one, in [0, 1].
        seed: with the position it determines every random number, 0 <= seed < 2**63.
        stop: strings that end the text; they are not part of it.
        stop_token_ids: ids that end the text, besides the model's own.
        ignore_eos: the model's own end of sequence does not end the text.
    """

    max_tokens: int
    min_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    seed: int
    stop: tuple[str, ...]
    stop_token_ids: tuple[int, ...]
    ignore_eos: bool


@dataclass(frozen=True, slots=True)
class Job:
    """What a worker needs to compute one request.

    Attributes:
        prompt_ids: token ids of the prompt, at least one.
        params: how to sample.
        revision: of the model and its tokenizer; a worker that serves another one does not start the job.
    """

    prompt_ids: tuple[int, ...]
    params: SamplingParams
    revision: str

    def encode(self) -> bytes:
        """Serialise for ``job:<id>``."""
        encoded: bytes = msgpack.packb(asdict(self))
        return encoded

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read what ``encode`` wrote.

        Raises:
            DecodeError: the bytes are not a job of this version.
        """
        try:
            fields: dict[str, Any] = msgpack.unpackb(data, use_list=False)
            return cls(fields["prompt_ids"], SamplingParams(**fields["params"]), fields["revision"])
        except (ValueError, TypeError, KeyError, msgpack.UnpackException) as error:
            raise DecodeError(f"not a job of this version: {error}") from error
