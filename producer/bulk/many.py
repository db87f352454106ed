"""The job ``generate_many``: requests in a bundle, so many at a time, until each has its text or its error."""

import math
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from headrace.errors import (
    BrokerUnavailableError,
    CancelledError,
    HeadraceError,
    InvalidRequestError,
    OverloadedError,
)
from headrace.moves import CancelCall
from headrace.producer.bulk.errand import Errand, check_no_task
from headrace.producer.bulk.failure import failure_fields
from headrace.producer.bulk.names import current_name, request_name
from headrace.producer.bulk.watch import Watch
from headrace.producer.bundle import Bundle
from headrace.producer.cutting import Cutter
from headrace.producer.patience import Patience
from headrace.producer.reading import Reading
from headrace.producer.rounds import take_round


class ManyRun:
    """One pass over all prompts.

    Args:
        errand: of the job.
        prompts: see ``jobs.generate_many``.
        options: fields and manner of all requests.

    Raises:
        InvalidRequestError: there is no list of prompts, it is too long, or ``n`` is asked for.
    """

    def __init__(self, errand: Errand, prompts: Sequence[object], options: Mapping[str, Any]) -> None:
        check_prompts(prompts, errand.settings.max_rq_prompts)
        self._errand = errand
        self._options = options
        self._prompts = prompts
        self._waiting = deque(range(len(prompts)))
        self._bundle = Bundle()
        self._pieces: list[list[str]] = [[] for _ in prompts]
        self._reasons = [""] * len(prompts)
        self._results: list[dict[str, Any] | None] = [None] * len(prompts)
        self._num_tokens = self._num_done = self._num_failed = 0
        self._patience = Patience(math.inf)
        self._not_before_s = 0.0
        self._is_cancelled = False

    def run(self) -> list[dict[str, Any] | None]:
        """To the end; a result for each prompt, in their order.

        Raises:
            CancelledError: the job is not wanted any more.
        """
        with Watch(self._errand.job, self._errand.settings, self.facts, self.cancel):
            while self._waiting or self._bundle:
                if self._is_cancelled:
                    self.cancel()  # once more, for what went in meanwhile
                    raise CancelledError(f"job {self._errand.job.id} was cancelled")
                self._submit()
                self._read()
        return self._results

    def facts(self) -> dict[str, Any]:
        """For the job's meta."""
        return {
            "state": "running" if self._num_tokens or self._num_done or self._num_failed else "queued",
            "request_id": request_name(self._errand.job.id, self._options.get("tenant", "")),
            "total": len(self._prompts),
            "done": self._num_done,
            "failed": self._num_failed,
            "tokens": self._num_tokens,
        }

    def cancel(self) -> None:
        """End what is in the queue, and submit nothing more."""
        self._is_cancelled = True
        settings = self._errand.settings
        for name in self._bundle.names:
            self._errand.line.broker().run(CancelCall(name, settings))

    def _submit(self) -> None:
        """Send as many as may be in the queue at once; where it is full, wait before the next one."""
        line, in_flight = self._errand.line, self._errand.settings.rq_in_flight
        while self._waiting and len(self._bundle) < in_flight and time.monotonic() >= self._not_before_s:
            index = self._waiting[0]
            try:
                prompt, messages, options = request_of(self._prompts[index], self._options)
                base = request_name(self._errand.job.id, options.get("tenant", ""), index)
                name = current_name(line.broker(), base)
                submission = self._errand.submission(name, prompt, messages, options)
                now_s = time.monotonic()
                reading = Reading(
                    name, submission, Cutter(), via="move", now_s=now_s, timeout_s=math.inf, wait_s=0
                )  # fmt: skip
                # First into the bundle: whoever cancels the job must find it there.
                self._bundle.add(index, reading)
                try:
                    line.send(submission)
                except (OverloadedError, BrokerUnavailableError, InvalidRequestError):
                    self._bundle.remove(name)
                    raise
            except (OverloadedError, BrokerUnavailableError):
                self._not_before_s = time.monotonic() + self._patience.pause_s(time.monotonic())
                return
            except InvalidRequestError as error:
                self._fail(index, error)
            else:
                self._patience.renew()
            self._waiting.popleft()

    def _read(self) -> None:
        if not self._bundle:
            time.sleep(max(0.0, self._not_before_s - time.monotonic()))
            return
        step = self._bundle.next_round(time.monotonic())
        try:
            pieces = take_round(self._errand.line, step, self._bundle)
        except (BrokerUnavailableError, OverloadedError) as error:
            self._bundle.failed(error, time.monotonic())
            return
        for piece in pieces:
            index = piece.index or 0
            self._pieces[index].append((piece.echo.text if piece.echo else "") + piece.text)
            self._num_tokens += len(piece.ids)
            if piece.done is not None:
                self._reasons[index] = piece.done.reason
        for index, reading in self._bundle.take_ended():
            if reading.failure is not None:
                self._fail(index, reading.failure)
            else:
                text = "".join(self._pieces[index])
                self._results[index] = {"text": text, "reason": self._reasons[index], "error": None}
                self._num_done += 1

    def _fail(self, index: int, error: HeadraceError) -> None:
        self._results[index] = {"text": None, "reason": "error", "error": failure_fields(error)}
        self._num_failed += 1


def check_prompts(prompts: object, max_prompts: int) -> None:
    """See that there is a list of prompts, and not too many.

    Raises:
        InvalidRequestError: there is not.
    """
    if not isinstance(prompts, list | tuple) or not prompts:
        raise InvalidRequestError("prompts: must be a list with at least one prompt", field="prompts")
    if len(prompts) > max_prompts:
        raise InvalidRequestError(
            f"prompts: {len(prompts)} of them, a job takes at most {max_prompts}: enqueue several jobs", field="prompts"
        )


def request_of(prompt: object, shared: Mapping[str, Any]) -> tuple[Any, Any, dict[str, Any]]:
    """Prompt, messages and options of one request; its own fields go before those of all.

    Raises:
        InvalidRequestError: it asks for several results, or for an encoder.
    """
    own = dict(prompt) if isinstance(prompt, dict) else {"prompt": prompt}
    options = {**shared, **own}
    check_no_task(options)
    if options.get("n", 1) != 1:
        raise InvalidRequestError("n: generate_many gives one text a prompt; name a prompt several times", field="n")
    return options.pop("prompt", None), options.pop("messages", None), options
