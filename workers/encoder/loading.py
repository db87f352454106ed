"""From a model folder, or from a model in memory, to an encoder that can run."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from headrace.errors import ModelError
from headrace.kernels.encoder_table import EncoderOperations
from headrace.kernels.table import Packer
from headrace.workers.encoder.families import find_architecture
from headrace.workers.encoder.family import Family, Task
from headrace.workers.encoder.heads import Heads, load_classes, load_fill, load_pooler
from headrace.workers.encoder.model import EncoderModel
from headrace.workers.encoder.pooling import Sentences, load_sentences
from headrace.workers.encoder.tensors import ReadTensors
from headrace.workers.engine.checkpoint import Checkpoint, Tensors
from headrace.workers.engine.models.weights import Weights
from headrace.workers.model_store.json_file import read_json
from headrace.workers.text.encoder_tokenizer import read_mask
from headrace.workers.text.tokenizer import read_tokenizer

# Buffers that old versions of transformers have saved, and heads: a checkpoint may have those of other tasks.
_PASSED_OVER = re.compile(
    r"(.*\.)?embeddings\.(position_ids|token_type_ids)$"
    r"|(cls|lm_head|predictions|sop_classifier|classifier|pre_classifier|qa_outputs)\."
    r"|vocab_(transform|layer_norm|projector)\."
)
_NUM_NAMED = 8


@dataclass(frozen=True, slots=True)
class Encoder:
    """A model with what stands on it.

    Attributes:
        model: encodes.
        heads: what makes answers of hidden states.
        operations: the table that all of it was loaded for.
        family: what kind of encoder it is.
        task: what the architecture is for.
    """

    model: EncoderModel
    heads: Heads
    operations: EncoderOperations
    family: Family
    task: Task


@dataclass(frozen=True, slots=True)
class LoadedEncoder:
    """An encoder and what its folder says about its use.

    Attributes:
        encoder: ready to run.
        sentences: how rows become vectors.
        mask_id: token that stands for a missing word; None where the tokenizer has none, or nothing fills it in.
    """

    encoder: Encoder
    sentences: Sentences
    mask_id: int | None


def load_encoder(
    folder: Path, operations: EncoderOperations, dtype: torch.dtype, *, block_packer: Packer | None = None
) -> LoadedEncoder:
    """Load a folder in Hugging Face's layout, with or without sentence-transformers' files beside it.

    Args:
        folder: of the model.
        operations: the table to compute with.
        dtype: of weights and activations, whatever the files hold.
        block_packer: lays out the weights of the transformer blocks; None for the table itself.

    Raises:
        ModelError: a file is missing or damaged, the family is not supported, or the configuration or the tensors are
            not those of a model that would be computed rightly.
    """
    config = read_json(folder / "config.json")
    with Checkpoint(folder) as checkpoint:
        encoder = build_encoder(config, checkpoint, checkpoint.names, operations, dtype, block_packer=block_packer)
    sentences = load_sentences(folder, encoder.model.config.hidden_size, operations, dtype)
    can_fill = encoder.heads.fill is not None and (folder / "tokenizer.json").exists()
    return LoadedEncoder(encoder, sentences, _mask_id(folder) if can_fill else None)


def build_encoder(
    config: Mapping[str, Any],
    checkpoint: Tensors,
    names: Iterable[str],
    operations: EncoderOperations,
    dtype: torch.dtype,
    *,
    block_packer: Packer | None = None,
) -> Encoder:
    """Build an encoder from a configuration and weights.

    Args:
        config: what config.json says.
        checkpoint: the weights.
        names: of all of them.
        operations: the table to compute with.
        dtype: of weights and activations.
        block_packer: as ``load_encoder``.

    Raises:
        ModelError: as ``load_encoder``.
    """
    family, task = find_architecture(config)
    shape = family.parse(config)
    tensors = ReadTensors(checkpoint)
    top = Weights(tensors, operations, dtype)
    prefix = family.prefix if f"{family.prefix}embeddings.word_embeddings.weight" in tensors else ""
    blocks = top if block_packer is None else Weights(tensors, block_packer, dtype)
    model = EncoderModel(shape, family, top.under(prefix), blocks.under(prefix), operations, dtype)
    pooler = None
    if f"{prefix}{family.pooler}.weight" in tensors or (
        task == "ForSequenceClassification" and family.classes.dense is None
    ):
        pooler = load_pooler(family, top.under(prefix), shape.hidden_size)
    headless = Encoder(model, Heads(pooler), operations, family, task)
    heads = _load_heads(headless, top, tensors)
    unread = [name for name in tensors.unread(names) if not _PASSED_OVER.match(name)]
    if unread:
        more = f" and {len(unread) - _NUM_NAMED} more" if len(unread) > _NUM_NAMED else ""
        raise ModelError(
            f"the weights hold tensors that no {family.class_name}{task} has: {', '.join(unread[:_NUM_NAMED])}{more}"
        )
    return replace(headless, heads=heads)


def _load_heads(headless: Encoder, top: Weights, tensors: ReadTensors) -> Heads:
    shape, pooler = headless.model.config, headless.heads.pooler
    family, task = headless.family, headless.task
    match task:
        case "ForSequenceClassification":
            return Heads(pooler, classes=load_classes(shape, family, top, pooler))
        case "ForMaskedLM" | "ForPreTraining":
            own = f"{family.fill.decoder}.bias"
            own_bias = own in tensors and (not shape.tied or family.fill.bias not in tensors)
            words = headless.model.word_embeddings
            return Heads(pooler, fill=load_fill(shape, family, top, words, headless.operations, own_bias=own_bias))
        case "ForTokenClassification" | "ForQuestionAnswering":
            name = "classifier" if task == "ForTokenClassification" else "qa_outputs"
            return Heads(pooler, token_classes=top.linear({name: len(shape.labels)}, shape.hidden_size, bias=True))
        case "Model":
            return Heads(pooler)


def _mask_id(folder: Path) -> int | None:
    """Find the mask's token as the scheduler does, which lets no text without it through."""
    tokenizer = read_tokenizer(folder)
    mask = read_mask(folder, tokenizer)
    found: int | None = tokenizer.token_to_id(mask) if mask else None
    return found
