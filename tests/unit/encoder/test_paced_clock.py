"""On a machine that changes its pace, a paced clock goes as it did at the beginning."""

import pytest

from headrace.testing.paced_clock import PacedClock


class Machine:
    """A piece of work takes ``work_s`` there."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.work_s = 0.01
        self.num_done = 0

    def work(self) -> None:
        self.now_s += self.work_s
        self.num_done += 1


def test_what_takes_longer_because_the_machine_is_slower_takes_as_long_by_this_clock() -> None:
    machine = Machine()
    clock = PacedClock(machine.work, lambda: machine.now_s, every_s=0.5)
    steps = []
    for slowness in (1, 1, 2, 2, 2, 2, 1, 1, 1):
        machine.work_s = 0.01 * slowness
        begin_s = clock()
        machine.now_s += 0.6 * slowness
        steps.append(clock() - begin_s)
    # The median of three: one slow moment, or fast one, is not believed yet, two are.
    assert steps == pytest.approx([0.6, 0.6, 1.2, 1.2, 0.6, 0.6, 0.3, 0.3, 0.6], rel=0.01)


def test_the_work_that_tells_the_pace_is_done_now_and_then_and_does_not_count() -> None:
    machine = Machine()
    clock = PacedClock(machine.work, lambda: machine.now_s, every_s=0.45)
    before = machine.num_done
    for _ in range(20):
        machine.now_s += 0.1
        clock()
    assert machine.num_done - before == 4
    assert clock() == pytest.approx(2.0)
