"""The runner on a GPU: it is ready before its first item comes, and notices when the GPU is lost."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from headrace.errors import DeviceLostError
from headrace.workers.encoder.items import EncoderItem, Result
from headrace.workers.encoder.loading import LoadedEncoder
from headrace.workers.encoder.runner import EncoderRunner
from headrace.workers.encoder.runtimes import DeviceRuntime
from headrace.workers.encoder.sizes_ahead import sizes_ahead

logger = logging.getLogger(__name__)

# Kernels are compiled for few rows and for many, products chosen for few tokens and for many.
_WARM_UP_TOKENS = (1, 12, 40, 300, 2_000)
# The second batch of a size is captured.
_RUNS_TO_CAPTURE = 2


class DeviceRunner(EncoderRunner):
    """``EncoderRunner``; it begins with batches of its own, so that no item waits for the compiler.

    Args:
        loaded: the encoder, on a GPU.
        device: that GPU.
        batch_tokens: as of ``EncoderRunner``.
    """

    def __init__(self, loaded: LoadedEncoder, device: torch.device, *, batch_tokens: int) -> None:
        super().__init__(loaded, batch_tokens=batch_tokens)
        self._device = device
        runtime = loaded.encoder.model.runtime
        self._ahead: Iterator[Sequence[int]] = iter(())
        if isinstance(runtime, DeviceRuntime):
            self._ahead = sizes_ahead(runtime, self.max_tokens, batch_tokens)
        for num_tokens in (*_WARM_UP_TOKENS, batch_tokens):
            self.run([EncoderItem("embed", (0,) * length) for length in self._rows(num_tokens)])

    def compute(self, items: Sequence[EncoderItem]) -> list[Result]:
        """See ``EncoderRunner``.

        Raises:
            DeviceLostError: the GPU cannot go on, with these items or any others.
        """
        with self._watched():
            return super().compute(items)

    def prepare(self) -> bool:
        """Capture a size that no text has asked for yet, so that none waits while it is.

        Raises:
            DeviceLostError: as ``compute``.
        """
        lengths = next(self._ahead, None)
        if lengths is None:
            return False
        items = [EncoderItem("embed", (0,) * length) for length in lengths]
        try:
            for _ in range(_RUNS_TO_CAPTURE):
                self.run(items)
        except DeviceLostError:
            raise
        except (MemoryError, RuntimeError) as error:
            logger.warning("no more sizes are captured ahead; fewer encoder_graphs take less memory: %s", error)
            self._ahead = iter(())
        return True

    def _rows(self, num_tokens: int) -> Iterator[int]:
        while num_tokens > 0:
            yield min(num_tokens, self.max_tokens)
            num_tokens -= self.max_tokens

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """Find out, if anything is raised, whether the GPU still works."""
        try:
            yield
        except Exception as error:
            try:
                torch.cuda.synchronize(self._device)
            except RuntimeError as lost:
                raise DeviceLostError(f"the GPU is lost: {lost}") from error
            raise
