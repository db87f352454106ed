from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.errors import OutOfMemoryError
from headrace.memory.workspace import Workspace
from headrace.testing.num_calls import num_calls


@dataclass(frozen=True)
class Each:
    first_op: int
    last_op: int
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32


def step(num_tokens: int) -> list[Each]:
    return [Each(op, op + 1, (num_tokens, 1024)) for op in range(6)]


def many(num_tokens: int) -> list[Each]:
    """What a model with some layers writes, of which many results have the same place."""
    return [Each(op, op + 1, (num_tokens, 64)) for op in range(100)]


def test_tensors_of_one_step_keep_what_is_written_while_they_live() -> None:
    tensors = Workspace().place("key", lambda: [*step(3), Each(0, 6, (3, 5), torch.bfloat16)])
    tensors[6].fill_(9)
    for op, tensor in enumerate(tensors[:6]):
        tensor.fill_(op)
        if op:
            assert tensors[op - 1].eq(op - 1).all()
    assert tensors[6].dtype == torch.bfloat16
    assert tensors[6].eq(9).all()


def test_lengths_seen_before_get_the_same_tensors_and_nothing_is_planned() -> None:
    workspace = Workspace()
    first = workspace.place(3, lambda: step(3))
    workspace.place(5, lambda: step(5))

    def never() -> list[Each]:
        raise AssertionError("planned twice")

    assert workspace.place(3, never) is first


def test_a_step_lies_where_the_longer_one_that_was_prepared_for_would() -> None:
    workspace = Workspace()
    assert workspace.prepare(4000, lambda: step(4000)) == ()
    long = workspace.place(4000, lambda: step(4000))
    for num_tokens in (3999, 700, 1):
        tensors = workspace.place(num_tokens, lambda: step(num_tokens))  # noqa: B023
        assert [tensor.data_ptr() for tensor in tensors] == [tensor.data_ptr() for tensor in long]
        assert [tensor.shape for tensor in tensors] == [(num_tokens, 1024)] * 6


def test_what_layers_write_in_the_same_place_and_shape_is_one_tensor() -> None:
    tensors = Workspace().place("key", lambda: [*step(3), Each(6, 7, (3, 5)), Each(8, 8, (3, 5), torch.int32)])
    places = {(tensor.data_ptr(), tensor.shape, tensor.dtype): tensor for tensor in tensors}
    assert len(places) < len(tensors)
    assert all(places[tensor.data_ptr(), tensor.shape, tensor.dtype] is tensor for tensor in tensors)


def test_what_a_graph_keeps_is_laid_out_closely_whatever_was_prepared_for() -> None:
    workspace = Workspace()
    workspace.prepare(4000, lambda: step(4000))
    workspace.keep(3, lambda: step(3))
    addresses = [tensor.data_ptr() for tensor in workspace.place(3, lambda: [])]
    assert max(addresses) - min(addresses) < 6 * 3 * 4096


def test_chunks_that_only_a_long_step_needed_are_released_when_it_is_long_ago() -> None:
    workspace = Workspace(max_idle_steps=10)
    workspace.place(3, lambda: step(3))
    small = workspace.num_bytes
    workspace.place(4000, lambda: step(4000))
    assert workspace.num_bytes > 10 * small
    for _ in range(11):
        workspace.place(3, lambda: step(3))
    assert workspace.num_bytes == small


def test_steps_of_new_lengths_cost_the_same_however_many_layouts_are_remembered_and_dropped() -> None:
    workspace = Workspace(max_idle_steps=128)

    def steps(first: int) -> None:
        for num_tokens in range(first, first + 32):
            workspace.prepare("longest", lambda: many(1000))
            workspace.place(num_tokens, lambda: many(num_tokens))  # noqa: B023

    early = num_calls(lambda: steps(1))
    for first in range(33, 257, 32):
        steps(first)
    assert num_calls(lambda: steps(257)) < 1.5 * early


class FewBlocks:
    """Blocks of 4 KiB multiples, and only so many bytes in all."""

    def __init__(self, num_bytes: int) -> None:
        self.num_free = num_bytes

    def size(self, num_bytes: int) -> int:
        return -(-num_bytes // 4096) * 4096

    def take(self, sizes: Sequence[int]) -> list[torch.Tensor] | None:
        if sum(sizes) > self.num_free:
            return None
        self.num_free -= sum(sizes)
        return [torch.empty(size, dtype=torch.uint8) for size in sizes]

    def shrink(self, block: torch.Tensor, num_bytes: int) -> torch.Tensor | None:
        self.num_free += block.nbytes - self.size(num_bytes)
        return block[: self.size(num_bytes)] if num_bytes else None


LENGTHS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 4), st.integers(1, 4)), min_size=1, max_size=12)


@settings(max_examples=150)
@given(shapes=LENGTHS, num_tokens=st.integers(1, 4000), share=st.floats(0, 1))
def test_a_step_shorter_than_the_one_prepared_for_always_finds_room(
    shapes: list[tuple[int, int, int]], num_tokens: int, share: float
) -> None:
    def of(num_tokens: int) -> list[Each]:
        return [Each(first, first + length, (num_tokens, width)) for first, length, width in shapes]

    counting = Workspace(blocks := FewBlocks(1 << 30))
    counting.prepare("long", lambda: of(num_tokens))
    workspace = Workspace(FewBlocks((1 << 30) - blocks.num_free))
    assert workspace.prepare("long", lambda: of(num_tokens)) == ()
    tensors = workspace.place("short", lambda: of(max(1, int(share * num_tokens))))
    for op in range(12):
        for (first, length, _), tensor in zip(shapes, tensors, strict=True):
            if first == op:
                tensor.fill_(op)
            elif first < op <= first + length:
                assert tensor.eq(first).all()


def test_what_there_is_no_room_for_is_said_in_bytes_and_other_layouts_make_room_first() -> None:
    blocks = FewBlocks(3 * 4096)
    workspace = Workspace(blocks)
    workspace.place("old", lambda: [Each(0, 1, (2048,))])
    assert blocks.num_free == 4096
    assert workspace.prepare("new", lambda: [Each(0, 1, (3072,))]) == ()
    assert blocks.num_free == 0
    assert workspace.prepare("too long", lambda: [Each(0, 1, (4096,))]) == (16384,)
    with pytest.raises(OutOfMemoryError, match="16384"):
        workspace.place("too long", lambda: [Each(0, 1, (4096,))])


def test_a_kept_layout_stays_where_it_is_however_long_ago_and_whatever_wants_room() -> None:
    blocks = FewBlocks(3 * 4096)
    workspace = Workspace(blocks, max_idle_steps=4)
    workspace.keep("graph", lambda: [Each(0, 1, (1024,))])
    kept = workspace.place("graph", lambda: [])
    for _ in range(10):
        workspace.place("other", lambda: [Each(0, 1, (2048,))])
    assert workspace.prepare("too long", lambda: [Each(0, 1, (4096,))]) == (16384,)
    assert workspace.place("graph", lambda: []) is kept
