"""Steps with prompts that are padded, captured and replayed bring what steps launched kernel by kernel bring."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from headrace.testing.churn import churn, requests, solo
from headrace.testing.near_ties import NearTies
from headrace.testing.plain_params import plain_params
from headrace.testing.small_engines import engine_of
from headrace.testing.tiny_models import KINDS, LONG_QWEN3, make_oracle, with_device_heads
from headrace.workers.channel import Add
from headrace.workers.engine import padded_size
from headrace.workers.engine.device_engine import DeviceEngine
from headrace.workers.engine.prompt_graphs import PromptGraphs

FAMILIES = {"qwen3 tied": 64, "gpt2": 64, "llama": 128}


@pytest.fixture(scope="module", params=FAMILIES, ids=str)
def oracle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[PreTrainedModel, Path]:
    kind = next(name for name in KINDS if name.startswith(request.param))
    path = tmp_path_factory.mktemp("model")
    return make_oracle(with_device_heads(KINDS[kind], FAMILIES[request.param]), path), path


@pytest.fixture
def folder(oracle: tuple[PreTrainedModel, Path]) -> Path:
    return oracle[1]


@pytest.fixture(autouse=True)
def every_size_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small models wait for the host, but a test shall not hang on the clock; and small steps need small padding."""
    monkeypatch.setattr(PromptGraphs, "serves", lambda self, size: True)
    monkeypatch.setattr(PromptGraphs, "observe", lambda self, size, launch_ms, step_ms: None)
    monkeypatch.setattr(padded_size, "TOKEN_STEP", 16)
    run = PromptGraphs.run

    def noted(self: PromptGraphs, key: Any, launch: Callable[[], Tensor | None]) -> Tensor | None:
        self._waiting[key[0]] = None
        return run(self, key, launch)

    monkeypatch.setattr(PromptGraphs, "run", noted)


def engine(folder: Path, dtype: torch.dtype, *, max_rows: int = 20, kv_tokens: int = 2048, **more: Any) -> DeviceEngine:
    return engine_of(folder, dtype, max_rows=max_rows, kv_tokens=kv_tokens, step_tokens=64, row_tokens=110, **more)


def num_replays(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one with each replay of any graph."""
    found: list[int] = []
    replay = torch.cuda.CUDAGraph.replay

    def counted(self: torch.cuda.CUDAGraph) -> None:
        found.append(1)
        replay(self)

    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", counted)
    return found


def test_mixtures_of_all_kinds_bring_the_tokens_of_launched_steps(
    oracle: tuple[PreTrainedModel, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    found, cancelled, replays = [], set[int](), num_replays(monkeypatch)
    for prompt_graphs in (8, 0):
        rng = random.Random(3)
        families = requests(plain_params, rng, 120)
        made = engine(oracle[1], torch.float32, prompt_graphs=prompt_graphs)
        tokens, cancelled = churn(made.engine, families, rng)
        found.append(tokens)
        replays.append(0)
    # Padding is rows more, for which products and norms round otherwise.
    ties, adds = NearTies(oracle[0]), [add for family in families for add in family]
    for add in adds:
        ties.assert_same(add, found[0][add.row], found[1][add.row], dropped=add.row in cancelled)
    ties.assert_few(len(adds))
    first, second = (sum(part) for part in (replays[: replays.index(0)], replays[replays.index(0) :]))
    assert first > second + 30


def test_a_replayed_step_has_the_bits_of_the_same_step_launched(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In bf16, where any difference in order, or a kernel that began too early, would show."""
    found = []
    for launches in (False, True):
        if launches:
            monkeypatch.setattr(PromptGraphs, "run", lambda self, key, launch: launch())
        rng = random.Random(4)
        families = requests(plain_params, rng, 150)
        found.append(churn(engine(folder, torch.bfloat16, prompt_graphs=16).engine, families, rng)[0])
    assert found[0] == found[1]


def test_a_replayed_step_of_thousands_of_tokens_has_the_bits_of_one_launched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_oracle(LONG_QWEN3, tmp_path)
    found, replays = [], num_replays(monkeypatch)
    for launches in (False, True):
        if launches:
            monkeypatch.setattr(PromptGraphs, "run", lambda self, key, launch: launch())
        many = engine_of(
            tmp_path, torch.bfloat16, max_rows=32, kv_tokens=80_000, step_tokens=6000, row_tokens=1100, prompt_graphs=16
        ).engine
        rng = random.Random(5)
        tokens: dict[int, list[int]] = {}
        for row in range(64):  # eight prompts fill a step, beside what decodes by then
            length = rng.choice((750, rng.randint(500, 1000)))
            prompt = tuple(rng.choices(range(50), k=length))
            many.add(Add(row, prompt, (), plain_params(4 + row % 5, temperature=row % 2, seed=row)))
        while many.has_rows:
            for row, token, _ in many.step().tokens:
                tokens.setdefault(row, []).append(token)
        found.append(tokens)
        replays.append(0)
    assert found[0] == found[1]
    assert [len(found[0][row]) for row in range(64)] == [4 + row % 5 for row in range(64)]
    first, second = (sum(part) for part in (replays[: replays.index(0)], replays[replays.index(0) :]))
    assert first > second, "no step of prompts was replayed"


def test_padding_changes_no_bit_where_orders_are_fixed(folder: Path) -> None:
    rng = random.Random(0)
    families = requests(plain_params, rng, 120)
    # Little memory: rows push each other out, and layouts are given back and made anew.
    tight = engine(folder, torch.bfloat16, max_rows=12, kv_tokens=320, prompt_graphs=8, deterministic=True).engine
    tokens, cancelled = churn(tight, families, rng)
    alone = engine(folder, torch.bfloat16, max_rows=1, cuda_graphs=False, deterministic=True).engine
    for add in (add for family in families for add in family):
        expected = solo(alone, add)
        assert tokens[add.row] == (expected[: len(tokens[add.row])] if add.row in cancelled else expected), add


def test_rules_and_logarithms_are_drawn_behind_a_graph_as_behind_launches(folder: Path) -> None:
    found = []
    for prompt_graphs in (8, 0):
        made = engine(folder, torch.float32, prompt_graphs=prompt_graphs).engine
        told: list[tuple[Any, ...]] = []
        for row in range(24):
            ruled = plain_params(6, temperature=row % 2, seed=row, logprobs=row % 4, repetition_penalty=1.2)
            made.add(Add(row, tuple(range(3 + row, 9 + 3 * row)), (), ruled))
            told += [(row, token) for row, token, _ in made.step().tokens]
        while made.has_rows:
            told += [(row, token) for row, token, _ in made.step().tokens]
        found.append(sorted(told))
    assert found[0] == found[1]
