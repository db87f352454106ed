"""Repetition, presence and frequency penalties of one row: which tokens it holds, counted as they come.

Repetition counts prompt and output, presence and frequency the output alone, as in vLLM [1]. The counts follow from
the row's token ids, so that a row that another worker resumes is penalised alike.

[1] https://docs.vllm.ai/en/latest/api/vllm/sampling_params.html
"""

import torch
from torch import Tensor

from headrace.workers.engine.sequence import Sequence


class Penalties:
    """The distinct tokens of one row, and how often its output holds them.

    Args:
        sequence: the row.
        vocab_size: of its logits.
    """

    def __init__(self, sequence: Sequence, vocab_size: int) -> None:
        capacity = min(sequence.num_slots, vocab_size)
        params = sequence.params
        self._repetition = params.repetition_penalty
        self._presence = params.presence_penalty
        self._frequency = params.frequency_penalty
        self._place: dict[int, int] = {}
        self._ids = torch.zeros(capacity, dtype=torch.int64)
        self._counts = torch.zeros(capacity)
        # Prompt tokens matter to the repetition penalty alone.
        self._num_counted = 0 if self._repetition != 1 else sequence.num_prompt_tokens

    @staticmethod
    def needed_by(sequence: Sequence) -> bool:
        """Whether the row has a penalty at all."""
        params = sequence.params
        return params.repetition_penalty != 1 or params.presence_penalty != 0 or params.frequency_penalty != 0

    def apply(self, logits: Tensor, sequence: Sequence) -> None:
        """Penalise ``logits``, fp32 ``[vocab]``, in place."""
        self._catch_up(sequence)
        num_ids = len(self._place)
        ids, counts = self._ids[:num_ids], self._counts[:num_ids]
        values = logits[ids]
        if self._repetition != 1:
            values = torch.where(values > 0, values / self._repetition, values * self._repetition)
        values -= counts * self._frequency
        values -= (counts > 0) * self._presence
        logits[ids] = values

    def _catch_up(self, sequence: Sequence) -> None:
        """Count the tokens that came since the last time: mostly one, all of them at the start."""
        token_ids, num_prompt = sequence.token_ids, sequence.num_prompt_tokens
        first_new = len(self._place)
        drawn: list[int] = []
        for position in range(self._num_counted, len(token_ids)):
            place = self._place.setdefault(token_ids[position], len(self._place))
            if position >= num_prompt:
                drawn.append(place)
        self._num_counted = len(token_ids)
        if len(self._place) > first_new:
            self._ids[first_new : len(self._place)] = torch.tensor(list(self._place)[first_new:])
        if drawn:
            self._counts.index_add_(0, torch.tensor(drawn), torch.ones(len(drawn)))
