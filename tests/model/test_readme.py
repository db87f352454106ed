"""The README's program that needs no queue, run as it stands there."""

import re
from pathlib import Path

import torch
from transformers import AutoModel, AutoTokenizer

from headrace.workers.model_store.store import ModelFolder

README = (Path(__file__).resolve().parents[2] / "README.md").read_text()
HUB_ID = "sentence-transformers/all-MiniLM-L6-v2"


def test_the_two_lines_do_what_the_model_does(minilm: ModelFolder) -> None:
    (program,) = (block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "accelerate" in block)
    assert program.count(HUB_ID) == 2
    names: dict[str, object] = {}
    # The same model under the name that needs no hub.
    exec(program.replace(HUB_ID, str(minilm.path)), names)
    tokenizer, model = AutoTokenizer.from_pretrained(minilm.path), AutoModel.from_pretrained(minilm.path)
    with torch.inference_mode():
        expected = model(**tokenizer(names["texts"], padding=True, return_tensors="pt")).pooler_output
    vectors = names["vectors"]
    assert isinstance(vectors, torch.Tensor)
    assert (vectors - expected).abs().max() < 1e-5
