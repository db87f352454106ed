import csv
import io
import json
from pathlib import Path

import pytest
import torch
from tests.model.tiny_encoders import make_encoder
from typer.testing import CliRunner, Result

from headrace.cli.app import app


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.set_num_threads(1)
    made: Path = tmp_path_factory.mktemp("encoder")
    make_encoder("bert", folder=made)
    return str(made)


def run(*arguments: str) -> str:
    return invoke(*arguments).stdout


def invoke(*arguments: str) -> Result:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    return result


def test_a_window_is_timed_by_every_way_that_is_asked_for(folder: str) -> None:
    given = ("bench", "encoder", "--model", folder, "--rows", "5", "--lengths", "3-9", "--max-rows", "2")
    rows = json.loads(run(*given, "--json"))
    assert [row["way"] for row in rows] == ["none", "naive", "sorted", "dp", "packed"]
    assert rows[0]["num_batches"] == 5
    assert all(row["ms"] > 0 for row in rows)
    table = list(csv.DictReader(io.StringIO(run(*given, "--ways", "packed,none", "--csv"))))
    assert [row["way"] for row in table] == ["none", "packed"]
    assert float(table[1]["padded_share"]) == 0
    assert "packed" in run(*given, "--ways", "packed")


def test_stderr_says_how_far_it_is_and_costs_are_measured_for_dp_alone(folder: str) -> None:
    given = ("bench", "encoder", "--model", folder, "--rows", "3", "--lengths", "3-5", "--max-rows", "1", "--json")
    told = invoke(*given, "--ways", "dp,none").stderr.splitlines()
    assert [line.split()[2] for line in told] == ["measuring", "none:", "dp:"]
    assert "measuring" not in invoke(*given, "--ways", "naive,packed").stderr


def test_a_profile_is_a_table_or_json(folder: str) -> None:
    found = json.loads(run("profile", "--model", folder, "--rows", "3,4", "--json"))
    calls = {each["name"]: each["calls"] for each in found}
    assert calls["attention"] == 3
    assert calls["add and norm"] == 6
    assert sum(each["share"] for each in found) == pytest.approx(1)
    assert "attention" in run("profile", "--model", folder, "--rows", "3")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("bench", "encoder", "--lengths", "9"), "give two numbers"),
        (("bench", "encoder", "--lengths", "9-3"), "no window of 150 rows of 9 to 3 tokens"),
        (("bench", "encoder", "--lengths", "600-700"), "the model reads rows of up to 520 tokens"),
        (("bench", "encoder", "--ways", "best"), "there are none, naive"),
        (("profile", "--rows", "3,,4"), "give the tokens of each row"),
        (("profile", "--rows", "3000"), "up to 520 tokens"),
    ],
)
def test_what_cannot_be_measured_is_refused(folder: str, arguments: tuple[str, ...], told: str) -> None:
    result = CliRunner().invoke(app, [*arguments, "--model", folder])
    assert result.exit_code == 2
    assert told in result.output
