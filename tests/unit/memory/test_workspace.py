from dataclasses import dataclass

import torch

from headrace.memory.workspace import Workspace


@dataclass(frozen=True)
class Each:
    first_op: int
    last_op: int
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32


def step(num_tokens: int) -> list[Each]:
    return [Each(op, op + 1, (num_tokens, 1024)) for op in range(6)]


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


def test_chunks_that_only_a_long_step_needed_are_released_when_it_is_long_ago() -> None:
    workspace = Workspace(max_idle_steps=10)
    workspace.place(3, lambda: step(3))
    small = workspace.num_bytes
    workspace.place(4000, lambda: step(4000))
    assert workspace.num_bytes > 10 * small
    for _ in range(11):
        workspace.place(3, lambda: step(3))
    assert workspace.num_bytes == small
