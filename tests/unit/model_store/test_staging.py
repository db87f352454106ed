import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from headrace.errors import ModelError
from headrace.workers.model_store.staging import is_locked, locked, require_free_space, staged


def test_the_folder_appears_whole_and_readable_like_any_other(tmp_path: Path) -> None:
    final, ordinary = tmp_path / "cache" / "model", tmp_path / "ordinary"
    ordinary.mkdir()
    with locked(final), staged(final) as folder:
        (folder / "config.json").write_text("{}")
        assert not final.exists()
    assert [path.name for path in final.iterdir()] == ["config.json"]
    assert final.stat().st_mode == ordinary.stat().st_mode


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    final = tmp_path / "model"

    def make() -> None:
        with locked(final), staged(final) as folder:
            (folder / "config.json").write_text("{}")
            raise RuntimeError("half-way")

    with pytest.raises(RuntimeError, match="half-way"):
        make()
    assert [path.name for path in tmp_path.iterdir()] == [".model.lock"]


def test_a_killed_maker_leaves_no_lock_and_its_remains_are_removed_by_the_next(tmp_path: Path) -> None:
    final = tmp_path / "model"
    code = (
        "import sys, time; from pathlib import Path; from headrace.workers.model_store.staging import *\n"
        "final = Path(sys.argv[1])\n"
        "with locked(final), staged(final) as folder:\n"
        "    (folder / 'weights').write_bytes(bytes(1000)); print('half-way', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(final)], stdout=subprocess.PIPE) as maker:
        assert maker.stdout is not None
        assert maker.stdout.readline() == b"half-way\n"
        assert is_locked(final)
        os.kill(maker.pid, signal.SIGKILL)
    assert not final.exists()
    assert not is_locked(final)
    assert len(list(tmp_path.glob(".model.part-*"))) == 1
    with locked(final), staged(final):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == [".model.lock", "model"]


def test_of_several_makers_one_works_and_the_others_wait_for_it(tmp_path: Path) -> None:
    final, log = tmp_path / "model", tmp_path / "log"
    code = (
        "import sys, time; from pathlib import Path; from headrace.workers.model_store.staging import *\n"
        "final, log = Path(sys.argv[1]), Path(sys.argv[2])\n"
        "with locked(final):\n"
        "    if not final.is_dir():\n"
        "        with staged(final), log.open('a') as file:\n"
        "            time.sleep(0.5); file.write('made ')\n"
    )
    makers = [subprocess.Popen([sys.executable, "-c", code, str(final), str(log)]) for _ in range(3)]
    assert [maker.wait(30) for maker in makers] == [0, 0, 0]
    assert log.read_text() == "made "


def test_too_little_room_is_told_before_anything_is_written(tmp_path: Path) -> None:
    require_free_space(tmp_path / "cache", 1)
    with pytest.raises(ModelError, match=r"not enough disk space in .*cache: 1\.0 EB needed.*HEADRACE_CACHE_DIR"):
        require_free_space(tmp_path / "cache", 10**18)
