import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from headrace.job import SamplingParams
from headrace.kernels.planned import PlannedOperations
from headrace.kernels.ragged import Ragged
from headrace.kernels.reference import ReferenceOperations
from headrace.kernels.table import Table
from headrace.memory.budget import CHUNK_BYTES
from headrace.testing.plain_params import plain_params
from headrace.testing.steps_ahead import StepsAhead
from headrace.workers.engine import assembly
from headrace.workers.engine.assembly import host_engine
from headrace.workers.engine.engine import Engine
from headrace.workers.engine.host_steps import HostSteps
from headrace.workers.engine.loading import LoadedModel, load

REFERENCE = ReferenceOperations()

HIDDEN, INNER, LAYERS, HEADS, KV_HEADS, VOCAB = 32, 48, 2, 4, 2, 97
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "vocab_size": VOCAB,
    "tie_word_embeddings": True,
    "max_position_embeddings": 4096,
    "eos_token_id": 2,
}


def shapes() -> dict[str, tuple[int, ...]]:
    keys = HIDDEN // HEADS * KV_HEADS
    named: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCAB, HIDDEN), "model.norm.weight": (HIDDEN,)}
    for index in range(LAYERS):
        block = {
            "input_layernorm": (HIDDEN,),
            "self_attn.q_proj": (HIDDEN, HIDDEN),
            "self_attn.k_proj": (keys, HIDDEN),
            "self_attn.v_proj": (keys, HIDDEN),
            "self_attn.o_proj": (HIDDEN, HIDDEN),
            "post_attention_layernorm": (HIDDEN,),
            "mlp.gate_proj": (INNER, HIDDEN),
            "mlp.up_proj": (INNER, HIDDEN),
            "mlp.down_proj": (HIDDEN, INNER),
        }
        named |= {f"model.layers.{index}.{name}.weight": shape for name, shape in block.items()}
    return named


@pytest.fixture(scope="session")
def tensors() -> dict[str, torch.Tensor]:
    """Weights large enough that a random model's next token depends on all the tokens before it."""
    generator = torch.Generator().manual_seed(11)
    return {
        name: torch.randn(shape, generator=generator) * (0.3 if len(shape) == 2 else 0.1) + (len(shape) == 1)
        for name, shape in shapes().items()
    }


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory, tensors: dict[str, torch.Tensor]) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="session")
def operations() -> Table[Ragged]:
    return PlannedOperations(REFERENCE)


@pytest.fixture(scope="session")
def loaded(model_dir: Path, operations: Table[Ragged]) -> LoadedModel:
    torch.set_num_threads(1)
    return load(model_dir, operations, torch.float32)


@pytest.fixture
def make_engine(loaded: LoadedModel, operations: Table[Ragged]) -> Callable[..., Engine]:
    def make(
        *,
        max_rows: int = 4,
        kv_tokens: int = 256,
        step_tokens: int = 8,
        page_size: int = 4,
        chunk_bytes: int = CHUNK_BYTES,
    ) -> Engine:
        return host_engine(
            loaded,
            operations,
            max_rows=max_rows,
            kv_tokens=kv_tokens,
            step_tokens=step_tokens,
            page_size=page_size,
            chunk_bytes=chunk_bytes,
        )

    return make


@pytest.fixture(params=["at once", "a step later"])
def make_any_engine(
    request: pytest.FixtureRequest, make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Engine]:
    """Engines whose tokens are known as soon as their step is started, and ones that run a step ahead."""
    if request.param == "a step later":
        monkeypatch.setattr(assembly, "HostSteps", lambda *args: StepsAhead(HostSteps(*args)))
    return make_engine


@pytest.fixture
def params() -> Callable[..., SamplingParams]:
    return plain_params
