"""Rows of one plan that begin alike: one computes what they share, the others wait a step and take it over.

Pure Python, as ``fusion`` is, which asks.
"""

from headrace.memory.pages import PageCopy, Pages
from headrace.workers.engine.sequence import Sequence


class Beginnings:
    """Where the chunks of one plan's prompts begin: of each the page that its next token lies in.

    Who begins alike has got as far when its turn comes, for it has taken over what others computed: comparing the pages
    where chunks begin is enough.

    Args:
        pages: of the key-value memory.

    Attributes:
        copies: of pages that rows have taken over in part.
    """

    def __init__(self, pages: Pages) -> None:
        self._pages = pages
        self._heads: set[bytes] = set()
        self.copies: list[PageCopy] = []

    def adopt(self, sequence: Sequence) -> bool:
        """Let a row take over what others have computed; True if it should wait for what this very plan computes."""
        pages, token_ids = sequence.pages, sequence.token_ids
        sequence.num_computed_tokens, copy = self._pages.adopt(pages, token_ids, sequence.num_computed_tokens)
        if copy is not None:
            self.copies.append(copy)
        num_computed = sequence.num_computed_tokens
        return num_computed % self._pages.page_size == 0 and self._head(sequence, num_computed) in self._heads

    def enter(self, sequence: Sequence) -> None:
        """Note a row whose prompt goes on in this plan."""
        if (head := self._head(sequence, sequence.num_computed_tokens)) is not None:
            self._heads.add(head)

    def num_to_prefill(self, sequence: Sequence) -> int:
        """Tokens that the next step could compute of a row's prompt: 0 where it decodes, or would wait.

        One of whose prompt something can be computed is entered; nothing is taken over yet.
        """
        if sequence.num_tokens_left == 1:
            return 0
        token_ids = sequence.token_ids
        num_computed = self._pages.num_adopted(sequence.pages, token_ids, sequence.num_computed_tokens)
        head = self._head(sequence, num_computed)
        if num_computed % self._pages.page_size == 0 and head in self._heads:
            return 0
        if head is not None:
            self._heads.add(head)
        return len(token_ids) - num_computed

    def _head(self, sequence: Sequence, num_computed: int) -> bytes | None:
        """Name the page in which a row's next token lies once ``num_computed`` are computed."""
        return self._pages.head(sequence.pages, sequence.token_ids, num_computed // self._pages.page_size)
