"""The fields of a request as options of ``headrace submit``; ``--field`` gives those that have no option."""

import difflib
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from headrace.cli.options import parse_json_assignment
from headrace.encoder_request import REQUESTS
from headrace.errors import ConfigurationError

MaxTokens = Annotated[int | None, typer.Option("--max-tokens", help="Tokens to generate at most.")]
MinTokens = Annotated[int | None, typer.Option("--min-tokens", help="No end before this many tokens.")]
Temperature = Annotated[float | None, typer.Option("--temperature", help="0 is greedy; default 1.")]
TopP = Annotated[float | None, typer.Option("--top-p", help="Keep the likeliest tokens up to this probability.")]
TopK = Annotated[int | None, typer.Option("--top-k", help="Keep the k likeliest tokens; 0 keeps all.")]
MinP = Annotated[float | None, typer.Option("--min-p", help="Keep tokens at least this share of the likeliest.")]
Seed = Annotated[int | None, typer.Option("--seed", help="With a seed, the answer can be repeated.")]
Stop = Annotated[list[str] | None, typer.Option("--stop", help="A string that ends the text. Repeatable.")]
StopTokenIds = Annotated[list[int] | None, typer.Option("--stop-token-id", help="A token id that ends it. Repeatable.")]
IgnoreEos = Annotated[bool | None, typer.Option("--ignore-eos", help="The model's own end does not end the text.")]
DeadlineMs = Annotated[int | None, typer.Option("--deadline-ms", help="Give up after this time.")]
TtlMs = Annotated[int | None, typer.Option("--ttl-ms", help="Life of the result after its end.")]
ReplyTo = Annotated[str | None, typer.Option("--reply-to", help="Name of a reply stream that gets the chunks, too.")]
Fields = Annotated[
    list[str] | None, typer.Option("--field", metavar="NAME=JSON", help="Any other field of a request. Repeatable.")
]


#: What is no field of a body but has an option; the names are the SDK's and the options'.
_OPTIONS = {"id": "--id", "request_id": "--id", "lane": "--lane", "tenant": "--tenant", "timeout_s": "--timeout-s",
            "chat": "--chat", "system": "--system"}  # fmt: skip
_FIELDS = tuple({name: None for request in REQUESTS.values() for name in request.model_fields if name not in _OPTIONS})


def request_fields(assignments: Sequence[str] | None, **options: Any) -> dict[str, Any]:
    """The fields that were given, by option or by ``--field``.

    Raises:
        ConfigurationError: one is no field of a request, was given twice, or has no value.
    """
    fields = {name: value for name, value in options.items() if value is not None and value != []}
    for assignment in assignments or ():
        name, value = parse_json_assignment("--field", assignment)
        if name in _OPTIONS:
            raise ConfigurationError(f"--field {name}: no field of a request; give it as {_OPTIONS[name]}")
        if name not in _FIELDS:
            near = difflib.get_close_matches(name, _FIELDS, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(sorted(_FIELDS))}"
            raise ConfigurationError(f"--field {name}: unknown field; {hint}")
        if name in fields:
            raise ConfigurationError(f"--field {name}: given twice")
        fields[name] = value
    return fields
