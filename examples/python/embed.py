"""Ask an encoder how near texts are to the first one, with plain redis-py: XADD, then XREAD.

python embed.py "How far is the harbour?" "Two miles to the port." "A loaf of bread."
"""

import json
import operator
import os
import sys
import uuid

import redis
from redis.backoff import ExponentialWithJitterBackoff
from redis.retry import Retry

URL = os.environ.get("REDIS_URL", "redis://127.0.0.1:6380/0")
QUEUE = os.environ.get("QUEUE", "all-minilm-l6-v2")
PREFIX = f"hr:{{{QUEUE}}}:"
# A command whose reply was lost is sent again: a second entry with the same id changes nothing.
RETRY = Retry(ExponentialWithJitterBackoff(cap=2), retries=5)


def main() -> None:
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    request = {"id": str(uuid.uuid4()), "task": "embed", "input": sys.argv[1:], "normalize": True}
    out = f"{PREFIX}out:{request['id']}"
    with redis.Redis.from_url(URL, protocol=2, retry=RETRY) as client:
        client.xadd(f"{PREFIX}requests", {"id": request["id"], "json": json.dumps(request)})
        reply = None
        while not reply:
            reply = client.xread({out: "0"}, block=5000)
    # There is one chunk, the last; a refusal is one, too.
    ((_, ((_, fields),)),) = reply
    done = json.loads(fields[b"json"])["done"]
    if done["reason"] != "stop":
        sys.exit(done["error"]["message"] if "error" in done else done["reason"])
    first, *others = done["result"]["embeddings"]
    for text, vector in zip(sys.argv[2:], others, strict=True):
        print(f"{sum(map(operator.mul, first, vector)):.3f}  {text}")


main()
