"""Keys and values, rows' state and tokens on their way alone on a GPU, for compute-sanitizer: see ``sanitized``."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import torch

from headrace.kernels import reference_fused, reference_state
from headrace.kernels.heads import HeadNorm
from headrace.kernels.kv_pages import KVPages
from headrace.kernels.page_copy import copy_pages
from headrace.kernels.rotary import rotary_table
from headrace.kernels.rotary_kv import rotary_kv
from headrace.kernels.row_state import NextTokens, change_words, next_tokens
from headrace.kernels.tell_host import tell_host
from headrace.testing.computed import Computed, normal, room

_HEADS, _KV_HEADS, _PAGE_SIZE, _ROW_TOKENS = 6, 2, 16, 60


@dataclass(frozen=True, slots=True)
class _Rotation:
    """A case of ``rotations``."""

    dtype: torch.dtype
    head_dim: int
    rotary_dim: int
    interleaved: bool = False
    normed: bool = False


_ROTATIONS = [
    _Rotation(torch.bfloat16, 128, 128),
    _Rotation(torch.bfloat16, 128, 128, normed=True),
    _Rotation(torch.float16, 80, 32),
    _Rotation(torch.float32, 96, 24, interleaved=True, normed=True),
    _Rotation(torch.bfloat16, 256, 0),
]


def rotations() -> Iterator[Computed]:
    """Heads that are normed, rotated and written into pages: a block a head and a block a token, padding."""
    for case, num_tokens in product(_ROTATIONS, (61, 600)):
        head_dim, dtype = case.head_dim, case.dtype
        qkv = normal(num_tokens, (_HEADS + 2 * _KV_HEADS) * head_dim, dtype=dtype)
        rows, positions = torch.arange(num_tokens).int() // _ROW_TOKENS, torch.arange(num_tokens) % _ROW_TOKENS + 7
        positions[num_tokens // 2] = -1
        most_pages = -(-(_ROW_TOKENS + 7) // _PAGE_SIZE)
        table = torch.randperm(int(rows[-1] + 1) * most_pages).int().view(-1, most_pages)
        memory = torch.zeros(table.numel(), 2, _KV_HEADS, _PAGE_SIZE, head_dim)
        weights, half = normal(2, head_dim, dtype=dtype), max(case.rotary_dim // 2, 1)
        inv_freq = 1e4 ** -(torch.arange(half) / half)
        angles = rotary_table(positions.cuda(), inv_freq.cuda(), interleaved=case.interleaved)
        exact_angles = reference_fused.rotary_table(positions, inv_freq, interleaved=case.interleaved)
        yield Computed(f"{case}, {num_tokens} tokens, angles", angles.cosines, exact_angles.cosines)
        ours, truth = memory.to("cuda", dtype), memory.double()
        pages, exact = (KVPages(one[:, 0], one[:, 1], table.to(one.device)) for one in (ours, truth))
        norm, exact_norm = (
            HeadNorm(one[0], one[1], 1e-6) if case.normed else None for one in (weights.cuda(), weights.double())
        )
        query = room(qkv, num_tokens, _HEADS, head_dim)
        rotary_kv(
            *(qkv.cuda(), positions.cuda(), pages),
            num_heads=_HEADS,
            rotary=angles if case.rotary_dim else None,
            norm=norm,
            rows=rows.cuda(),
            out=query,
        )
        turned = reference_fused.rotary_kv(
            *(qkv.double(), positions, exact),
            num_heads=_HEADS,
            rotary=exact_angles if case.rotary_dim else None,
            norm=exact_norm,
            rows=rows,
        )
        yield Computed(f"{case}, {num_tokens} tokens, queries", query, turned)
        yield Computed(f"{case}, {num_tokens} tokens, keys and values", ours, truth)


def page_copies() -> Iterator[Computed]:
    """Pages that move in all layers, and one side of them alone."""
    for dtype, page_size, head_dim in ((torch.bfloat16, 16, 128), (torch.float32, 1, 4), (torch.float16, 48, 80)):
        pages = normal(3, 40, 2, 2, page_size, head_dim, dtype=dtype)
        order = torch.randperm(40)[:30].int()
        moves = torch.stack((order[:15], order[15:]), dim=1).contiguous()
        moves[7, 0] = -1
        ours, truth = pages.cuda(), pages.clone()
        copy_pages(ours, moves.cuda())
        reference_fused.copy_pages(truth, moves)
        yield Computed(f"{dtype}, pages of {page_size} x {head_dim}", ours, truth)
        copy_pages(ours[:, :, 1], moves.cuda())
        reference_fused.copy_pages(truth[:, :, 1], moves)
        yield Computed(f"{dtype}, values in pages of {page_size} x {head_dim}", ours, truth)


def row_states() -> Iterator[Computed]:
    """Words that change, rows that go on by one token, and tokens that the host is told of."""
    words, changes = torch.randint(-9, 9, (5000,)).int(), torch.randint(-(2**31), 2**31 - 1, (3001, 2)).int()
    changes[:, 0] = torch.randperm(5000)[:3001].int()
    ours = words.cuda()
    change_words(ours, changes.cuda())
    reference_state.change_words(words, changes)
    yield Computed("words", ours, words)
    for num_places in (1, 31, 600):
        position, last_token = torch.randint(0, 9999, (2, 700))
        source, decodes = torch.randperm(700).int(), torch.randint(0, 2, (700,)).int()
        given = [column.cuda() for column in (position, last_token, source, decodes)]
        found, expected = NextTokens.empty(num_places, given[0].device), NextTokens.empty(num_places)
        next_tokens(found, *given)
        reference_state.next_tokens(expected, position, last_token, source, decodes)
        for name in ("token_ids", "positions", "lengths", "places"):
            yield Computed(f"{num_places} places, {name}", getattr(found, name), getattr(expected, name))
        yield Computed(f"{num_places} places, positions afterwards", given[0], position)
    for num_rows in (1, 8, 700):
        told, turn = torch.full((3, 700), -7, dtype=torch.int32, pin_memory=True), torch.ones(1, dtype=torch.int32)
        on_device = turn.cuda()
        for at in (1, 2, 0):
            token_ids, valid, before = (
                torch.randint(0, 2**31 - 1, (num_rows,)),
                torch.rand(num_rows) < 0.8,
                told.clone(),
            )
            tell_host(told, on_device, token_ids.cuda(), valid.cuda())
            torch.cuda.synchronize()
            before[at, :num_rows] = token_ids.where(valid, -1).int()
            yield Computed(f"{num_rows} tokens told, turn {at}", told.clone(), before)
