"""What a job works with: its own record in RQ, the settings, and a line to the fleet."""

import math
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from rq import get_current_job
from rq.job import Job

from headrace.config import Settings
from headrace.errors import ConfigurationError, InvalidRequestError
from headrace.producer.bulk.names import seed_of
from headrace.producer.line import Line
from headrace.producer.submission import Submission, prepare

#: What a job's arguments say of the way in which a request is sent; all else are the request's fields.
_MANNERS: Mapping[str, str] = {"lane": "normal", "tenant": "", "encoding": "mp", "durability": "memory"}


def check_no_task(options: Mapping[str, Any]) -> None:
    """See that a job's arguments do not ask for what another job is for.

    Raises:
        InvalidRequestError: they do.
    """
    if "task" in options:
        raise InvalidRequestError(
            "task: a job's name says what it does; enqueue headrace.producer.jobs.embed, classify, rerank or fill",
            field="task",
        )


class Errand:
    """Use it in a ``with``, inside a job.

    Settings come from environment and file: ``headrace rq-worker`` hands its own down to the processes of its jobs.
    A server that is away is waited for as long as the job's own time lasts.

    Attributes:
        job: that is being carried out.
        settings: server, queue and limits.
        line: to the fleet.

    Raises:
        ConfigurationError: no RQ worker is at work here, or a setting is wrong.
    """

    def __init__(self) -> None:
        job = get_current_job()
        if job is None:
            raise ConfigurationError("this is a job for an RQ worker; without one, use headrace.producer.Client")
        self.job: Job = job
        self.settings = Settings.load()
        self.line = Line(self.settings, "move", math.inf)

    def submission(
        self, name: str, prompt: str | Sequence[int] | None, messages: Any, options: Mapping[str, Any]
    ) -> Submission:
        """A request under a name, ready to be sent; what is not given is always filled in alike.

        Raises:
            InvalidRequestError: a field breaks a rule.
        """
        for field in ("id", "request_id"):
            if field in options:
                raise InvalidRequestError(f"{field}: a job's request is named after the job", field=field)
        manner = {key: options.get(key, default) for key, default in _MANNERS.items()}
        fields = {key: value for key, value in options.items() if key not in _MANNERS}
        if fields.get("seed") is None and "task" not in fields:
            # Always the same one; but nobody chose it, and nobody else's request will have it.
            fields["seed"] = seed_of(name)
            if fields.get("temperature", 1.0) != 0:
                fields.setdefault("cache", False)
        return prepare(self.settings, prompt, messages, fields, request_id=name, via="move", **manner)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.line.close()
