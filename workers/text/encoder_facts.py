"""What an encoder's folder says about requests: what may be asked of it, and how long a text may be.

It never imports torch: scheduler and courier read it. How the model computes is ``headrace.workers.encoder``'s affair.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headrace.encoder_request import Task
from headrace.errors import ModelError
from headrace.workers.model_store.json_file import read_json, read_json_if_there
from headrace.workers.text.folder_files import positive

#: By what config.json calls their type.
_FAMILIES = {
    "albert": "Albert",
    "bert": "Bert",
    "distilbert": "DistilBert",
    "roberta": "Roberta",
    "xlm-roberta": "XLMRoberta",
}
#: Families that count positions from behind the padding's id.
_OFFSET_FAMILIES = ("Roberta", "XLMRoberta")
_HEADS: Mapping[str, tuple[Task, ...]] = {
    "Model": ("embed", "rerank"),
    "ForMaskedLM": ("embed", "rerank", "fill"),
    "ForPreTraining": ("embed", "rerank", "fill"),
    "ForSequenceClassification": ("embed", "classify", "rerank"),
    "ForTokenClassification": ("embed", "rerank"),
    "ForQuestionAnswering": ("embed", "rerank"),
}
#: How the names of models end that write text.
_WRITERS = ("ForCausalLM", "LMHeadModel")
_NO_LIMIT = 1 << 31
_ARCHITECTURES = {family + head: (family, head) for family in _FAMILIES.values() for head in _HEADS}


@dataclass(frozen=True, slots=True)
class EncoderFacts:
    """An encoder as those see it who serve requests and do not compute.

    Attributes:
        architecture: as config.json names it.
        tasks: what may be asked.
        vocab_size: valid token ids are below it.
        max_length: tokens of a text at most, special ones included.
        labels: of a model that classifies, in the order of its head's numbers; else empty.
        judges_pairs: it ranks by reading query and document together; else by comparing vectors.
        width: numbers of a vector; 0 where only loading the model tells.
    """

    architecture: str
    tasks: tuple[Task, ...]
    vocab_size: int
    max_length: int
    labels: tuple[str, ...]
    judges_pairs: bool
    width: int


def architecture_of(folder: Path) -> str:
    """The first architecture that a folder's config.json names; "" if it names none.

    Where an encoder's names none, it is its family's headless one, as in transformers.

    Raises:
        ModelError: there is no config.json, or it is damaged.
    """
    config = read_json(folder / "config.json")
    found = config.get("architectures")
    if found is None:
        family = _FAMILIES.get(str(config.get("model_type")))
        return f"{family}Model" if family else ""
    named = found[0] if isinstance(found, list) and found else found
    return named if isinstance(named, str) else ""


def is_encoder(folder: Path) -> bool:
    """Whether a folder's model reads texts whole, as an encoder does, and writes none.

    Raises:
        ModelError: there is no config.json, it is damaged, or its model is of neither kind.
    """
    architecture = architecture_of(folder)
    if architecture and architecture not in _ARCHITECTURES and not architecture.endswith(_WRITERS):
        raise _unsupported(folder, architecture)
    return architecture in _ARCHITECTURES


def read_encoder_facts(folder: Path) -> EncoderFacts:
    """Read an encoder's folder.

    Raises:
        ModelError: it is not an encoder's, a file is damaged, a needed field is missing, or the folder wants a text
            put before every other.
    """
    architecture = architecture_of(folder)
    if architecture not in _ARCHITECTURES:
        raise _unsupported(folder, architecture)
    _refuse_default_prompt(folder)
    family, head = _ARCHITECTURES[architecture]
    config = read_json(folder / "config.json")
    labels = _labels(folder, config) if head == "ForSequenceClassification" else ()
    tasks = _HEADS[head] if len(labels) < 2 else tuple(task for task in _HEADS[head] if task != "rerank")
    return EncoderFacts(
        architecture=architecture,
        tasks=tasks,
        vocab_size=positive(folder, config, "vocab_size"),
        max_length=_max_length(folder, config, has_offset=family in _OFFSET_FAMILIES),
        labels=labels,
        judges_pairs=len(labels) == 1,
        width=_width(folder, config),
    )


def _unsupported(folder: Path, architecture: str) -> ModelError:
    return ModelError(
        f"{folder}: architecture {architecture!r} is no encoder that is supported; supported are "
        f"{', '.join(_FAMILIES.values())}, each with one of {', '.join(_HEADS)} behind it"
    )


def _refuse_default_prompt(folder: Path) -> None:
    name = read_json_if_there(folder / "config_sentence_transformers.json").get("default_prompt_name")
    if name is not None:
        raise ModelError(
            f"{folder}/config_sentence_transformers.json: default_prompt_name {name!r} would put that prompt before "
            "every text, which is not supported; set it to null, and send texts with their prompt"
        )


def _max_length(folder: Path, config: dict[str, Any], *, has_offset: bool) -> int:
    """The positions that the model has, or fewer, where sentence-transformers' configuration says so."""
    positions = positive(folder, config, "max_position_embeddings")
    if has_offset:
        pad_id = config.get("pad_token_id")
        positions -= 1 + (pad_id if isinstance(pad_id, int) else 1)
    return min(positions, text_limit(folder) or positions)


def text_limit(folder: Path) -> int | None:
    """Tokens to which a folder wants texts cut, None where it does not say.

    Old versions of sentence-transformers wrote it into a file of their own, new ones leave it to the tokenizer.

    Raises:
        ModelError: a file is damaged.
    """
    places = (("sentence_bert_config.json", "max_seq_length"), ("tokenizer_config.json", "model_max_length"))
    for file, name in places:
        limit = read_json_if_there(folder / file).get(name)
        # A tokenizer without a limit says 10 ** 30.
        if isinstance(limit, int) and 0 < limit < _NO_LIMIT:
            return limit
    return None


def _width(folder: Path, config: dict[str, Any]) -> int:
    """Numbers of a hidden state, unless sentence-transformers' modules put another layer behind them."""
    if any(folder.glob("*_Dense")):
        return 0
    return positive(folder, config, "dim" if "dim" in config else "hidden_size")


def _labels(folder: Path, config: dict[str, Any]) -> tuple[str, ...]:
    """Names in the order of their numbers; as in transformers there are two where nothing is said."""
    names = config.get("id2label")
    if not names:
        number = config.get("num_labels", 2)
        return tuple(f"LABEL_{index}" for index in range(number if isinstance(number, int) else 2))
    by_number = {str(number): str(name) for number, name in names.items()} if isinstance(names, dict) else {}
    if set(by_number) != {str(index) for index in range(len(by_number))} or not by_number:
        raise ModelError(f"{folder}/config.json: id2label does not number its labels from 0")
    return tuple(by_number[str(index)] for index in range(len(by_number)))
