import itertools
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.testing.step_profile import NOTHING, Span, device_spans, parts_of, summarise

LAYER = ("thin_product", "decode_attention", "thin_product", "rms_norm", "nvjet_hsh", "swiglu", "nvjet_hsh")
STEP = ("next_tokens", "embedding", *LAYER, *LAYER, "nvjet_tst", "sample_pick", "tell_host")


def test_products_are_named_by_where_they_stand() -> None:
    found = [part for part in parts_of(STEP) if part.endswith(" product")]
    layer = ["q, k, v product", "out product", "gate and up product", "down product"]
    assert found == [*layer, *layer, "logits product"]
    assert len(parts_of(STEP)) == len(STEP)


def test_what_sums_up_a_products_parts_belongs_to_it() -> None:
    names = ["gemm", "decode_attention", "gemm", "void splitKreduce_kernel", "add", "gemm", "gemm", "gemm"]
    assert parts_of(names) == [
        "q, k, v product", "decode_attention", "out product", "out product", "add", "gate and up product",
        "down product", "logits product",
    ]  # fmt: skip


TIMES = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 30)), min_size=len(STEP), max_size=len(STEP))


@given(TIMES, TIMES)
def test_the_parts_of_a_step_add_up_to_it_however_kernels_overlap(first: list[tuple[int, int]], more: object) -> None:
    assert isinstance(more, list)
    begin = 0
    spans = [Span("tell_host", -5.0, -1.0)]
    for name, (gap, length) in zip(itertools.chain(STEP, STEP), [*first, *more], strict=True):
        begin += gap
        # What tells the host ends a step: nothing of it is still at work.
        end = max([begin + length, *(span.end_us for span in spans if name == "tell_host")])
        spans.append(Span(name, begin, end))
    steps = [index for index, span in enumerate(spans) if span.name == "tell_host"]
    one = summarise(spans[: steps[1] + 1], 0.0)
    assert sum(part.us for part in one.parts) == pytest.approx(one.step_us)
    assert one.step_us == spans[steps[1]].end_us - spans[0].end_us
    both = summarise(spans, 7.0)
    assert both.wall_us == 7.0
    assert sum(part.launches for part in both.parts) == len(STEP)


def test_a_moment_belongs_to_the_kernel_that_began_first_or_to_nothing() -> None:
    spans = [Span("tell_host", 0, 1), Span("rms_norm", 3, 9), Span("add", 5, 12), Span("tell_host", 12, 14)]
    parts = {part.name: part.us for part in summarise(spans, 0.0).parts}
    assert parts == {NOTHING: 2, "rms_norm": 6, "add": 3, "tell_host": 2}


def test_a_stretch_without_a_whole_step_is_refused() -> None:
    with pytest.raises(ValueError, match="no whole step"):
        summarise([Span("add", 0, 1), Span("tell_host", 1, 2)], 0.0)


def test_calls_of_the_host_that_the_profiler_has_noted_are_left_out() -> None:
    def event(name: str, begin: int, kind: str) -> SimpleNamespace:
        times, device_type = SimpleNamespace(start=begin, end=begin + 9), SimpleNamespace(name=kind)
        return SimpleNamespace(name=name, time_range=times, device_type=device_type)

    noted = [
        event("tell_host", 20, "CUDA"),
        event("cudaEventSynchronize", 0, "CPU"),
        event("add", 10, "CUDA"),
    ]
    found = device_spans(SimpleNamespace(events=lambda: noted))
    assert [span.name for span in found] == ["add", "tell_host"]
