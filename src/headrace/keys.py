"""Every key of a queue in Redis: its name, type, meaning and lifetime. Nothing else makes a key.

A queue is a tag: all of its keys carry ``{queue}``, so that a move's keys share a cluster slot. ``hr:{queue}:`` then …

=========================  ===========================================================================================
``requests``               stream, no group: what producers ask, an entry each. Field ``json`` or ``mp`` holds a
                           request's body, or field ``cancel`` an id; ``id`` may stand beside a body. This is the lane
                           ``normal``; ``requests:interactive`` and ``requests:bulk`` are the others, and
                           ``requests:<lane>:<tenant>`` a tenant's own. ``admit`` deletes in order; never trimmed.
``request:<id>``           hash: a request's state, without its body. No time to live until it is done. Fields below.
``job:<id>``               string: the canonical job (``headrace.job``, ``headrace.encoder_job``). Deleted when the
                           request is done. Children have none of their own: they compute their parent's, with seeds of
                           their own.
``ready``                  sorted set: admitted ids by score, the order in which they are considered.
``due``                    sorted set: every live id by the next moment (ms) at which ``reap`` must look at it; half a
                           millisecond on top marks a lease that an amnesty has spared once.
``batches``                stream, no group: a batch an entry (``ids``, ``solo``, ``v``, and ``class``, the class of
                           workers by whose costs it was cut, empty for any). Deleted by ``claim``.
``batchlog``               stream, capped: what became of batches. ``kind`` cut: ``batch`` (its entry), ``class``,
                           ``rows``, ``tokens`` to prefill, ``longest`` prompt, ``ms`` predicted. ``kind`` ran:
                           ``batch``, ``class`` and ``worker`` that ran it, ``rows``, ``tokens`` computed, ``ms`` that
                           they took: of every step, the part that the batch's prompts were of its tokens.
``wake``                   stream of one entry: rung whenever a batch was taken or a row handed back, so that a
                           scheduler that waits for requests also hears of room.
``out:<id>``               stream: the chunks of a result, each entry's id the number of tokens written once it is in;
                           before them entry ``0-1``, the echo or the names of the children, where there is one. Lives
                           ``ttl`` after the end, a child's after its parent's. Also a channel: the same chunk for those
                           who subscribed early.
``reply:<name>``           stream: chunks of all requests whose ``reply_to`` is ``<name>``, an entry a flush, trimmed to
                           seconds; field ``<id>``, value the chunk.
``load``                   hash: totals over live requests, ``queued, queued_tokens, running, running_tokens``, the
                           virtual time ``v``, the reaper's clock, and ``t_known``, when a request last came twice.
                           Changed only inside moves.
``tenants``                hash: ``<lane>:<tenant>`` -> the virtual time at which that flow's last request ends.
``leader``                 string with a time to live: the scheduler that works while others stand by. Efficiency only.
``worker:<w>``             hash: the last claim's nonce and answer, and the heartbeat. Lives a few leases.
``workers``                sorted set: workers by the time (ms) of their last heartbeat.
``scheduler:<s>``          hash: a scheduler's heartbeat, whether it leads or stands by. Lives a few leases.
``schedulers``             sorted set: schedulers by the time (ms) of their last heartbeat.
``classes``                sorted set: classes of workers by the time (ms) of their last heartbeat. Workers of one class
                           cost the same: ``<device>/<model revision>/<dtype>``.
``cost``                   hash: class of workers -> its cost table (``headrace.workers.costs.table``). Kept for
                           ``cost_life_ms`` after the last worker of the class.
``measure``                hash: class of workers, or ``*`` for all, -> when (ms) somebody asked for its costs to be
                           measured again. Workers hear of it by their heartbeats; forgotten after an hour.
``cache``                  hash: key of an answer -> the answer, one chunk, behind ``<until (ms)> <tokens> <length of
                           its text> <reason> ``. Where ``cache_entries`` is not 0, workers keep answers here
                           (``remember``) and ``admit`` gives them. The key is a hash of job and encoding
                           (``headrace.cache_key``). All three go when nothing was kept for ``cache_life_ms``, and can
                           be deleted at any time.
``cacheuse``               sorted set: these keys by the time (ms) of their last use; who has waited for longest goes
                           first where ``cache_entries`` or ``cache_bytes`` is reached.
``cachesum``               hash: ``bytes`` of keys and answers, and counts: ``hits``, ``misses``, ``kept``, ``evicted``.
``contract``               hash: ``min`` and ``max`` version of the contract that may serve this queue.
``dead``                   stream: requests given up as poison, with their jobs.
=========================  ===========================================================================================

A request for n > 1 results forks into children ``<id>/0``, ``<id>/1``, …, each with hash and stream of its own.

Fields of ``request:<id>``: ``v`` version, ``state`` (submitted, queued, batched, running, done; forked is a parent
whose children run; tomb is a cancellation that came before its request), ``at`` = ``owner:epoch:n`` (the one fence: who
may write, and behind which token), ``o`` length of the text written, ``entry`` and ``lane`` (where it came in),
``tenant``, ``enc`` (json or mp), ``reply``, ``cost`` and ``prompt`` (tokens), ``deadline`` (ms, 0 none), ``ttl`` (ms),
``score``, ``start`` (virtual time), ``strikes``, ``attempts``, ``n0`` (tokens at the last claim), ``batch`` (its
entry), ``reason``, and times ``t_…`` (ms). Of a parent: ``children`` and ``open`` (how many, and how many of them
live), ``worst`` (reason) and ``spent`` (output tokens) of those that have ended.
"""

