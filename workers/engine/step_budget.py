"""How long a step may become that computes prompts: others wait for its end. Pure.

Long steps compute prompts at less cost; rows that decode get their next token behind each of them, and a prompt its
first one at the end of its step. So it is a time that is bounded, and how many tokens take that long is learnt from the
steps themselves, for it differs from model to model by more than ten times.
"""

from headrace.workers.engine.step_work import StepWork

#: Fewer tokens teach nothing: such a step takes as long as reading the weights does.
_LEAST_TOKENS = 256
#: Until a step has taught what tokens cost.
_FIRST_TOKENS = 2048
#: Of the newest step in what is known: one slow step must not shorten those behind it for long.
_NEWS = 0.25
#: Sizes that products like.
_MULTIPLE = 256
#: Shorter steps take hardly less time.
_LEAST_STEP = 512


class StepBudget:
    """The budget of one engine's steps.

    Args:
        step_tokens: of any step at most.
        stall_ms: what a step may take in which rows decode; 0: as long as its tokens take.
        prompt_step_ms: what a step may take in which none does; 0: likewise.
    """

    def __init__(self, step_tokens: int, stall_ms: float, prompt_step_ms: float) -> None:
        self._step_tokens = step_tokens
        self._stall_ms = stall_ms
        self._prompt_step_ms = prompt_step_ms
        self._token_ms = 0.0

    def tokens(self, num_decoding: int) -> int:
        """Tokens that the next step may have, at most.

        Args:
            num_decoding: rows that decode in it, whose tokens are among them.
        """
        most_ms = self._stall_ms if num_decoding else self._prompt_step_ms
        if not most_ms:
            return self._step_tokens
        fitting = int(most_ms / self._token_ms) if self._token_ms else _FIRST_TOKENS
        # However slow tokens are, prompts go on.
        fitting = max(_LEAST_STEP, fitting // _MULTIPLE * _MULTIPLE)
        return min(self._step_tokens, max(fitting, num_decoding + _MULTIPLE))

    def observe(self, work: StepWork, step_ms: float) -> None:
        """Learn from a step.

        Args:
            work: what it computed.
            step_ms: what it took the device.
        """
        num_prompt_tokens = sum(num_tokens for _, num_tokens in work.prompts)
        if step_ms <= 0 or num_prompt_tokens < max(_LEAST_TOKENS, work.num_tokens // 2):
            return
        token_ms = step_ms / work.num_tokens
        self._token_ms = token_ms if not self._token_ms else (1 - _NEWS) * self._token_ms + _NEWS * token_ms
