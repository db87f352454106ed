"""The encoder's engine: batches as they were cut, answers in the order of the texts, and nothing for rows that went."""

import os
import random
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import msgpack
import pytest
import torch

from headrace.encoder_job import EncoderJob, EncoderParams, pack_ids
from headrace.encoder_request import Task
from headrace.errors import DeviceLostError, OutOfMemoryError
from headrace.testing.stub_encoder import MASK_ID, WIDTH, StubEncoder, vector_of
from headrace.workers.channel import Encode, Encoded, EncodeRow
from headrace.workers.encoder.engine import EncoderEngine
from headrace.workers.encoder.findings import Findings, cosines
from headrace.workers.encoder.items import Classes, Embedding, EncoderItem, Fills, Relevance, Result
from headrace.workers.encoder.scratch import EncoderScratch
from headrace.workers.engine.settings import ENVIRONMENT_VARIABLE, EngineSettings


def make(step_tokens: int = 100, runner: StubEncoder | None = None) -> tuple[EncoderEngine, StubEncoder]:
    runner = runner or StubEncoder()
    return EncoderEngine(runner, Findings(WIDTH, normalises=False), step_tokens=step_tokens), runner


def row(number: int, texts: list[list[int]], task: Task = "embed", firsts: Any = None, **params: Any) -> EncodeRow:
    lengths = tuple(len(text) for text in texts)
    job = EncoderJob(task, lengths, firsts or lengths, pack_ids(texts), EncoderParams(**params), "r1")
    return EncodeRow(number, job.encode())


def finish(engine: EncoderEngine) -> dict[int, Any]:
    """Step until nothing is left: what was found of each row, or why it was given up."""
    found: dict[int, Any] = {}
    while engine.has_rows:
        for number, answer, error in engine.step().answers:
            assert number not in found, "a row is told of once"
            found[number] = error or msgpack.unpackb(answer)
    return found


def vectors(found: list[bytes]) -> list[list[float]]:
    return [torch.frombuffer(bytearray(vector), dtype=torch.float32).tolist() for vector in found]


def test_a_batch_is_computed_together_and_answers_keep_the_order_of_the_texts() -> None:
    engine, runner = make()
    texts = {1: [[9, 9, 9], [1], [2, 2]], 2: [[5, 5]]}
    engine.add(Encode(tuple(row(number, of) for number, of in texts.items())))
    encoded = engine.step()
    assert runner.batches == [[1, 2, 2, 3]]
    assert (encoded.num_tokens, dict(encoded.prompts)) == (8, {1: 6, 2: 2})
    assert {number: vectors(msgpack.unpackb(answer)) for number, answer, _ in encoded.answers} == {
        number: [vector_of(text) for text in of] for number, of in texts.items()
    }
    assert not engine.has_rows


def test_batches_are_not_mixed_and_come_in_their_order() -> None:
    engine, runner = make()
    engine.add(Encode((row(1, [[1] * 5]),)))
    engine.add(Encode((row(2, [[1]]), row(3, [[1] * 2]))))
    assert [answer[0] for answer in engine.step().answers] == [1]
    assert [answer[0] for answer in engine.step().answers] == [2, 3]
    assert runner.batches == [[5], [1, 2]]


def test_a_large_batch_takes_several_steps_and_a_long_text_a_step_alone() -> None:
    engine, runner = make(step_tokens=6)
    texts = [[number] * length for number, length in enumerate((1, 9, 3, 2, 2, 4))]
    engine.add(Encode((row(1, texts),)))
    assert vectors(finish(engine)[1]) == [vector_of(text) for text in texts]
    assert runner.batches == [[1, 2, 2], [3], [4], [9]]


def test_a_row_that_is_dropped_costs_nothing_more_and_is_not_told_of() -> None:
    engine, runner = make(step_tokens=4)
    engine.add(Encode((row(1, [[1] * 4, [2] * 4]), row(2, [[3] * 4]))))
    engine.step()
    engine.drop([1, 99])
    assert set(finish(engine)) == {2}
    assert sum(map(len, runner.batches)) == 2


def test_numbers_are_free_again_when_a_courier_has_gone() -> None:
    engine, _ = make(step_tokens=4)
    engine.add(Encode((row(1, [[1] * 4, [2] * 4]),)))
    engine.step()
    engine.clear()
    assert not engine.has_rows
    engine.add(Encode((row(1, [[7]]),)))
    assert vectors(finish(engine)[1]) == [vector_of([7])]


def test_a_row_that_cannot_be_computed_is_given_up_alone() -> None:
    engine, _ = make(runner=StubEncoder(kinds=("embed",)))
    engine.add(Encode((row(1, [[1]]), row(2, [[1]], "classify"), EncodeRow(3, b"x"), row(4, [[1]], dimensions=9))))
    found = finish(engine)
    assert vectors(found[1]) == [vector_of([1])]
    assert found[2] == "this model cannot classify"
    assert "not a job" in found[3]
    assert found[4] == "dimensions: at most 4, the model's vectors"


def test_a_step_that_fails_ends_its_rows_and_no_others() -> None:
    engine, runner = make()
    engine.add(Encode((row(1, [[1]]), row(2, [[2]]))))
    engine.add(Encode((row(3, [[3]]),)))
    runner.error = OutOfMemoryError("planted")
    assert engine.step() == Encoded(((1, b"", "planted"), (2, b"", "planted")), num_tokens=2, prompts=((1, 1), (2, 1)))
    runner.error = None
    assert vectors(finish(engine)[3]) == [vector_of([3])]


