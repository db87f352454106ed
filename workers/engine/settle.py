"""From drawn tokens to rows that go on and rows that are finished."""

from collections.abc import Sequence as Rows

from headrace.workers.channel import Finish, Tokens
from headrace.workers.engine.fusion import Fusion, Plan
from headrace.workers.engine.runner import Draw
from headrace.workers.engine.sequence import Sequence


def settle(plan: Plan, draws: Rows[Draw], fusion: Fusion) -> Tokens:
    """Move the plan's rows on, and take the finished ones out of the fusion in the same step.

    Args:
        plan: what was computed.
        draws: a row each, for those that sampled or failed.
        fusion: holds the rows.

    Returns:
        What the courier is told; no tokens if no row sampled.
    """
    fusion.advance(plan, {draw.sequence.row for draw in draws if draw.error})
    tokens: list[tuple[int, int, Finish]] = []
    for draw in draws:
        finish: Finish = "error"
        if not draw.error:
            draw.sequence.token_ids.append(draw.token_id)
            finish = finish_of(draw.sequence)
        tokens.append((draw.sequence.row, draw.token_id, finish))
    fusion.remove(row for row, _, finish in tokens if finish)
    logprobs = [(draw.sequence.row, *draw.logprobs) for draw in draws if draw.logprobs is not None and not draw.error]
    return Tokens(tuple(tokens), "; ".join(sorted({draw.error for draw in draws if draw.error})), tuple(logprobs))


def finish_of(sequence: Sequence) -> Finish:
    """Say whether the row's last token ends it, and why; a stop id goes before the length."""
    if sequence.token_ids[-1] in sequence.stop_ids:
        return "stop"
    if sequence.num_output_tokens >= sequence.params.max_tokens:
        return "length"
    return ""
