import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tokenizers

from headrace.errors import ModelError
from headrace.workers.model_store.store import ModelFolder
from headrace.workers.text.tokenizer import Tokenizer


@pytest.fixture
def copied(sentencepiece_folder: Path, tmp_path: Path) -> Path:
    """A folder of one's own, to damage."""
    return Path(shutil.copytree(sentencepiece_folder, tmp_path / "copied"))


def change(path: Path, **fields: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_a_batch_is_encoded_in_order_and_each_text_for_itself(tokenizer: Tokenizer) -> None:
    texts = ["Hello world", "", "日本語 🎉", "a" * 1000]
    batch = tokenizer.encode_batch(texts, add_special_tokens=False)
    assert batch == [tokenizer.encode_batch([text], add_special_tokens=False)[0] for text in texts]
    assert [tokenizer.decode(ids) for ids in batch] == texts
    assert batch[0] == (19556, 905)


def test_special_tokens_written_in_a_prompt_are_parsed(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode_batch(["<|im_end|>"], add_special_tokens=False) == [(2,)]


def test_special_tokens_are_added_only_when_asked(copied: Path) -> None:
    inner = tokenizers.Tokenizer.from_file(str(copied / "tokenizer.json"))
    inner.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    inner.save(str(copied / "tokenizer.json"))
    tokenizer = Tokenizer.from_folder(copied)
    with_special, without = (tokenizer.encode_batch(["a"], add_special_tokens=asked)[0] for asked in (True, False))
    assert with_special == (1, *without)


def test_the_models_facts_are_read(tokenizer: Tokenizer) -> None:
    assert tokenizer.vocab_size == 49152
    assert tokenizer.context_length == 8192
    assert tokenizer.eos_token_ids == {0, 2}


def test_the_context_length_is_read_by_gpt2s_name_as_well(copied: Path) -> None:
    change(copied / "config.json", max_position_embeddings=None, n_positions=77)
    assert Tokenizer.from_folder(copied).context_length == 77


def test_generation_config_has_the_last_word_on_what_ends_a_text(copied: Path) -> None:
    assert Tokenizer.from_folder(copied).eos_token_ids == {2}
    (copied / "generation_config.json").write_text('{"eos_token_id": [0, 1]}')
    assert Tokenizer.from_folder(copied).eos_token_ids == {0, 1}


def test_a_tokenizer_that_was_saved_with_limits_still_encodes_whole_texts(copied: Path) -> None:
    inner = tokenizers.Tokenizer.from_file(str(copied / "tokenizer.json"))
    inner.enable_truncation(3)
    inner.enable_padding(length=8)
    inner.save(str(copied / "tokenizer.json"))
    batch = Tokenizer.from_folder(copied).encode_batch(["aaaaaa", "a"], add_special_tokens=False)
    assert [len(ids) for ids in batch] == [7, 2]


@pytest.mark.parametrize("older", ["tokenizer.model", "vocab.json", "tekken.json"])
def test_an_older_tokenizer_format_is_named_with_what_to_do(copied: Path, older: str) -> None:
    (copied / "tokenizer.json").rename(copied / older)
    with pytest.raises(ModelError, match=rf"older format {older}.*save_pretrained"):
        Tokenizer.from_folder(copied)


@pytest.mark.parametrize("name", ["tokenizer.json", "config.json"])
def test_missing_and_damaged_files_are_named(copied: Path, name: str) -> None:
    (copied / name).write_text('{"half')
    with pytest.raises(ModelError, match=rf"{name} cannot be read"):
        Tokenizer.from_folder(copied)
    (copied / name).unlink()
    with pytest.raises(ModelError, match=rf"has no {name}"):
        Tokenizer.from_folder(copied)


@pytest.mark.parametrize("field", ["vocab_size", "max_position_embeddings", "eos_token_id"])
def test_a_missing_fact_is_named(copied: Path, field: str) -> None:
    change(copied / "config.json", **{field: None})
    with pytest.raises(ModelError, match=field):
        Tokenizer.from_folder(copied)


def test_a_decoder_of_another_family_is_refused_by_name(copied: Path) -> None:
    change(copied / "tokenizer.json", decoder={"type": "WordPiece", "prefix": "##", "cleanup": True})
    with pytest.raises(ModelError, match="WordPiece"):
        _ = Tokenizer.from_folder(copied).pieces


def test_it_works_without_torch(smollm2: ModelFolder) -> None:
    code = (
        "import sys; from pathlib import Path; import headrace.workers.text.detokenizer as d;"
        f"t = d.Tokenizer.from_folder(Path({str(smollm2.path)!r})); t.pieces; t.render_chat([]);"
        "assert not {'torch', 'transformers'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
