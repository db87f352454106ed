"""Every case there is, in the order in which they are measured: those of one engine after each other."""

from collections.abc import Iterable

from headrace.bench import (
    context_cases,
    decode_cases,
    deterministic_cases,
    poisson_cases,
    prefix_cases,
    redis_cases,
    start_cases,
    throughput_cases,
)
from headrace.bench.case import Case

#: Whose name does not say on which shape: rows of 32,000 tokens are longer than Llama 3 8B was made for.
_PREFIX_SHAPE, _CONTEXT_SHAPE = "L8B", "Q06"


def catalogue(shapes: Iterable[str]) -> list[Case]:
    """The cases of some shapes.

    Args:
        shapes: names of models.
    """
    found: list[Case] = []
    for shape in shapes:
        found += decode_cases.cases(shape)
        found += throughput_cases.cases(shape)
        if shape == _PREFIX_SHAPE:
            found += prefix_cases.cases(shape)
        found += poisson_cases.cases(shape)
        found += deterministic_cases.cases(shape)
        if shape == _CONTEXT_SHAPE:
            found += context_cases.cases(shape)
        found += start_cases.cases(shape)
        found += redis_cases.cases(shape)
    return found
