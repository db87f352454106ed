"""Sampling's kernels beside torch's own operations and the card's copy bandwidth.

Logits are bf16, normal, of deviation 2: a flat distribution. A case is ``kernel/<name>/<shape>``. The cache is
overwritten before every run, torch's operation runs in turn with ours, and the bytes counted are those of the logits
and counts, read once. torch draws by an exponential race, which needs no order of the tokens. Launches under 10 us are
repeated more often.
"""

from collections.abc import Iterator
from functools import partial
from itertools import product

import torch
from torch import Tensor

from headrace.kernels.logit_edits import Edits, edit_logits, num_words
from headrace.kernels.logits import workspace_floats
from headrace.kernels.logprobs import LogprobResults, rank, tell
from headrace.kernels.penalties import Penalties
from headrace.kernels.sampling import Draws, SamplingParameters, sample
from headrace.testing.gpu_timing import Timer
from headrace.testing.kernel_cases import Case, measure
from headrace.testing.needed_gpu import need_gpu
from headrace.testing.rows import Report, arguments

DEVICE = torch.device("cuda", 0)
VOCAB = 151936
NUM_ROWS = (1, 8, 64, 256)
NUM_TOP, NUM_BIASES = 20, 300


def logits_of(num_rows: int) -> Tensor:
    return torch.randn(num_rows, VOCAB, device=DEVICE, dtype=torch.bfloat16) * 2


