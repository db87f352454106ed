"""The job ``generate``: one request, from its submission to its text."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from headrace.producer.bulk.errand import Errand, check_no_task
from headrace.producer.bulk.names import current_name, request_name
from headrace.producer.bulk.watch import Watch
from headrace.producer.handle import Handle
from headrace.wire import Chunk, Done


class Tally:
    """What has come of one request so far. One thread adds, another may read."""

    def __init__(self, request_id: str) -> None:
        self._request_id = request_id
        self._pieces: defaultdict[int, list[str]] = defaultdict(list)
        self._num_tokens = 0
        self._done: Done | None = None

    def add(self, chunk: Chunk) -> None:
        """Take a piece; of a request with several results, of any of them."""
        if chunk.echo is not None:
            self._pieces[chunk.index or 0].append(chunk.echo.text)
        if chunk.text:
            self._pieces[chunk.index or 0].append(chunk.text)
        self._num_tokens += len(chunk.ids)
        self._done = chunk.done

    @property
    def texts(self) -> list[str]:
        """The text of every result in order, behind the prompt's if an echo was asked for."""
        return ["".join(self._pieces[index]) for index in range(max(self._pieces, default=0) + 1)]

    def facts(self) -> dict[str, Any]:
        """For the job's meta."""
        texts = self.texts
        found: dict[str, Any] = {
            "state": "running" if self._num_tokens else "queued",
            "request_id": self._request_id,
            "tokens": self._num_tokens,
            "text": texts[0],
        }
        if len(texts) > 1:
            found["texts"] = texts
        if self._done is not None:
            usage = self._done.usage
            found["reason"] = self._done.reason
            found["usage"] = {"prompt_tokens": usage.prompt_tokens, "completion_tokens": usage.completion_tokens}
        return found


def run_one(
    errand: Errand, prompt: str | Sequence[int] | None, messages: Any, options: Mapping[str, Any]
) -> str | list[str]:
    """Submit, or find what was submitted by whoever began this job, and read on to the end; see ``jobs.generate``."""
    check_no_task(options)
    base = request_name(errand.job.id, options.get("tenant", ""))
    name = current_name(errand.line.broker(), base)
    submission = errand.submission(name, prompt, messages, options)
    # With its submission even where it was sent before: it is the job's own, and can be sent again as it was.
    handle = Handle(
        errand.line, name, submission, stream=submission.stream, via="move", timeout_s=math.inf, wait_s=0
    )  # fmt: skip
    tally = Tally(name)
    with Watch(errand.job, errand.settings, tally.facts, handle.cancel):
        errand.line.persist(lambda: errand.line.send(submission))
        for chunk in handle.stream():
            tally.add(chunk)
    texts = tally.texts
    return texts[0] if options.get("n", 1) == 1 else texts
