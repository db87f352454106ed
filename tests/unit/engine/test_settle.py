from collections.abc import Callable

import pytest

from headrace.job import SamplingParams
from headrace.memory.pages import Pages
from headrace.workers.channel import Finish, Tokens
from headrace.workers.engine.fusion import Fusion
from headrace.workers.engine.runner import Draw
from headrace.workers.engine.sequence import Sequence
from headrace.workers.engine.settle import settle

EOS, STOP, PLAIN = 2, 7, 9


@pytest.mark.parametrize(
    ("token_id", "num_output", "ignore_eos", "finish"),
    [
        (PLAIN, 0, False, ""),
        (EOS, 0, False, "stop"),
        (EOS, 0, True, ""),
        (STOP, 0, True, "stop"),
        (PLAIN, 4, False, "length"),
        (EOS, 4, False, "stop"),
        (EOS, 4, True, "length"),
    ],
)
def test_a_row_ends_by_stop_id_or_by_length(
    params: Callable[..., SamplingParams], token_id: int, num_output: int, ignore_eos: bool, finish: Finish
) -> None:
    fusion = Fusion(Pages(8, 4), max_rows=2, step_tokens=8)
    sampling = params(max_tokens=5, ignore_eos=ignore_eos, stop_token_ids=(STOP,))
    sequence = Sequence(3, (1, 1), (PLAIN,) * num_output, sampling, frozenset({EOS}))
    fusion.add(sequence)
    fusion.advance(fusion.plan())
    assert settle([Draw(sequence, token_id)], fusion) == Tokens(((3, token_id, finish),))
    assert fusion.has_rows == (finish == "")
    assert sequence.token_ids[-1] == token_id
    assert finish or sequence.num_tokens_left == 1


def test_a_row_that_failed_ends_alone_and_its_memory_is_free(params: Callable[..., SamplingParams]) -> None:
    pages = Pages(10, 4)
    fusion = Fusion(pages, max_rows=2, step_tokens=8)
    rows = [Sequence(row, (1,), (), params(max_tokens=16), frozenset()) for row in (1, 2)]
    for row in rows:
        fusion.add(row)
    fusion.advance(fusion.plan())
    tokens = settle([Draw(rows[0], PLAIN), Draw(rows[1], 0, "broken")], fusion)
    assert tokens == Tokens(((1, PLAIN, ""), (2, 0, "error")), "broken")
    assert not fusion.knows(2)
    assert pages.num_used == 1
