"""A model's chat template: jinja2 that its maker wrote, rendered as Hugging Face's apply_chat_template does.

The template is foreign code and the messages are the user's, so it runs in jinja2's immutable sandbox.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import NoReturn

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import CallBlock, Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from headrace.errors import InvalidRequestError, ModelError


class _GenerationTag(Extension):
    """Accepts ``{% generation %}`` blocks, which mark the assistant's words for training, and renders their inside."""

    tags = {"generation"}  # noqa: RUF012  # jinja2 declares it so

    def parse(self, parser: Parser) -> Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return CallBlock(self.call_method("_inside"), [], [], body).set_lineno(line)

    def _inside(self, caller: Callable[[], str]) -> str:
        return caller()


class ChatTemplate:
    """One compiled template."""

    def __init__(self, source: str | None, special_tokens: Mapping[str, str]) -> None:
        """Compile a template.

        Args:
            source: jinja2 source; with None every ``render`` is refused.
            special_tokens: variables that the template may use, such as ``bos_token``.

        Raises:
            ModelError: the source is not valid jinja2.
        """
        self._special_tokens = dict(special_tokens)
        self._template: jinja2.Template | None = None
        if source is not None:
            try:
                self._template = _environment().from_string(source)
            except jinja2.TemplateSyntaxError as error:
                raise ModelError(f"the model's chat template is not valid: {error}") from error

    def render(self, messages: Sequence[Mapping[str, object]]) -> str:
        """Write the conversation as a prompt that asks for the assistant's next turn.

        Raises:
            InvalidRequestError: there is no template, or it refuses the messages; the field is ``messages``.
        """
        if self._template is None:
            raise InvalidRequestError("this model has no chat template: send prompt instead", field="messages")
        try:
            return self._template.render(
                messages=[dict(message) for message in messages],
                tools=None,
                documents=None,
                add_generation_prompt=True,
                **self._special_tokens,
            )
        except jinja2.TemplateError as error:
            raise InvalidRequestError(f"the chat template refused the messages: {error}", field="messages") from error
        except (TypeError, ValueError, LookupError, ArithmeticError, AttributeError, RecursionError) as error:
            # What a template's expressions raise on content of a kind it was not written for.
            raise InvalidRequestError(
                f"the chat template cannot take these messages: {error}", field="messages"
            ) from error


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _to_json(
    value: object,
    ensure_ascii: bool = False,  # the signature that templates call
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # jinja2's own tojson escapes < and >, which would break the special tokens of tools.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)
