"""Which page holds which tokens behind which others: the prefix cache's index, by content.

A full page's key is a hash of the key before it and its own token ids, so that a key stands for everything up to the
page's end, and equal beginnings meet wherever they come from. A cryptographic hash: who can choose prompts must not be
able to make two of them meet that differ.

Token ids are bytes here: a long prompt brings hundreds of pages, and a string of bytes is made, hashed and kept at a
fraction of what as many numbers take.
"""

import hashlib
from array import array
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import NamedTuple

_KEY_BYTES = 16
#: The key of nothing: what stands before a row's first page.
ROOT = bytes(_KEY_BYTES)
#: Of a token id in what pages hold.
TOKEN_BYTES = 8

# Pages compared when the longest common beginning is looked for; the newest ones are the likeliest.
_MAX_CANDIDATES = 16


def content_of(token_ids: Sequence[int]) -> bytes:
    """What tokens look like in the index, ``TOKEN_BYTES`` each."""
    return array("q", token_ids).tobytes()


def key_of(parent: bytes, content: bytes) -> bytes:
    """Make the key of a page that holds ``content`` behind what ``parent`` stands for."""
    return hashlib.blake2b(content, digest_size=_KEY_BYTES, key=parent).digest()


class _Entry(NamedTuple):
    head: bytes
    content: bytes
    key: bytes | None  # of a full page


class PrefixIndex:
    """Pages by content; a page has one entry at most.

    Args:
        min_shared: tokens that two pages must have in common at least, for one to be begun as a copy of the other.
    """

    def __init__(self, min_shared: int) -> None:
        self._head_bytes = min_shared * TOKEN_BYTES
        self._entries: dict[int, _Entry] = {}
        self._full: dict[bytes, int] = {}
        # Pages with one head, which one may be a copy of, are a chain. Most are alone in theirs.
        self._newest: dict[bytes, int] = {}
        self._older: dict[int, int] = {}
        self._newer: dict[int, int] = {}

    def __contains__(self, page: int) -> bool:
        return page in self._entries

    def head(self, parent: bytes, content: bytes) -> bytes | None:
        """Name the beginning of a page, by which rows that are about to compute the same find each other.

        Args:
            parent: key of what stands before the page.
            content: of the page, or at least of its first tokens.

        Returns:
            None where there are fewer than ``min_shared`` tokens.
        """
        return parent + content[: self._head_bytes] if len(content) >= self._head_bytes else None

    def find(self, key: bytes) -> int | None:
        """Find the full page of a key."""
        return self._full.get(key)

    def longest(self, parent: bytes, content: bytes) -> tuple[int, int] | None:
        """Find the page behind ``parent`` that begins with most of ``content``.

        Returns:
            The page and the number of tokens in common, at least ``min_shared``; None if there is no such page.
        """
        head = self.head(parent, content)
        best = (0, 0)
        for page in islice(self._chain(head), _MAX_CANDIDATES) if head else ():
            num_shared = _num_common(self._entries[page].content, content)
            if num_shared > best[1]:
                best = (page, num_shared)
        return best if best[1] else None

    def insert(self, page: int, parent: bytes, content: bytes, key: bytes | None) -> None:
        """Say what a page holds; whatever was said of it before is replaced.

        Args:
            page: whose first tokens are written, and will not be written again while it is in the index.
            parent: key of what stands before it.
            content: these first tokens.
            key: of the page if it is full, else None. Where another page has that key, this one is left out.
        """
        self.forget(page)
        head = self.head(parent, content)
        if head is None or (key is not None and key in self._full):
            return
        if key is not None:
            self._full[key] = page
        self._entries[page] = _Entry(head, content, key)
        older = self._newest.get(head)
        if older is not None:
            self._older[page], self._newer[older] = older, page
        self._newest[head] = page

    def forget(self, page: int) -> None:
        """Remove a page; one that is not here is no error."""
        entry = self._entries.pop(page, None)
        if entry is None:
            return
        if entry.key is not None:
            del self._full[entry.key]
        older, newer = self._older.pop(page, None), self._newer.pop(page, None)
        if newer is None and older is None:
            del self._newest[entry.head]
        elif newer is None and older is not None:
            self._newest[entry.head] = older
            del self._newer[older]
        elif newer is not None and older is None:
            del self._older[newer]
        elif newer is not None and older is not None:
            self._older[newer], self._newer[older] = older, newer

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
            if self._newest[entry.head] == source:
                self._newest[entry.head] = new[source]
        self._older = {new.get(page, page): new.get(older, older) for page, older in self._older.items()}
        self._newer = {older: page for page, older in self._older.items()}

    def _chain(self, head: bytes) -> Iterator[int]:
        """The pages of a head, the newest first."""
        page = self._newest.get(head)
        while page is not None:
            yield page
            page = self._older.get(page)


def _num_common(first: bytes, second: bytes) -> int:
    num_common = 0
    for one, other in zip(array("q", first), array("q", second), strict=False):
        if one != other:
            break
        num_common += 1
    return num_common
