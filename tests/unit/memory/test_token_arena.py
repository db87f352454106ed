from collections.abc import Callable, Sequence
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from headrace.memory import token_arena
from headrace.memory.planner import Buffer, Layout, lay_out, lower_bound_bytes
from headrace.memory.token_arena import TokenArena, TokenResult

CPU = torch.device("cpu")


@st.composite
def results(draw: st.DrawFn) -> list[TokenResult]:
    made = []
    for _ in range(draw(st.integers(1, 12))):
        first = draw(st.integers(0, 8))
        dtype = draw(st.sampled_from((torch.float32, torch.float16)))
        made.append(TokenResult(first, first + draw(st.integers(0, 4)), draw(st.integers(1, 100)), dtype))
    return made


def least_bytes(written: list[TokenResult], num_tokens: int) -> int:
    """What no layout can do without: all results that live at the same time."""
    return lower_bound_bytes([Buffer(x.first_op, x.last_op, x.num_bytes * num_tokens) for x in written])


@given(laid=results(), num_tokens=st.integers(1, 600))
def test_results_that_live_together_never_overlap_at_any_length(laid: list[TokenResult], num_tokens: int) -> None:
    arena = TokenArena(laid, CPU)
    places = arena.place(num_tokens)
    for result, tensor in zip(laid, places, strict=True):
        assert tensor.shape == (num_tokens, result.width)
        assert tensor.is_contiguous()
        assert tensor.data_ptr() % 64 == 0
    spans = [(x.data_ptr(), x.data_ptr() + x.nbytes) for x in places]
    for i, one in enumerate(laid):
        for j, other in enumerate(laid[:i]):
            if one.first_op <= other.last_op and other.first_op <= one.last_op:
                assert spans[i][1] <= spans[j][0] or spans[j][1] <= spans[i][0]
    begin = min(start for start, _ in spans)
    assert max(end for _, end in spans) - begin <= arena.planned_bytes(num_tokens) <= arena.num_bytes
    assert arena.planned_bytes(num_tokens) >= least_bytes(laid, num_tokens)


def layer(hidden: int, num_layers: int) -> list[TokenResult]:
    """An encoder's: what goes into a layer, qkv, attention, its product, the MLP's inside, its product."""
    made = [TokenResult(0, 5, hidden, torch.float16)]
    for number in range(num_layers):
        op = 1 + 7 * number
        made += [
            TokenResult(op, op + 1, 3 * hidden, torch.float16),
            TokenResult(op + 1, op + 2, hidden, torch.float16),
            TokenResult(op + 2, op + 6, hidden, torch.float16),
            TokenResult(op + 4, op + 6, 4 * hidden, torch.float16),
            TokenResult(op + 5, op + 6 + 4, hidden, torch.float16),
        ]
    return made


@pytest.mark.parametrize("hidden", [128, 256, 384, 512, 768, 1024])
def test_an_encoder_takes_hardly_more_than_no_layout_can_do_without(hidden: int) -> None:
    written = layer(hidden, 12)
    arena = TokenArena(written, CPU)
    for num_tokens in range(5, 501):
        assert arena.planned_bytes(num_tokens) <= 1.15 * least_bytes(written, num_tokens)


def test_all_lengths_have_one_layout_and_a_length_of_one_row_that_comes_again_its_tensors() -> None:
    layouts = []
    # Long and short ones in turn: after many short ones memory would be given back.
    lengths = [1 + number * 37 % 512 for number in range(512)]

    def counted(buffers: Sequence[Buffer], size: Callable[[int], int]) -> Layout:
        layouts.append(lay_out(buffers, size=size))
        return layouts[-1]

    with mock.patch.object(token_arena, "lay_out", counted):
        arena = TokenArena(layer(64, 12), CPU)
        first = {num_tokens: arena.place(num_tokens) for num_tokens in lengths}
        assert all(arena.place(num_tokens) is tensors for num_tokens, tensors in first.items())
    assert len(layouts) == 1
    # Layers follow each other: a length costs a few tensors, however many there are.
    deeper = TokenArena(layer(64, 48), CPU).place(7)
    assert len({id(tensor) for tensor in deeper}) <= 12
    assert len({id(tensor) for tensor in deeper}) == len({id(tensor) for tensor in first[7]})


def test_tensors_of_lengths_that_are_too_many_to_be_kept_are_made_again() -> None:
    arena = TokenArena(layer(64, 1), CPU)
    for num_tokens in (*range(2000, 0, -1), 1999):
        assert [tensor.shape[0] for tensor in arena.place(num_tokens)] == [num_tokens] * 6


def test_memory_is_the_same_for_lengths_that_fit_and_returns_after_a_long_pass() -> None:
    arena = TokenArena(layer(768, 2), CPU)
    arena.place(1000)
    held = arena.num_bytes
    # Nothing is allocated for shorter ones, nor for a few more.
    for num_tokens in (1, 500, 1000, 1100):
        arena.place(num_tokens)
        assert arena.num_bytes == held
    # None of many passes has needed half of it
    for _ in range(600):
        arena.place(100)
    assert arena.num_bytes < held / 2
    assert arena.place(1000)[0].shape == (1000, 768)


def test_many_short_passes_leave_memory_alone_that_could_not_be_smaller() -> None:
    arena = TokenArena(layer(64, 1), CPU)
    tensors = arena.place(1)
    assert all(arena.place(1) is tensors for _ in range(600))


def test_a_pass_may_be_written_in_and_outside_of_inference_mode() -> None:
    arena = TokenArena(layer(64, 1), CPU)
    with torch.inference_mode():
        arena.place(3)[0].fill_(1)
    arena.place(3)[0].fill_(2)
    arena.place(4)[0].fill_(2)
