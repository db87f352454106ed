"""Measures cases one after the other, and reports their figures."""

import time
from collections.abc import Sequence

from headrace.bench.bench import Bench
from headrace.bench.case import Case
from headrace.errors import HeadraceError
from headrace.testing.rows import Report


def run(bench: Bench, cases: Sequence[Case], report: Report, *, save: bool = False) -> list[str]:
    """Measure cases.

    Args:
        bench: what they share.
        cases: in their order.
        report: gathers the figures.
        save: keep them on file, case by case.

    Returns:
        What went wrong, a line each: a case that fails does not keep the others from being measured.
    """
    failures = []
    for case in cases:
        begin_s = time.perf_counter()
        try:
            for figure in case.measure(bench):
                bench.results[case.name, figure.metric] = figure.value
                report.add(
                    case.name,
                    figure.metric,
                    figure.value,
                    figure.unit,
                    peer=figure.peer,
                    peer_value=figure.peer_value,
                    rounds=figure.rounds,
                )
                beside = f" ({figure.peer}: {figure.peer_value:g})" if figure.peer_value else ""
                print(f"{case.name}  {figure.metric}  {figure.value:.5g} {figure.unit}{beside}", flush=True)
        except (HeadraceError, OSError, RuntimeError) as error:
            failures.append(f"{case.name}: {type(error).__name__}: {error}")
            print(failures[-1], flush=True)
            bench.release()
        if save:
            report.save()
        print(f"{case.name} took {time.perf_counter() - begin_s:.1f} s", flush=True)
    return failures
