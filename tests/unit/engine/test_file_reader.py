import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace.workers.engine.file_reader import read_fully


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.binary(min_size=1, max_size=300), st.data())
def test_the_bytes_asked_for_are_read_and_no_others(tmp_path: Path, content: bytes, data: st.DataObject) -> None:
    begin = data.draw(st.integers(0, len(content)))
    length = data.draw(st.integers(0, len(content) - begin))
    (tmp_path / "file").write_bytes(content)
    file = os.open(tmp_path / "file", os.O_RDONLY)
    into = bytearray(length + 2)
    read_fully(file, begin, memoryview(into)[1 : 1 + length])
    os.close(file)
    assert bytes(into) == b"\0" + content[begin : begin + length] + b"\0"


def test_a_file_that_ends_too_soon_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    with (tmp_path / "file").open("rb") as file, pytest.raises(OSError, match="ends 2 bytes too soon"):
        read_fully(file.fileno(), 3, memoryview(bytearray(4)))
