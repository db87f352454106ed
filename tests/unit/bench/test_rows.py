import json
from pathlib import Path

import pytest

from headrace.testing import rows
from headrace.testing.rows import Report


def test_a_report_that_saves_keeps_each_row_at_once_and_none_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "docs" / "results.jsonl"
    monkeypatch.setattr(rows, "RESULTS", results)
    report = Report("tests", saves=True)
    for value in (1.0, 2.0):
        report.add("case", "metric", value, "us")
        assert [json.loads(line)["value"] for line in results.read_text().splitlines()][-1] == value
    report.finish(save=True)
    assert [json.loads(line)["value"] for line in results.read_text().splitlines()] == [1.0, 2.0]
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == report.rows


def test_a_report_that_does_not_save_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "RESULTS", tmp_path / "results.jsonl")
    report = Report("tests")
    report.add("case", "metric", 1.0, "us")
    report.finish(save=False)
    assert not list(tmp_path.iterdir())
