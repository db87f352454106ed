"""The only jobs that an rq worker of Headrace carries out, and what is refused before anything of it is run.

Whoever may write to RQ's keys names functions in them, and RQ imports and calls what is named: with a JSON serializer
``os.system`` runs as well as with pickle. So here a job is a name that is on a list, and arguments; callbacks, which RQ
imports in the same way, bound instances and webhooks are refused, and data is JSON whatever it looks like.
"""

import zlib
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from rq.exceptions import DeserializationError, NoSuchJobError
from rq.job import Job, validate_job_id
from rq.serializers import JSONSerializer

from headrace.config import Settings
from headrace.connection import is_of_wrong_type
from headrace.errors import CancelledError, ExpiredError, HeadraceError, InvalidRequestError

_MODULE = "headrace.producer.jobs."
#: Trying again would end alike.
_LASTING = (InvalidRequestError, CancelledError, ExpiredError)


class RefusedJobError(HeadraceError, DeserializationError):
    """Raised when a job is none that this worker carries out; RQ marks it as failed."""


class FleetJob(Job):
    """A job whose function is on a list; ``under`` makes the class for given settings.

    Attributes:
        allowed: dotted names of the functions.
        max_bytes: of its uncompressed data.
    """

    allowed: ClassVar[frozenset[str]] = frozenset()
    max_bytes: ClassVar[int] = 0

    def __init__(self, id: str | None = None, connection: Any = None, serializer: object = None) -> None:
        # Whatever serializer RQ would hand down, or forgets to: there is one.
        super().__init__(id, connection=connection, serializer=JSONSerializer)

    @classmethod
    def under(cls, settings: Settings) -> type["FleetJob"]:
        """The class that allows what these settings allow."""
        limits = {
            "allowed": frozenset(_MODULE + name for name in settings.rq_jobs),
            "max_bytes": settings.max_rq_job_bytes,
        }
        return type(cls.__name__, (cls,), limits)

    @classmethod
    def fetch(cls, id: str, connection: Any = None, serializer: object = None) -> Job:
        """Find one by its name.

        Raises:
            NoSuchJobError: there is none; nor can there be one of this name, or what is there is no hash.
        """
        try:
            validate_job_id(id)
            return super().fetch(id, connection=connection, serializer=serializer)
        except Exception as error:
            if not isinstance(error, ValueError) and not is_of_wrong_type(error):
                raise
            raise NoSuchJobError(f"{id!r} is not a job: {error}") from error

    @classmethod
    def fetch_many(cls, job_ids: Iterable[str], connection: Any, serializer: object = None) -> list[Job | None]:
        """Find several; None for each that there is not."""
        found: list[Job | None] = []
        for job_id in job_ids:
            try:
                found.append(cls.fetch(job_id, connection, serializer))
            except NoSuchJobError:
                found.append(None)
        return found

    def restore(self, raw_data: Mapping[bytes, bytes]) -> None:
        """Take what is in Redis; data that is too large is not unpacked, and refused when the job's turn comes.

        An old error's text, compressed as well, is of no use here.

        Raises:
            NoSuchJobError: the hash is not a job's; the worker passes it over.
        """
        fields = {name: value for name, value in raw_data.items() if name != b"exc_info"}
        if _is_larger(fields.get(b"data", b""), self.max_bytes):
            fields[b"data"] = b"too large"
        try:
            super().restore(fields)
        except NoSuchJobError:
            raise
        except Exception as error:
            raise NoSuchJobError(f"{self.id} is not a job: {error}") from error

    def _deserialize_data(self) -> None:
        try:
            super()._deserialize_data()  # type: ignore[no-untyped-call]
        except DeserializationError as error:
            raise RefusedJobError(
                f"the job's arguments are not JSON, or have more than {self.max_bytes} bytes; "
                "enqueue with Queue(…, serializer=JSONSerializer)"
            ) from error

    @property
    def func(self) -> Any:
        """The function, imported only now that its name has been found on the list.

        Raises:
            RefusedJobError: this is no job for this worker.
        """
        name = self.func_name
        if not isinstance(name, str) or name not in self.allowed or self.instance is not None:
            allowed = ", ".join(sorted(self.allowed))
            raise RefusedJobError(f"{str(name)[:200]!r} is not a job of this worker: it carries out {allowed}")
        if not isinstance(self.args, list) or not isinstance(self.kwargs, dict):
            raise RefusedJobError("the job's arguments are not a list and an object")
        if self._success_callback_name or self._failure_callback_name or self._stopped_callback_name:
            raise RefusedJobError(
                "callbacks are not run here: enqueue a job of your own with depends_on=, for a worker of your own"
            )
        if self.webhooks:
            raise RefusedJobError("webhooks are not sent from here")
        return super().func

    @property
    def has_readable_meta(self) -> bool:
        """Whether the job's meta is an object, so that something can be added to it."""
        return isinstance(self.meta, dict) and self._unreadable_meta is None

    @property
    def success_callback(self) -> None:
        """None: RQ would import it."""

    @property
    def failure_callback(self) -> None:
        """None: RQ would import it."""

    @property
    def stopped_callback(self) -> None:
        """None: RQ would import it."""

    def send_webhooks(self, status: str, *, exc_string: str | None = None) -> None:
        """Send none: they name any address."""

    def perform(self) -> Any:
        """Carry it out; errors that trying again would not change end it, whatever retries are left."""
        try:
            return super().perform()
        except (RefusedJobError, *_LASTING):
            self.retries_left = 0
            raise


def _is_larger(data: bytes, max_bytes: int) -> bool:
    """Whether a job's data, compressed as RQ does or not, has more bytes; found out without unpacking more."""
    inflate = zlib.decompressobj()
    try:
        return len(inflate.decompress(data, max_bytes + 1)) > max_bytes
    except zlib.error:
        return len(data) > max_bytes
