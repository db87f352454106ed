"""Where the engines under measurement compute: a GPU, or for a try of the cases themselves a CPU."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from headrace.config import Settings
from headrace.errors import ConfigurationError, MeasurementError
from headrace.kernels.planned import PlannedOperations
from headrace.kernels.reference import ReferenceOperations
from headrace.testing.full_shapes import loader
from headrace.testing.state_dict import RandomWeights
from headrace.workers.engine.assembly import host_engine
from headrace.workers.engine.engine import Engine
from headrace.workers.worker import ON_GPU


@dataclass(frozen=True, slots=True)
class Limits:
    """What an engine must hold; the defaults are a worker's.

    Attributes:
        max_rows: rows in flight at once.
        row_tokens: tokens of a row at most, prompt and output.
        step_tokens: tokens of one step at most.
        kv_tokens: tokens of the key-value memory on a CPU; a GPU's engine takes what memory there is.
        stall_ms: what a step may take in which rows decode; 0: no bound.
        prompt_step_ms: what a step may take in which none does; 0: no bound.
        overtaking_rows: rows that may begin before one that came earlier.
        prompt_graphs: captured sizes of steps with prompts that it keeps; 0: none.
        deterministic: it computes in fixed orders.
        positions: longest row that the model is made for; None: as its shape says.
    """

    max_rows: int = ON_GPU.max_rows
    row_tokens: int = 4096
    step_tokens: int = ON_GPU.step_tokens
    kv_tokens: int = 1 << 16
    stall_ms: float = Settings.model_fields["stall_ms"].default
    prompt_step_ms: float = Settings.model_fields["prompt_step_ms"].default
    overtaking_rows: int = Settings.model_fields["overtaking_rows"].default
    prompt_graphs: int = Settings.model_fields["prompt_graphs"].default
    deterministic: bool = False
    positions: int | None = None


@dataclass(frozen=True, slots=True)
class Machine:
    """A device, and the precision.

    Attributes:
        device: cuda:<index>, or cpu.
        dtype: of weights and activations: bf16, or fp32.
    """

    device: torch.device
    dtype: torch.dtype

    @property
    def dtype_name(self) -> Literal["float32", "bfloat16"]:
        """As settings have it."""
        return "bfloat16" if self.dtype == torch.bfloat16 else "float32"

    @classmethod
    def gpu(cls, index: int = 0) -> "Machine":
        """The GPU that figures are stated for.

        Raises:
            ConfigurationError: there is no such GPU, or PyCUDA is missing.
        """
        if not torch.cuda.is_available():
            raise ConfigurationError("no GPU: torch finds no CUDA device to measure; see `headrace doctor`")
        if index >= torch.cuda.device_count():
            raise ConfigurationError(f"there is no cuda:{index}; this machine has {torch.cuda.device_count()} GPUs")
        return cls(torch.device("cuda", index), torch.bfloat16)

    def engine(self, config: Mapping[str, Any], limits: Limits) -> Engine:
        """Make an engine with random weights.

        Args:
            config: of the model, as config.json says it.
            limits: what it must hold.
        """
        if limits.positions is not None:
            config = {**config, "max_position_embeddings": limits.positions}
        if self.device.type == "cuda":
            # Not before: a machine without a GPU has no PyCUDA.
            from headrace.workers.engine.device_engine import DeviceEngine, DeviceLimits

            torch.cuda.set_device(self.device)
            device_limits = DeviceLimits(
                max_rows=limits.max_rows,
                row_tokens=limits.row_tokens,
                step_tokens=limits.step_tokens,
                stall_ms=limits.stall_ms,
                prompt_step_ms=limits.prompt_step_ms,
                overtaking_rows=limits.overtaking_rows,
                prompt_graphs=limits.prompt_graphs,
                deterministic=limits.deterministic,
            )
            return DeviceEngine(loader(config), self.device, self.dtype, device_limits).engine
        operations = PlannedOperations(ReferenceOperations())
        loaded = loader(config, RandomWeights(self.device))(operations, self.dtype)
        return host_engine(
            loaded,
            operations,
            max_rows=limits.max_rows,
            kv_tokens=limits.kv_tokens,
            step_tokens=limits.step_tokens,
            overtaking_rows=limits.overtaking_rows,
        )

    def require_gpu(self, what: str) -> None:
        """Refuse to measure on a CPU what only a GPU has.

        Raises:
            MeasurementError: this is a CPU.
        """
        if self.device.type != "cuda":
            raise MeasurementError(f"{what} is measured on a GPU; this is a CPU")

    def release(self) -> None:
        """Give memory that torch keeps for later back to the device."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
