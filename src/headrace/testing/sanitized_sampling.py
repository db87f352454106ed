"""Sampling and what goes with it alone on a GPU, for compute-sanitizer: see ``sanitized``."""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from headrace.kernels import reference_sampling as reference
from headrace.kernels.logit_edits import Edits, edit_logits, num_words
from headrace.kernels.logits import workspace_floats
from headrace.kernels.logprobs import LogprobResults, rank, tell
from headrace.kernels.penalties import Penalties, count_tokens
from headrace.kernels.sampling import SamplingParameters, sample
from headrace.testing.computed import Computed, normal

#: Temperature, top_k, top_p, min_p: greedy rows, plain draws, each filter alone and with others, few and many kept.
KINDS = [
    (0.0, 0, 1.0, 0.0),
    (1.0, 0, 1.0, 0.0),
    (0.7, 50, 0.9, 0.0),
    (1.3, 0, 0.95, 0.0),
    (0.6, 20, 1.0, 0.05),
    (1.0, 0, 1.0, 0.1),
    (1.0, 3000, 0.9, 0.001),
    (3.0, 0, 0.999, 0.0),
    (1e-30, 0, 0.5, 0.0),
]
_NUM_ROWS, _MOST_BIASES, _MOST_TOP = 11, 70, 20


def draws() -> Iterator[Computed]:
    """Draws by all fields, from logits that are apart and that are alike, with penalties, and of greedy rows alone."""
    for dtype, vocab, is_flat in (
        (torch.bfloat16, 32000, False),
        (torch.bfloat16, 32000, True),
        (torch.float32, 5003, False),
        (torch.float16, 999, False),
    ):
        logits = (
            torch.randint(0, 3, (_NUM_ROWS, vocab)).to(dtype) if is_flat else 2 * normal(_NUM_ROWS, vocab, dtype=dtype)
        )
        asked, penalties, counts = _parameters(), *_penalties(vocab)
        given, on_device = _on_gpu(asked), logits.cuda()
        size = f"{dtype}, {vocab} tokens{', few values' if is_flat else ''}"
        kept = reference.keep(logits, asked).token_ids
        for searches in (True, False):
            drawn = sample(on_device, given, searches=searches).token_ids
            yield Computed(f"{size}, {'by searches' if searches else 'by blocks alone'}", drawn, kept)
        yield Computed(f"{size}, counts", counts, penalties.counts)
        with_counts = replace(_penalties_on_gpu(penalties), counts=counts)
        drawn = sample(on_device, given, penalties=with_counts).token_ids
        yield Computed(f"{size}, with penalties", drawn, reference.keep(logits, asked, penalties).token_ids)
        cold = replace(asked, temperature=torch.zeros(_NUM_ROWS))
        drawn = sample(on_device, _on_gpu(cold), all_greedy=True).token_ids
        yield Computed(f"{size}, greedy", drawn, logits.float().argmax(dim=-1))


def logprobs() -> Iterator[Computed]:
    """The most probable tokens, edits of logits, and what is then told of tokens."""
    for dtype, vocab in ((torch.bfloat16, 32000), (torch.float32, 5003), (torch.float16, 33)):
        logits, edits, size = normal(_NUM_ROWS, vocab, dtype=dtype), _edits(vocab), f"{dtype}, {vocab} tokens"
        places, num_top = torch.randperm(_NUM_ROWS), torch.full((_NUM_ROWS,), _MOST_TOP, dtype=torch.int32)
        ids, told = reference.top_logprobs(logits, _MOST_TOP)
        results = LogprobResults(
            torch.full((_NUM_ROWS,), torch.nan, device="cuda"),
            torch.zeros(_NUM_ROWS, _MOST_TOP, dtype=torch.int32, device="cuda"),
            torch.full((_NUM_ROWS, _MOST_TOP), torch.nan, device="cuda"),
            torch.zeros(_NUM_ROWS, 2, device="cuda"),
        )
        ours, on_device = logits.cuda(), Edits(*(getattr(edits, name).cuda() for name in Edits.__slots__))
        workspace = torch.empty(workspace_floats(_NUM_ROWS, vocab), device="cuda")
        rank(ours, places.cuda(), num_top.cuda(), results, workspace)
        yield Computed(f"{size}, most probable tokens", results.top_ids, ids)
        yield Computed(f"{size}, their logarithms", results.top_logprobs, told)
        expected = logits.double().log_softmax(-1)
        edit_logits(ours, places.cuda(), on_device)
        reference.edit_logits(logits, places, edits)
        yield Computed(f"{size}, edited", ours.cpu().nan_to_num(neginf=-99.0), logits.nan_to_num(neginf=-99.0))
        token_ids = logits.float().argmax(dim=-1)
        tell(ours, places.cuda(), num_top.cuda(), token_ids.cuda(), on_device, results)
        yield Computed(f"{size}, of tokens drawn", results.chosen, expected.gather(1, token_ids[:, None])[:, 0])


def _parameters() -> SamplingParameters:
    columns = torch.tensor([KINDS[row % len(KINDS)] for row in range(_NUM_ROWS)], dtype=torch.float64).unbind(1)
    return SamplingParameters(
        columns[0].float(),
        columns[1].int(),
        columns[2].float(),
        columns[3].float(),
        torch.randint(-(2**63), 2**63 - 1, (_NUM_ROWS,)),
        torch.arange(_NUM_ROWS) // 3 + 100,
        torch.full((_NUM_ROWS,), 100),
    )


def _on_gpu(asked: SamplingParameters) -> SamplingParameters:
    return SamplingParameters(*(getattr(asked, name).cuda() for name in SamplingParameters.__slots__))


def _penalties(vocab: int) -> tuple[Penalties, Tensor]:
    """Penalties of every other row, on the CPU, and their counts as the GPU makes them."""
    slots = torch.full((_NUM_ROWS,), -1, dtype=torch.int32)
    slots[::2] = torch.arange(len(slots[::2]), dtype=torch.int32)
    counts = torch.zeros(len(slots[::2]), vocab + vocab % 2, dtype=torch.int16)
    ours = counts.cuda()
    for slot in range(len(counts)):
        token_ids = torch.randint(0, min(vocab, 300), (500,))
        reference.count_tokens(counts[slot], token_ids, 200)
        count_tokens(ours[slot], token_ids.cuda(), 200)
    repetition, presence, frequency = (torch.rand(_NUM_ROWS) + 0.6 for _ in range(3))
    return Penalties(repetition, presence, frequency, counts, slots), ours


def _penalties_on_gpu(penalties: Penalties) -> Penalties:
    return Penalties(*(getattr(penalties, name).cuda() for name in Penalties.__slots__))


def _edits(vocab: int) -> Edits:
    most_biases = min(vocab, _MOST_BIASES)
    ids = torch.stack([torch.randperm(vocab)[:most_biases] for _ in range(_NUM_ROWS)]).int()
    forbidden = torch.randint(-(2**31), 2**31 - 1, (2, _NUM_ROWS, num_words(vocab)), dtype=torch.int32)
    both = forbidden[0] & forbidden[1]
    both[::3] = 0
    return Edits(
        ids,
        torch.randn(_NUM_ROWS, most_biases) * 5,
        torch.randint(0, most_biases + 1, (_NUM_ROWS,), dtype=torch.int32),
        both,
        (both != 0).sum(dim=1, dtype=torch.int32),
        torch.zeros(_NUM_ROWS, most_biases),
    )
