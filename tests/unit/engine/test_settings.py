import pytest

from headrace.errors import ConfigurationError
from headrace.workers.engine.settings import EngineSettings


def test_settings_survive_the_environment() -> None:
    given = EngineSettings("/s", "/m", "rev", "cuda:1", "float16", 2, 8, 0, 64, 17)
    assert EngineSettings.from_json(given.to_json()) == given


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"socket_path": "s", "model_dir": "m", "revision": "r", "color": 1}',
        '{"socket_path": "s", "model_dir": "m", "revision": "r", "dtype": "int4"}',
        '{"socket_path": "s", "model_dir": "m", "revision": "r", "dtype": "float16"}',
        '{"socket_path": "s", "model_dir": "m", "revision": "r", "dtype": "int8", "device": "cuda"}',
        '{"socket_path": "s", "model_dir": "m", "revision": "r", "num_threads": 0}',
        '{"socket_path": "s", "model_dir": "m", "revision": "r", "kv_tokens": 0}',
        '{"socket_path": "s", "model_dir": "m", "revision": "r", "device": "cuda", "memory_fraction": 1.5}',
        '{"socket_path": "s", "model_dir": "m", "revision": "r", "device": "cuda", "table_fraction": 1}',
        '{"socket_path": "s", "model_dir": "m", "revision": "r", "max_rows": 9, "step_tokens": 8}',
        '{"socket_path": "s", "model_dir": "m", "revision": "r", "deterministic": true}',
        '{"socket_path": "s", "model_dir": "m", "revision": "r", "deterministic": true, "device": "cuda"}',
        '{"socket_path": "s", "model_dir": "m", "revision": "r", "stall_ms": -1}',
        '{"socket_path": "s", "model_dir": "m", "revision": "r", "prompt_step_ms": -1}',
        '{"socket_path": "s", "model_dir": "m", "revision": "r", "overtaking_rows": -1}',
    ],
)
def test_settings_that_cannot_be_meant_are_refused(text: str) -> None:
    with pytest.raises(ConfigurationError):
        EngineSettings.from_json(text)
