"""Every kind of case that does not need a GPU is measured once, and its figures are looked at."""

import errno
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.unit.bench.conftest import TINY

from headrace.bench import bench as bench_of_all
from headrace.bench import catalogue
from headrace.bench.bench import Bench, Effort
from headrace.bench.case import select
from headrace.bench.context_cases import decode_ms
from headrace.bench.driving import drive, serve
from headrace.bench.machine import Machine
from headrace.bench.model_folder import write_model
from headrace.bench.run import run
from headrace.bench.start_cases import first_token_s
from headrace.bench.workload import Lengths, Requests, ragged
from headrace.errors import ConfigurationError, MeasurementError
from headrace.kernels.planned import PlannedOperations
from headrace.kernels.reference import ReferenceOperations
from headrace.testing.full_shapes import SHAPES
from headrace.testing.rows import Report
from headrace.workers.engine.loading import load
from headrace.workers.text.tokenizer import Tokenizer


def figures(bench: Bench, *names: str) -> dict[tuple[str, str], float]:
    cases = select(catalogue.catalogue(["L8B"]), names, ())
    report = Report("tests")
    assert run(bench, cases, report) == []
    assert {row["case"] for row in report.rows} == {case.name for case in cases}
    return bench.results


def test_steps_prompts_and_throughput_have_their_figures(bench: Bench) -> None:
    found = figures(bench, "decode/L8B/8", "prefill", "throughput")
    assert found["decode/L8B/8", "ms_per_step"] > 0
    assert found["prefill/L8B", "prompt_tokens_per_s"] > 1000
    assert found["throughput/L8B", "output_tokens_per_s"] > 10


def test_requests_that_begin_alike_cost_about_one_prompt(bench: Bench) -> None:
    assert 2000 < figures(bench, "prefix")["prefix/64x2000", "prompt_tokens"] < 2200


def test_arrivals_at_random_moments_have_latencies(bench: Bench) -> None:
    found = figures(bench, "poisson/*/95")
    for name in ("ttft", "tpot"):
        p50, p99 = (found["poisson/L8B/95", f"{name}_{percentile}_ms"] for percentile in ("p50", "p99"))
        assert 0 < p50 <= p99
    assert found["poisson/L8B/95", "requests_per_s"] == pytest.approx(
        0.95 * found["throughput/L8B", "output_tokens_per_s"] / (sum(each.output for each in ragged(2)) / 2)
    )


def test_a_process_is_timed_from_its_start_to_its_first_token(bench: Bench) -> None:
    with bench.model("L8B") as folder:
        assert 0.2 < first_token_s(folder, (1, 2, 3), bench.machine, {}) < 60


def test_a_process_that_cannot_start_is_an_error_and_not_waited_for(bench: Bench, tmp_path: Path) -> None:
    with pytest.raises(MeasurementError, match="ended with status 2 before it listened"):
        first_token_s(tmp_path, (1, 2, 3), bench.machine, {})


@pytest.mark.parametrize("name", ["idle/L8B", "context/8x32000", "deterministic/L8B"])
def test_what_only_a_gpu_has_is_refused_on_a_cpu_and_the_next_case_is_measured(bench: Bench, name: str) -> None:
    cases = select(catalogue.catalogue(["L8B", "Q06"]), [name, "decode/L8B/1"], ())
    bench.shapes = {"L8B": TINY, "Q06": TINY}
    (failure,) = run(bench, cases, Report("tests"))
    assert failure.startswith(f"{name}: MeasurementError: ")
    assert ("decode/L8B/1", "ms_per_step") in bench.results


