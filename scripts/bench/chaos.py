"""kill -9 of every part of a fleet, again and again, while 20 requests stream.

Each kill follows a streamed token. Every text is compared with an undisturbed run's, token by token; the silence is the
time from a kill to the next token of the request whose token had set it off. The promise is lease + 5 s.
"""

import statistics
import sys

from headrace.config import Settings
from headrace.testing.chaos import Kill, kill_while_streaming, prompts
from headrace.testing.fleet import Fleet, Part
from headrace.testing.rows import Report, arguments
from headrace.testing.servers import Server

PARTS: tuple[Part, ...] = ("worker", "courier", "engine", "scheduler")
LEASE_MS = 2_000
NUM_REQUESTS = 20


def main() -> None:
    options = arguments(str(__doc__), [("rounds", 10, "kills of each part"), ("tokens", 64, "tokens a request")])
    kills: list[Kill] = []
    with Server("valkey", ["--appendonly", "yes"]) as server:
        settings = Settings.load(redis_url=server.url, lease_ms=LEASE_MS, max_context_tokens=2_048)
        with Fleet(settings) as fleet:
            order = [part for _ in range(options.rounds) for part in PARTS]
            for kill in kill_while_streaming(fleet, order, prompts(NUM_REQUESTS, options.tokens)):
                kills.append(kill)
                print(f"{len(kills)}/{len(order)}: {kill.part}, {kill.silence_s:.2f} s", file=sys.stderr)
            num_dead = fleet.broker.load()["dead"]
    report = Report("scripts/bench/chaos.py")
    for part in PARTS:
        silences = [kill.silence_s for kill in kills if kill.part == part]
        report.add(f"chaos/{part}", "kills_survived", len(silences), "kills")
        report.add(f"chaos/{part}", "silence_median", statistics.median(silences), "s")
        report.add(
            f"chaos/{part}", "silence_max", max(silences), "s", peer="lease + 5 s", peer_value=LEASE_MS / 1000 + 5
        )
    report.add("chaos/all", "taken_for_poison", num_dead, "requests")
    report.finish(save=options.save)


if __name__ == "__main__":
    main()
