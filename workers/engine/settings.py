"""What an engine process is told when it starts."""

import json
from dataclasses import asdict, dataclass
from typing import Literal, Self

from headrace.errors import ConfigurationError

ENVIRONMENT_VARIABLE = "HEADRACE_ENGINE"
DEFAULT_PAGE_SIZE = 16


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """Everything an engine process must know; it travels as JSON in ``HEADRACE_ENGINE``.

    Attributes:
        socket_path: of the Unix socket to listen on; what lies there already is replaced.
        model_dir: folder with config.json and safetensors.
        revision: of the model; the engine only passes it on in ``Ready``.
        device: cpu, cuda (torch's current one) or cuda:<index>.
        dtype: of weights, activations and the key-value memory; float16 only on a GPU, int8 only in encoders on a CPU.
        num_threads: threads of one operation, >= 1. An operation ends with its slowest thread: where other processes
            want the same cores, one thread is the fastest.
        max_rows: rows in flight at once, >= 1.
        kv_tokens: token slots of the key-value memory; 0, on a GPU only: as many as it has memory for.
        step_tokens: tokens computed in one step at most, >= ``max_rows``, so that every decoding row always goes on.
        parent_pid: process whose end ends the engine; None where it lives on its own.
        log_level: debug, info, warning or error.
        page_size: tokens of a page of the key-value memory, >= 1.
        measure_ms: computing time of a measurement of costs where none are on file; 0 never measures.
        costs_dir: folder of the files that hold costs; None keeps none.
        row_tokens: tokens of a request at most, prompt and output; a GPU's memory must hold one such request.
        memory_fraction: of a GPU's memory that weights and pool may take, in (0, 1].
        table_fraction: of a GPU's memory, what a table of the first layer's queries, keys and values of all tokens may
            take, in [0, 1); 0: every step computes them.
        cuda_graphs: on a GPU, steps in which every row decodes, and encoders' smaller batches, are captured and
            replayed.
        prompt_graphs: on a GPU, captured sizes of steps with prompts that an engine keeps; 0: none.
        encoder_graphs: captured sizes of batches that an encoder keeps, >= 1.
        stall_ms: on a GPU, what a step may take in which rows decode; 0: as long as ``step_tokens`` take.
        prompt_step_ms: on a GPU, what a step may take in which none does; 0: likewise.
        overtaking_rows: rows that may begin before one that came earlier, because they ask for more; see ``Waiting``.
        deterministic: on a GPU, in a dtype of 16 bits: a row's tokens do not depend on the rows beside it.
    """

    socket_path: str
    model_dir: str
    revision: str
    device: str = "cpu"
    dtype: Literal["float32", "bfloat16", "float16", "int8"] = "float32"
    num_threads: int = 1
    max_rows: int = 32
    kv_tokens: int = 16384
    step_tokens: int = 256
    parent_pid: int | None = None
    log_level: str = "info"
    page_size: int = DEFAULT_PAGE_SIZE
    measure_ms: int = 0
    costs_dir: str | None = None
    row_tokens: int = 8192
    memory_fraction: float = 0.9
    table_fraction: float = 0.02
    cuda_graphs: bool = True
    prompt_graphs: int = 48
    encoder_graphs: int = 336
    stall_ms: float = 0.0
    prompt_step_ms: float = 0.0
    overtaking_rows: int = 0
    deterministic: bool = False

    def __post_init__(self) -> None:
        if self.dtype not in ("float32", "bfloat16", "float16", "int8"):
            raise ConfigurationError(f"dtype {self.dtype!r} is neither float32, bfloat16, float16 nor int8")
        if self.dtype == "int8" and self.device != "cpu":
            raise ConfigurationError("int8 is for encoders on a CPU; on a GPU set dtype to bfloat16 or float16")
        if self.dtype == "float16" and self.device == "cpu":
            raise ConfigurationError("float16 needs a GPU: its range is too small for what a CPU computes in it")
        if self.deterministic and (self.device == "cpu" or self.dtype == "float32"):
            raise ConfigurationError("deterministic needs a GPU and bfloat16 or float16: see docs/design.md")
        for name in (
            "num_threads",
            "max_rows",
            "kv_tokens",
            "step_tokens",
            "page_size",
            "row_tokens",
            "encoder_graphs",
        ):
            least = int(name != "kv_tokens" or self.device == "cpu")
            if getattr(self, name) < least:
                raise ConfigurationError(f"{name} must be at least {least}, not {getattr(self, name)}")
        for name in ("stall_ms", "prompt_step_ms", "overtaking_rows", "prompt_graphs"):
            if getattr(self, name) < 0:
                raise ConfigurationError(f"{name} must be at least 0, not {getattr(self, name):g}")
        if not 0 < self.memory_fraction <= 1:
            raise ConfigurationError(f"memory_fraction {self.memory_fraction} must be above 0 and at most 1")
        if not 0 <= self.table_fraction < 1:
            raise ConfigurationError(f"table_fraction {self.table_fraction} must be at least 0 and below 1")
        if self.step_tokens < self.max_rows:
            raise ConfigurationError(f"step_tokens {self.step_tokens} is less than max_rows {self.max_rows}")

    def to_json(self) -> str:
        """Serialise for the environment variable."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what ``to_json`` wrote.

        Raises:
            ConfigurationError: not JSON, a field is missing or unknown, or a value is out of range.
        """
        try:
            return cls(**json.loads(text))
        except (ValueError, TypeError) as error:
            raise ConfigurationError(f"{ENVIRONMENT_VARIABLE}: {error}") from error
