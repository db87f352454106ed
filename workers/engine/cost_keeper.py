"""An engine's costs: read from a file or measured while there is nothing else to do, refined by every step.

Measuring waits for idle moments and gives way after the step at hand, so that no first token is late by more than one
step; a fleet that starts announces its room at once. Until then the table is a guess, which the first steps correct.
"""

import logging
import time
from collections.abc import Callable

from headrace.errors import DeviceLostError, HeadraceError
from headrace.workers.costs.cost_file import CostFile
from headrace.workers.costs.overhead import Overhead
from headrace.workers.costs.refinement import Refiner, change
from headrace.workers.costs.table import GUESSED_FIXED_MS, GUESSED_TOKEN_MS, CostTable
from headrace.workers.engine.measurement import Extent, Measurement, Scratch
from headrace.workers.engine.step_work import StepWork

logger = logging.getLogger(__name__)

#: A table that has changed by less is no news, and neither is one so soon after the last.
_MIN_CHANGE = 0.1
_NEWS_INTERVAL_S = 10.0
#: To compare two tables takes part of a step's time, and is not done after each.
_LOOK_INTERVAL_S = 1.0
_SAVE_INTERVAL_S = 60.0


class CostKeeper:
    """The table of one engine process.

    Args:
        extent: of the table.
        make_scratch: makes an engine over the same model whose memory is its own.
        worker_class: that the costs are of.
        budget_ms: computing time of a measurement; 0 never measures, and keeps nothing on file.
        file: where the table is kept; None for nowhere.
        clock_s: for tests.
        own_clock_s: by which steps are measured; on a busy CPU the thread's processor time says more than everybody's.

    Attributes:
        worker_class: as above.
        batch_ms: what a batch costs beside computing it; part of what is told, and not of what is kept on file, for it
            depends on what else the machine has to do.
    """

    def __init__(
        self,
        extent: Extent,
        make_scratch: Callable[[], Scratch],
        *,
        worker_class: str,
        budget_ms: int,
        file: CostFile | None,
        clock_s: Callable[[], float] = time.monotonic,
        own_clock_s: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.worker_class = worker_class
        self.batch_ms = 0.0
        self._overhead = Overhead()
        self._extent = extent
        self._make_scratch = make_scratch
        self._budget_ms = budget_ms
        self._file = file if budget_ms else None
        self._clock_s = clock_s
        self._own_clock_s = own_clock_s
        self._measurement: Measurement | None = None
        found = self._file.read() if self._file else None
        self._refiner = Refiner(found or extent.linear(GUESSED_FIXED_MS, GUESSED_TOKEN_MS))
        self._told = self._saved = self._refiner.table
        self._told_s = self._saved_s = clock_s()
        self._next_look_s = 0.0
        self._wanted = found is None and budget_ms > 0
        self._is_telling = True
        if found is not None and self._file is not None:
            logger.info("costs read from %s", self._file.path)

    @property
    def is_measuring(self) -> bool:
        """Whether an idle moment would be put to use."""
        return self._wanted

    @property
    def table(self) -> bytes:
        """The table as it is now, encoded, what batches cost beside computing included."""
        return self._whole().encode()

    def measure_again(self) -> None:
        """Measure in the idle moments to come, whatever is on file."""
        if not self._budget_ms:
            logger.warning("asked to measure costs again, but measure_ms is 0")
        self._wanted = self._budget_ms > 0
        self._measurement = None

    def use_idle_moment(self) -> None:
        """Compute one step of a measurement, if one is wanted."""
        if not self._wanted:
            return
        try:
            if self._measurement is None:
                self._measurement = Measurement(self._make_scratch(), self._extent, self._budget_ms, self._own_clock_s)
            if not self._measurement.advance():
                self._finish(self._measurement)
        except DeviceLostError:
            raise
        except (HeadraceError, MemoryError, RuntimeError) as error:
            logger.warning("costs are not measured, the ones at hand stay: %s", error)
            self._wanted, self._measurement = False, None

    def give_way(self) -> None:
        """There are rows to compute: what is being measured begins again later."""
        if self._measurement is not None:
            self._measurement.pause()

    def observe(self, work: StepWork, step_ms: float) -> None:
        """Take in what a step took."""
        if not work.teaches:
            return
        self._refiner.observe_packed(work.num_tokens, step_ms)
        if work.shape is not None:
            self._refiner.observe_padded(*work.shape, step_ms)

    def observe_turn(self, own_ms: float, turn_ms: float) -> None:
        """Take in for how long a batch, of which ``own_ms`` are its steps, has kept an engine that did not rest."""
        self._overhead.observe(own_ms, turn_ms, self._clock_s())

    def news(self) -> bytes | None:
        """The table, if it has changed enough since it was told last; saves it to its file now and then."""
        now_s = self._clock_s()
        if now_s < self._next_look_s:
            return None
        self._next_look_s = now_s + _LOOK_INTERVAL_S
        self.batch_ms = self._overhead.batch_ms(now_s)
        if now_s - self._saved_s >= _SAVE_INTERVAL_S:
            self.save()
        if now_s - self._told_s < _NEWS_INTERVAL_S or change(self._told, self._whole()) < _MIN_CHANGE:
            return None
        return self.tell()

    def tell(self) -> bytes:
        """The table, which is no news from here on."""
        self._told, self._told_s = self._whole(), self._clock_s()
        return self._told.encode()

    def save(self) -> None:
        """Write the table to its file, unless it was never measured, or in vain, or has not changed."""
        self._saved_s = self._clock_s()
        is_due = self._is_telling and not self._wanted and self._refiner.table != self._saved
        if self._file is not None and is_due:
            self._saved = self._refiner.table
            self._file.write(self._saved)

    def _whole(self) -> CostTable:
        return self._refiner.table.raised(self.batch_ms)

    def _finish(self, measurement: Measurement) -> None:
        self._refiner = Refiner(measurement.table())
        self._wanted, self._measurement = False, None
        self._told_s, self._next_look_s = self._clock_s() - _NEWS_INTERVAL_S, 0.0
        self._is_telling = measurement.is_telling
        self.save()
        logger.info("costs measured: %d sizes in %.1f s", measurement.num_measured, measurement.spent_ms / 1000)
        if not self._is_telling:
            logger.warning(
                "more tokens took no longer, so they are not kept: this machine is busy; the next start measures"
            )
