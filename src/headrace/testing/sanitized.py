"""Kernels of ours alone on a GPU, for compute-sanitizer: what programs there are, and what runs one.

Inputs and truths are made on the CPU, so that no library's product runs in the process. racecheck ends with an error of
its own ("failed to handle a hardware exception") in a process that multiplies 16-bit numbers by cuBLAS, even if it is
told to look at our kernels only; without that filter it reports a race within cuBLAS's kernel, as ``cublas`` shows.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import torch

from headrace.kernels.launch import is_ours
from headrace.testing import sanitized_attention as attention
from headrace.testing import sanitized_products as products
from headrace.testing import sanitized_rows as rows
from headrace.testing import sanitized_sampling as sampling
from headrace.testing import sanitized_state as state
from headrace.testing.computed import Computed


class Program(NamedTuple):
    """What computes, the kernels in ``kernels/cuda`` that it launches, and whether these are for Hopper GPUs alone."""

    compute: Callable[[], Iterator[Computed]]
    kernels: tuple[str, ...]
    is_for_hopper: bool = False


#: By name; all but the last should be clean. Every kernel has a program.
PROGRAMS: Mapping[str, Program] = {
    "fixed_products": Program(products.fixed_products, ("fixed_product",)),
    "thin_products": Program(products.thin_products, ("thin_product",), is_for_hopper=True),
    "joined_thin_products": Program(products.joined_thin_products, ("thin_product",), is_for_hopper=True),
    "middle_products": Program(products.middle_products, ("middle_product",), is_for_hopper=True),
    "wide_products": Program(products.wide_products, ("wide_product",), is_for_hopper=True),
    "encoder_attentions": Program(attention.encoder_attentions, ("encoder_attention",)),
    "decode_attentions": Program(attention.decode_attentions, ("decode_attention", "decode_plan")),
    "fused_decode_attentions": Program(attention.fused_decode_attentions, ("decode_attention", "decode_plan")),
    "prefill_attentions": Program(attention.prefill_attentions, ("prefill_attention", "prefill_plan")),
    "ring_prefill_attentions": Program(
        attention.ring_prefill_attentions, ("prefill_ring", "prefill_plan"), is_for_hopper=True
    ),
    "norms": Program(rows.norms, ("rms_norm", "layer_norm")),
    "softmaxes": Program(rows.softmaxes, ("softmax",)),
    "activations": Program(rows.activations, ("activation",)),
    "moved_rows": Program(rows.moved_rows, ("embedding", "place_rows", "add")),
    "encoder_rows": Program(rows.encoder_rows, ("encoder_embedding", "pooling")),
    "rotations": Program(state.rotations, ("rotary_table", "rotary_kv")),
    "page_copies": Program(state.page_copies, ("page_copy",)),
    "row_states": Program(state.row_states, ("change_words", "next_tokens", "tell_host")),
    "draws": Program(
        sampling.draws,
        (
            *("sample_scan", "sample_pick", "search_bins", "search_sums", "search_pick"),
            *("greedy_scan", "greedy_pick", "count_tokens"),
        ),
    ),
    "logprobs": Program(sampling.logprobs, ("logprob_scan", "logprob_top", "logprob_chosen", "edit_logits")),
    "cublas": Program(products.cublas, ()),
}


def run(name: str) -> int:
    """Run a program, a line a result; returns how many results are wrong, missing, or of kernels not loaded."""
    torch.manual_seed(0)
    num_wrong, num_results, program = 0, 0, PROGRAMS[name]
    for computed in program.compute():
        torch.cuda.synchronize()
        num_results += 1
        num_wrong += not computed.is_right
        print(f"{name}: {computed.what}: {'right' if computed.is_right else 'WRONG'}", flush=True)
    if not num_results:
        num_wrong += 1
        print(f"{name}: nothing was computed: WRONG", flush=True)
    for kernel in program.kernels:
        if not is_ours(kernel):
            num_wrong += 1
            print(f"{name}: {kernel} was not loaded: WRONG", flush=True)
    return num_wrong
