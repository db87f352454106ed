"""Sampling fields for tests and benchmarks, which name only what they are about."""

from typing import Any

from headrace.job import SamplingParams


def plain_params(max_tokens: int = 12, **fields: Any) -> SamplingParams:
    """The likeliest token each time, up to ``max_tokens``, whatever the model says of an end; ``fields`` override."""
    defaults: dict[str, Any] = {
        "min_tokens": 0,
        "temperature": 0.0,
        "top_k": 0,
        "top_p": 1.0,
        "min_p": 0.0,
        "seed": 0,
        "stop": (),
        "stop_token_ids": (),
        "ignore_eos": True,
    }
    return SamplingParams(max_tokens=max_tokens, **(defaults | fields))
