"""What both kinds of handle know of their request, and how they begin to read it. Pure but for the clock."""

import time
from typing import Generic, TypeVar

from headrace.keys import RequestStream
from headrace.producer.cutting import Cutter
from headrace.producer.group import Group
from headrace.producer.reading import Reading
from headrace.producer.submission import Submission, Via

AnyLine = TypeVar("AnyLine")


class HeldRequest(Generic[AnyLine]):
    """A request, and the line that it is read on.

    Args:
        line: to the server.
        request_id: the request's name.
        submission: to send again if the broker comes back without it; None: it is somebody else's.
        stream: that it was added to.
        via: how it was sent.
        timeout_s: for a whole result, unless a call says otherwise.
        wait_s: how long a request that nobody knows may still come.
        known_already: see ``Handle``.
    """

    def __init__(
        self,
        line: AnyLine,
        request_id: str,
        submission: Submission | None,
        *,
        stream: RequestStream,
        via: Via,
        timeout_s: float,
        wait_s: float,
        known_already: bool = False,
    ) -> None:
        self.id = request_id
        self.known_already = known_already
        self._line = line
        self._submission = submission
        self._stream = stream
        self._via: Via = via
        self._timeout_s = timeout_s
        self._wait_s = wait_s

    def _reading(self, request_id: str, cutter: Cutter, timeout_s: float, wait_s: float) -> Reading:
        return Reading(
            request_id,
            self._submission,
            cutter,
            via=self._via,
            now_s=time.monotonic(),
            timeout_s=timeout_s,
            wait_s=wait_s,
        )

    def _group(self, parent: Reading, timeout_s: float, *, num_held: int) -> Group:
        """Begin to read all results of a request that has turned out to have several.

        Raises:
            ValueError: the caller holds tokens, and nobody knows of which result.
        """
        if num_held:
            raise ValueError(
                f"{self.id} has {len(parent.children)} results: read one of them, {parent.children[0]} say"
            )
        return Group(parent, [self._reading(name, Cutter(), timeout_s, timeout_s) for name in parent.children])
