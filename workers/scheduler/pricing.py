"""A request whose prompt is tokenised becomes a job with a price, or is refused for what only the model can tell."""

import secrets
from dataclasses import dataclass, replace

from headrace.cache_key import cache_key
from headrace.config import Settings
from headrace.errors import InvalidRequestError
from headrace.job import Job, SamplingParams
from headrace.moves import Admission
from headrace.request import Request
from headrace.wire import Chunk, Echo
from headrace.workers.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt as the model sees it.

    Attributes:
        ids: its tokens.
        text: what was tokenised, a chat as its template wrote it; None where the tokens came as they are.
    """

    ids: tuple[int, ...]
    text: str | None


class Pricer:
    """Checks, prices and completes the requests of one model."""

    def __init__(self, tokenizer: Tokenizer, revision: str, settings: Settings) -> None:
        self._tokenizer = tokenizer
        self._revision = revision
        self._settings = settings
        self._context = min(tokenizer.context_length, settings.max_context_tokens)

    def price(
        self, blank: Admission, request: Request, prompt: Prompt, bad_words: tuple[tuple[int, ...], ...]
    ) -> Admission:
        """Complete an admission.

        Args:
            blank: what is known of the entry.
            request: its body.
            prompt: its prompt.
            bad_words: its bad words as token sequences.

        Raises:
            InvalidRequestError: ``field`` and the message name the first culprit and its limit.
        """
        max_tokens = self._check(request, prompt.ids, bad_words)
        job = Job(prompt.ids, _sampling_params(request, max_tokens, bad_words), self._revision)
        if self._settings.cache_entries and _can_be_kept(request):
            job = replace(job, cache_key=cache_key(job.for_cache().encode(), blank.encoding))
        return replace(
            blank,
            job=job.encode(),
            cache_key=job.cache_key,
            cost_tokens=len(prompt.ids) + max_tokens,
            prompt_tokens=len(prompt.ids),
            num_results=request.n,
            echo=self._echo(prompt).encode(blank.encoding) if request.echo else b"",
        )

    def _echo(self, prompt: Prompt) -> Chunk:
        text = self._tokenizer.decode(prompt.ids) if prompt.text is None else prompt.text
        return Chunk(0, 0, (), "", echo=Echo(prompt.ids, text))

    def _check(self, request: Request, prompt_ids: tuple[int, ...], bad_words: tuple[tuple[int, ...], ...]) -> int:
        """Check what only the model can tell; return the number of tokens that may be generated."""
        source = "prompt" if request.messages is None else "messages"
        if not prompt_ids:
            raise InvalidRequestError(f"{source}: holds no token", field=source)
        if len(prompt_ids) >= self._context:
            raise InvalidRequestError(
                f"{source}: {len(prompt_ids)} tokens, the context holds {self._context} with the output", field=source
            )
        for name, ids in (
            ("prompt", prompt_ids),
            ("stop_token_ids", request.stop_token_ids),
            ("logit_bias", [int(token_id) for token_id in request.logit_bias]),
            ("bad_words", [token_id for word in bad_words for token_id in word]),
        ):
            if max(ids, default=0) >= self._tokenizer.vocab_size:
                raise InvalidRequestError(f"{name}: token ids must be under {self._tokenizer.vocab_size}", field=name)
        room = self._context - len(prompt_ids)
        if request.max_tokens is not None and request.max_tokens > room:
            raise InvalidRequestError(
                f"max_tokens: at most {room}, the context of {self._context} less the prompt's {len(prompt_ids)}",
                field="max_tokens",
            )
        max_tokens = request.max_tokens or min(self._settings.default_max_tokens, room)
        if request.min_tokens > max_tokens:
            raise InvalidRequestError(f"min_tokens: at most max_tokens, {max_tokens}", field="min_tokens")
        return max_tokens


def _can_be_kept(request: Request) -> bool:
    """Whether the same request would be answered alike, in one chunk; its echo is no part of the answer."""
    is_repeatable = request.temperature == 0 or request.seed is not None
    return request.cache and is_repeatable and request.n == 1


def _sampling_params(request: Request, max_tokens: int, bad_words: tuple[tuple[int, ...], ...]) -> SamplingParams:
    return SamplingParams(
        max_tokens=max_tokens,
        min_tokens=request.min_tokens,
        temperature=float(request.temperature),
        top_k=request.top_k,
        top_p=float(request.top_p),
        min_p=float(request.min_p),
        seed=secrets.randbits(63) if request.seed is None else request.seed,
        stop=request.stop_strings,
        stop_token_ids=tuple(request.stop_token_ids),
        ignore_eos=request.ignore_eos,
        repetition_penalty=float(request.repetition_penalty),
        presence_penalty=float(request.presence_penalty),
        frequency_penalty=float(request.frequency_penalty),
        # "5" and "05" name one token.
        logit_bias=tuple({int(token_id): float(bias) for token_id, bias in request.logit_bias.items()}.items()),
        bad_words=bad_words,
        logprobs=request.logprobs,
    )
