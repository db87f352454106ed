"""What the program says, and with which exit status it ends."""

import subprocess
import sys

import pytest
from tests.unit.cli.conftest import Headrace

import headrace as package
from headrace.testing.servers import free_port


def test_the_version_is_the_packages(headrace: Headrace) -> None:
    assert headrace("--version") == (0, f"headrace {package.__version__}\n", "")


def test_the_package_runs_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "headrace", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"headrace {package.__version__}\n"


def test_a_server_that_is_away_is_one_line_and_status_1(headrace: Headrace) -> None:
    url = f"redis://127.0.0.1:{free_port()}/0"
    status, out, err = headrace("status", "--redis-url", url)
    assert (status, out) == (1, "")
    assert err.startswith(f"headrace: no Redis server answers at {url}")
    assert err.count("\n") == 1


def test_a_wrong_setting_is_one_line_and_status_2(headrace: Headrace) -> None:
    status, out, err = headrace("status", "--set", "lease_ms=soon")
    assert (status, out) == (2, "")
    assert err.startswith("headrace: settings: lease_ms:")
    assert err.count("\n") == 1


def test_debug_shows_where_an_error_comes_from(headrace: Headrace) -> None:
    status, _, err = headrace("--debug", "status", "--set", "lease_ms=soon")
    assert status == 2
    assert "Traceback" in err


def test_the_log_level_debug_does_as_well(headrace: Headrace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_LOG_LEVEL", "debug")
    assert "Traceback" in headrace("status", "--set", "lease_ms=soon")[2]


def test_an_unknown_option_is_refused_by_name(headrace: Headrace) -> None:
    status, _, err = headrace("status", "--quueue", "x")
    assert status == 2
    assert "--quueue" in err


def test_commands_that_need_no_torch_do_not_import_it() -> None:
    code = "import sys, headrace.cli.app; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_help_of_num_threads_says_what_0_means(headrace: Headrace) -> None:
    assert "0: the cores to spare" in " ".join(headrace("worker", "--help")[1].replace("│", " ").split())
