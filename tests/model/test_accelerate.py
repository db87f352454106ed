"""``headrace.accelerate``: somebody's transformers model, called as before."""

import copy
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from tests.model.tiny_encoders import CLASSES, CONFIGS, VOCAB, make_encoder
from torch import Tensor
from transformers import (
    AutoModel,
    AutoModelForMultipleChoice,
    BertConfig,
    BertForPreTraining,
    BertModel,
    BertPreTrainedModel,
    PreTrainedModel,
)

import headrace
from headrace.errors import ConfigurationError

TOLERANCE = 1e-4
FAMILIES = ("bert", "roberta", "xlm-roberta", "distilbert", "albert")


def inputs(
    model: PreTrainedModel, lengths: tuple[int, ...] = (5, 30, 1, 17), *, left: bool = False
) -> dict[str, Tensor]:
    """Rows padded to the longest, on the right or on the left, as a tokenizer gives them."""
    generator = torch.Generator().manual_seed(2)
    longest = max(lengths)
    mask = torch.tensor([[1] * n + [0] * (longest - n) for n in lengths])
    mask = mask.flip(1) if left else mask
    ids = torch.randint(6, VOCAB, mask.shape, generator=generator)
    given = {"input_ids": ids.where(mask.bool(), torch.tensor(model.config.pad_token_id)), "attention_mask": mask}
    if getattr(model.config, "type_vocab_size", 0) > 1:
        given["token_type_ids"] = torch.randint(0, 2, mask.shape, generator=generator)
    return given


def assert_alike(ours: Any, theirs: Any, mask: Tensor) -> None:
    """The same class and fields; the same numbers where there is no padding, and zeros where there is."""
    assert type(ours) is type(theirs)
    assert list(ours) == list(theirs)
    for name, expected in theirs.items():
        for mine, their in zip(
            *((value if isinstance(value, tuple) else (value,)) for value in (ours[name], expected)), strict=True
        ):
            assert mine.shape == their.shape, name
            assert mine.dtype == their.dtype
            kept = mask.bool()
            if mine.dim() == 4:
                pairs = (kept[:, None, :, None] & kept[:, None, None, :]).expand(mine.shape)
                assert (mine - their)[pairs].abs().max() < TOLERANCE, name
                assert not mine[~pairs].any()
            elif mine.shape[:2] == mask.shape:
                assert (mine - their)[kept].abs().max() < TOLERANCE, name
                assert not mine[~kept].any()
            else:
                assert (mine - their).abs().max() < TOLERANCE, name


@pytest.mark.parametrize("task", list(CLASSES))
@pytest.mark.parametrize("name", FAMILIES)
def test_every_head_of_every_family_gives_what_transformers_gives(name: str, task: str) -> None:
    torch.set_num_threads(1)
    labels: dict[str, Any] = {} if task == "ForQuestionAnswering" else {"num_labels": 3}
    model = make_encoder(name, task, attn_implementation="eager", **labels)
    accelerated = headrace.accelerate(model)
    assert isinstance(accelerated, type(model))
    given = inputs(model)
    ours = accelerated(**given, output_attentions=True, output_hidden_states=True)
    with torch.inference_mode():
        theirs = model(**given, output_attentions=True, output_hidden_states=True)
    assert len(theirs.attentions) == len(theirs.hidden_states) - 1 > 2
    assert_alike(ours, theirs, given["attention_mask"])


@pytest.mark.parametrize("name", FAMILIES)
def test_padding_on_the_left_holes_and_own_positions_are_honoured(name: str) -> None:
    model = make_encoder(name)
    accelerated = headrace.accelerate(model)
    left = inputs(model, left=True)
    holes = inputs(model, (9, 9))
    holes["attention_mask"][0, 3:5] = 0
    placed = {"input_ids": holes["input_ids"], "position_ids": torch.arange(40, 49)[None].flip(1)}
    for given in (left, holes, placed):
        mask = given.get("attention_mask", torch.ones_like(given["input_ids"]))
        with torch.inference_mode():
            theirs = model(**given).last_hidden_state
        assert (accelerated(**given).last_hidden_state - theirs)[mask.bool()].abs().max() < TOLERANCE


@pytest.mark.parametrize("name", ["roberta", "xlm-roberta"])
def test_tokens_of_padding_inside_a_text_count_as_they_do_in_transformers(name: str) -> None:
    model = make_encoder(name)
    ids = inputs(model, (12,))["input_ids"]
    ids[0, [0, 4, 5]] = model.config.pad_token_id
    with torch.inference_mode():
        theirs = model(ids).last_hidden_state
    assert (headrace.accelerate(model)(ids).last_hidden_state - theirs).abs().max() < TOLERANCE


