"""Greedy tokens of the fleet against transformers: SmolLM2-135M-Instruct, fp32, CPU, fused in random arrival orders.

The prompts are pieces of the Apache licence of random lengths. A token counts as equal if it is transformers' choice
behind the tokens before it; a difference counts as a near tie only where it gives away less than 1e-3 of logit.
"""

import random
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from headrace.config import Settings
from headrace.testing.chaos import submit
from headrace.testing.collector import Collector
from headrace.testing.fleet import Fleet
from headrace.testing.rows import Report, arguments
from headrace.testing.servers import Server
from headrace.workers.model_store.store import default_cache_dir, resolve
from headrace.workers.text.tokenizer import Tokenizer

NEAR_TIE = 1e-3


def make_prompts(count: int, seed: int) -> list[str]:
    """Pieces of a text that everybody has, 1 to 60 words long."""
    words = Path("LICENSE").read_text().split()
    chance = random.Random(seed)
    starts = [(chance.randrange(len(words) - 60), chance.randint(1, 60)) for _ in range(count)]
    return [" ".join(words[start : start + length]) for start, length in starts]


@torch.inference_mode()
def compare(
    oracle: torch.nn.Module, prompt_ids: tuple[int, ...], output_ids: tuple[int, ...]
) -> tuple[int, int, float]:
    """Tokens that are transformers' choice, near ties that are not, and the largest margin given away."""
    logits = oracle(torch.tensor([[*prompt_ids, *output_ids]])).logits[0, len(prompt_ids) - 1 : -1]
    margins = logits.max(dim=-1).values - logits.gather(1, torch.tensor(output_ids)[:, None])[:, 0]
    near = int(((margins > 0) & (margins < NEAR_TIE)).sum())
    return int((margins == 0).sum()), near, float(margins.max())


def main() -> None:
    options = arguments(str(__doc__), [("prompts", 64, "requests"), ("tokens", 64, "tokens a request")])
    texts = make_prompts(options.prompts, seed=0)
    requests: list[dict[str, object]] = [
        {"prompt": text, "max_tokens": options.tokens, "temperature": 0, "ignore_eos": True} for text in texts
    ]
    chance = random.Random(1)
    order = chance.sample(range(len(texts)), len(texts))
    with Server("valkey") as server:
        settings = Settings.load(redis_url=server.url, max_context_tokens=2_048)
        with Fleet(settings) as fleet:
            names: dict[int, str] = {}
            for i in order:
                (names[i],) = submit(fleet, f"fused{i}", [requests[i]])
                time.sleep(chance.uniform(0, 0.1))
            collector = Collector(fleet.broker, names.values())
            collector.wait(1_800)
            alone_names = [submit(fleet, f"alone{i}", [requests[i]]) for i in range(0, len(texts), 8)]
            alone = Collector(fleet.broker, [name for (name,) in alone_names])
            alone.wait(600)
    folder = resolve(settings.model, default_cache_dir())
    prompt_ids = Tokenizer.from_folder(folder.path).encode_batch(texts, add_special_tokens=True)
    oracle = AutoModelForCausalLM.from_pretrained(folder.path, dtype=torch.float32).eval()
    results = [compare(oracle, prompt_ids[i], tuple(collector.transcripts[names[i]].ids)) for i in range(len(texts))]
    same_alone = sum(
        alone.transcripts[f"alone{i}-0"].ids == collector.transcripts[names[i]].ids for i in range(0, len(texts), 8)
    )
    num_tokens = len(texts) * options.tokens
    case = f"exactness/greedy-{len(texts)}x{options.tokens}"
    report = Report("scripts/bench/exactness.py")
    equal, ties = sum(r[0] for r in results), sum(r[1] for r in results)
    report.add(case, "equal_tokens", equal, "tokens", peer="all", peer_value=num_tokens)
    report.add(case, "near_ties", ties, "tokens")
    report.add(case, "wrong_tokens", num_tokens - equal - ties, "tokens")
    report.add(case, "largest_margin", max(r[2] for r in results), "logits")
    report.add(case, "texts_equal_alone_and_fused", same_alone, "texts", peer="all", peer_value=len(alone_names))
    report.finish(save=options.save)


if __name__ == "__main__":
    main()
