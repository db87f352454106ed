"""The canonical job: a request after validation and tokenisation, as every worker executes it.

The scheduler writes it, workers read it, and nobody changes it in between: a request that moves from a lost worker
to another is computed from the same token ids, the same parameters and the same seed.
"""

from dataclasses import dataclass, fields, replace
from hashlib import blake2b
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
        repetition_penalty: logits of tokens of prompt and output are divided by it where positive, else multiplied;
            1 changes nothing, > 0.
        presence_penalty: taken off the logits of tokens that the output holds.
        frequency_penalty: taken off a token's logit as often as the output holds it.
        logit_bias: token ids and what is added to their logits, before the penalties.
        bad_words: token sequences that are never completed, within prompt and output; none is empty.
        logprobs: how many of the most probable tokens to tell beside each chosen one; None tells nothing.
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
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    bad_words: tuple[tuple[int, ...], ...] = ()
    logprobs: int | None = None


_PARAM_NAMES = tuple(field.name for field in fields(SamplingParams))


@dataclass(frozen=True, slots=True)
class Job:
    """What a worker needs to compute one request.

    Attributes:
        prompt_ids: token ids of the prompt, at least one.
        params: how to sample.
        revision: of the model and its tokenizer; a worker that serves another one does not start the job.
        cache_key: under which the answer is kept for requests that come again; "" not at all.
    """

    prompt_ids: tuple[int, ...]
    params: SamplingParams
    revision: str
    cache_key: str = ""

    def of_child(self, index: int) -> Self:
        """The job of one of several results: the same but for its random numbers. The first keeps the seed."""
        return replace(self, params=replace(self.params, seed=child_seed(self.params.seed, index)))

    def for_cache(self) -> Self:
        """The same without what makes no difference to the answer: a greedy one draws nothing."""
        if self.params.temperature:
            return self
        return replace(self, params=replace(self.params, seed=0, top_k=0, top_p=1.0, min_p=0.0))

    def encode(self) -> bytes:
        """Serialise for ``job:<id>``."""
        # Not asdict: it copies every token id, which took half of a scheduler's time.
        params = {name: getattr(self.params, name) for name in _PARAM_NAMES}
        fields = {"prompt_ids": self.prompt_ids, "params": params, "revision": self.revision}
        encoded: bytes = msgpack.packb(fields | ({"cache_key": self.cache_key} if self.cache_key else {}))
        return encoded

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read what ``encode`` wrote.

        Raises:
            DecodeError: the bytes are not a job of this version.
        """
        try:
            fields: dict[str, Any] = msgpack.unpackb(data, use_list=False)
            params = SamplingParams(**fields["params"])
            return cls(fields["prompt_ids"], params, fields["revision"], fields.get("cache_key", ""))
        except (ValueError, TypeError, KeyError, msgpack.UnpackException) as error:
            raise DecodeError(f"not a job of this version: {error}") from error


def child_seed(seed: int, index: int) -> int:
    """The seed of the ``index``-th of several results; a hash, so that the results of neighbouring seeds differ."""
    if index == 0:
        return seed
    digest = blake2b(f"{seed}/{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
