"""Ask a fleet and print the answer token by token, with plain redis-py: XADD, then XREAD.

python stream.py "The capital of France is"
"""

import json
import os
import sys
import uuid

import redis
from redis.backoff import ExponentialWithJitterBackoff
from redis.retry import Retry

URL = os.environ.get("REDIS_URL", "redis://127.0.0.1:6380/0")
QUEUE = os.environ.get("QUEUE", "smollm2-135m")
PREFIX = f"hr:{{{QUEUE}}}:"
# A command whose reply was lost is sent again: a second entry with the same id changes nothing.
RETRY = Retry(ExponentialWithJitterBackoff(cap=2), retries=5)


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    request = {"id": str(uuid.uuid4()), "prompt": sys.argv[1], "max_tokens": 32, "temperature": 0}
    out = f"{PREFIX}out:{request['id']}"
    with redis.Redis.from_url(URL, protocol=2, retry=RETRY) as client:
        client.xadd(f"{PREFIX}requests", {"id": request["id"], "json": json.dumps(request)})
        # An entry's id is the number of tokens written once it is in: there is nothing else to remember.
        position, done = "0", None
        while done is None:
            for _, entries in client.xread({out: position}, block=5000) or ():
                for entry, fields in entries:
                    chunk = json.loads(fields[b"json"])
                    print(chunk["text"], end="", flush=True)
                    position, done = entry, chunk.get("done")
    print()
    if done["reason"] == "error":
        sys.exit(done["error"]["message"])
    print(done["reason"], done["usage"], file=sys.stderr)


main()
