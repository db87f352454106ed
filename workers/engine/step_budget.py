"""How long a step may become that computes prompts: others wait for its end. Pure.

Long steps compute prompts at less cost; rows that decode get their next token behind each of them, and a prompt its
first one at the end of its step. So it is a time that is bounded, and which steps keep to it is learnt from the steps
themselves, for it differs from model to model by more than ten times, and with what else the host has to do.

A step costs something however short it is: the weights are read, and the host launches as many kernels. Where this
alone exceeds the bound, shorter steps would make everybody wait longer for the same prompts; the bound is then what the
shortest step takes, and a little more. Steps are of few sizes, and what each took lately is remembered; a size of which
nothing is known any more is tried from the one below, so that steps become longer again where the host is faster.
"""

from bisect import bisect_right
from collections import Counter, deque

from headrace.workers.engine.step_work import StepWork

#: Shorter steps take hardly less time, and teach nothing of longer ones.
_LEAST_STEP = 512
#: Beside rows that decode, however many they are: prompts go on.
_LEAST_PROMPT = 256
#: Sizes nearer to each other than this are hardly told apart by their times.
_LEAST_DISTANCE = 256
#: Until a step has taught what tokens cost.
_FIRST_TOKENS = 2048
#: Steps that are remembered.
_NUM_REMEMBERED = 128
#: Of so many newest steps of a size the least time counts: what disturbs a step makes it longer, never shorter.
_NUM_COUNTING = 3
#: One such step must not keep those behind it short: a size is tried so often before it is left.
_NUM_TRIALS = 2
#: What a step may take at least, in times of the shortest one.
_OVER_SHORTEST = 1.25


class StepBudget:
    """The budget of one engine's steps.

    Args:
        step_tokens: of any step at most.
        stall_ms: what a step may take in which rows decode; 0: as long as its tokens take.
        prompt_step_ms: what a step may take in which none does; 0: likewise.
    """

    def __init__(self, step_tokens: int, stall_ms: float, prompt_step_ms: float) -> None:
        self._sizes = _sizes(step_tokens)
        self._stall_ms = stall_ms
        self._prompt_step_ms = prompt_step_ms
        self._steps: deque[tuple[int, float]] = deque(maxlen=_NUM_REMEMBERED)  # size, ms
        self._num_steps: Counter[int] = Counter()  # of those, by size
        self._times: dict[int, float] = {}  # what they take, in ms

    def tokens(self, num_others: int) -> int:
        """Tokens that the next step should compute at most: a token more than a size may cost as much as 128 more.

        Args:
            num_others: those among them that are not of prompts: of rows that decode, and of empty places beside them.
        """
        most_ms = self._stall_ms if num_others else self._prompt_step_ms
        sizes = [size for size in self._sizes if size >= num_others + _LEAST_PROMPT] or self._sizes[-1:]
        if not most_ms:
            return sizes[-1]
        times = self._times
        if not times:
            return max(sizes[0], min(sizes[-1], _FIRST_TOKENS))
        shortest = sizes[0]
        if shortest in times:
            # Whatever is longer takes no less, so a smaller time of it is newer, or less was in its way.
            most_ms = max(most_ms, _OVER_SHORTEST * min(times[size] for size in sizes if size in times))
        elif most_ms < min(max(times.values()), _OVER_SHORTEST * min(times.values())):
            return shortest  # it takes no more than any other, and is not tried where that could not raise the bound
        # The size of least cost a token says what longer ones take at most, and what shorter ones take at least.
        token_ms = min(step_ms / size for size, step_ms in times.items())
        fitting = [size for size in sizes if times.get(size, token_ms * size) <= most_ms]
        if not fitting:
            return shortest
        longer = sizes[min(sizes.index(fitting[-1]) + 1, len(sizes) - 1)]
        return longer if fitting[-1] in times and self._num_steps[longer] < _NUM_TRIALS else fitting[-1]

    def observe(self, work: StepWork, step_ms: float) -> None:
        """Learn from a step.

        Args:
            work: what it computed.
            step_ms: what it took the device.
        """
        num_prompt_tokens = sum(num_tokens for _, num_tokens in work.prompts)
        index = bisect_right(self._sizes, work.num_tokens + work.num_idle_tokens) - 1
        if step_ms > 0 and index >= 0 and num_prompt_tokens >= min(_LEAST_PROMPT, self._sizes[0]):
            self._steps.append((self._sizes[index], step_ms))
            newest: dict[int, list[float]] = {}
            for size, ms in self._steps:
                newest.setdefault(size, []).append(ms)
            self._num_steps = Counter({size: len(times) for size, times in newest.items()})
            self._times = {size: min(times[-_NUM_COUNTING:]) for size, times in newest.items()}


def _sizes(step_tokens: int) -> list[int]:
    """Powers of two from the least step on, what lies between them by quarters if that is not too near, the longest."""
    sizes: list[int] = []
    size = _LEAST_STEP
    while size < step_tokens:
        sizes += range(size, 2 * size, max(size // 4, _LEAST_DISTANCE))
        size *= 2
    return [*(size for size in sizes if size < step_tokens), step_tokens]
