"""Which page holds which tokens behind which others: the prefix cache's index, by content.

A full page's key is a hash of the key before it and its own token ids, so that a key stands for everything up to the
page's end, and equal beginnings meet wherever they come from. A cryptographic hash: who can choose prompts must not be
able to make two of them meet that differ.
"""

import hashlib
from array import array
from collections.abc import Mapping, Sequence
from typing import NamedTuple

_KEY_BYTES = 16
#: The key of nothing: what stands before a row's first page.
ROOT = bytes(_KEY_BYTES)

# Pages compared when the longest common beginning is looked for; the newest ones are the likeliest.
_MAX_CANDIDATES = 16


def key_of(parent: bytes, token_ids: Sequence[int]) -> bytes:
    """Make the key of a page that holds ``token_ids`` behind what ``parent`` stands for."""
    return hashlib.blake2b(array("q", token_ids).tobytes(), digest_size=_KEY_BYTES, key=parent).digest()


#: The key of what stands before a page, and its first tokens.
Head = tuple[bytes, tuple[int, ...]]


class _Entry(NamedTuple):
    head: Head
    token_ids: tuple[int, ...]
    key: bytes | None  # of a full page


class PrefixIndex:
    """Pages by content; a page has one entry at most.

    Args:
        page_size: tokens of a page.
        min_shared: tokens that two pages must have in common at least, for one to be begun as a copy of the other.
    """

    def __init__(self, page_size: int, min_shared: int) -> None:
        self._page_size = page_size
        self._min_shared = min_shared
        self._entries: dict[int, _Entry] = {}
        self._full: dict[bytes, int] = {}
        # By parent and first tokens: pages that one may be a copy of, the newest last.
        self._heads: dict[Head, dict[int, None]] = {}

    def __contains__(self, page: int) -> bool:
        return page in self._entries

    def head(self, parent: bytes, token_ids: Sequence[int]) -> Head | None:
        """Name the beginning of a page, by which rows that are about to compute the same find each other.

        Args:
            parent: key of what stands before the page.
            token_ids: of the page, or at least its first ones.

        Returns:
            None where there are fewer than ``min_shared`` tokens.
        """
        if len(token_ids) < self._min_shared:
            return None
        return parent, tuple(token_ids[: self._min_shared])

    def find(self, key: bytes) -> int | None:
        """Find the full page of a key."""
        return self._full.get(key)

    def longest(self, parent: bytes, token_ids: Sequence[int]) -> tuple[int, int] | None:
        """Find the page behind ``parent`` that begins with most of ``token_ids``.

        Returns:
            The page and the number of tokens in common, at least ``min_shared``; None if there is no such page.
        """
        head = self.head(parent, token_ids)
        candidates = self._heads.get(head) if head else None
        if not candidates:
            return None
        best = (0, 0)
        for page, _ in zip(reversed(candidates), range(_MAX_CANDIDATES), strict=False):
            num_shared = _num_common(self._entries[page].token_ids, token_ids)
            if num_shared > best[1]:
                best = (page, num_shared)
        return best

    def insert(self, page: int, parent: bytes, token_ids: Sequence[int], key: bytes | None) -> None:
        """Say what a page holds; whatever was said of it before is replaced.

        Args:
            page: whose first tokens are written, and will not be written again while it is in the index.
            parent: key of what stands before it.
            token_ids: these first tokens.
            key: of the page if it is full, else None. Where another page has that key, this one is left out.
        """
        self.forget(page)
        head = self.head(parent, token_ids)
        if head is None or (key is not None and key in self._full):
            return
        if key is not None:
            self._full[key] = page
        self._entries[page] = _Entry(head, tuple(token_ids), key)
        self._heads.setdefault(head, {})[page] = None

    def forget(self, page: int) -> None:
        """Remove a page; one that is not here is no error."""
        entry = self._entries.pop(page, None)
        if entry is None:
            return
        if entry.key is not None:
            del self._full[entry.key]
        pages = self._heads[entry.head]
        del pages[page]
        if not pages:
            del self._heads[entry.head]

    def renumber(self, new: Mapping[int, int]) -> None:
        """Note that the content of pages has moved.

        Args:
            new: where to, by where from; nothing is known of these pages.
        """
        moved = {source: self._entries.pop(source) for source in new if source in self._entries}
        for source, entry in moved.items():
            self._entries[new[source]] = entry
            if entry.key is not None:
                self._full[entry.key] = new[source]
        for head in {entry.head for entry in moved.values()}:
            self._heads[head] = {new.get(page, page): None for page in self._heads[head]}


def _num_common(first: Sequence[int], second: Sequence[int]) -> int:
    num_common = 0
    for one, other in zip(first, second, strict=False):
        if one != other:
            break
        num_common += 1
    return num_common
