"""How the requests of a job are named: after the job, so that whoever carries it out again finds what has been done."""

from hashlib import blake2b
from itertools import count

from headrace.broker import Broker

#: A job's id goes into the name as it is up to this length, which a UUID keeps; of a longer one a hash does.
_MAX_JOB_ID_CHARS = 40


def request_name(job_id: str, tenant: object = "", index: int | None = None) -> str:
    """The name of a job's request; of a job with several prompts, of one of them.

    A tenant that is no string is left out: the request is refused for it, whatever its name.
    """
    stem = job_id if len(job_id) <= _MAX_JOB_ID_CHARS else blake2b(job_id.encode(), digest_size=16).hexdigest()
    prefix = f"{tenant}:" if tenant and isinstance(tenant, str) else ""
    return f"{prefix}rq-{stem}" + ("" if index is None else f".{index}")


def current_name(broker: Broker, name: str) -> str:
    """The name under which a request is to be sent, or read on if it was sent before.

    A request that was cancelled, that expired or failed is no result: a job that is tried again after that asks anew,
    as ``<name>.r1`` and so on. One that lives, or has its result, is the job's own.
    """
    for attempt in count():
        candidate = f"{name}.r{attempt}" if attempt else name
        if not has_failed(broker.request_fields(candidate)):
            return candidate
    raise AssertionError("count() does not end")


def has_failed(fields: dict[str, str]) -> bool:
    """Whether a request's hash tells of an end without a result."""
    state = fields.get("state")
    return state == "tomb" or (state == "done" and fields.get("reason") not in ("stop", "length"))


def seed_of(name: str) -> int:
    """A seed for a request that asks for none: always the same, so that the request can be sent again as it was."""
    return int.from_bytes(blake2b(name.encode(), digest_size=8).digest()) >> 1