def column(num_rows: int, value: float, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.full((num_rows,), value, device=DEVICE, dtype=dtype)


def parameters(n: int, temperature: float, top_k: int, top_p: float) -> SamplingParameters:
    return SamplingParameters(
        column(n, temperature),
        column(n, top_k, torch.int32),
        column(n, top_p),
        column(n, 0.0),
        torch.randint(2**62, (n,), device=DEVICE),
        torch.arange(n, device=DEVICE),
        column(n, 0, torch.int64),
    )


def draws() -> Iterator[Case]:
    kinds = (
        ("greedy", 0.0, 0, 1.0, _greedy, "torch argmax"),
        ("temperature", 0.7, 0, 1.0, _temperature, "torch softmax, exponential race, argmax"),
        ("top_k50_top_p0.9", 0.7, 50, 0.9, _top_k_top_p, "torch topk, softmax, cumsum, exponential race, argmax"),
        ("top_p0.9", 0.7, 0, 0.9, _top_p, "torch sort, softmax, cumsum, exponential race, argmax"),
    )
    for (name, temperature, top_k, top_p, theirs, peer), n in product(kinds, (1, 8, 64, 256)):
        logits, asked = logits_of(n), parameters(n, temperature, top_k, top_p)
        out, workspace = Draws.empty(n, DEVICE), torch.empty(workspace_floats(n, VOCAB), device=DEVICE)
        yield Case(
            f"sampling/{name}_{n}x{VOCAB}",
            logits.nbytes,
            partial(
                sample,
                logits,
                asked,
                out=out,
                workspace=workspace,
                all_greedy=name == "greedy",
                searches=name == "top_p0.9",
            ),
            partial(theirs, logits),
            peer,
        )


def penalised_draws() -> Iterator[Case]:
    for n in NUM_ROWS:
        logits, asked = logits_of(n), parameters(n, 0.7, 50, 0.9)
        counts = torch.randint(0, 2, (n, VOCAB), device=DEVICE, dtype=torch.int16)
        slots = torch.arange(n, device=DEVICE, dtype=torch.int32)
        penalties = Penalties(column(n, 1.2), column(n, 0.5), column(n, 0.1), counts, slots)
        out, workspace = Draws.empty(n, DEVICE), torch.empty(workspace_floats(n, VOCAB), device=DEVICE)
        yield Case(
            f"sampling/penalised_{n}x{VOCAB}",
            logits.nbytes + counts.nbytes,
            partial(sample, logits, asked, penalties=penalties, out=out, workspace=workspace, searches=False),
            partial(_penalised, logits, counts),
            "torch where, mul, sub; topk, softmax, cumsum, exponential race, argmax",
        )


def edits() -> Iterator[Case]:
    """Each row has biases, and an end that may not come yet; none of it is counted as bytes."""
    for n in NUM_ROWS:
        logits, places = logits_of(n), torch.arange(n, device=DEVICE)
        ids = torch.stack([torch.randperm(VOCAB, device=DEVICE)[:NUM_BIASES] for _ in range(n)])
        biases = torch.ones(n, NUM_BIASES, device=DEVICE)
        forbidden = torch.zeros(n, num_words(VOCAB), dtype=torch.int32, device=DEVICE)
        forbidden[:, 0] = 4
        given = Edits(
            ids.to(torch.int32),
            biases,
            column(n, NUM_BIASES, torch.int32),
            forbidden,
            column(n, 1, torch.int32),
            torch.empty_like(biases),
        )
        yield Case(
            f"logit_edits/{n}x{VOCAB}",
            NUM_BIASES * n * logits.element_size(),
            partial(edit_logits, logits, places, given),
            partial(_edit, logits, ids, biases.to(logits.dtype)),
            "torch scatter_add, index_fill",
        )


def logprobs() -> Iterator[Case]:
    for n in NUM_ROWS:
        logits, places = logits_of(n), torch.arange(n, device=DEVICE)
        num_top, token_ids = column(n, NUM_TOP, torch.int32), torch.randint(VOCAB, (n,), device=DEVICE)
        none = torch.zeros(n, 1, device=DEVICE)
        zeros = column(n, 0, torch.int32)
        words = torch.zeros(n, num_words(VOCAB), dtype=torch.int32, device=DEVICE)
        given = Edits(zeros[:, None].clone(), none, zeros, words, zeros, none.clone())
        out = LogprobResults(
            column(n, 0.0),
            torch.empty(n, NUM_TOP, dtype=torch.int32, device=DEVICE),
            torch.empty(n, NUM_TOP, device=DEVICE),
            torch.empty(n, 2, device=DEVICE),
        )
        workspace = torch.empty(workspace_floats(n, VOCAB), device=DEVICE)

        def ours(
            logits: Tensor = logits,
            places: Tensor = places,
            num_top: Tensor = num_top,
            token_ids: Tensor = token_ids,
            given: Edits = given,
            out: LogprobResults = out,
            workspace: Tensor = workspace,
        ) -> None:
            rank(logits, places, num_top, out, workspace)
            tell(logits, places, num_top, token_ids, given, out)

        yield Case(
            f"logprobs/top{NUM_TOP}_{n}x{VOCAB}",
            logits.nbytes,
            ours,
            partial(_logprobs, logits, token_ids),
            "torch log_softmax, gather, topk",
        )


def _greedy(logits: Tensor) -> Tensor:
    return logits.argmax(dim=-1)


def _temperature(logits: Tensor) -> Tensor:
    probabilities = (logits.float() / 0.7).softmax(dim=-1)
    return probabilities.div_(torch.empty_like(probabilities).exponential_()).argmax(dim=-1)


def _top_k_top_p(logits: Tensor) -> Tensor:
    return _race(*(logits.float() / 0.7).topk(50, dim=-1))


def _top_p(logits: Tensor) -> Tensor:
    return _race(*(logits.float() / 0.7).sort(dim=-1, descending=True))


def _race(values: Tensor, ids: Tensor) -> Tensor:
    """Keep a share of 0.9 of sorted tokens and draw one."""
    probabilities = values.softmax(dim=-1)
    probabilities.masked_fill_(probabilities.cumsum(dim=-1) - probabilities >= 0.9, 0)
    winner = probabilities.div_(torch.empty_like(probabilities).exponential_()).argmax(dim=-1, keepdim=True)
    return ids.gather(1, winner)


def _penalised(logits: Tensor, counts: Tensor) -> Tensor:
    values, seen = logits.float(), counts > 0
    values = torch.where(seen, torch.where(values > 0, values / 1.2, values * 1.2), values)
    return _top_k_top_p(values - 0.1 * counts - 0.5 * seen)


def _edit(logits: Tensor, ids: Tensor, biases: Tensor) -> None:
    logits.scatter_add_(1, ids, biases)
    logits[:, 2] = -torch.inf


def _logprobs(logits: Tensor, token_ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    told = logits.float().log_softmax(dim=-1)
    return told.gather(1, token_ids[:, None]), *told.topk(NUM_TOP, dim=-1)


def main() -> None:
    wanted = arguments(__doc__ or "")
    need_gpu()
    report = Report("scripts/bench/kernels_sampling.py", saves=wanted.save)
    timer = Timer(DEVICE)
    limit = timer.copy_gb_per_s()
    report.add("kernel/copy/1GiB", "bandwidth", limit, "GB/s")
    for cases in (draws, penalised_draws, edits, logprobs):
        for case in cases():
            measure(case, timer, report, limit)
    report.finish(save=wanted.save)


if __name__ == "__main__":
    main()
