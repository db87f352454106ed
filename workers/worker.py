"""The worker process: keeps an engine and a courier alive, and gives them a socket to meet on.

The two are processes of their own, so that the step loop never waits for Redis, for text, or for the other's
interpreter lock; and so that what kills one of them leaves the other to clean up: a courier hands back what a dead
engine held, an engine keeps its model loaded for the next courier.
"""

import logging
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from headrace.config import Settings
from headrace.errors import ConfigurationError
from headrace.scratch import scratch_folder
from headrace.workers.channel import SOCKET_VARIABLE
from headrace.workers.child import ChildSpec
from headrace.workers.engine.settings import ENVIRONMENT_VARIABLE, EngineSettings
from headrace.workers.model_store.store import default_cache_dir, resolve
from headrace.workers.supervisor import Supervisor
from headrace.workers.text.encoder_facts import is_encoder

log = logging.getLogger(__name__)

#: A Unix socket's path has at most 103 characters on macOS, 107 on Linux; ours adds some 40 to its root.
_MAX_ROOT_CHARS = 60
_ENGINE_GRACE_S = 5.0
_ENGINE, _ENCODER = "headrace.workers.engine.process", "headrace.workers.encoder.process"
#: What a courier needs behind its drain time to hand rows back.
_COURIER_MARGIN_S = 5.0
#: Idle threads of a product spin only shortly: the other processes need the cores. OpenMP reads it when it is loaded.
_QUIET_OPENMP = {"GOMP_SPINCOUNT": "10000"}


@dataclass(frozen=True, slots=True)
class Sizes:
    """What an engine is given where the settings leave it to the device; 0 tokens: what there is memory for."""

    max_rows: int
    kv_tokens: int
    step_tokens: int


ON_CPU = Sizes(max_rows=32, kv_tokens=32_768, step_tokens=512)
ON_GPU = Sizes(max_rows=256, kv_tokens=0, step_tokens=8_192)
#: An encoder keeps nothing of a row but its tokens: this is how far a worker reads ahead of its engine.
ENCODER_ON_CPU = Sizes(max_rows=128, kv_tokens=65_536, step_tokens=2_048)
ENCODER_ON_GPU = Sizes(max_rows=1_024, kv_tokens=262_144, step_tokens=65_536)


def run(settings: Settings) -> int:
    """Run a worker until SIGTERM or SIGINT; the courier drains before the engine goes.

    Returns:
        The process's exit status: 2 after a configuration error of a child.

    Raises:
        ModelError: the model's files are not here.
        ConfigurationError: the key-value memory is too small for the context, or a setting is not for this model.
    """
    cache_dir = settings.cache_dir or default_cache_dir()
    folder = resolve(settings.model, cache_dir)
    encodes = is_encoder(folder.path)
    if encodes and settings.deterministic:
        raise ConfigurationError(f"deterministic is for models that write text; {settings.model} is an encoder")
    sizes = _sizes(encodes=encodes, on_cpu=settings.device == "cpu")
    kv_tokens = settings.kv_tokens or sizes.kv_tokens
    longest = "max_request_tokens" if encodes else "max_context_tokens"
    if kv_tokens and kv_tokens < getattr(settings, longest):
        raise ConfigurationError(
            f"kv_tokens {kv_tokens} must hold {longest} {getattr(settings, longest)}: "
            "a request of full length would never fit"
        )
    with scratch_folder("worker", _short_root()) as meeting:
        socket_path = str(meeting / "engine.sock")
        engine = EngineSettings(
            socket_path=socket_path,
            model_dir=str(folder.path),
            revision=folder.revision,
            device=settings.device,
            dtype=settings.engine_dtype,
            num_threads=settings.num_threads or spare_cores(settings.workers),
            max_rows=settings.max_rows or sizes.max_rows,
            kv_tokens=kv_tokens,
            page_size=settings.page_size,
            measure_ms=settings.measure_ms,
            costs_dir=str(cache_dir / "costs"),
            step_tokens=settings.step_tokens or sizes.step_tokens,
            row_tokens=settings.max_context_tokens,
            memory_fraction=settings.memory_fraction,
            table_fraction=settings.table_fraction,
            cuda_graphs=settings.cuda_graphs,
            prompt_graphs=settings.prompt_graphs,
            encoder_graphs=settings.encoder_graphs,
            stall_ms=settings.stall_ms,
            prompt_step_ms=settings.prompt_step_ms,
            overtaking_rows=settings.overtaking_rows,
            deterministic=settings.deterministic,
            parent_pid=os.getpid(),
            log_level=settings.log_level,
        )
        environ = settings.to_environ()
        of_engine = environ | _QUIET_OPENMP | {ENVIRONMENT_VARIABLE: engine.to_json()}
        of_courier = environ | {SOCKET_VARIABLE: socket_path}
        drain_s = (settings.drain_ms + settings.lease_ms) / 1000 + _COURIER_MARGIN_S
        stages = [
            [_child("engine", _ENCODER if encodes else _ENGINE, of_engine, _ENGINE_GRACE_S)],
            [_child("courier", "headrace.workers.courier", of_courier, drain_s)],
        ]
        return Supervisor(stages, settings.restart_ms / 1000).run()


def _sizes(*, encodes: bool, on_cpu: bool) -> Sizes:
    if encodes:
        return ENCODER_ON_CPU if on_cpu else ENCODER_ON_GPU
    return ON_CPU if on_cpu else ON_GPU


def spare_cores(num_workers: int) -> int:
    """Threads for one engine of a machine's ``num_workers``, one core left to broker, scheduler and couriers.

    Threads that share a core wait for each other at the end of every product: with as many as there are cores, a busy
    machine's step takes several times as long as with one fewer.
    """
    return max(1, ((os.cpu_count() or 1) - 1) // num_workers)


def _child(name: str, module: str, environ: dict[str, str], grace_s: float) -> ChildSpec:
    # -P: nothing in the working directory may take the place of a package.
    return ChildSpec(name, (sys.executable, "-P", "-m", module), environ, grace_s)


def _short_root() -> Path:
    """A folder for the socket's folder whose path leaves the socket's short enough."""
    root = Path(tempfile.gettempdir())
    return root if len(str(root)) <= _MAX_ROOT_CHARS else Path("/tmp")
