"""How forward passes are run on a GPU: graphs, threads, and where results lie."""

import threading
from collections.abc import Sequence

import pytest
import torch
from tests.model.tiny_encoders import make_encoder, texts
from torch import Tensor

import headrace
from headrace.kernels.cuda_encoder_batch import MOST_PADDED_TOKENS
from headrace.kernels.device import open_device
from headrace.testing.gpu_memory import watch_torch
from headrace.testing.state_dict import StateDict
from headrace.workers.encoder.loading import Encoder, build_encoder
from headrace.workers.encoder.runtimes import DeviceRuntime
from headrace.workers.encoder.tables import table_for

DTYPE = torch.float16


@pytest.fixture
def encoder(device: torch.device) -> Encoder:
    model = make_encoder("bert", hidden_size=192, num_attention_heads=3).to(DTYPE)
    tensors, config = model.state_dict(), model.config.to_dict() | {"architectures": ["BertModel"]}
    return build_encoder(config, StateDict(tensors), tensors, table_for(device), DTYPE)


def runtime(encoder: Encoder) -> DeviceRuntime:
    found = encoder.model.runtime
    assert isinstance(found, DeviceRuntime)
    return found


def encode(encoder: Encoder, lengths: Sequence[int], shift: int = 0) -> Tensor:
    ids = torch.tensor([6 + (token + shift) % 200 for row in texts(*lengths) for token in row])
    positions = torch.cat([torch.arange(length) for length in lengths])
    with torch.inference_mode():
        return encoder.model.forward(encoder.operations.pack(ids, positions, None, lengths))


def plainly(encoder: Encoder, lengths: Sequence[int], shift: int = 0) -> Tensor:
    """Launch by launch, each result in memory of its own."""
    found = runtime(encoder)
    found.uses_graphs, found.allocator = False, "torch"
    try:
        return encode(encoder, lengths, shift)
    finally:
        found.uses_graphs, found.allocator = True, "planned"


def assert_alike(ours: Tensor, expected: Tensor) -> None:
    """Products of a padded batch may sum in another order."""
    torch.testing.assert_close(ours, expected, atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize(
    "sizes", [[[5, 7], [1, 1, 10], [12]], [[100], [60, 40], [103, 1]], [[300] * 8, [500] * 4 + [400]]]
)
def test_a_graph_serves_any_cut_of_as_many_tokens(encoder: Encoder, sizes: list[list[int]]) -> None:
    for _ in range(3):
        for shift, lengths in enumerate(sizes):
            assert_alike(encode(encoder, lengths, shift), plainly(encoder, lengths, shift))
    costs = runtime(encoder).costs
    assert len(costs) == 1, "batches of one size share a graph"
    assert all(each.graph_ms > 0 and each.launches_ms > 0 for each in costs.values())


def test_an_accelerated_model_takes_the_same_ways(device: torch.device) -> None:
    model = make_encoder("bert", hidden_size=192, num_attention_heads=3).to(device, DTYPE)
    ours = headrace.accelerate(model)
    generator = torch.Generator().manual_seed(0)
    for length in (9, 33, 33, 33):
        ids = torch.randint(6, 200, (2, length), generator=generator).to(device)
        mask = torch.ones_like(ids)
        mask[1, length // 2 :] = 0
        for given in ({}, {"attention_mask": mask}):
            with torch.inference_mode():
                expected = model(ids, **given)
            # In inference mode and outside of it
            for mode in (True, False):
                with torch.inference_mode(mode=mode):
                    found = ours(ids, **given)
                seen = mask.bool() if given else torch.ones_like(ids).bool()
                assert_alike(found.last_hidden_state[seen], expected.last_hidden_state[seen])
                assert_alike(found.pooler_output, expected.pooler_output)
    assert ours._headrace.model.runtime.costs, "no graph was captured"


def test_results_outlive_what_comes_after_them_whoever_allocates(encoder: Encoder) -> None:
    found = runtime(encoder)
    large = [400] * 42
    assert sum(large) > MOST_PADDED_TOKENS
    expected = {shift: plainly(encoder, large, shift) for shift in range(4)}
    kept = {}
    for shift in range(4):
        # Switched while results of the other allocator live
        found.allocator = "torch" if shift % 2 else "planned"
        kept[shift] = encode(encoder, large, shift)
    found.allocator = "planned"
    encode(encoder, [512] * 40)
    for shift, result in kept.items():
        assert torch.equal(result, expected[shift])


def test_the_allocator_of_an_accelerated_model_is_switched_while_its_results_live(device: torch.device) -> None:
    model = headrace.accelerate(make_encoder("bert", hidden_size=192, num_attention_heads=3).to(device, DTYPE))
    generator = torch.Generator().manual_seed(0)
    # More than graphs are made for, so that every call asks the allocator.
    batches = [torch.randint(6, 200, (64, 400), generator=generator).to(device) for _ in range(2)]
    assert batches[0].numel() > MOST_PADDED_TOKENS
    held: list[list[Tensor]] = []
    for allocator in ("planned", "torch", "planned"):
        headrace.set_allocator(model, allocator)
        held.append([model(ids).last_hidden_state for ids in batches])
    for results in held[1:]:
        assert all(torch.equal(mine, first) for mine, first in zip(results, held[0], strict=True))
    assert not torch.equal(*held[0])


def test_threads_get_their_own_results(encoder: Encoder, device: torch.device) -> None:
    kinds = [[9], [33, 50], [400] * 12, [1]]
    expected = [plainly(encoder, lengths, shift) for shift, lengths in enumerate(kinds)]
    torch.cuda.synchronize()
    wrong: list[str] = []

    def compute(shift: int) -> None:
        torch.cuda.set_device(device)
        # Half of the threads on streams of their own
        stream = open_device(device.index).new_stream() if shift % 2 else torch.cuda.default_stream(device)
        with torch.cuda.stream(stream):
            for _ in range(10):
                found = encode(encoder, kinds[shift], shift)
                stream.synchronize()
                if not torch.allclose(found, expected[shift], atol=2e-2, rtol=2e-2):
                    wrong.append(f"{kinds[shift]}: {(found - expected[shift]).abs().max().item()}")

    threads = [threading.Thread(target=compute, args=(shift,)) for shift in range(len(kinds))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_nothing_is_taken_from_the_device_in_a_steady_state(encoder: Encoder, device: torch.device) -> None:
    batches = [[400] * 12, [100], [60, 30], [512] * 9]
    for _ in range(3):
        for lengths in batches:
            encode(encoder, lengths)
    with watch_torch(device) as watched:
        for _ in range(5):
            for lengths in batches:
                encode(encoder, lengths)
    assert watched.grown_bytes == 0
    # What a batch sends, and what it gives back; nothing in between.
    assert watched.num_allocations <= 2 * 5 * len(batches)