def test_a_row_that_is_all_padding_gives_zeros_and_disturbs_nobody() -> None:
    model = make_encoder("bert", "ForSequenceClassification")
    given = inputs(model, (7, 4, 7))
    given["attention_mask"][1] = 0
    logits = headrace.accelerate(model)(**given).logits
    with torch.inference_mode():
        theirs = model(**given).logits
    assert (logits - theirs)[[0, 2]].abs().max() < TOLERANCE
    assert not logits[1].any()


def test_nothing_of_the_padding_is_computed() -> None:
    model = make_encoder("bert")
    accelerated: Any = headrace.accelerate(model)
    given = inputs(model, (1, 1, 1, 60))
    seen: list[int] = []
    forward = accelerated._headrace.model.forward
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(accelerated._headrace.model, "forward", lambda batch, trace: _count(seen, forward(batch, trace)))
        accelerated(**given)
    assert seen == [63]


def _count(seen: list[int], hidden: Tensor) -> Tensor:
    seen.append(hidden.shape[0])
    return hidden


def test_tuples_come_where_they_are_asked_for() -> None:
    model = make_encoder("albert")
    given = inputs(model)
    ours = headrace.accelerate(model)(**given, return_dict=False)
    with torch.inference_mode():
        theirs = model(**given, return_dict=False)
    assert isinstance(ours, tuple)
    assert len(ours) == len(theirs)


def test_threads_that_share_a_model_get_what_each_gets_alone() -> None:
    model = make_encoder("bert", "ForMaskedLM")
    accelerated = headrace.accelerate(model)
    batches = [inputs(model, lengths) for lengths in ((3, 40), (60,), (11, 11, 2), (25, 1, 9, 30))]
    alone = [accelerated(**batch).logits for batch in batches]
    with ThreadPoolExecutor(8) as threads:
        together = list(threads.map(lambda batch: accelerated(**batch).logits, batches * 12))
    assert all(torch.equal(mine, alone[number % len(batches)]) for number, mine in enumerate(together))


def test_the_original_stays_as_it_is_and_the_accelerated_one_stays_where_it_is() -> None:
    model = make_encoder("roberta")
    accelerated = headrace.accelerate(model)
    assert headrace.accelerate(accelerated) is accelerated
    assert accelerated.eval() is accelerated
    assert accelerated.to("cpu") is accelerated
    assert accelerated.float() is accelerated
    for change in (accelerated.train, accelerated.half, accelerated.double):
        with pytest.raises(ConfigurationError, match="original model"):
            change()
    before = accelerated(**inputs(model)).last_hidden_state
    model.train().double()
    assert torch.equal(accelerated(**inputs(model)).last_hidden_state, before)


def test_bf16_errs_at_most_twice_as_much_as_transformers_does() -> None:
    exact, model = make_encoder("bert"), make_encoder("bert").to(torch.bfloat16)
    given = inputs(model)
    mask = given["attention_mask"].bool()
    with torch.inference_mode():
        truth = exact(**given).last_hidden_state[mask]
        theirs = model(**given).last_hidden_state[mask].float()
    ours = headrace.accelerate(model)(**given).last_hidden_state
    assert ours.dtype == torch.bfloat16
    assert (ours[mask] - truth).abs().max() <= 2 * (theirs - truth).abs().max()


def test_torchs_compiler_leaves_it_as_it_is_and_compiles_what_is_around_it() -> None:
    model = headrace.accelerate(make_encoder("bert"))
    given = inputs(model)
    expected = model(**given).last_hidden_state
    compiled: Any = torch.compile(model, backend="eager")
    assert torch.equal(compiled(**given).last_hidden_state, expected)

    def doubled() -> Tensor:
        twice: Tensor = model(**given).last_hidden_state * 2
        return twice

    assert torch.equal(torch.compile(doubled, backend="eager")(), expected * 2)


