"""Every move sent twice, late, or cut off after its reply was lost, on real servers: nothing more may change.

A random fleet works a queue. Every answer is compared with a model of the contract, every result with a recount, and
in the end every accepted request must have one terminal chunk, and the totals must be zero. The first violation ends
the run with an error.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.conftest import fast_settings
from tests.unit.contract.fuzz import Fuzz, Fuzzed

from headrace.broker import Broker
from headrace.testing.rows import Report, arguments
from headrace.testing.servers import Kind, Server

KINDS: tuple[Kind, ...] = ("redis", "valkey")


def fuzz(kind: Kind, num_calls: int, seed: int) -> Fuzzed:
    """A run on a server of its own."""
    with Server(kind) as server:
        broker = Broker.connect(fast_settings(redis_url=server.url))
        try:
            return Fuzz(broker, seed).run(num_calls)
        finally:
            broker.close()


def main() -> None:
    """Run both servers and report."""
    given = arguments(__doc__ or "", [("calls", 10_000, "calls a server"), ("seed", 1, "of the random steps")])
    report = Report("scripts/bench/moves_fuzz.py")
    for kind in KINDS:
        done = fuzz(kind, given.calls, given.seed)
        print(f"{kind}: " + ", ".join(f"{move} {count}" for move, count in sorted(done.calls.items())))
        case = f"fuzz/{kind}"
        report.add(case, "calls", done.calls.total(), "calls")
        report.add(case, "repeated", done.num_repeated, "calls")
        report.add(case, "replies-lost", done.num_lost, "calls")
        report.add(case, "requests", done.num_requests, "requests")
        report.add(case, "violations", 0, "violations")
        report.add(case, "time", round(done.seconds, 2), "s")
    report.finish(save=given.save)


if __name__ == "__main__":
    main()
