"""Options that several commands share, and how they become settings.

An option that is not given is None, so that environment, file and default decide, in this order.
"""

import json
import re
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from headrace.cli.address import Address
from headrace.config import Settings
from headrace.errors import ConfigurationError
from headrace.keys import RESULT_ID_PATTERN
from headrace.nearest import nearest

RedisUrl = Annotated[
    str | None,
    typer.Option("--redis-url", metavar="URL", help="The Redis server. Default: the broker that `headrace up` starts."),
]
Port = Annotated[int | None, typer.Option("--port", help="Port of the broker that `headrace up` starts (6380).")]
Model = Annotated[str | None, typer.Option("--model", help="A known name, a folder, a .gguf file or a hub id.")]
Queue = Annotated[str | None, typer.Option("--queue", help="Name of the queue. Default: made from the model's.")]
LeaseMs = Annotated[int | None, typer.Option("--lease-ms", help="How long a silent worker keeps its requests.")]
MaxRows = Annotated[int | None, typer.Option("--max-rows", help="Requests in one worker's running batch.")]
KvTokens = Annotated[int | None, typer.Option("--kv-tokens", help="Tokens in one worker's key-value memory.")]
Device = Annotated[str | None, typer.Option("--device", help="Where engines compute: cpu, cuda or cuda:<index>.")]
NumThreads = Annotated[int | None, typer.Option("--num-threads", help="Threads of one engine; 0: the cores to spare.")]
DrainMs = Annotated[int | None, typer.Option("--drain-ms", help="What an end leaves running requests.")]
LogLevel = Annotated[str | None, typer.Option("--log-level", help="debug, info, warning or error.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Any other setting, e.g. --set step_tokens=256. Repeatable."),
]
Json = Annotated[bool, typer.Option("--json", help="For scripts: JSON on stdout.")]


def load_settings(assignments: Sequence[str] | None, **given: object) -> Settings:
    """Build the settings of a command that needs a server: without any URL, the one that ``headrace up`` starts.

    Args:
        assignments: those of ``--set``.
        given: the command's own options; None means not given.

    Raises:
        ConfigurationError: a value is wrong, a name unknown, or a URL on the command line carries a password.
    """
    settings = load_fleet_settings(assignments, **given)
    if is_url_given(settings) or settings.port == 0:
        return settings
    return settings.model_copy(update={"redis_url": f"redis://127.0.0.1:{settings.port}/0"})


def load_fleet_settings(assignments: Sequence[str] | None, **given: object) -> Settings:
    """Build the settings of a command that brings its own server unless one is named; else as ``load_settings``."""
    explicit = {name: value for name, value in given.items() if value is not None}
    for assignment in assignments or ():
        name, value = _parse_assignment(assignment)
        if name in explicit:
            raise ConfigurationError(f"--set {name}: given twice")
        explicit[name] = value
    _refuse_password(str(explicit.get("redis_url", "")))
    return Settings.load(**explicit)


def is_url_given(settings: Settings) -> bool:
    """Whether command line, environment or file name a server."""
    return "redis_url" in settings.model_fields_set


def parse_json_assignment(option: str, assignment: str) -> tuple[str, Any]:
    """Split ``name=json``; what is not JSON is a string.

    Raises:
        ConfigurationError: there is no ``=``.
    """
    name, separator, text = assignment.partition("=")
    if not separator or not name:
        raise ConfigurationError(f"{option} {assignment!r}: must be NAME=VALUE")
    try:
        return name, json.loads(text)
    except ValueError:
        return name, text


def _parse_assignment(assignment: str) -> tuple[str, Any]:
    name, value = parse_json_assignment("--set", assignment)
    field = name.replace("-", "_")
    if field not in Settings.model_fields:
        raise ConfigurationError(f"--set {name}: there is no such setting; {nearest(field, Settings.model_fields)}")
    # A path or a name may look like a number.
    return field, value if isinstance(value, dict | list) else assignment.partition("=")[2]


def _refuse_password(url: str) -> None:
    if Address.of(url).has_password:
        raise ConfigurationError(
            "--redis-url: leave the password out, a process list shows it to everyone on this machine; "
            "put the URL into HEADRACE_REDIS_URL, or the password into a file named by HEADRACE_REDIS_PASSWORD_FILE"
        )


def check_id(request_id: str) -> str:
    """Return a request's id if it can be one.

    Raises:
        ConfigurationError: it cannot.
    """
    if not re.fullmatch(RESULT_ID_PATTERN, request_id):
        raise ConfigurationError(f"{request_id!r} cannot be a request's id: letters, digits and _.@+=:-, at most 128")
    return request_id
