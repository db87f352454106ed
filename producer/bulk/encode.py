"""The jobs ``embed``, ``classify``, ``rerank`` and ``fill``: a call of an encoder, from its texts to their answer."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from headrace.encoder_result import Answer
from headrace.errors import HeadraceError, InvalidRequestError
from headrace.moves import CancelCall
from headrace.producer.bulk.errand import Errand, check_no_task
from headrace.producer.bulk.names import current_name, request_name
from headrace.producer.bulk.watch import Watch
from headrace.producer.encoder_submission import submissions_of
from headrace.producer.encoding import TEXTS_PER_REQUEST, EncoderCall
from headrace.producer.parts import Parts
from headrace.producer.rounds import drive
from headrace.producer.submission import Submission

TASKS = ("embed", "classify", "rerank", "fill")


def call_of(task: str, fields: Mapping[str, Any]) -> EncoderCall:
    """The texts of a job, by its arguments.

    Raises:
        InvalidRequestError: there are none, or they do not fit together.
    """
    if task == "rerank":
        return EncoderCall.of_documents(fields.get("query"), fields.get("documents"), fields.get("top_n", 0))
    if task in ("embed", "classify", "fill"):
        return EncoderCall.of_input(task, fields.get("input"), fields.get("text_pair"))  # type: ignore[arg-type]
    raise InvalidRequestError(f"task: {task!r} is none of {', '.join(TASKS)}", field="task")


def names_of(job_id: str, call: EncoderCall, tenant: object) -> list[str]:
    """The names of a job's requests, before any of them has failed."""
    num_requests = len(call.requests(TEXTS_PER_REQUEST))
    return [request_name(job_id, tenant, index if num_requests > 1 else None) for index in range(num_requests)]


def run_encoder(errand: Errand, call: EncoderCall, options: Mapping[str, Any]) -> list[Answer]:
    """Submit, or find what was submitted by whoever began this job, and wait for all answers; see ``jobs.embed``."""
    check_no_task(options)
    names = names_of(errand.job.id, call, options.get("tenant", ""))
    broker = errand.line.broker()

    def one(number: int | None, request: Mapping[str, Any]) -> Submission:
        return errand.submission(current_name(broker, names[number or 0]), None, None, {**request, **options})

    submissions = submissions_of(call, TEXTS_PER_REQUEST, one)
    parts = Parts(submissions, math.inf)

    def facts() -> dict[str, Any]:
        return {
            "state": "running" if parts.num_done else "queued",
            "request_id": request_name(errand.job.id, options.get("tenant", "")),
            "total": len(submissions),
            "done": parts.num_done,
        }

    def cancel() -> None:
        parts.withdraw()
        _cancel(errand, parts.bundle.names)

    with Watch(errand.job, errand.settings, facts, cancel):
        try:
            return drive(errand.line, parts)
        except HeadraceError:
            _cancel(errand, parts.bundle.names)
            raise


def _cancel(errand: Errand, names: Sequence[str]) -> None:
    for name in names:
        errand.line.broker().run(CancelCall(name, errand.settings))
