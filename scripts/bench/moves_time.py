"""What a move costs the server, in us a row, at the sizes that a fleet sends.

The server's own count of the time its commands took, without network and client; the best of several rounds, since
what else runs on the machine only adds.
"""

import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.conftest import fast_settings
from tests.unit.contract.actors import Actors, Holding

from headrace.broker import Broker
from headrace.moves import MAX_ADMIT_ENTRIES, MAX_EMIT_ROWS, ClaimedRow
from headrace.testing.rows import Report, arguments
from headrace.testing.servers import Kind, Server

KINDS: tuple[Kind, ...] = ("redis", "valkey")


class Stopwatch:
    """The best server time of each case, in us a row."""

    def __init__(self, actors: Actors) -> None:
        self.best: dict[str, float] = {}
        self._client = actors.client

    def time(self, case: str, num_rows: int, send: Callable[[], object]) -> None:
        """Send one move, or several that have ``num_rows`` rows together."""
        self._client.config_resetstat()
        send()
        us = float(self._client.info("commandstats")["cmdstat_evalsha"]["usec"]) / num_rows
        self.best[case] = min(us, self.best.get(case, us))


def measure(actors: Actors, watch: Stopwatch, turn: int) -> None:
    """One life of a full worker's rows, from submission to the end."""
    ids = [f"request-{turn}-{i}" for i in range(MAX_EMIT_ROWS)]
    watch.time("submit", len(ids), lambda: [actors.submit(request_id) for request_id in ids])
    for begin in range(0, len(ids), MAX_ADMIT_ENTRIES):
        assert begin < len(ids)
        watch.time(f"admit/{MAX_ADMIT_ENTRIES}", MAX_ADMIT_ENTRIES, lambda: actors.admit(ttl_ms=1_000))
    watch.time(f"dispatch/{len(ids)}", len(ids), lambda: actors.dispatch(*ids))
    call = actors.claim_call("w", free_rows=len(ids), max_rows=len(ids))
    claimed: list[ClaimedRow] = []
    watch.time(f"claim/{len(ids)}", len(ids), lambda: claimed.extend(actors.broker.run(call).rows))
    held = [Holding(row, "w") for row in claimed]
    for _ in range(3):
        rows = [holding.emit("chunk", 1) for holding in held]
        watch.time(f"emit-chunk/{len(ids)}", len(ids), lambda rows=rows: actors.emit(*rows))  # type: ignore[misc]
        for holding, row in zip(held, rows, strict=True):
            holding.written(row)
    one = held[0].emit("chunk", 1)
    watch.time("emit-chunk/1", 1, lambda: actors.emit(one))
    held[0].written(one)
    watch.time(f"emit-renew/{len(ids)}", len(ids), lambda: actors.emit(*[h.emit("renew") for h in held]))
    half = len(ids) // 2
    watch.time("cancel", half, lambda: [actors.cancel(request_id) for request_id in ids[:half]])
    quarter = half // 2
    actors.make_due(*ids[half : half + quarter])
    watch.time(f"reap/{quarter}", quarter, lambda: actors.reap())
    actors.dispatch(*ids[half : half + quarter])
    again = [Holding(row, "w") for row in actors.claim("w", free_rows=quarter, max_rows=quarter).rows]
    rest = [*again, *held[half + quarter :]]
    watch.time(f"emit-end/{len(rest)}", len(rest), lambda: actors.emit(*[h.emit("stop") for h in rest]))
    assert actors.broker.load()["running"] == 0


def main() -> None:
    """Run both servers and report."""
    given = arguments(__doc__ or "", [("rounds", 20, "of which the best one counts")])
    report = Report("scripts/bench/moves_time.py")
    for kind in KINDS:
        with Server(kind) as server:
            broker = Broker.connect(fast_settings(redis_url=server.url, lease_ms=600_000))
            actors = Actors(broker)
            actors.no_amnesty()
            watch = Stopwatch(actors)
            for turn in range(given.rounds):
                measure(actors, watch, turn)
            broker.close()
        for case, us in watch.best.items():
            report.add(f"moves/{kind}", case, round(us, 2), "us/row")
    report.finish(save=given.save)


if __name__ == "__main__":
    main()
