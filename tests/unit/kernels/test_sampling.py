"""Sampling without a GPU: its CUDA source on fibers, beside its reference."""

import ctypes
import math
from collections.abc import Callable

import pytest
import torch
from tests.unit.kernels.emulation.build import build_sampling, compiler, pointer
from torch import Tensor

from headrace.kernels.build import Macro
from headrace.kernels.logits import THREADS, groups_a_thread, workspace_floats
from headrace.kernels.sampling import Draws, SamplingParameters
from headrace.testing.draws import assert_same_draws, keepings

#: Temperature, top_k, top_p, min_p.
KINDS = [
    (0.0, 0, 1.0, 0.0),
    (1.0, 0, 1.0, 0.0),
    (0.7, 50, 0.9, 0.0),
    (1.3, 0, 0.95, 0.0),
    (0.6, 20, 1.0, 0.05),
    (1.0, 0, 1.0, 0.1),
    (1.0, 1024, 0.99, 0.0),
    (1.0, 3000, 0.9, 0.001),
    (3.0, 0, 0.999, 1e-6),
    (3.0, 4000, 1.0, 0.0),
    (1e-30, 0, 0.5, 0.0),
    (1.0, 0, 0.0, 0.0),
]
VOCAB = 9001


class _Parameters(ctypes.Structure):
    """The kernels' struct of that name."""

    _fields_ = [(f"field_{index}", ctypes.c_void_p) for index in range(14)] + [("counts_stride", ctypes.c_int64)]


Emulated = Callable[..., Draws]


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Emulated:
    if compiler() is None:
        pytest.fail("the kernels' sources are run on this machine's CPU, which takes g++: install it")
    macros: dict[str, Macro] = {
        "DTYPE": "float",
        "VEC": 1,
        "PENALISED": 0,
        "THREADS": THREADS,
        "GROUPS_A_THREAD": groups_a_thread(VOCAB),
    }
    library = build_sampling(macros, tmp_path_factory.mktemp("sampling"))

    def sample(logits: Tensor, asked: SamplingParameters, num_search_blocks: int) -> Draws:
        num_rows, vocab = logits.shape
        out = Draws.empty(num_rows, logits.device)
        # What an earlier step has left must not matter.
        workspace = torch.full((workspace_floats(num_rows, vocab),), math.nan)
        of = _Parameters(
            *(None, asked.temperature.data_ptr(), asked.top_p.data_ptr(), asked.min_p.data_ptr(), None, None, None),
            *(asked.top_k.data_ptr(), asked.position.data_ptr(), asked.num_prompt_tokens.data_ptr()),
            *(asked.seed.data_ptr(), None, None, None, 0),
        )
        results = pointer(out.token_ids), pointer(out.valid), pointer(logits), ctypes.c_longlong(logits.stride(0))
        library.emulate_sampling(num_rows, num_search_blocks, *results, vocab, pointer(workspace), ctypes.byref(of))
        return out

    return sample


def parameters(kinds: list[tuple[float, int, float, float]]) -> SamplingParameters:
    temperature, top_k, top_p, min_p = (torch.tensor(column) for column in zip(*kinds, strict=True))
    num_rows = len(kinds)
    seed, position = torch.randint(-(2**63), 2**63 - 1, (num_rows,)), torch.arange(num_rows) + 100
    return SamplingParameters(temperature, top_k.int(), top_p, min_p, seed, position, torch.full((num_rows,), 100))


@pytest.mark.parametrize(("vocab", "spread"), [(1, 1.0), (2049, 1.0), (VOCAB, 0.02), (VOCAB, 2.0)])
def test_the_source_draws_what_the_reference_draws_by_however_many_blocks(
    emulated: Emulated, vocab: int, spread: float
) -> None:
    torch.manual_seed(vocab)
    logits = torch.randn(len(KINDS), vocab) * spread
    logits[::2] = (logits[::2] * 2).round() / 2
    asked = parameters(KINDS)
    drawn = emulated(logits, asked, 0)
    assert drawn.valid.all()
    assert_same_draws(drawn.token_ids, keepings(logits, asked))
    assert torch.equal(emulated(logits, asked, 3).token_ids, drawn.token_ids)


def test_the_source_draws_no_token_that_is_forbidden_and_tells_rows_without_any(emulated: Emulated) -> None:
    torch.manual_seed(0)
    asked = parameters(KINDS)
    logits = torch.full((len(KINDS), VOCAB), -torch.inf)
    allowed = torch.randint(VOCAB, (5,))
    logits[:, allowed] = torch.randn(len(KINDS), 5)
    logits[1], logits[3, 7], logits[5, 8000] = -torch.inf, torch.nan, torch.inf
    drawn = emulated(logits, asked, 2)
    assert (~drawn.valid).nonzero()[:, 0].tolist() == [1, 3, 5]
    assert torch.isin(drawn.token_ids[drawn.valid], allowed).all()
