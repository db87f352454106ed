"""Seeds that were tried side by side become the rows of one experiment, or it is said why not."""

from dataclasses import replace
from pathlib import Path

import pytest

from headrace.errors import ConfigurationError
from headrace.testing.rate_outcome import Outcome, report_all
from headrace.testing.rows import Report
from headrace.testing.seed_file import SeedFound, join

ORIGIN = {"date": "2026-11-22", "commit": "abc1234", "card": "a GPU", "versions": {"torch": "2"}}


def found(seed: int, **critical: float) -> SeedFound:
    outcomes = {way.replace("_", "-"): Outcome(rate, ((1.5, 2.0),)) for way, rate in critical.items()}
    return SeedFound("batching/bert-base", (5, 500), seed, ORIGIN, outcomes)


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    written = replace(found(3, naive=100.0), outcomes={"naive": Outcome(100.0, ((1.5, 2.0), (3.0, 4.0)), None, 7.5)})
    written.save(tmp_path / "new" / "seed.json")
    assert SeedFound.read(tmp_path / "new" / "seed.json") == written


def test_seeds_and_ways_from_several_files_are_joined_in_the_order_of_seeds() -> None:
    parts = [found(1, naive=110.0, dp_total=190.0), found(0, dp_total=150.0), found(0, naive=90.0)]
    other = replace(found(0, naive=1.0), lengths=(2, 100))
    joined = {each.lengths: each for each in join([*parts, other])}
    rates = {way: [each.critical for each in outcomes] for way, outcomes in joined[5, 500].outcomes.items()}
    assert rates == {"naive": [90.0, 110.0], "dp-total": [150.0, 190.0]}
    assert joined[5, 500].origin == ORIGIN
    assert list(joined[2, 100].outcomes) == ["naive"]


def test_rows_say_where_their_seeds_were_measured_and_compare_every_dynamic_program_with_naive() -> None:
    (joined,) = join([found(0, naive=90.0, dp_total=150.0, dp_total_64=180.0), found(1, naive=110.0)])
    report = Report("a script", origin=joined.origin)
    report_all(report, joined.case, {f"5-500/{way}": f for way, f in joined.outcomes.items()}, (0.5,), joined.lengths)
    rows = {(str(row["case"]), str(row["metric"])): row for row in report.rows}
    naive = rows["batching/bert-base/5-500/naive", "critical_rate"]
    assert (naive["commit"], naive["card"], naive["value"], naive["rounds"]) == ("abc1234", "a GPU", 100.0, 2)
    over = {case: row["value"] for (case, metric), row in rows.items() if metric == "over_naive"}
    assert over == {"batching/bert-base/5-500/dp-total": 1.5, "batching/bert-base/5-500/dp-total-64": 1.8}


def test_a_seed_that_is_there_twice_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="seed 0 of naive is there twice"):
        join([found(0, naive=90.0, packed=1.0), found(0, naive=90.0)])


def test_seeds_of_different_commits_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="seeds of different commit are not joined: abc1234, def5678"):
        join([found(0, naive=90.0), replace(found(1, naive=90.0), origin={**ORIGIN, "commit": "def5678"})])


def test_seeds_of_several_gpus_of_a_kind_are_joined_and_none_is_named() -> None:
    on_gpus = [replace(found(seed, naive=90.0), origin={**ORIGIN, "card_id": f"{seed // 2}"}) for seed in range(3)]
    (of_one,), (of_two,) = join(on_gpus[:2]), join(on_gpus)
    assert of_one.origin == {**ORIGIN, "card_id": "0"}
    assert of_two.origin == ORIGIN


@pytest.mark.parametrize("text", ["", "[]", '{"case": "x"}', '{"outcomes": {"naive": {"rate": 1}}}'])
def test_a_file_that_holds_something_else_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match="does not hold what a seed has found"):
        SeedFound.read(path)
