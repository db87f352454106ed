"""The families, by the name that config.json gives under "architectures"."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

import torch

from headrace.kernels.table import Operations
from headrace.workers.engine.checkpoint import Tensors
from headrace.workers.engine.models.gpt2 import Gpt2
from headrace.workers.engine.models.gpt_config import parse_gpt2, parse_gptj
from headrace.workers.engine.models.gptj import GptJ
from headrace.workers.engine.models.llama import Llama
from headrace.workers.engine.models.llama_config import parse_llama
from headrace.workers.engine.models.mistral import parse_mistral
from headrace.workers.engine.models.model import Model
from headrace.workers.engine.models.qwen2 import parse_qwen2
from headrace.workers.engine.models.qwen3 import parse_qwen3

Build = Callable[[Mapping[str, Any], Tensors, Operations, torch.dtype], Model]
"""From config.json and weights to a model; raises ModelError for what is missing or not supported."""

FAMILIES: Final[Mapping[str, Build]] = MappingProxyType(
    {
        "GPT2LMHeadModel": lambda config, *weights: Gpt2(parse_gpt2(config), *weights),
        "GPTJForCausalLM": lambda config, *weights: GptJ(parse_gptj(config), *weights),
        "LlamaForCausalLM": lambda config, *weights: Llama(parse_llama(config), *weights),
        "MistralForCausalLM": lambda config, *weights: Llama(parse_mistral(config), *weights),
        "Qwen2ForCausalLM": lambda config, *weights: Llama(parse_qwen2(config), *weights),
        "Qwen3ForCausalLM": lambda config, *weights: Llama(parse_qwen3(config), *weights),
    }
)
