"""The same through the result's channel: subscribe, then add. The stream is the truth, and fills every gap.

python subscribe.py "The capital of France is"
"""

import json
import os
import sys
import uuid
from typing import Any

import redis
from redis.backoff import ExponentialWithJitterBackoff
from redis.retry import Retry

URL = os.environ.get("REDIS_URL", "redis://127.0.0.1:6380/0")
QUEUE = os.environ.get("QUEUE", "smollm2-135m")
PREFIX = f"hr:{{{QUEUE}}}:"
# A connection that broke is opened again, and the channel subscribed to again.
RETRY = Retry(ExponentialWithJitterBackoff(cap=2), retries=5)
#: After so long without a chunk, one may have been lost: a channel keeps nothing for a connection that broke.
SILENCE_S = 2.0


class Reader:
    """Prints chunks, each token once, whichever way and however often they come."""

    def __init__(self) -> None:
        self.num_tokens = 0
        self.num_chars = 0
        self.done: dict[str, Any] | None = None

    def take(self, chunk: dict[str, Any]) -> bool:
        """Print what is new; False if there is a gap before it. ``i`` counts tokens, ``o`` code points."""
        if chunk["i"] > self.num_tokens:
            return False
        print(chunk["text"][max(0, self.num_chars - chunk["o"]) :], end="", flush=True)
        self.num_tokens = max(self.num_tokens, chunk["i"] + len(chunk["ids"]))
        self.num_chars = max(self.num_chars, chunk["o"] + len(chunk["text"]))
        self.done = chunk.get("done", self.done)
        return True


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    request = {"id": str(uuid.uuid4()), "prompt": sys.argv[1], "max_tokens": 32, "temperature": 0}
    out = f"{PREFIX}out:{request['id']}"
    reader = Reader()
    with redis.Redis.from_url(URL, protocol=2, retry=RETRY) as client, client.pubsub() as channel:
        channel.subscribe(out)
        channel.get_message(timeout=5)  # the server's confirmation: from here on nothing is missed
        client.xadd(f"{PREFIX}requests", {"id": request["id"], "json": json.dumps(request)})
        while reader.done is None:
            message = channel.get_message(ignore_subscribe_messages=True, timeout=SILENCE_S)
            if message is None or not reader.take(json.loads(message["data"])):
                for _, fields in client.xrange(out, f"({reader.num_tokens}-0"):
                    reader.take(json.loads(fields[b"json"]))
    print()
    if reader.done["reason"] == "error":
        sys.exit(reader.done["error"]["message"])
    print(reader.done["reason"], reader.done["usage"], file=sys.stderr)


main()
