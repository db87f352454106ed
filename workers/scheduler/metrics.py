"""The figures of a scheduler: what it did, and what it sees in the queue at the moment of the scrape.

All schedulers of a queue see the same queue: take one of them, or the maximum, never the sum.
"""

import logging
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from headrace.batch_log import BatchRecord
from headrace.broker import Broker
from headrace.errors import BrokerUnavailableError, DecodeError
from headrace.moves import Reaped
from headrace.overview import Overview, look
from headrace.workers.metrics import Figures

log = logging.getLogger(__name__)

_NUM_BATCHES = 100


@dataclass
class Tally:
    """What a scheduler has done since its start.

    Attributes:
        leads: it works; False: it stands by.
        verdicts: entries of request streams by what became of them.
        num_dispatched: requests that went into batches.
        reaped: requests by what the reaper did with them.
    """

    leads: bool = False
    verdicts: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    num_dispatched: int = 0
    reaped: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    def add(self, reaped: Reaped) -> None:
        """Count what a round of the reaper found."""
        self.reaped["requeued"] += reaped.num_requeued
        self.reaped["expired"] += reaped.num_expired
        self.reaped["dead"] += reaped.num_dead


def gather(figures: Figures, broker: Broker, tally: Tally) -> None:
    """Add a scheduler's figures; where its server is away, or totals are spoilt, those of the queue are missing."""
    figures.gauge("scheduler_leads", "1 if this scheduler works, 0 if it stands by.", tally.leads)
    _count(figures, "scheduler_requests", "Entries of request streams, by verdict.", "verdict", tally.verdicts)
    figures.counter("scheduler_dispatched_requests", "Requests that went into batches.", tally.num_dispatched)
    _count(figures, "scheduler_reaped_requests", "Requests that fell due, by their fate.", "fate", tally.reaped)
    try:
        found = look(broker, _NUM_BATCHES)
        cache = broker.cache_totals() if broker.settings.cache_entries else {}
    except (BrokerUnavailableError, DecodeError) as error:
        if spoilt := isinstance(error, DecodeError):
            log.warning("no figures of the queue: %s", error)
        figures.gauge("broker_up", "1 if the broker answers.", spoilt)
        return
    figures.gauge("broker_up", "1 if the broker answers.", 1)
    _queue(figures, found)
    _cache(figures, cache)


def _count(figures: Figures, name: str, text: str, label: str, counts: Mapping[str, int]) -> None:
    # A copy at once: the scheduler's own thread adds to it.
    figures.counter(name, text, [({label: key}, number) for key, number in dict(counts).items()])


def _queue(figures: Figures, found: Overview) -> None:
    lanes, load = found.lanes, found.load
    figures.gauge(
        "queue_new_requests",
        "Entries that no scheduler has read yet, by lane.",
        [({"lane": lane.lane}, lane.num_new) for lane in lanes],
    )
    figures.gauge(
        "queue_ready_requests",
        "Admitted requests that wait for a batch, by lane; estimated from a sample where there are thousands.",
        [({"lane": lane.lane}, lane.num_ready) for lane in lanes],
    )
    figures.gauge(
        "queue_oldest_wait_seconds",
        "How long the oldest request of a lane has waited for a batch; 0 where none waits.",
        [({"lane": lane.lane}, (lane.oldest_wait_ms or 0) / 1000) for lane in lanes],
    )
    states = ("queued", "running")
    figures.gauge("queue_requests", "Live requests, by state.", [({"state": s}, load[s]) for s in states])
    tokens = [({"state": state}, float(load[f"{state}_tokens"])) for state in states]
    figures.gauge("queue_tokens", "Prompt and output tokens that live requests may come to, by state.", tokens)
    figures.gauge("queue_waiting_batches", "Batches that no worker has taken.", load["batches"])
    figures.gauge("queue_dead_requests", "Requests given up as poison, not replayed or dropped.", load["dead"])
    figures.gauge("queue_schedulers", "Schedulers with a recent heartbeat.", len(found.schedulers))
    figures.gauge("queue_workers", "Workers with a recent heartbeat.", len(found.workers))
    figures.gauge("queue_running_rows", "Rows in workers' hands.", sum(worker.num_rows for worker in found.workers))
    figures.gauge("queue_tokens_per_second", "Tokens that all workers published of late.", found.tokens_per_s)
    figures.gauge(
        "queue_batch_cost_ratio",
        "What the newest batches took, by what was predicted, by class of workers.",
        [({"class": name}, ratio) for name, ratio in cost_ratios(found.batches).items()],
    )


def _cache(figures: Figures, totals: Mapping[str, int]) -> None:
    if not totals:
        return
    figures.gauge("queue_cache_entries", "Answers in the response cache.", totals["entries"])
    figures.gauge("queue_cache_bytes", "Size of the response cache.", totals["bytes"])
    looks = [({"found": name}, float(totals[of])) for name, of in (("yes", "hits"), ("no", "misses"))]
    figures.counter("queue_cache_looks", "Requests whose answer was looked for in the response cache.", looks)
    figures.counter("queue_cache_evicted", "Answers that made room for others.", totals["evicted"])


def cost_ratios(batches: tuple[BatchRecord, ...]) -> dict[str, float]:
    """Real by predicted cost of the batches that have run, by the class for which they were cut."""
    real: defaultdict[str, float] = defaultdict(float)
    predicted: defaultdict[str, float] = defaultdict(float)
    for batch in batches:
        if batch.run is not None and batch.predicted_ms > 0:
            real[batch.worker_class] += batch.run.cost_ms
            predicted[batch.worker_class] += batch.predicted_ms
    return {name: real[name] / predicted[name] for name in real}
