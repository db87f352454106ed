"""From drawn tokens to rows that go on and rows that are finished."""

from collections.abc import Sequence as Rows

from headrace.workers.channel import Finish, Tokens
from headrace.workers.engine.fusion import Fusion
from headrace.workers.engine.runner import Draw
from headrace.workers.engine.sequence import Sequence


def settle(draws: Rows[Draw], fusion: Fusion) -> Tokens:
    """Tell rows the tokens that a started step has drawn, and take the finished ones out of the fusion.

    What was drawn for a row that has ended meanwhile is nobody's.

    Args:
        draws: a row each, for those that sampled or failed.
        fusion: holds the rows.

    Returns:
        What the courier is told; no tokens if no row sampled.
    """
    tokens: list[tuple[int, int, Finish]] = []
    logprobs = []
    errors: dict[int, str] = {}
    for sequence, token_id, error, told in draws:
        if sequence.has_ended:
            continue
        if error:
            errors[sequence.row] = error
            tokens.append((sequence.row, token_id, "error"))
            continue
        sequence.num_pending -= 1
        sequence.token_ids.append(token_id)
        tokens.append((sequence.row, token_id, finish_of(sequence)))
        if told is not None:
            logprobs.append((sequence.row, *told))
    fusion.remove(errors, spoilt=True)
    fusion.remove(row for row, _, finish in tokens if finish)
    return Tokens(tuple(tokens), "; ".join(sorted(set(errors.values()))), tuple(logprobs))


def finish_of(sequence: Sequence) -> Finish:
    """Say whether the last token that is known ends the row, and why; a stop id goes before the length."""
    if sequence.token_ids[-1] in sequence.stop_ids:
        return "stop"
    if len(sequence.token_ids) - sequence.num_prompt_tokens >= sequence.params.max_tokens:
        return "length"
    return ""
