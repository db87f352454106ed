"""Steps are charged to the batches whose prompts they computed."""

from headrace.batch_log import BatchRun
from headrace.workers.channel import Finish, Tokens
from headrace.workers.courier.ledger import Ledger


def step(step_ms: float, num_tokens: int, prompts: dict[int, int], drawn: tuple[int, ...] = ()) -> Tokens:
    tokens: tuple[tuple[int, int, Finish], ...] = tuple((row, 7, "") for row in drawn)
    return Tokens(tokens, step_ms=step_ms, num_tokens=num_tokens, prompts=tuple(prompts.items()))


def test_a_batch_costs_its_part_of_every_step_until_all_of_its_rows_have_a_token() -> None:
    ledger = Ledger("w", "gpu")
    ledger.begin("1-0", [1, 2])
    ledger.begin("2-0", [3])
    # Two decoding rows share the first step with the prompts: a tenth of it is theirs.
    assert ledger.step(step(100.0, 20, {1: 10, 3: 8}, drawn=(1, 9))) == []
    assert ledger.step(step(30.0, 3, {2: 2, 3: 1}, drawn=(1, 2))) == [BatchRun("1-0", "gpu", "w", 2, 12, 70.0)]
    assert ledger.step(step(5.0, 1, {}, drawn=(1,))) == []
    assert ledger.step(step(1.0, 1, {3: 1}, drawn=(3,))) == [BatchRun("2-0", "gpu", "w", 1, 10, 40.0 + 10.0 + 1.0)]


def test_rows_that_end_without_a_token_do_not_keep_their_batch_open() -> None:
    ledger = Ledger("w", "gpu")
    ledger.begin("1-0", [1, 2])
    ledger.begin("2-0", [3])
    assert ledger.step(step(10.0, 10, {1: 10}, drawn=(1,))) == []
    assert ledger.sweep(lambda row: True) == []
    assert ledger.sweep(lambda row: False) == [BatchRun("1-0", "gpu", "w", 1, 10, 10.0)]
    # Nothing of the other batch was ever computed: there is nothing to tell of it.
    assert ledger.step(step(10.0, 10, {3: 10}, drawn=(3,))) == []


def test_a_row_whose_prompt_was_known_already_counts_as_computed_nowhere() -> None:
    ledger = Ledger("w", "gpu")
    ledger.begin("1-0", [1, 2])
    assert ledger.step(step(10.0, 11, {1: 11}, drawn=(1, 2))) == [BatchRun("1-0", "gpu", "w", 1, 11, 10.0)]
