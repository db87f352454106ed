"""The figures of a worker: its rows, its memory, its tokens, its engine."""

from collections.abc import Mapping
from dataclasses import dataclass

from headrace.workers.metrics import Figures


@dataclass(frozen=True, slots=True)
class CourierLook:
    """A courier at one moment; the event loop takes it, another thread reads it.

    Attributes:
        worker: its name.
        worker_class: of its engine; "" without one.
        has_engine: an engine is there.
        num_engines: that have been there so far; each after the first took the place of a dead one.
        is_draining: it claims no more.
        num_rows: requests in its hands.
        num_computing: of these, the engine works on.
        max_rows: that the engine takes.
        kv_tokens_claimed: key-value memory that rows under computation may come to need, in tokens.
        kv_tokens: that the engine has.
        num_tokens: that came from engines so far.
        num_claimed: requests so far.
        gone: requests that have left so far, by how.
    """

    worker: str
    worker_class: str
    has_engine: bool
    num_engines: int
    is_draining: bool
    num_rows: int
    num_computing: int
    max_rows: int
    kv_tokens_claimed: int
    kv_tokens: int
    num_tokens: int
    num_claimed: int
    gone: Mapping[str, int]


def gather(figures: Figures, look: CourierLook) -> None:
    """Add a worker's figures."""
    identity = {"worker": look.worker, "class": look.worker_class}
    figures.gauge("worker_info", "1; its labels say who this is.", [(identity, 1)])
    figures.gauge("worker_engine_up", "1 if the worker has an engine that has loaded its model.", look.has_engine)
    figures.counter("worker_engines", "Engines so far; each after the first replaced a dead one.", look.num_engines)
    figures.gauge("worker_draining", "1 if the worker claims no more requests.", look.is_draining)
    figures.gauge("worker_rows", "Requests in the worker's hands.", look.num_rows)
    figures.gauge("worker_computing_rows", "Requests that its engine works on.", look.num_computing)
    figures.gauge("worker_max_rows", "Requests that its engine takes at a time.", look.max_rows)
    figures.gauge(
        "worker_kv_tokens_claimed",
        "Key-value memory that its rows may come to need.",
        look.kv_tokens_claimed,
    )
    figures.gauge("worker_kv_tokens", "Key-value memory that its engine has.", look.kv_tokens)
    figures.counter("worker_tokens", "Tokens that its engine has computed.", look.num_tokens)
    figures.counter("worker_claimed_requests", "Requests that the worker has claimed.", look.num_claimed)
    figures.counter(
        "worker_gone_requests",
        "Requests that have left the worker: the reason of their end, yield or lost where they were handed back, "
        "refused where the broker had taken them away.",
        [({"how": how}, number) for how, number in look.gone.items()],
    )