@pytest.mark.parametrize("travel", [copy.copy, copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
@pytest.mark.parametrize("has_other_head", [False, True])
def test_an_accelerated_model_can_be_copied_and_pickled(travel: Callable[[Any], Any], has_other_head: bool) -> None:
    config_class, values = CONFIGS["bert"]
    classes = AutoModelForMultipleChoice if has_other_head else AutoModel
    original = classes.from_config(config_class(**values)).eval()
    model = headrace.accelerate(original)
    ids = torch.randint(6, VOCAB, (2, 3, 7) if has_other_head else (2, 7))
    travelled = travel(model)
    assert travelled is not model
    assert isinstance(travelled, type(original))
    with pytest.raises(ConfigurationError, match="cannot be trained"):
        travelled.train()
    assert torch.equal(travelled(ids)[0], model(ids)[0])
    assert (original(ids)[0] - travelled(ids)[0]).abs().max() < TOLERANCE


@pytest.mark.parametrize("has_other_head", [False, True])
def test_an_allocator_is_set_by_a_name_that_the_device_has(has_other_head: bool) -> None:
    config_class, values = CONFIGS["bert"]
    classes = AutoModelForMultipleChoice if has_other_head else AutoModel
    original = classes.from_config(config_class(**values)).eval()
    model = headrace.accelerate(original)
    headrace.set_allocator(model, "torch")
    with pytest.raises(ConfigurationError, match="planned on a GPU only"):
        headrace.set_allocator(model, "planned")
    with pytest.raises(ConfigurationError, match="allocator 'pool': there are planned, torch"):
        headrace.set_allocator(model, "pool")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match=r"only what headrace\.accelerate has given back"):
        headrace.set_allocator(original, "torch")


class TwoMeans(BertPreTrainedModel):  # type: ignore[misc]
    """Somebody's own model on BERT."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self.bert = BertModel(config, add_pooling_layer=False)
        self.scale = torch.nn.Linear(config.hidden_size, 2)
        self.post_init()

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        states = self.bert(input_ids, attention_mask).last_hidden_state
        means = (states * attention_mask[..., None]).sum(1) / attention_mask.sum(1, keepdim=True)
        scaled: Tensor = self.scale(means)
        return scaled


@pytest.mark.parametrize("name", FAMILIES)
def test_of_classes_with_other_heads_the_encoder_is_accelerated(name: str) -> None:
    config_class, values = CONFIGS[name]
    torch.manual_seed(3)
    model = AutoModelForMultipleChoice.from_config(config_class(**values)).eval()
    accelerated = headrace.accelerate(model)
    assert isinstance(accelerated, type(model))
    assert type(model.base_model) is not type(accelerated.base_model)
    ids = torch.randint(6, VOCAB, (2, 3, 11))
    mask = torch.ones_like(ids)
    mask[0, 1, 5:] = 0
    with torch.inference_mode():
        theirs = model(input_ids=ids, attention_mask=mask)
    ours = accelerated(input_ids=ids, attention_mask=mask)
    assert type(ours) is type(theirs)
    assert (ours.logits - theirs.logits).abs().max() < TOLERANCE
    assert not ours.logits.requires_grad


def test_what_somebody_built_on_an_encoder_and_heads_of_pretraining_are_taken_too() -> None:
    config = CONFIGS["bert"][0](**CONFIGS["bert"][1])
    given = {name: tensor for name, tensor in inputs(make_encoder("bert")).items() if name != "token_type_ids"}
    mask = given["attention_mask"].bool()
    own, pretraining = TwoMeans(config).eval(), BertForPreTraining(config).eval()
    with torch.inference_mode():
        assert (headrace.accelerate(own)(**given) - own(**given)).abs().max() < TOLERANCE
        ours, theirs = headrace.accelerate(pretraining)(**given), pretraining(**given)
    assert type(ours) is type(theirs)
    assert (ours.prediction_logits - theirs.prediction_logits)[mask].abs().max() < TOLERANCE
    assert (ours.seq_relationship_logits - theirs.seq_relationship_logits).abs().max() < TOLERANCE
    with pytest.raises(ConfigurationError, match="original model"):
        headrace.accelerate(own).train()


@pytest.mark.parametrize("name", FAMILIES)
def test_rows_may_come_without_padding(name: str) -> None:
    model = make_encoder(name)
    accelerated = headrace.accelerate(model)
    given = inputs(model)
    lengths = given["attention_mask"].sum(1).tolist()
    rows = [row[:length] for row, length in zip(given["input_ids"], lengths, strict=True)]
    types = given.get("token_type_ids")
    ragged = (
        {} if types is None else {"token_type_ids": [row[:n].tolist() for row, n in zip(types, lengths, strict=True)]}
    )
    expected = accelerated(**given).last_hidden_state
    assert torch.equal(accelerated(rows, **ragged).last_hidden_state, expected)
    assert torch.equal(accelerated([row.tolist() for row in rows], **ragged).last_hidden_state, expected)
    with pytest.raises(TypeError, match="take no attention_mask"):
        accelerated(rows, given["attention_mask"])
    with pytest.raises(ValueError, match="a list of rows of integers, one at least"):
        accelerated([])
