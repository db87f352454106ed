"""Whether the engine is right on a GPU: logits at full size, requests under churn, and whose the kernels of a step are.

``gpu/logits/<shape>/<rows>``: rows fed the same tokens as transformers, in bf16; errors of a logit, beside
transformers' own, both against transformers in fp32 (``headrace.testing.teacher_forcing``).

``gpu/soak/<requests>``: requests under churn in fp32 by a small model, beside what each gets alone
(``headrace.testing.gpu_soak``).

``gpu/step_kernels/<shape>``: launches of a step of each kind by whose they are, of 8 rows and of a prompt of 8,000
tokens, in bf16 (``headrace.testing.gpu_profile``).

Status 1 if a logit is further off than the rule allows, a row has a wrong token, or a step ran a kernel that is neither
ours nor a matrix product.
"""

import gc
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch

from headrace.testing.full_shapes import SHAPES, loader
from headrace.testing.gpu_profile import Origin, profile_steps
from headrace.testing.gpu_soak import alone, churned, compare, make_model
from headrace.testing.needed_gpu import need_gpu
from headrace.testing.rows import ONLY, Report, arguments
from headrace.testing.teacher_forcing import NEEDED_BYTES, logit_errors
from headrace.workers.engine.device_engine import DeviceEngine, DeviceLimits

#: Rows of the steps whose kernels are listed.
NUM_ROWS = 8
#: Tokens of a prompt in a step of its own: nearly as many as workers compute at once by default, and L8B has places
#: for.
LONG_PROMPT = 8_000
#: What each origin of a launch is called in a row.
ORIGINS: dict[Origin, str] = {"ours": "ours", "product": "library_products", "copy": "copies", "other": "others"}


def logits(report: Report, case: str, shape: str) -> list[str]:
    """Keep the errors of a model's logits; what is wrong with them."""
    device = torch.device("cuda", torch.cuda.current_device())
    has, needed = torch.cuda.get_device_properties(device).total_memory, NEEDED_BYTES[shape]
    if has < needed:
        return [f"weights in three forms want {needed >> 30} GiB, and the GPU has {has >> 30}: leave it out by --only"]
    failures = []
    for errors in logit_errors(shape, device):
        name, peer = f"{case}/{errors.num_rows}", "transformers, bf16"
        report.add(name, "greatest_error", errors.greatest, "logits", peer=peer, peer_value=errors.peer_greatest)
        report.add(name, "mean_error", errors.mean, "logits", peer=peer, peer_value=errors.peer_mean)
        failures += [] if errors.is_fair else [str(errors)]
    return failures


def soak(report: Report, case: str, num_requests: int, num_processes: int) -> list[str]:
    """Keep how many requests are right; what is wrong with the others."""
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(num_processes, mp_context=get_context("spawn")) as processes,
    ):
        oracle = make_model(Path(folder))
        parts = [
            processes.submit(alone, Path(folder), num_requests, part, num_processes) for part in range(num_processes)
        ]
        run = churned(Path(folder), num_requests)
        expected = {row: tokens for part in parts for row, tokens in part.result().items()}
    found = compare(oracle, run, expected)
    num_equal = found.num_rows - found.num_parted - found.num_wrong
    report.add(case, "equal_to_solo_runs", num_equal, "requests", peer="all", peer_value=found.num_rows)
    report.add(case, "near_ties", found.num_parted, "requests")
    report.add(case, "wrong", found.num_wrong, "requests")
    report.add(case, "dropped", len(run.dropped), "requests")
    report.add(case, "preemptions", run.num_preemptions, "rows")
    report.add(case, "pages_left", run.num_used_pages, "pages")
    return [*found.failures, *([f"{run.num_used_pages} pages were not given back"] if run.num_used_pages else [])]


def step_kernels(report: Report, case: str, shape: str) -> list[str]:
    """Keep whose the launches of each kind of step are; what is neither ours nor a product or copy."""
    limits = DeviceLimits(max_rows=16, row_tokens=8192, step_tokens=8192, kv_tokens=16384)
    made = DeviceEngine(loader(SHAPES[shape]), torch.device("cuda"), torch.bfloat16, limits)
    failures = []
    for kind, launches in profile_steps(made, NUM_ROWS, long_prompt=LONG_PROMPT):
        counts: Counter[str] = Counter()
        for one in launches:
            counts[one.origin] += one.count
        for origin, name in ORIGINS.items():
            metric = f"{name} ({kind})"
            report.add(case, metric, counts[origin], "launches", peer="all", peer_value=counts.total())
        strangers = sorted(one.name for one in launches if one.origin == "other")
        failures += [f"{kind} ran {', '.join(strangers)}"] if strangers else []
        failures += [] if counts["ours"] else [f"{kind} ran no kernel of ours"]
    return failures


def main() -> int:
    """Measure the cases that are wanted, each by itself."""
    given = arguments(
        __doc__ or "",
        [
            ONLY,
            ("requests", 5_000, "requests of the soak"),
            ("processes", 4, "share the soak's requests alone, which take longest"),
        ],
    )
    need_gpu()
    report = Report("scripts/bench/gpu_exactness.py", saves=given.save)
    cases: dict[str, Callable[[Report, str], list[str]]] = {
        **{f"gpu/step_kernels/{shape}": partial(step_kernels, shape=shape) for shape in SHAPES},
        f"gpu/soak/{given.requests}": partial(soak, num_requests=given.requests, num_processes=given.processes),
        **{f"gpu/logits/{shape}": partial(logits, shape=shape) for shape in SHAPES},
    }
    failures: list[str] = []
    for case, measure in cases.items():
        if re.search(given.only, case):
            failures += [f"{case}: {failure}" for failure in measure(report, case)]
            gc.collect()
            torch.cuda.empty_cache()
    report.finish(save=given.save)
    for failure in failures:
        print(failure, file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
