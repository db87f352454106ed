"""Tokens that a row may not bring next: bad words, and ends before its time."""

from collections import defaultdict
from collections.abc import Sequence as TokenIds

from headrace.workers.engine.sequence import Sequence


class Forbidden:
    """What is forbidden to one row.

    Args:
        sequence: the row.
        vocab_size: of its logits.
    """

    def __init__(self, sequence: Sequence, vocab_size: int) -> None:
        self._bad_words = BadWords(sequence.params.bad_words)
        # The request may name stop ids that the model does not have.
        self._stop_ids = [token_id for token_id in sequence.stop_ids if 0 <= token_id < vocab_size]

    @staticmethod
    def needed_by(sequence: Sequence) -> bool:
        """Whether anything is ever forbidden to the row."""
        return bool(sequence.params.bad_words) or sequence.params.min_tokens > 0

    @staticmethod
    def reads_tokens(sequence: Sequence) -> bool:
        """Whether that follows from the row's tokens, and not from their number alone."""
        return any(len(word) > 1 for word in sequence.params.bad_words)

    def behind(self, sequence: Sequence) -> list[int]:
        """Token ids, some perhaps twice, that may not come behind those that the row holds now."""
        forbidden = self._bad_words.forbidden_behind(sequence.token_ids)
        if sequence.num_output_tokens < sequence.params.min_tokens:
            forbidden += self._stop_ids
        return forbidden


class BadWords:
    """Token sequences that must not be completed, found by the token before their last."""

    def __init__(self, words: TokenIds[tuple[int, ...]]) -> None:
        self._always = [word[0] for word in words if len(word) == 1]
        self._by_last: defaultdict[int, list[tuple[list[int], int]]] = defaultdict(list)
        for *prefix, last in words:
            if prefix:
                self._by_last[prefix[-1]].append((prefix, last))

    def forbidden_behind(self, token_ids: list[int]) -> list[int]:
        """Tokens that would complete a sequence behind ``token_ids``, prompt and output."""
        candidates = self._by_last.get(token_ids[-1], ())
        return self._always + [last for prefix, last in candidates if token_ids[-len(prefix) :] == prefix]
