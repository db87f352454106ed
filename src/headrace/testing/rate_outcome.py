"""What a search for critical rates has found, and the rows that tell of it."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from headrace.testing.rows import Report

#: What the paper found DP to be worth, over batches in the order of arrival.
PAPER_RATIOS = {(2, 100): 1.24, (5, 500): 1.47}


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one seed: the critical rate, (p50, p99) in ms below it, and what else there is to tell."""

    critical: float
    below: tuple[tuple[float, float], ...]
    rows_per_batch: float | None = None
    own_rate: float | None = None


def report_all(
    report: Report, prefix: str, outcomes: Mapping[str, Sequence[Outcome]], loads: tuple[float, ...],
    lengths: tuple[int, int], of: str = "",
) -> None:  # fmt: skip
    """The rows of one range of lengths. Ways of the dynamic program are compared with naive as the paper does it."""
    means = {label: statistics.mean(outcome.critical for outcome in found) for label, found in outcomes.items()}
    naive = next((rate for label, rate in means.items() if label.endswith("/naive")), 0.0)
    for label, found in outcomes.items():
        is_naive = label.endswith("/naive")
        report_case(report, f"{prefix}/{label}", found, loads, 0.0 if is_naive else naive, of)
        if "/dp-total" in label and naive and (margin := PAPER_RATIOS.get(lengths)):
            over_naive = means[label] / naive
            report.add(f"{prefix}/{label}", "over_naive", over_naive, "", peer="the paper's margin", peer_value=margin)


def report_case(
    report: Report, label: str, outcomes: Sequence[Outcome], loads: tuple[float, ...], naive: float, of: str = ""
) -> None:
    """The rows of one case; ``naive`` is the rate to compare with, 0 for none; ``of`` is what the loads are of."""
    rates = [outcome.critical for outcome in outcomes]
    report.add(
        label, "critical_rate", statistics.mean(rates), "requests/s",
        peer="naive" if naive else "", peer_value=naive or None, rounds=len(rates),
    )  # fmt: skip
    report.add(label, "critical_rate_spread", max(rates) - min(rates), "requests/s")
    for i, load in enumerate(loads):
        for j, name in enumerate(("p50", "p99")):
            value = statistics.mean(outcome.below[i][j] for outcome in outcomes)
            report.add(label, f"{name}_at_{load:.0%}{of}", value, "ms")
    sizes = [outcome.rows_per_batch for outcome in outcomes if outcome.rows_per_batch is not None]
    if sizes:
        report.add(label, f"rows_per_batch_at_{loads[-1]:.0%}", statistics.mean(sizes), "rows")
    own_rates = [outcome.own_rate for outcome in outcomes if outcome.own_rate is not None]
    if own_rates:
        report.add(label, "full_steps_rate_by_costs", statistics.mean(own_rates), "requests/s")
