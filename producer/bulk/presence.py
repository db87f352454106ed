"""Which rq workers of this host live, by the heartbeats that RQ's own workers leave. Asked by ``headrace health``."""

import socket
import time

from rq.serializers import JSONSerializer
from rq.worker import Worker

from headrace.config import Settings
from headrace.connection import open_client, translated


def silences_ms(settings: Settings) -> dict[str, float]:
    """The host's rq workers by name, and for how long each has sent no heartbeat; those silent for a lease left out.

    RQ takes a heartbeat's time from the worker's clock, which on one host is the asker's, too.

    Raises:
        BrokerUnavailableError: no server answers.
    """
    with open_client(settings) as client, translated(settings):
        workers = Worker.all(connection=client, serializer=JSONSerializer)
    now_s = time.time()
    silences = {
        worker.name: (now_s - worker.last_heartbeat.timestamp()) * 1000
        for worker in workers
        if worker.hostname == socket.gethostname() and worker.last_heartbeat is not None
    }
    return {name: silence_ms for name, silence_ms in silences.items() if silence_ms <= settings.rq_lease_ms}