class Damaged(StubEncoder):
    """Answers of texts that begin with 13 are ``number``."""

    number = float("nan")

    def compute(self, items: Sequence[EncoderItem]) -> list[Result]:
        return [
            self._damage(result) if item.token_ids[0] == 13 else result
            for item, result in zip(items, super().compute(items), strict=True)
        ]

    def _damage(self, result: Result) -> Result:
        match result:
            case Embedding(vector):
                return Embedding(torch.cat((vector[:-1], torch.tensor([self.number]))))
            case Classes(scores):
                return Classes((*scores[:-1], self.number))
            case Relevance():
                return Relevance(self.number, self.number)
            case Fills(fills):
                return Fills(tuple(replace(fill, scores=(self.number,) * len(fill.scores)) for fill in fills))


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    ("task", "params"), [("embed", {}), ("classify", {}), ("rerank", {}), ("rerank", {"pairs": True}), ("fill", {})]
)
def test_an_answer_of_numbers_that_are_none_is_an_error_of_its_own_row(
    task: Task, params: dict[str, bool], number: float
) -> None:
    runner = Damaged()
    runner.number = number
    engine, _ = make(runner=runner)
    good, bad = [[5, MASK_ID], [6, MASK_ID]], [[5, MASK_ID], [13, MASK_ID]]
    engine.add(Encode((row(1, good, task, **params), row(2, bad, task, **params), row(3, good, task, **params))))
    found = finish(engine)
    assert "numbers that are not finite" in found[2]
    assert isinstance(found[1], list)
    assert found[1] == found[3]


def test_a_lost_device_ends_the_engine() -> None:
    engine, runner = make()
    engine.add(Encode((row(1, [[1]]),)))
    runner.error = DeviceLostError("planted")
    with pytest.raises(DeviceLostError):
        engine.step()


def test_measuring_ends_with_a_lost_device_and_tells_of_other_failures() -> None:
    runner = StubEncoder()
    scratch = EncoderScratch(runner, vocab_size=50, step_tokens=10)
    scratch.put((6, 4, 3), packed=True)
    assert [scratch.step(), scratch.step(), scratch.has_rows] == ["", "", False]
    assert runner.batches == [[6, 4], [3]]
    scratch.put((30,), packed=False)
    runner.error = OutOfMemoryError("planted")
    assert scratch.step() == "planted"
    scratch.put((3,), packed=False)
    runner.error = DeviceLostError("planted")
    with pytest.raises(DeviceLostError):
        scratch.step()


@pytest.mark.parametrize(("error", "status"), [("DeviceLostError", 1), ("ModelError", 2)])
def test_a_lost_device_is_a_reason_to_start_again_and_a_wrong_folder_is_none(error: str, status: int) -> None:
    program = (
        "from headrace import errors; from headrace.workers.engine.listening import run_process\n"
        f"def serve(settings): raise errors.{error}('planted')\n"
        "run_process(serve)"
    )
    settings = EngineSettings("socket", "folder", "r1")
    environ = os.environ | {ENVIRONMENT_VARIABLE: settings.to_json()}
    ended = subprocess.run([sys.executable, "-c", program], env=environ, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, "planted" in ended.stderr) == (status, True)


def test_each_task_is_told_in_its_own_form() -> None:
    engine, _ = make()
    engine.add(
        Encode(
            (
                row(1, [[1, 2], [1] * 4], "classify"),
                row(2, [[1, 2, 3], [1, 2, 3, 4]], "rerank", firsts=(2, 1), pairs=True),
                row(3, [[5, MASK_ID, MASK_ID]], "fill", top=2),
                row(4, [[1, 2], [1, 2], [9, 1]], "rerank"),
            )
        )
    )
    found = finish(engine)
    assert found[1] == [[0.5, 0.5], [0.25, 0.75]]
    assert found[2] == [1 / 2, 1 / 4], "the second text's tokens have the type 1"
    assert found[3] == [[[1, [0, 1], [1 / 2, 1 / 3]], [2, [0, 1], [1 / 2, 1 / 3]]]]
    assert found[4][0] == pytest.approx(1.0)
    assert found[4][1] < 0.9


def test_dimensions_keep_the_first_numbers_and_the_length_of_one() -> None:
    for normalises, given, length in ((False, None, 0.0), (False, True, 1.0), (True, None, 1.0), (True, False, 0.0)):
        engine = EncoderEngine(StubEncoder(), Findings(WIDTH, normalises=normalises), step_tokens=10)
        engine.add(Encode((row(1, [[3, 4]], dimensions=2, normalize=given),)))
        (vector,) = vectors(finish(engine)[1])
        whole = torch.tensor(vector_of([3, 4])[:2])
        assert torch.tensor(vector).allclose(whole / whole.norm() if length else whole)


def test_any_mixture_of_rows_is_answered_as_each_alone() -> None:
    random_ = random.Random(3)
    texts = {
        number: [
            [random_.randrange(4, 90) for _ in range(random_.randint(1, 12))] for _ in range(random_.randint(1, 7))
        ]
        for number in range(30)
    }
    engine, runner = make(step_tokens=20)
    found: dict[int, Any] = {}
    numbers = iter(texts)
    for size in (3, 1, 9, 17):
        engine.add(Encode(tuple(row(number, texts[number]) for number in islice(numbers, size))))
        for number, answer, _ in engine.step().answers:
            found[number] = msgpack.unpackb(answer)
    found |= finish(engine)
    assert {number: vectors(of) for number, of in found.items()} == {
        number: [vector_of(text) for text in of] for number, of in texts.items()
    }
    assert all(sum(batch) <= 20 or len(batch) == 1 for batch in runner.batches)


def test_no_cosine_is_past_one() -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(200):
        vector = torch.nn.functional.normalize(torch.randn(384, generator=generator), dim=0)
        same, opposite = cosines(vector, [vector, -vector])
        assert -1 <= opposite <= -0.999 < 0.999 <= same <= 1
