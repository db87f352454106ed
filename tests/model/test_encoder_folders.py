"""The forms in which folders hold encoders: names of tensors, configurations, and sentence-transformers' files."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer
from tests.model.tiny_encoders import make_encoder, texts
from torch import Tensor

from headrace.errors import ModelError
from headrace.kernels.encoder_reference import EncoderReference
from headrace.workers.encoder.items import Embedding, EncoderItem
from headrace.workers.encoder.loading import LoadedEncoder, load_encoder
from headrace.workers.encoder.runner import EncoderRunner
from headrace.workers.text.encoder_facts import read_encoder_facts

ROWS = texts(5, 33, 12)


def load(folder: Path) -> LoadedEncoder:
    return load_encoder(folder, EncoderReference(), torch.float32)


def vectors(loaded: LoadedEncoder) -> Tensor:
    results = EncoderRunner(loaded).run([EncoderItem("embed", row) for row in ROWS])
    return torch.stack([result.vector for result in results if isinstance(result, Embedding)])


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors")


def configure(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("name", ["bert", "roberta", "xlm-roberta", "distilbert", "albert"])
def test_a_head_may_stand_on_it_that_nobody_asks_for(name: str, tmp_path: Path) -> None:
    """A checkpoint of a language model, read as what its configuration says, and as the encoder alone."""
    make_encoder(name, "ForMaskedLM", tmp_path)
    expected = vectors(load(tmp_path))
    architecture = json.loads((tmp_path / "config.json").read_text())["architectures"][0]
    configure(tmp_path, architectures=[architecture.replace("ForMaskedLM", "Model")])
    assert torch.equal(vectors(load(tmp_path)), expected)
    configure(tmp_path, architectures=None)
    assert torch.equal(vectors(load(tmp_path)), expected)
    assert read_encoder_facts(tmp_path).architecture == architecture.replace("ForMaskedLM", "Model")
    configure(tmp_path, architectures=[architecture.replace("ForMaskedLM", "ForSequenceClassification")])
    with pytest.raises(ModelError, match="no tensor"):
        load(tmp_path)


def test_the_first_checkpoints_names_and_their_buffers_are_read(tmp_path: Path) -> None:
    make_encoder("bert", "ForMaskedLM", tmp_path)
    expected = vectors(load(tmp_path))

    def rename(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        first = {
            name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
            for name, tensor in tensors.items()
        }
        assert sum(name.endswith(".gamma") for name in first) == 8
        buffers = {"bert.embeddings.position_ids": torch.arange(520)[None], "cls.seq_relationship.bias": torch.ones(2)}
        return first | buffers

    rewrite(tmp_path, rename)
    assert torch.equal(vectors(load(tmp_path)), expected)
    configure(tmp_path, architectures=["BertForPreTraining"])
    assert torch.equal(vectors(load(tmp_path)), expected)
    assert "fill" in EncoderRunner(load(tmp_path)).kinds


def test_tensors_that_are_missing_or_left_over_are_named(tmp_path: Path) -> None:
    make_encoder("bert", folder=tmp_path)
    extra = {f"encoder.layer.7.extra.{index}": torch.ones(1) for index in range(10)}
    rewrite(tmp_path, lambda tensors: tensors | extra)
    with pytest.raises(ModelError, match=r"no BertModel has: encoder\.layer\.7\.extra\.0, .* and 2 more"):
        load(tmp_path)
    missing = "encoder.layer.1.output.LayerNorm.weight"
    rewrite(tmp_path, lambda tensors: {k: v for k, v in tensors.items() if k != missing and k not in extra})
    with pytest.raises(ModelError, match=f"no tensor '{missing}'"):
        load(tmp_path)


def test_configurations_that_older_versions_wrote_out_in_full_are_read(tmp_path: Path) -> None:
    make_encoder("distilbert", folder=tmp_path)
    expected = vectors(load(tmp_path))
    generation = {"max_length": 20, "do_sample": False, "num_beams": 1, "top_k": 50, "typical_p": 1.0, "prefix": "a"}
    configure(tmp_path, **generation, pruned_heads={}, torchscript=False, use_bfloat16=False, tie_weights_=True)
    assert torch.equal(vectors(load(tmp_path)), expected)
    configure(tmp_path, pruned_heads={"0": [1]})
    with pytest.raises(ModelError, match="pruned_heads"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("name", "changes", "told"),
    [
        ("bert", {"architectures": ["LlamaForCausalLM"]}, r"\['LlamaForCausalLM'\] is no encoder .* Albert, Bert"),
        ("bert", {"position_embedding_type": "relative_key"}, "position_embedding_type 'relative_key'"),
        ("bert", {"is_decoder": True}, "is_decoder True"),
        ("bert", {"hidden_act": "swish"}, "hidden_act 'swish'"),
        ("bert", {"num_attention_heads": 5}, "5 heads do not divide"),
        ("bert", {"problem_type": "ranking"}, "problem_type 'ranking'"),
        ("bert", {"id2label": {"1": "a", "2": "b"}}, "id2label does not number"),
        ("bert", {"gated_mlp": True}, "what this means is not known: gated_mlp"),
        ("bert", {"sentence_transformers": {"activation_fn": "my.Own"}}, "activation_fn 'my.Own'"),
        ("roberta", {"pad_token_id": 600}, "leaves no room for a token"),
        ("albert", {"num_hidden_groups": 9}, "3 layers cannot have 9 groups"),
        ("distilbert", {"vocab_size": 0}, "vocab_size 0"),
    ],
)
def test_what_would_be_computed_wrongly_is_refused_by_name(
    name: str, changes: dict[str, Any], told: str, tmp_path: Path
) -> None:
    make_encoder(name, folder=tmp_path)
    configure(tmp_path, **changes)
    with pytest.raises(ModelError, match=told):
        load(tmp_path)


def sentence_folder(folder: Path, *behind: Any) -> SentenceTransformer:
    """Let sentence-transformers itself write a folder, with these modules behind the transformer."""
    make_encoder("bert", folder=folder / "made")
    (folder / "made" / "tokenizer.json").write_text(json.dumps(WORDS))
    (folder / "made" / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    torch.manual_seed(7)
    made = SentenceTransformer(modules=[Transformer(str(folder / "made"), max_seq_length=77), *behind], device="cpu")
    made.save(str(folder / "saved"), create_model_card=False)
    return made.eval()


#: The smallest tokenizer that is one.
WORDS = {
    "version": "1.0",
    "added_tokens": [],
    "model": {"type": "WordLevel", "vocab": {f"w{index}": index for index in range(211)}, "unk_token": "w0"},
    "pre_tokenizer": {"type": "Whitespace"},
}


@pytest.mark.parametrize("mode", ["cls", "mean", "max", "lasttoken"])
@pytest.mark.parametrize("normalised", [True, False])
def test_vectors_are_those_of_the_folders_modules(mode: str, normalised: bool, tmp_path: Path) -> None:
    modules = [Pooling(48, pooling_mode=mode), *([Normalize()] if normalised else [])]
    assert_alike(sentence_folder(tmp_path, *modules), load(tmp_path / "saved"))


@pytest.mark.parametrize("function", [torch.nn.Tanh(), torch.nn.Identity(), torch.nn.ReLU(), torch.nn.GELU()])
@pytest.mark.parametrize("bias", [True, False])
def test_a_dense_layer_may_stand_behind_the_pooling(function: torch.nn.Module, bias: bool, tmp_path: Path) -> None:
    modules = [Pooling(48, pooling_mode="mean"), Dense(48, 20, bias, function), Dense(20, 12), Normalize()]
    made = sentence_folder(tmp_path, *modules)
    loaded = load(tmp_path / "saved")
    assert EncoderRunner(loaded).width == 12
    assert_alike(made, loaded)


def assert_alike(made: SentenceTransformer, loaded: LoadedEncoder) -> None:
    assert EncoderRunner(loaded).text_tokens == 77
    for row, ours in zip(ROWS, vectors(loaded), strict=True):
        features = {"input_ids": torch.tensor([row]), "attention_mask": torch.ones(1, len(row), dtype=torch.int64)}
        with torch.inference_mode():
            theirs = made(features)["sentence_embedding"][0]
        assert (ours - theirs).abs().max() < 1e-5


def test_poolings_in_the_old_form_are_read_and_others_are_refused(tmp_path: Path) -> None:
    make_encoder("bert", folder=tmp_path)
    place = "sentence_transformers.models."
    modules = [{"type": f"{place}Transformer", "path": ""}, {"type": f"{place}Pooling", "path": "1_Pooling"}]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    (tmp_path / "1_Pooling").mkdir()
    pooling = tmp_path / "1_Pooling" / "config.json"
    old = {"word_embedding_dimension": 48, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    pooling.write_text(json.dumps(old))
    assert load(tmp_path).sentences.pooling == "cls"
    for changes, told in (
        ({"pooling_mode_mean_tokens": True}, "2 modes of pooling are on"),
        ({"pooling_mode_cls_token": False}, "0 modes of pooling are on"),
        ({"pooling_mode_weightedmean_tokens": True}, "pooling_mode_weightedmean_tokens True"),
        ({"word_embedding_dimension": 50}, "vectors of 50 numbers, but the model's have 48"),
        ({"pooling_mode": "lasttoken_twice"}, "pooling_mode 'lasttoken_twice'"),
    ):
        pooling.write_text(json.dumps(old | changes))
        with pytest.raises(ModelError, match=told):
            load(tmp_path)
    pooling.write_text(json.dumps(old))
    (tmp_path / "modules.json").write_text(json.dumps([*modules, {"type": f"{place}LSTM", "path": "2_LSTM"}]))
    with pytest.raises(ModelError, match="a module LSTM in this place"):
        load(tmp_path)
    (tmp_path / "modules.json").write_text(json.dumps(modules[:1]))
    with pytest.raises(ModelError, match="no pooling among the modules"):
        load(tmp_path)
