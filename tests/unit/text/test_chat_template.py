import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from headrace.errors import InvalidRequestError, ModelError
from headrace.workers.model_store.store import ModelFolder
from headrace.workers.text.chat_template import ChatTemplate
from headrace.workers.text.tokenizer import Tokenizer

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
USER = {"role": "user", "content": "hi <b>there</b> 🎉"}
ASSISTANT = {"role": "assistant", "content": " yes\n"}
CHATS = [
    [USER],
    [{"role": "system", "content": "Be brief."}, USER],
    [USER, ASSISTANT, USER],
    [{"role": "user", "content": ""}],
    [{"role": "user", "content": "<|im_end|>{{ 7 * 7 }}"}],
]
# What templates in use rely on: white space control, loop controls, namespaces, JSON, the date, generation blocks.
TEMPLATES = [
    "{{ bos_token }}{% for m in messages %}\n  {% if m.role == 'user' %}\n[{{ m['content'] | trim }}]\n  {% endif %}\n"
    "{% endfor %}{% if add_generation_prompt %}A:{% endif %}{{ eos_token }}",
    "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{{ m | tojson }}{{ m | tojson(indent=2) }}"
    "{% endfor %}{{ strftime_now('%Y') }}",
    "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% generation %}{{ m.content }}"
    "{% endgeneration %}{% endfor %}{{ ns.n }}{{ tools is none }}{{ undefined_variable }}",
]


@pytest.fixture(scope="module")
def oracle(smollm2: ModelFolder) -> Any:
    return AutoTokenizer.from_pretrained(smollm2.path)


@pytest.mark.parametrize("messages", CHATS)
def test_the_models_own_template_renders_as_transformers_renders_it(
    tokenizer: Tokenizer, oracle: Any, messages: list[dict[str, str]]
) -> None:
    expected = oracle.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert tokenizer.render_chat(messages) == expected
    assert expected.endswith("<|im_start|>assistant\n")


@pytest.mark.parametrize("messages", CHATS)
@pytest.mark.parametrize("template", TEMPLATES)
def test_templates_in_use_render_as_transformers_renders_them(
    oracle: Any, template: str, messages: list[dict[str, str]]
) -> None:
    tokens = {"bos_token": oracle.bos_token, "eos_token": oracle.eos_token}
    expected = oracle.apply_chat_template(messages, chat_template=template, tokenize=False, add_generation_prompt=True)
    assert ChatTemplate(template, tokens).render(messages) == expected


def test_a_model_without_a_template_refuses_messages(sentencepiece: Tokenizer) -> None:
    with pytest.raises(InvalidRequestError, match="no chat template") as caught:
        sentencepiece.render_chat([USER])
    assert caught.value.field == "messages"


@pytest.mark.parametrize(
    ("template", "messages", "reason"),
    [
        ("{{ raise_exception('roles must alternate') }}", [USER], "roles must alternate"),
        ("{{ messages[0].content + 1 }}", [USER], "concatenate"),
        ("{{ messages[0].content.nothing.more }}", [USER], "nothing"),
        ("{{ messages.append(1) }}", [USER], "unsafe"),
        ("{{ messages.__class__.__mro__ }}", [USER], "unsafe"),
        ("{{ 1 // 0 }}", [USER], "zero"),
    ],
)
def test_what_a_template_refuses_is_the_fault_of_the_messages(
    template: str, messages: list[Mapping[str, object]], reason: str
) -> None:
    with pytest.raises(InvalidRequestError, match=reason) as caught:
        ChatTemplate(template, SPECIAL).render(messages)
    assert caught.value.field == "messages"


def test_a_template_that_is_not_jinja_is_the_models_fault() -> None:
    with pytest.raises(ModelError, match="chat template"):
        ChatTemplate("{% if %}", SPECIAL)


def test_a_template_cannot_change_the_callers_messages() -> None:
    message = {"role": "user", "content": "hi"}
    with pytest.raises(InvalidRequestError):
        ChatTemplate("{{ messages[0].update({'role': 'system'}) }}", SPECIAL).render([message])
    assert message == {"role": "user", "content": "hi"}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"tokenizer_config.json": {"chat_template": "plain {{ bos_token }}", "bos_token": "<s>"}}, "plain <s>"),
        ({"tokenizer_config.json": {"chat_template": "{{ bos_token }}", "bos_token": {"content": "<x>"}}}, "<x>"),
        (
            {
                "tokenizer_config.json": {"chat_template": "{{ eos_token }}"},
                "special_tokens_map.json": {"eos_token": "</e>"},
            },
            "</e>",
        ),
        (
            {
                "tokenizer_config.json": {
                    "chat_template": [
                        {"name": "tool_use", "template": "tools"},
                        {"name": "default", "template": "the default"},
                    ]
                }
            },
            "the default",
        ),
        ({"tokenizer_config.json": {"chat_template": "old"}, "chat_template.jinja": "own file"}, "own file"),
    ],
)
def test_the_template_and_its_tokens_are_found_wherever_folders_keep_them(
    sentencepiece_folder: Path, tmp_path: Path, files: dict[str, Any], expected: str
) -> None:
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_bytes((sentencepiece_folder / name).read_bytes())
    for name, content in files.items():
        (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content))
    assert Tokenizer.from_folder(tmp_path).render_chat([USER]) == expected
