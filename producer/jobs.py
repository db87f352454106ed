"""Jobs that any RQ user enqueues by name, for ``headrace rq-worker`` to carry out.

::

    from redis import Redis
    from rq import Queue, Retry
    from rq.serializers import JSONSerializer

    queue = Queue("headrace", connection=Redis(port=6380), serializer=JSONSerializer)
    job = queue.enqueue("headrace.producer.jobs.generate", prompt="Once upon a time", max_tokens=64, retry=Retry(3))
    job.latest_result(timeout=60)  # waits
    print(job.return_value())

Whoever enqueues needs rq and redis and nothing of Headrace. Arguments, results and meta are JSON.

A job only watches requests that the fleet computes, and they are named after the job. So it costs nothing to lose a
worker: whoever carries the job out again reads on what is there, and nothing is computed twice. RQ carries a lost job
out again if it was enqueued with ``retry=``. A job that is cancelled, stopped or deleted, whose time is over, or that
has failed for good, has its requests cancelled.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from headrace.encoder_result import Classification, Embeddings, Filling, Ranking
from headrace.errors import InvalidRequestError
from headrace.producer.bulk.encode import call_of, run_encoder
from headrace.producer.bulk.errand import Errand
from headrace.producer.bulk.many import ManyRun
from headrace.producer.bulk.one import run_one
from headrace.producer.client import Client
from headrace.producer.dead_letters import choose, read_dead, replay
from headrace.producer.encoding import (
    TEXTS_PER_REQUEST,
    join_embeddings,
    join_labels,
    join_masks,
    join_rankings,
    joined,
)
from headrace.stock import take_stock as count_stock


def generate(prompt: str | Sequence[int] | None = None, messages: Any = None, **options: Any) -> str | list[str]:
    """Have one request computed and return its text, a list of texts where ``n`` above 1 was asked for.

    The text and nothing else, because that is what a job's caller asked for; the rest is in the job's meta while the
    request runs and afterwards: ``state`` (queued, running, done, failed, cancelled), ``request_id``, ``tokens`` and
    ``text`` so far (``texts`` of several), and at the end ``reason`` and ``usage``, or ``error``. Token ids and
    logprobs are in the request's own result: ``Client.attach(job.meta["request_id"])``.

    Args:
        prompt: text or token ids; or else
        messages: a chat, each message with ``role`` and ``content``.
        **options: ``lane`` (normal), ``tenant``, ``encoding``, ``durability``, and the other fields of a request.
            Without ``seed`` one is derived from the job's id.

    Raises:
        InvalidRequestError: a field breaks a rule; RQ does not try again.
        OverloadedError: the backlog is over its limit; RQ tries again if it was told to, as with all that follow.
        FailedError: the fleet gave the request up.
        ExpiredError: its deadline passed; RQ does not try again.
        CancelledError: somebody cancelled it; RQ does not try again.
    """
    with Errand() as errand:
        return run_one(errand, prompt, messages, options)


def generate_many(prompts: Sequence[object], **options: Any) -> list[dict[str, Any] | None]:
    """Have many requests computed together, and return what became of each, in their order.

    A result is ``{"text": …, "reason": "stop" or "length", "error": None}``, or of a request that failed
    ``{"text": None, "reason": "error", "error": {"code": …, "message": …, "field": …}}``; the others go on. The job's
    meta counts: ``state``, ``total``, ``done``, ``failed``, ``tokens``, and ``request_id``; a prompt's own request is
    ``<request_id>.<number>``. ``rq_in_flight`` requests are in the queue at a time; where the fleet's backlog is full,
    the job waits.

    Args:
        prompts: each a text, a list of token ids, or an object with fields of its own, ``prompt`` or ``messages``
            among them.
        **options: of all; as in ``generate``, without ``n``. The lane is ``bulk`` if none is given.

    Raises:
        InvalidRequestError: ``prompts`` is no list, or too long.
        CancelledError: the job was cancelled.
    """
    with Errand() as errand:
        return ManyRun(errand, prompts, {"lane": "bulk", **options}).run()


def embed(input: Any, **options: Any) -> list[float] | list[list[float]]:
    """Have an encoder turn texts into vectors; return one for one text, and for a list of them a list, in its order.

    Many texts become several requests. The job's meta counts them: ``state``, ``total``, ``done``, ``request_id``.

    Args:
        input: a text or its token ids, or a list of either.
        **options: ``pooling``, ``normalize``, ``dimensions``, ``truncate``, …, and ``lane``, ``tenant``, ``encoding``
            and ``durability``.

    Raises:
        InvalidRequestError: a field breaks a rule; RQ does not try again, nor after the two that follow.
        ExpiredError: its deadline passed.
        CancelledError: somebody cancelled it.
        OverloadedError: the backlog is over its limit; RQ tries again if it was told to.
        FailedError: the fleet gave it up; the same.
    """
    call = call_of("embed", {"input": input})
    with Errand() as errand:
        found = joined(run_encoder(errand, call, options), join_embeddings, Embeddings)
    vectors: list[list[float]] = found.fields("json", floats=True)["embeddings"]
    return vectors[0] if call.divided is None else vectors


def classify(input: Any, text_pair: Any = None, **options: Any) -> list[Any]:
    """Have an encoder give texts, or pairs of them, their labels; as ``embed``, with ``top_k``.

    Returns:
        Of one text the labels, each ``{"label": …, "score": …}``, the highest score first; of a list, a list of these.
    """
    call = call_of("classify", {"input": input, "text_pair": text_pair})
    with Errand() as errand:
        found = joined(run_encoder(errand, call, options), join_labels, Classification)
    labels: list[Any] = found.fields()["labels"]
    return labels[0] if call.divided is None else labels


def rerank(query: str, documents: Sequence[str], top_n: int = 0, **options: Any) -> list[dict[str, Any]]:
    """Have an encoder put documents in the order in which they answer a query; as ``embed``.

    Returns:
        ``{"index": …, "score": …}`` of each document, or of the ``top_n`` best.
    """
    call = call_of("rerank", {"query": query, "documents": documents, "top_n": top_n})
    with Errand() as errand:
        answers = run_encoder(errand, call, options)
    found = joined(answers, lambda parts: join_rankings(parts, TEXTS_PER_REQUEST, top_n), Ranking)
    documents_found: list[dict[str, Any]] = found.fields()["documents"]
    return documents_found


def fill(input: Any, **options: Any) -> list[Any]:
    """Have an encoder find what may stand where texts have a mask; as ``embed``, with ``top_k``.

    Returns:
        Of one text its masks, each ``{"position": …, "candidates": [{"id": …, "text": …, "score": …}, …]}``; of a list,
        a list of these.
    """
    call = call_of("fill", {"input": input})
    with Errand() as errand:
        found = joined(run_encoder(errand, call, options), join_masks, Filling)
    masks: list[Any] = found.fields()["masks"]
    return masks[0] if call.divided is None else masks


def measure_costs(worker_class: str = "") -> dict[str, list[str]]:
    """Have workers measure again what batches cost them, as soon as they have nothing to compute.

    The job does not wait for it: under load that may take as long as the load lasts.

    Args:
        worker_class: whose (device, model and precision); "" for all.

    Returns:
        ``asked``: the living classes that were asked.

    Raises:
        ConfigurationError: no such worker lives.
        InvalidRequestError: ``worker_class`` is no text.
    """
    if not isinstance(worker_class, str):
        raise InvalidRequestError('worker_class: must be the name of a class, or "" for all', field="worker_class")
    with Errand() as errand:
        return {"asked": errand.line.broker().costs.request_measurement(worker_class)}


def take_stock() -> dict[str, Any]:
    """Count the queue again and look for what has leaked; the fields of ``headrace.stock.Stock``, and ``is_sound``."""
    with Errand() as errand:
        found = count_stock(errand.line.broker())
    return {**asdict(found), "is_sound": found.is_sound}


def replay_dead(ids: Sequence[str] | None = None, *, all: bool = False) -> dict[str, list[dict[str, str]]]:
    """Send requests that were given up as poison again, under new ids, as ``headrace dead replay`` does.

    Args:
        ids: requests, or entries of ``dead``; or else
        all: all of them.

    Returns:
        ``replayed``: ``id`` and ``replayed_as`` of each; ``failed``: ``id`` and ``error`` of those that stay.

    Raises:
        InvalidRequestError: neither or both were given.
        ConfigurationError: one is not in ``dead``.
    """
    names = ids or []
    are_names = isinstance(names, list) and {type(name) for name in names} <= {str}
    if all is bool(ids) or not are_names:
        raise InvalidRequestError("ids: give a list of dead requests, or all=True", field="ids")
    outcome: dict[str, list[dict[str, str]]] = {"replayed": [], "failed": []}
    with Errand() as errand, Client(errand.settings) as client:
        broker = errand.line.broker()
        for found in replay(client, broker, choose(read_dead(broker), ids, is_all=all)):
            request = found.request
            if found.error is None:
                outcome["replayed"].append({"id": request.request_id, "replayed_as": request.next_id})
            else:
                outcome["failed"].append({"id": request.request_id, "error": str(found.error)})
    return outcome