def test_a_disk_that_is_full_leaves_half_a_model_to_nobody(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(folder: Path, *_: object) -> None:
        (folder / "model.safetensors").touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(bench_of_all, "write_model", full)
    cases = select(catalogue.catalogue(["L8B"]), ["decode/L8B/1", "start", "start-cold"], ())
    told = "OSError: [Errno 28] No space left on device"
    assert run(bench, cases, Report("tests")) == [f"start/L8B: {told}", f"start-cold/L8B: {told}"]
    assert list(tmp_path.iterdir()) == []
    assert ("decode/L8B/1", "ms_per_step") in bench.results


def test_steps_are_not_timed_whose_rows_have_ended(bench: Bench) -> None:
    engine, requests = bench.engine("L8B"), Requests(400)
    for add in requests.adds([Lengths(3, 20)] * 2):
        engine.add(add)
    engine.step()
    assert decode_ms(engine, 10, 2) > 0
    with pytest.raises(MeasurementError, match="not all of 2 rows decoded"):
        decode_ms(engine, 20, 2)


def test_a_time_budget_ends_the_rounds_but_never_before_the_first(tmp_path: Path) -> None:
    with Bench(Machine(torch.device("cpu"), torch.float32), {}, Effort(9, 1e-9), tmp_path) as bench:
        assert list(bench.rounds()) == [0]
    with Bench(Machine(torch.device("cpu"), torch.float32), {}, Effort(3, 60), tmp_path) as bench:
        assert list(bench.rounds()) == [0, 1, 2]


def test_lengths_are_those_of_the_benchmark_that_they_are_named_after() -> None:
    lengths = ragged(256)
    assert (sum(each.prompt for each in lengths), sum(each.output for each in lengths)) == (142_827, 133_966)
    assert all(100 <= number <= 1024 for each in lengths for number in (each.prompt, each.output))


def test_every_prompt_of_a_case_is_another_one() -> None:
    requests = Requests(400)
    prompts = [add.prompt_ids for _ in range(2) for add in requests.adds([Lengths(8, 1)] * 50)]
    assert len(set(prompts)) == 100


def test_no_case_asks_for_a_prompt_that_another_case_had(bench: Bench) -> None:
    first, second = (bench.requests("L8B").adds([Lengths(40, 1)] * 50) for _ in range(2))
    assert not {add.prompt_ids[:16] for add in first} & {add.prompt_ids[:16] for add in second}


def test_prompts_that_are_found_again_are_no_measurement(bench: Bench) -> None:
    engine, requests = bench.engine("L8B"), bench.requests("L8B")
    prompt = requests.prompt(40)
    drive(engine, [requests.add(prompt, 1)])
    with pytest.raises(MeasurementError, match="of 40 prompt tokens were computed: others were found again"):
        drive(engine, [requests.add(prompt, 1)])
    with pytest.raises(MeasurementError, match="of 40 prompt tokens were computed"):
        serve(engine, [requests.add(prompt, 1)], [0.0])
    assert drive(engine, [requests.add(prompt, 1)], alike=True).num_tokens == 1


def test_a_request_that_fails_ends_the_measurement(bench: Bench) -> None:
    engine = bench.engine("L8B")
    requests = Requests(400)
    adds = [requests.add((1, 2, 3), 4)]
    assert drive(engine, adds).num_tokens == 4
    (served,) = serve(engine, [requests.add((1, 2, 3), 4)], [0.01])
    assert served.num_tokens == 4
    assert 0 < served.ttft_ms < 10_000
    engine._eos_ids = frozenset(range(400))  # it ends too soon
    with pytest.raises(MeasurementError, match="1 tokens were drawn, not 4"):
        drive(engine, [replace(add, params=replace(add.params, ignore_eos=False)) for add in adds])


def test_a_written_model_loads_and_its_tokenizer_has_every_token(tmp_path: Path) -> None:
    write_model(tmp_path, TINY, torch.device("cpu"), torch.float32)
    loaded = load(tmp_path, PlannedOperations(ReferenceOperations()), torch.float32)
    assert loaded.model.config.vocab_size == 400
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert tokenizer.vocab_size == 400
    texts = [tokenizer.decode([token_id]) for token_id in range(257, 400)]
    assert len(set(texts)) == len(texts)
    assert all(text.strip().isalpha() for text in texts)
    (ids,) = tokenizer.encode_batch(["né"], add_special_tokens=False)
    assert tokenizer.decode(ids) == "né"


def test_names_are_unique_and_patterns_find_them() -> None:
    cases = catalogue.catalogue(SHAPES)
    names = [case.name for case in cases]
    assert len(set(names)) == len(names)
    assert [case.name for case in select(cases, ["decode/*/8"], ())] == ["decode/L8B/8", "decode/Q06/8"]
    assert {case.shape for case in select(cases, ["poisson"], ["Q06"])} == {"Q06"}
    assert select(cases, (), ()) == cases


@pytest.mark.parametrize(
    ("patterns", "shapes", "said"),
    [(["dekode"], [], "--cases dekode: no case has such a name"), ([], ["L9B"], "known are L8B, Q06")],
)
def test_a_name_that_fits_nothing_is_an_error_that_says_what_there_is(
    patterns: list[str], shapes: list[str], said: str
) -> None:
    with pytest.raises(ConfigurationError, match=said):
        select(catalogue.catalogue(SHAPES), patterns, shapes)


def test_an_effort_measures_something() -> None:
    for rounds, budget_s in ((0, 1.0), (1, 0.0)):
        with pytest.raises(ConfigurationError, match="at least 1"):
            Effort(rounds, budget_s)


def test_rows_say_of_how_many_rounds_they_are_the_median(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    report = Report("headrace bench gpu")
    run(bench, select(catalogue.catalogue(["L8B"]), ["decode/L8B/1"], ()), report, save=True)
    report.finish(save=True)
    (row,) = (json.loads(line) for line in Path("docs/bench/results.jsonl").read_text().splitlines())
    assert (row["case"], row["rounds"], row["peer"]) == ("decode/L8B/1", 1, "vLLM 0.24.0, another day")
    assert row["ratio"] == pytest.approx(row["value"] / 4.83)
