"""Ends a job that will not be carried out any more, from outside of it: its requests, and what its meta says."""

from rq.exceptions import NoSuchJobError
from rq.job import Job

from headrace.broker import Broker
from headrace.config import Settings
from headrace.connection import open_client
from headrace.errors import InvalidRequestError
from headrace.moves import CancelCall
from headrace.producer.bulk.encode import TASKS, call_of, names_of
from headrace.producer.bulk.fleet_job import FleetJob, RefusedJobError
from headrace.producer.bulk.many import check_prompts, request_of
from headrace.producer.bulk.names import current_name, request_name

#: States of a job's meta behind which no other comes.
_ENDS = ("done", "failed", "cancelled")


def withdraw(job: Job, settings: Settings) -> None:
    """Cancel what lives of a job's requests; of one that was refused, or never asked for anything, there is nothing.

    Raises:
        BrokerUnavailableError: no server answers.
    """
    names = _names(job, settings)
    if not names:
        return
    broker = Broker(open_client(settings), settings)
    try:
        for name in names:
            current = current_name(broker, name)
            if broker.request_fields(current).get("state", "done") != "done":
                broker.run(CancelCall(current, settings))
    finally:
        broker.close()


def tell_end(job: Job, state: str) -> None:
    """Say in a job's meta how it ended, where the job's own process could not.

    Nothing of a job that is gone, or whose meta is not JSON.

    Args:
        job: any worker's object of it; what its own process has written since is kept.
        state: ``failed`` or ``cancelled``.
    """
    try:
        found = type(job).fetch(job.id, job.connection, job.serializer)
    except NoSuchJobError:
        return
    if not isinstance(found, FleetJob) or not found.has_readable_meta:
        return
    if found.meta.get("state") not in _ENDS:
        found.meta["state"] = state
        found.save_meta()  # type: ignore[no-untyped-call]
    job.meta = found.meta


def _names(job: Job, settings: Settings) -> list[str]:
    try:
        function = str(job.func_name).rpartition(".")[2]
        options = dict(job.kwargs)
        if function == "generate":
            return [request_name(job.id, options.get("tenant", ""))]
        if function in TASKS:
            return names_of(job.id, call_of(function, options), options.get("tenant", ""))
        if function != "generate_many":
            return []
        prompts = options.pop("prompts", job.args[0] if job.args else None)
        check_prompts(prompts, settings.max_rq_prompts)
        found = []
        for index, prompt in enumerate(prompts):
            try:
                found.append(request_name(job.id, request_of(prompt, options)[2].get("tenant", ""), index))
            except InvalidRequestError:
                continue  # it was never sent
    except (RefusedJobError, InvalidRequestError, TypeError, ValueError):
        return []
    return found