import re
from dataclasses import dataclass
from typing import Literal, get_args

from headrace.errors import ConfigurationError

Lane = Literal["interactive", "normal", "bulk"]
LANES: tuple[Lane, ...] = get_args(Lane)

#: Processes that send heartbeats.
ProcessKind = Literal["worker", "scheduler"]

#: A name that may stand in a key, in an ACL pattern and in a space-separated list.
NAME_PATTERN = r"[A-Za-z0-9][A-Za-z0-9_.@+=-]*"
#: A request's id; ``/`` is kept for children, ``:`` divides a tenant from the rest.
REQUEST_ID_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.@+=:-]{0,127}$"
#: Names one result: a request's, or of a request for several, one child's.
RESULT_ID_PATTERN = REQUEST_ID_PATTERN.removesuffix("$") + r"(/[0-9]{1,3})?$"
_QUEUE_PATTERN = re.compile(rf"^{NAME_PATTERN}(/[0-9]+)?$")
_TENANT_PATTERN = re.compile(rf"^{NAME_PATTERN}$")


@dataclass(frozen=True, slots=True)
class RequestStream:
    """A stream that producers write to: a lane, shared or a tenant's own (``tenant`` is then not empty)."""

    lane: Lane
    tenant: str = ""

    @property
    def suffix(self) -> str:
        """What follows ``hr:{queue}:`` in the stream's name."""
        if self.tenant:
            return f"requests:{self.lane}:{self.tenant}"
        return "requests" if self.lane == "normal" else f"requests:{self.lane}"

    @property
    def owner_prefix(self) -> str:
        """What ids of this stream's requests begin with."""
        return f"{self.tenant}:" if self.tenant else ""

    def id_of(self, entry_id: str) -> str:
        """The id of a request that names none: its entry's, behind the lane if it is not the normal one.

        Entries of different streams that are added in the same millisecond have the same id.
        """
        lane = "" if self.lane == "normal" else f"{self.lane}-"
        return f"{self.owner_prefix}{lane}{entry_id}"


def child_index(request_id: str) -> int | None:
    """Which of its request's results an id names; None where it is no child's."""
    _, slash, index = request_id.partition("/")
    return int(index) if slash else None


class Keys:
    """The names of one queue's keys.

    Raises:
        ConfigurationError: the queue's name cannot stand in a key.
    """

    def __init__(self, queue: str) -> None:
        if not _QUEUE_PATTERN.fullmatch(queue) or len(queue) > 128:
            raise ConfigurationError(
                f"queue name {queue!r}: letters, digits and _.@+=- only, at most 128, optionally /<number>"
            )
        self.queue = queue
        self.prefix = f"hr:{{{queue}}}:"
        self.ready = self.prefix + "ready"
        self.due = self.prefix + "due"
        self.batches = self.prefix + "batches"
        self.wake = self.prefix + "wake"
        self.load = self.prefix + "load"
        self.tenants = self.prefix + "tenants"
        self.leader = self.prefix + "leader"
        self.workers = self.living("worker")
        self.batch_log = self.prefix + "batchlog"
        self.classes = self.prefix + "classes"
        self.cost = self.prefix + "cost"
        self.measure = self.prefix + "measure"
        self.cache = self.prefix + "cache"
        self.cache_use = self.prefix + "cacheuse"
        self.cache_sum = self.prefix + "cachesum"
        self.contract = self.prefix + "contract"
        self.dead = self.prefix + "dead"

    def requests(self, stream: RequestStream) -> str:
        """The stream that carries a lane's, or a tenant's lane's, requests."""
        return self.prefix + stream.suffix

    def request(self, request_id: str) -> str:
        """The hash of one request."""
        return f"{self.prefix}request:{request_id}"

    def job(self, request_id: str) -> str:
        """The canonical job of one request."""
        return f"{self.prefix}job:{request_id}"

    def out(self, request_id: str) -> str:
        """The result stream of one request, and the channel of the same name."""
        return f"{self.prefix}out:{request_id}"

    def reply(self, name: str) -> str:
        """The shared result stream of all requests that name it in ``reply_to``."""
        return f"{self.prefix}reply:{name}"

    def worker(self, worker: str) -> str:
        """The hash of one worker's life."""
        return self.process("worker", worker)

    def process(self, kind: ProcessKind, name: str) -> str:
        """The hash with a process's heartbeat."""
        return f"{self.prefix}{kind}:{name}"

    def living(self, kind: ProcessKind) -> str:
        """The sorted set of a kind's processes by their last heartbeats."""
        return f"{self.prefix}{kind}s"


def check_tenant(tenant: str) -> str:
    """Return a tenant's name if it may stand in a key.

    Raises:
        ConfigurationError: it may not.
    """
    if not _TENANT_PATTERN.fullmatch(tenant) or len(tenant) > 64:
        raise ConfigurationError(f"tenant name {tenant!r}: letters, digits and _.@+=- only, at most 64")
    return tenant
