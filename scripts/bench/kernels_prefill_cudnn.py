"""Prefill attention over pages beside cuDNN's, in turn, in one run; wants ``pip install nvidia-cudnn-frontend``.

bf16, heads of 128. A case is ``kernel/prefill_attention_cudnn/<rows>x<queries>``, or ``…on<keys before>``, on pages of
so many tokens in random order; both read the same memory. Neither is in a graph: cuDNN's attention is slower there.
Times are the GPU's, of launches that follow each other.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor

from headrace.kernels.kv_pages import KVPages
from headrace.kernels.prefill_attention import PrefillAttention
from headrace.kernels.prefill_shape import PrefillShape
from headrace.testing.needed_gpu import need_gpu
from headrace.testing.rows import Report, arguments

DEVICE, DTYPE, NUM_KV_HEADS, HEAD_DIM = torch.device("cuda", 0), torch.bfloat16, 8, 128
LAUNCHES, REPETITIONS = 4, 9
# So long that the host has queued a repetition's launches before the first one begins.
SLEEP_CYCLES = 2_000_000


@dataclass(frozen=True, slots=True)
class Case:
    """Equal rows: how many, queries of each, keys before them."""

    rows: int
    queries: int
    before: int = 0
    num_heads: int = 32
    page_size: int = 16

    @property
    def name(self) -> str:
        on = f"on{self.before}" if self.before else ""
        heads = "" if self.num_heads == 32 else f"_{self.num_heads}on{NUM_KV_HEADS}"
        return f"kernel/prefill_attention_cudnn/{self.rows}x{self.queries}{on}{heads}_pages_of_{self.page_size}"

    @property
    def operations(self) -> int:
        pairs = self.queries * self.before + self.queries * (self.queries + 1) // 2
        return 4 * HEAD_DIM * self.num_heads * self.rows * pairs


CASES = [
    *(Case(64, 1024, page_size=size) for size in (16, 64)),
    *(Case(64, 1024, num_heads=16, page_size=size) for size in (16, 64)),
    *(Case(*sizes, page_size=size) for sizes in ((256, 128, 0), (4, 4096, 0), (4, 512, 4096)) for size in (16, 64)),
]


class Data:
    """A case's tensors."""

    def __init__(self, case: Case) -> None:
        length = case.before + case.queries
        per_row = -(-length // case.page_size)
        self.case, self.length = case, length
        memory = torch.randn(case.rows * per_row, 2, NUM_KV_HEADS, case.page_size, HEAD_DIM, device=DEVICE, dtype=DTYPE)
        table = torch.randperm(case.rows * per_row).to(torch.int32).view(case.rows, per_row).to(DEVICE)
        self.pages = KVPages(memory[:, 0], memory[:, 1], table)
        self.query = torch.randn(case.rows * case.queries, case.num_heads, HEAD_DIM, device=DEVICE, dtype=DTYPE)


def ours(data: Data) -> tuple[Callable[[], None], Tensor]:
    case, out = data.case, torch.empty_like(data.query)
    group, num_tokens = case.num_heads // NUM_KV_HEADS, data.query.shape[0]
    shape = PrefillShape(NUM_KV_HEADS, group, HEAD_DIM, DTYPE, case.rows, num_tokens, case.page_size)
    attention = PrefillAttention(shape, DEVICE)
    starts = torch.arange(case.rows + 1, dtype=torch.int32, device=DEVICE) * case.queries
    lengths = torch.full((case.rows,), data.length, dtype=torch.int32, device=DEVICE)
    attention.plan(starts, lengths, num_tokens)
    return partial(attention.run, out, data.query, data.pages), out


def cudnns(data: Data) -> tuple[Callable[[], None], Tensor]:
    import cudnn  # type: ignore[import-not-found]

    case, out, kind = data.case, torch.empty_like(data.query), cudnn.data_type
    handle = cudnn.create_handle()
    cudnn.set_stream(handle=handle, stream=torch.cuda.current_stream(DEVICE).cuda_stream)
    graph = cudnn.pygraph(
        io_data_type=kind.BFLOAT16, intermediate_data_type=kind.FLOAT, compute_data_type=kind.FLOAT, handle=handle
    )
    token = case.num_heads * HEAD_DIM
    dim = [case.rows, case.num_heads, case.queries, HEAD_DIM]
    stride = [case.queries * token, HEAD_DIM, token, 1]
    query = graph.tensor(name="query", dim=dim, stride=stride, data_type=kind.BFLOAT16)
    given: dict[Any, Tensor] = {query: data.query}

    def number(x: Tensor) -> Any:
        made = graph.tensor_like(x)
        given[made] = x
        return made

    def pages(name: str, x: Tensor) -> Any:
        made = graph.tensor(name=name, dim=list(x.shape), stride=list(x.stride()), data_type=kind.BFLOAT16)
        given[made] = x
        return made

    table = data.pages.page_table.view(case.rows, 1, -1, 1)
    counts = [
        torch.full((case.rows, 1, 1, 1), count, dtype=torch.int32, device=DEVICE)
        for count in (case.queries, data.length)
    ]
    result, _ = graph.sdpa(
        name="sdpa",
        q=query,
        k=pages("keys", data.pages.keys),
        v=pages("values", data.pages.values),
        generate_stats=False,
        attn_scale=HEAD_DIM**-0.5,
        diagonal_band_right_bound=0,
        diagonal_alignment=cudnn.diagonal_alignment.BOTTOM_RIGHT,
        use_padding_mask=True,
        seq_len_q=number(counts[0]),
        seq_len_kv=number(counts[1]),
        paged_attention_k_table=number(table),
        paged_attention_v_table=number(table),
        paged_attention_max_seq_len_kv=table.shape[2] * case.page_size,
    )
    result.set_output(True).set_dim(dim).set_stride(stride)
    given[result] = out
    graph.validate()
    graph.build_operation_graph()
    graph.create_execution_plans([cudnn.heur_mode.A])
    graph.check_support()
    graph.build_plans()
    workspace = torch.empty(max(1, graph.get_workspace_size()), dtype=torch.uint8, device=DEVICE)
    return partial(graph.execute, given, workspace, handle=handle), out


def medians_us(operations: Sequence[Callable[[], None]]) -> list[float]:
    times: list[list[float]] = [[] for _ in operations]
    for repetition in range(REPETITIONS + 1):
        for operation, taken in zip(operations, times, strict=True):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            torch.cuda._sleep(SLEEP_CYCLES)  # type: ignore[no-untyped-call]
            begin.record()
            for _ in range(LAUNCHES):
                operation()
            end.record()
            torch.cuda.synchronize()
            if repetition:
                taken.append(begin.elapsed_time(end) * 1e3 / LAUNCHES)
    return [median(taken) for taken in times]


def main() -> None:
    wanted = arguments(__doc__ or "")
    need_gpu()
    report = Report("scripts/bench/kernels_prefill_cudnn.py", saves=wanted.save)
    for case in CASES:
        data = Data(case)
        (own, out), (other, peer_out) = ours(data), cudnns(data)
        own_us, peer_us = medians_us((own, other))
        error = (out.float() - peer_out.float()).abs().max().item()
        if error > 0.05:
            print(f"{case.name}: results differ by {error}", file=sys.stderr)
            raise SystemExit(1)
        report.add(case.name, "time", own_us, "us", peer="cuDNN", peer_value=peer_us)
        report.add(case.name, "rate", case.operations / own_us / 1e6, "TFLOP/s")
    report.finish(save=wanted.save)


if __name__ == "__main__":
    main()
