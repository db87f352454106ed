"""``window``: the front of what is ready. No move, for it changes nothing."""

from dataclasses import dataclass
from typing import Any, Literal

from headrace.moves.call import Argument
from headrace.moves.reply import read_bytes


@dataclass(frozen=True, slots=True)
class ReadyRequest:
    """An admitted request that waits for a batch.

    Attributes:
        request_id: its name.
        prompt_tokens: of its prompt.
        cost_tokens: prompt plus the most it may generate.
        num_tokens: published before; the next worker prefills them with the prompt.
        strikes: leases lost without a token.
        score: its place in the queue, in tokens of virtual time.
        deadline_ms: by the server's clock; 0 for none.
        submit_ms: when it came, by the server's clock.
    """

    request_id: str
    prompt_tokens: int
    cost_tokens: int
    num_tokens: int
    strikes: int
    score: float = 0.0
    deadline_ms: int = 0
    submit_ms: int = 0

    @property
    def length(self) -> int:
        """Tokens to prefill."""
        return self.prompt_tokens + self.num_tokens


@dataclass(frozen=True, slots=True)
class Window:
    """The front of what is ready.

    Attributes:
        now_ms: the server's clock.
        num_ready: how many are ready in all.
        num_running: requests in workers' hands.
        running_tokens: what these may come to hold in workers' memory, prompt and output in full.
        num_waiting: requests in batches that no worker has taken yet; 0 where they were not counted.
        waiting_tokens: what these may come to hold.
        requests: the first ones, in the order of their scores.
    """

    now_ms: int
    num_ready: int
    num_running: int
    running_tokens: int
    num_waiting: int
    waiting_tokens: int
    requests: tuple[ReadyRequest, ...]


@dataclass(frozen=True, slots=True)
class WindowCall:
    """The first ``count`` ready requests. No move, but a script, because it takes one round trip.

    Attributes:
        count: how many at most.
        counts_waiting: whether to look through the batches that wait for a worker, too.
    """

    count: int
    counts_waiting: bool = True
    move: Literal["window"] = "window"

    def arguments(self) -> list[Argument]:
        """See ``lua/window.lua``."""
        return [self.count, int(self.counts_waiting)]

    def read(self, reply: object) -> Window:
        """Of ``{now_ms, ready, running, running_tokens, waiting, waiting_tokens, 8 a request}``."""
        flat: list[Any] = read_bytes(reply)
        requests = tuple(
            ReadyRequest(request_id.decode(errors="replace"), int(prompt), int(cost), int(num_tokens), int(strikes),
                         float(score), int(deadline), int(submitted))
            for request_id, score, prompt, cost, num_tokens, strikes, deadline, submitted
            in zip(*(flat[6 + i :: 8] for i in range(8)), strict=True)
        )  # fmt: skip
        now_ms, num_ready, num_running, running_tokens, num_waiting, waiting_tokens = map(int, flat[:6])
        return Window(now_ms, num_ready, num_running, running_tokens, num_waiting, waiting_tokens, requests)
