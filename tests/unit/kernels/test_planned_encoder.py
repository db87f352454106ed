import threading
from collections.abc import Sequence

import pytest
import torch
from tests.model.tiny_encoders import make_encoder, texts
from torch import Tensor

from headrace.kernels.encoder_reference import EncoderReference
from headrace.kernels.encoder_table import EncoderBatch
from headrace.kernels.planned_encoder import EncoderTrace, PlannedEncoder
from headrace.kernels.table import Linear
from headrace.memory.token_arena import TokenArena, TokenResult
from headrace.testing.state_dict import StateDict
from headrace.workers.encoder.loading import build_encoder
from headrace.workers.encoder.model import EncoderModel

CPU = torch.device("cpu")


class _WritingReference(EncoderReference):
    """Products that write where they are told, as a GPU's do."""

    def pack_linear(self, weight: Tensor, bias: Tensor | None) -> Linear:
        return Linear(weight, bias)


@pytest.fixture(params=["bert", "albert"])
def model(request: pytest.FixtureRequest) -> tuple[EncoderModel, PlannedEncoder]:
    torch.set_num_threads(1)
    table, made = PlannedEncoder(_WritingReference(), CPU), make_encoder(request.param)
    tensors, config = made.state_dict(), made.config.to_dict() | {"architectures": [type(made).__name__]}
    return build_encoder(config, StateDict(tensors), tensors, table, torch.float32).model, table


def batch(table: PlannedEncoder, lengths: Sequence[int]) -> EncoderBatch:
    ids = torch.tensor([token for row in texts(*lengths) for token in row])
    return table.pack(ids, torch.cat([torch.arange(length) for length in lengths]), None, lengths)


def trace_of(model: EncoderModel, table: PlannedEncoder) -> EncoderTrace:
    with torch.no_grad(), table.traced() as trace:
        trace.close(model.forward(batch(table, [1])))
    return trace


def arena_of(trace: EncoderTrace) -> TokenArena:
    return TokenArena([TokenResult(each.first_op, each.last_op, each.width, each.dtype) for each in trace.written], CPU)


def planned(
    model: EncoderModel, table: PlannedEncoder, trace: EncoderTrace, arena: TokenArena, rows: EncoderBatch
) -> Tensor:
    with table.placed(trace, arena.place(rows.token_ids.shape[0])), torch.inference_mode():
        return model.forward(rows)


def test_a_planned_pass_computes_what_another_one_does_and_outlives_the_next(
    model: tuple[EncoderModel, PlannedEncoder],
) -> None:
    encoder, table = model
    trace = trace_of(encoder, table)
    arena = arena_of(trace)
    rows = [batch(table, lengths) for lengths in ([5, 70], [1], [33, 2, 9])]
    with torch.inference_mode():
        expected = [encoder.forward(each).clone() for each in rows]
    results = [planned(encoder, table, trace, arena, each) for each in rows]
    for result, same in zip(results, expected, strict=True):
        assert torch.equal(result, same)


def test_every_result_but_the_last_lies_where_it_is_told(model: tuple[EncoderModel, PlannedEncoder]) -> None:
    encoder, table = model
    trace = trace_of(encoder, table)
    # Embeddings, four products and attention a layer, and norms, which the reference writes anew; not the last norm.
    taken = [slot for slot in trace.slots if slot is not None]
    assert taken == list(range(len(trace.written)))
    assert len(taken) == (1 if encoder.config.embedding_size == encoder.config.hidden_size else 2) + 3 * 7 - 1
    assert trace.slots[-1] is None


def test_threads_have_passes_of_their_own(model: tuple[EncoderModel, PlannedEncoder]) -> None:
    encoder, table = model
    trace, rows = trace_of(encoder, table), batch(table, [40, 3])
    with torch.inference_mode():
        expected = encoder.forward(rows).clone()
    wrong: list[int] = []

    def compute(number: int) -> None:
        arena = arena_of(trace)
        for _ in range(20):
            if not torch.equal(planned(encoder, table, trace, arena, rows), expected):
                wrong.append(number)

    threads = [threading.Thread(target=compute, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
