"""About how many tokens a request will take, before a tokenizer has counted them. Pure."""

from typing import Any

from headrace.config import Settings
from headrace.encoder_request import EncoderRequest, RerankRequest
from headrace.request import Request

#: English text has about four bytes a token; the scheduler counts, this only has to be near.
_BYTES_PER_TOKEN = 4
#: What a chat template puts around a message.
_TOKENS_PER_MESSAGE = 4


def estimate_cost_tokens(request: Request | EncoderRequest, settings: Settings) -> int:
    """About how many tokens prompt and output are together, at most what a context holds; of every result its own.

    Of a request to an encoder, the tokens of all its texts.
    """
    if isinstance(request, EncoderRequest):
        return min(sum(_tokens(text) for text in _texts(request)), settings.max_request_tokens)
    max_tokens = settings.default_max_tokens if request.max_tokens is None else request.max_tokens
    if isinstance(request.prompt, list):
        prompt_tokens = len(request.prompt)
    elif request.prompt is not None:
        prompt_tokens = _text_tokens(request.prompt)
    else:
        prompt_tokens = sum(_text_tokens(m.content) + _TOKENS_PER_MESSAGE for m in request.messages or ())
    return request.n * min(prompt_tokens + max_tokens, settings.max_context_tokens)


def _texts(request: EncoderRequest) -> list[Any]:
    if isinstance(request, RerankRequest):
        return [request.query, *request.documents]
    given = getattr(request, "input")  # noqa: B009 - every other request to an encoder has it
    return [given] if isinstance(given, str) or isinstance(given[0], int) else given


def _tokens(text: str | list[int]) -> int:
    return _text_tokens(text) if isinstance(text, str) else len(text)


def _text_tokens(text: str) -> int:
    return 1 + len(text.encode()) // _BYTES_PER_TOKEN
