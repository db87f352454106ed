"""Under which name an answer is kept: a hash of all that it depends on. Pure."""

from hashlib import blake2b

from headrace.wire import Encoding


def cache_key(job: bytes, encoding: Encoding) -> str:
    """The name of a request's answer in the response cache.

    Args:
        job: the canonical job, encoded: token ids, every parameter with its default, the model's revision; nothing that
            makes no difference to the answer.
        encoding: of the answer, which is kept as it is published.
    """
    return blake2b(encoding.encode() + job, digest_size=16).hexdigest()
