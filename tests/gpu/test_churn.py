"""Exactness on the GPU under churn: the requests of ``headrace.testing.churn``, in fp32, and through Redis."""

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from tests.fleet.conftest import fleet_settings
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedModel

from headrace.producer.client import Client
from headrace.testing.churn import churn, requests
from headrace.testing.fleet import Fleet
from headrace.testing.gpu_memory import watch_torch
from headrace.testing.gpu_soak import alone, churned, compare, make_model
from headrace.testing.plain_params import plain_params
from headrace.testing.servers import Server
from headrace.testing.small_engines import engine_of
from headrace.testing.tiny_models import VOCAB
from headrace.workers.channel import Add

#: A soak takes more: 5,000 take some minutes.
NUM_REQUESTS = int(os.environ.get("HEADRACE_SOAK_REQUESTS", "500"))
#: So many processes may share what takes longest, computing each row alone.
NUM_PARTS = max(1, NUM_REQUESTS // 1_250)


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> tuple[PreTrainedModel, Path]:
    folder = tmp_path_factory.mktemp("model")
    return make_model(folder), folder


@pytest.mark.timeout(120 + NUM_REQUESTS // 5)
@pytest.mark.parametrize("part", range(NUM_PARTS))
def test_requests_get_the_tokens_that_they_get_alone_and_every_page_comes_back(
    oracle: tuple[PreTrainedModel, Path], part: int
) -> None:
    run = churned(oracle[1], NUM_REQUESTS)
    assert run.num_used_pages == 0
    assert run.num_preemptions > 10
    assert run.dropped
    compared = compare(oracle[0], run, alone(oracle[1], NUM_REQUESTS, part, NUM_PARTS))
    assert compared.num_rows == len(run.adds[part::NUM_PARTS])
    assert not compared.failures


def test_what_an_engine_warms_up_with_takes_nothing_from_its_rows(oracle: tuple[PreTrainedModel, Path]) -> None:
    made = engine_of(oracle[1], torch.float32, max_rows=4, kv_tokens=4096, step_tokens=2048, row_tokens=1024)
    assert made.engine.launches.num_by_kernel == 2, "a prompt of 1,024, twice"
    assert (made.pool.pages.num_used, made.pool.pages.num_kept) == (0, 0)
    assert made.pool.memory_info().activation_bytes == 0
    assert not made.engine.has_rows


def test_replayed_steps_bring_the_tokens_of_launched_ones(oracle: tuple[PreTrainedModel, Path]) -> None:
    found = []
    for cuda_graphs in (True, False):
        rng = random.Random(3)
        families = requests(plain_params, rng, 80)
        made = engine_of(
            oracle[1],
            torch.float32,
            max_rows=20,
            kv_tokens=2048,
            step_tokens=64,
            row_tokens=110,
            cuda_graphs=cuda_graphs,
        )
        found.append(churn(made.engine, families, rng)[0])
    assert found[0] == found[1]
    assert sum(len(tokens) for tokens in found[0].values()) > 500


def test_replayed_steps_have_the_bits_of_launched_ones(oracle: tuple[PreTrainedModel, Path]) -> None:
    """In bf16, where any difference in order would show: rows fill all places, so both compute the same batches."""
    found = []
    for cuda_graphs in (True, False):
        engine = engine_of(
            oracle[1],
            torch.bfloat16,
            max_rows=8,
            kv_tokens=4096,
            step_tokens=64,
            row_tokens=400,
            cuda_graphs=cuda_graphs,
        ).engine
        tokens: dict[int, list[int]] = {}
        for row in range(8):
            sampling = plain_params(300, temperature=1.0 * (row % 2), seed=row, logprobs=2 if row == 5 else None)
            engine.add(Add(row, tuple(range(3 + row, 11 + row)), (), sampling))
        while engine.has_rows:
            for row, token_id, _ in engine.step().tokens:
                tokens.setdefault(row, []).append(token_id)
        found.append(tokens)
    assert found[0] == found[1]


def test_a_step_allocates_nothing_once_its_lengths_have_been_seen(
    oracle: tuple[PreTrainedModel, Path], device: torch.device
) -> None:
    engine = engine_of(oracle[1], torch.bfloat16, max_rows=8, kv_tokens=2048, step_tokens=64, row_tokens=256).engine
    kinds: tuple[dict[str, Any], ...] = ({}, {"temperature": 1.0, "top_p": 0.9}, {"repetition_penalty": 1.2})

    def wave(first_row: int) -> None:
        for row in range(first_row, first_row + 8):
            engine.add(Add(row, tuple(range(3, 3 + 5 * (row % 8))) or (3,), (), plain_params(40, **kinds[row % 3])))
        while engine.has_rows:
            engine.step()

    wave(0)
    wave(8)
    with watch_torch(device) as watched:
        wave(16)
    assert watched.grown_bytes == 0
    assert watched.num_allocations == 0


def give_tokenizer(folder: Path) -> None:
    """Give a model folder a tokenizer of its size: every byte, and pairs of letters."""
    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(a + b for a in letters for b in letters)][:VOCAB]
    model = tokenizers.Tokenizer(BPE({token: index for index, token in enumerate(tokens)}, []))
    model.pre_tokenizer = ByteLevel(add_prefix_space=False)
    model.decoder = ByteLevelDecoder()
    model.save(str(folder / "tokenizer.json"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"eos_token_id": 2}))


def test_a_fleet_on_the_gpu_streams_what_transformers_generates(oracle: tuple[PreTrainedModel, Path]) -> None:
    model, folder = oracle
    give_tokenizer(folder)
    prompts = [[int(t) for t in torch.randint(3, VOCAB, (length,))] for length in (4, 19, 60, 5, 33, 90)]
    with Server("valkey", port=None) as server:
        settings = fleet_settings(
            server.url, model=str(folder), device="cuda", dtype="float32", max_context_tokens=256, kv_tokens=8192
        )
        with Fleet(settings), Client(settings) as client:
            handles = [client.submit(prompt, max_tokens=16, temperature=0, ignore_eos=True) for prompt in prompts]
            for prompt, handle in zip(prompts, handles, strict=True):
                generated = model.generate(
                    torch.tensor([prompt]),
                    attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
                    max_new_tokens=16,
                    do_sample=False,
                    eos_token_id=None,
                    pad_token_id=0,
                )
                assert list(handle.result(timeout_s=60).ids) == generated[0, len(prompt) :].tolist()
