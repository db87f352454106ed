"""What transformers' classes return, made of our hidden states."""

from typing import Any

from torch import Tensor
from transformers import __version__, modeling_outputs

from headrace.workers.encoder.loading import Encoder
from headrace.workers.encoder.model import Trace
from headrace.workers.encoder.padding import Padded

# An encoder has none; transformers tells so by an empty tuple where attentions are asked for, since its version 5.
_NO_CROSS_ATTENTIONS = () if int(__version__.partition(".")[0]) >= 5 else None


def make_output(encoder: Encoder, padded: Padded, *, attentions: bool, hidden_states: bool) -> Any:
    """Compute a batch and give it the form of transformers.

    Args:
        encoder: with the task's head.
        padded: the batch.
        attentions: give them, a layer each: ``[batch, num_heads, length, length]``.
        hidden_states: give them, what the first layer reads and what each writes: ``[batch, length, hidden]``.

    Returns:
        The output object of the task, in whose place only what was asked for is not None.
    """
    trace = Trace([] if hidden_states else None, [] if attentions else None)
    if padded.batch is None:
        raise ValueError("there is no token to compute: input_ids is empty, or attention_mask hides all of it")
    hidden = encoder.model.forward(padded.batch, trace)
    more = {
        "hidden_states": None if trace.hidden_states is None else tuple(map(padded.spread_tokens, trace.hidden_states)),
        "attentions": None if trace.attentions is None else tuple(map(padded.spread_weights, trace.attentions)),
    }
    return _head_output(encoder, padded, hidden, more)


def _head_output(encoder: Encoder, padded: Padded, hidden: Tensor, more: dict[str, Any]) -> Any:
    ops, heads, batch = encoder.operations, encoder.heads, padded.batch
    assert batch is not None, "something was computed"
    match encoder.task:
        case "ForSequenceClassification":
            assert heads.classes is not None, "the task has this head"
            logits = padded.spread_rows(heads.classes.logits(ops, hidden, batch))
            return modeling_outputs.SequenceClassifierOutput(logits=logits, **more)
        case "ForMaskedLM" | "ForPreTraining":
            assert heads.fill is not None, "the task has this head"
            return modeling_outputs.MaskedLMOutput(logits=padded.spread_tokens(heads.fill.logits(ops, hidden)), **more)
        case "ForTokenClassification" | "ForQuestionAnswering":
            assert heads.token_classes is not None, "the task has this head"
            logits = padded.spread_tokens(ops.linear(hidden, heads.token_classes))
            if encoder.task == "ForTokenClassification":
                return modeling_outputs.TokenClassifierOutput(logits=logits, **more)
            start, end = logits[..., 0].contiguous(), logits[..., 1].contiguous()
            return modeling_outputs.QuestionAnsweringModelOutput(start_logits=start, end_logits=end, **more)
        case "Model":
            return _base_output(encoder, padded, hidden, more)


def _base_output(encoder: Encoder, padded: Padded, hidden: Tensor, more: dict[str, Any]) -> Any:
    ops, pooler, batch = encoder.operations, encoder.heads.pooler, padded.batch
    assert batch is not None, "something was computed"
    states = padded.spread_tokens(hidden)
    if encoder.family.pooler is None:
        return modeling_outputs.BaseModelOutput(last_hidden_state=states, **more)
    pooled = None
    if pooler is not None:
        pooled = padded.spread_rows(pooler.apply(ops, ops.select(hidden, batch.starts[:-1])))
    if encoder.family.class_name == "Albert":
        return modeling_outputs.BaseModelOutputWithPooling(last_hidden_state=states, pooler_output=pooled, **more)
    crossed = None if more["attentions"] is None else _NO_CROSS_ATTENTIONS
    return modeling_outputs.BaseModelOutputWithPoolingAndCrossAttentions(
        last_hidden_state=states, pooler_output=pooled, cross_attentions=crossed, **more
    )
