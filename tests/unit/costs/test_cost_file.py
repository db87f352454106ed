"""Costs on file: read back by who is the same, measured again by who is not."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest

from headrace.workers.costs.cost_file import CostFile, CostKey
from headrace.workers.costs.table import CostTable

KEY = CostKey("cpu-x2", "0123456789abcdef", "float32", 16, 512)
TABLE = CostTable((4, 8), (1, 2), ((10.1, 14.0), (12.0, 20.0)), (4, 16), (9.0, 21.0))


def test_what_was_written_is_read_back_by_the_same_machine_and_model_only(tmp_path: Path) -> None:
    CostFile(tmp_path / "new", KEY).write(TABLE)
    assert CostFile(tmp_path / "new", KEY).read() == TABLE
    others = [
        replace(KEY, device="cpu-x4"), replace(KEY, revision="f" * 16), replace(KEY, dtype="bfloat16"),
        replace(KEY, page_size=32), replace(KEY, step_tokens=256), replace(KEY, version="99"),
    ]  # fmt: skip
    assert [CostFile(tmp_path / "new", other).read() for other in others] == [None] * len(others)


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"key": 1, "table": ""}', "half"])
def test_a_damaged_file_counts_as_none_and_the_log_says_so(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    file = CostFile(tmp_path, KEY)
    file.write(TABLE)
    whole = file.path.read_text()
    file.path.write_text(whole[: len(whole) // 2] if damage == "half" else damage)
    with caplog.at_level(logging.WARNING):
        assert file.read() is None
    assert "measured again" in caplog.text
    file.write(TABLE)
    assert file.read() == TABLE


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    in_the_way = tmp_path / "costs"
    in_the_way.write_text("a file where the folder should be")
    CostFile(in_the_way, KEY).write(TABLE)
    assert "cannot be kept" in caplog.text


def test_writing_leaves_nothing_but_the_file(tmp_path: Path) -> None:
    file = CostFile(tmp_path, KEY)
    for _ in range(3):
        file.write(TABLE)
    assert list(tmp_path.iterdir()) == [file.path]
