"""The shape of an encoder, whatever its family calls it."""

from dataclasses import dataclass
from typing import Any, Literal

from headrace.errors import ModelError
from headrace.kernels.encoder_table import Activation
from headrace.workers.engine.models.fields import Fields

Problem = Literal["single_label_classification", "multi_label_classification", "regression"]

ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "relu": "relu",
}
"""By Hugging Face's names, some of which differ in rounding at most."""


@dataclass(frozen=True, slots=True)
class EncoderConfig:
    """Shape and constants of one model.

    Attributes:
        vocab_size: tokens in the vocabulary.
        embedding_size: width of the embeddings; ALBERT's is mapped to ``hidden_size``, the others' is the same.
        hidden_size: width of the hidden states.
        intermediate_size: width inside the MLP.
        blocks: prefixes of the transformer blocks' weights in the order of their computation; shared ones come again.
        num_heads: heads of queries, keys and values; divides ``hidden_size``.
        layer_norm_eps: added to the variance.
        activation: of the MLP.
        num_positions: rows of the table of positions.
        first_position: a row's first token's.
        pad_id: token that stands for padding, from which RoBERTa counts its positions; None where it has none.
        num_types: token types, 0 for models without.
        tied: the language model's output weights are the embedding's.
        labels: of classes, in the order of the logits.
        problem: what the classes are.
        relevance: what makes a score of a cross-encoder's logit.
    """

    vocab_size: int
    embedding_size: int
    hidden_size: int
    intermediate_size: int
    blocks: tuple[str, ...]
    num_heads: int
    layer_norm_eps: float
    activation: Activation
    num_positions: int
    first_position: int
    pad_id: int | None
    num_types: int
    tied: bool
    labels: tuple[str, ...]
    problem: Problem
    relevance: Literal["sigmoid", "identity"]

    @property
    def max_tokens(self) -> int:
        """Tokens of the longest row."""
        return self.num_positions - self.first_position


# How transformers computes, not what; and what training left behind.
_INERT = (
    "attention_probs_dropout_prob",
    "chunk_size_feed_forward",
    "classifier_dropout",
    "directionality",
    "finetuning_task",
    "hidden_dropout_prob",
    "model_max_length",
    "output_attentions",
    "output_hidden_states",
    "output_past",
    "pooler_fc_size",
    "pooler_num_attention_heads",
    "pooler_num_fc_layers",
    "pooler_size_per_head",
    "return_dict",
    "torchscript",
    "use_bfloat16",
)
# How text would be generated: older versions of transformers wrote it into every configuration.
_GENERATION = (
    "bad_words_ids",
    "begin_suppress_tokens",
    "cross_attention_hidden_size",
    "decoder_start_token_id",
    "diversity_penalty",
    "do_sample",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "exponential_decay_length_penalty",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "length_penalty",
    "max_length",
    "min_length",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_return_sequences",
    "output_scores",
    "prefix",
    "remove_invalid_values",
    "repetition_penalty",
    "return_dict_in_generate",
    "sep_token_id",
    "suppress_tokens",
    "temperature",
    "tf_legacy_loss",
    "tie_encoder_decoder",
    "top_k",
    "top_p",
    "typical_p",
)
_PROBLEMS: tuple[Problem, ...] = ("single_label_classification", "multi_label_classification", "regression")


def read_encoder(fields: Fields, activation: Activation, **given: Any) -> EncoderConfig:
    """Read what all families have in their config.json, and end its reading.

    Args:
        fields: config.json, from which a family has read its own fields.
        activation: of the MLP.
        given: attributes that the family has read itself.

    Raises:
        ModelError: a field is missing, unknown, or has a value that this code does not honour.
    """
    for name in ("is_decoder", "add_cross_attention", "is_encoder_decoder"):
        fields.only(name, False)
    fields.only("position_embedding_type", "absolute")
    fields.only("pooler_type", "first_token_transform")
    fields.only("pruned_heads", {})
    fields.ignore(*_INERT, *_GENERATION)
    labels = read_labels(fields)
    config = EncoderConfig(
        vocab_size=fields.positive("vocab_size", int),
        activation=activation,
        tied=fields.get("tie_word_embeddings", bool, True),
        labels=labels,
        problem=_problem(fields, len(labels)),
        relevance=_relevance(fields),
        **given,
    )
    if config.hidden_size % config.num_heads:
        raise ModelError(f"config.json: {config.num_heads} heads do not divide a width of {config.hidden_size}")
    if config.max_tokens < 1:
        raise ModelError(f"config.json: max_position_embeddings {config.num_positions} leaves no room for a token")
    fields.refuse_unknown()
    return config


def read_activation(fields: Fields, name: str, default: str) -> Activation:
    """Read which function the MLP applies.

    Raises:
        ModelError: it is not among ``ACTIVATIONS``.
    """
    function = fields.get(name, str, default)
    if function not in ACTIVATIONS:
        raise fields.refusal(name, function)
    return ACTIVATIONS[function]


def read_labels(fields: Fields) -> tuple[str, ...]:
    """Read the names of classes; as in transformers there are two where nothing is said.

    Raises:
        ModelError: they are not numbered from 0.
    """
    names = fields.find("id2label", dict)
    if not names:
        count = fields.positive("num_labels", int, 2)
        return tuple(f"LABEL_{index}" for index in range(count))
    fields.ignore("num_labels")
    by_number = {str(number): str(name) for number, name in names.items()}
    if set(by_number) != {str(index) for index in range(len(by_number))}:
        raise ModelError("config.json: id2label does not number its labels from 0")
    return tuple(by_number[str(index)] for index in range(len(by_number)))


def _problem(fields: Fields, num_labels: int) -> Problem:
    named = fields.find("problem_type", str)
    if named in (None, "single_label_classification"):
        # As in transformers' pipeline: a single logit says how true its label is, and nothing of others.
        return "multi_label_classification" if num_labels == 1 else "single_label_classification"
    for problem in _PROBLEMS:
        if problem == named:
            return problem
    raise fields.refusal("problem_type", named)


def _relevance(fields: Fields) -> Literal["sigmoid", "identity"]:
    """Read how sentence-transformers makes a score of a cross-encoder's logit: by a sigmoid unless told otherwise."""
    said = fields.find("sentence_transformers", dict) or {}
    function = said.get("activation_fn", fields.find("sbert_ce_default_activation_function", str))
    if function is None or str(function).endswith(".Sigmoid"):
        return "sigmoid"
    if str(function).endswith(".Identity"):
        return "identity"
    raise fields.refusal("activation_fn", function)
