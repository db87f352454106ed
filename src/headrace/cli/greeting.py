"""What ``headrace up`` says once the fleet is ready: where it listens, and ways to ask it."""

import shlex

from headrace.cli.address import Address
from headrace.cli.fleet import Fleet
from headrace.config import Settings
from headrace.keys import Keys, RequestStream
from headrace.redaction import redact

_BODY = '{"id":"a1","prompt":"The capital of France is","max_tokens":8,"temperature":0}'
_ENCODER_BODY = '{"id":"a1","task":"embed","input":"The sea is calm."}'


def greeting(fleet: Fleet, *, encodes: bool = False) -> list[str]:
    """Lines for somebody who is going to copy them into another terminal. None holds a password.

    Args:
        fleet: that is ready.
        encodes: it serves an encoder, which writes no text.
    """
    settings = fleet.settings
    address = Address.of(settings.redis_url)
    queue, keys = settings.queue_name, Keys(settings.queue_name)
    requests, out = keys.requests(RequestStream("normal")), keys.out("a1")
    server = shlex.join(address.redis_cli())
    url = "" if address.has_password else f'url="{settings.redis_url}", '
    client = f'Client({url}queue="{queue}")'
    if encodes:
        body, python = _ENCODER_BODY, f'print({client}.embed("The sea is calm.").vector)'
    else:
        body, python = _BODY, f'[print(piece, end="") for piece in {client}.generate("A headrace is")]'
    shown = redact(address.url if address.has_password and "?" in settings.redis_url else settings.redis_url)
    return [
        f"ready: {shown}, queue {queue}, workers: {settings.workers}. Ctrl-C ends it. Try, in another terminal:",
        *_preparation(settings, address),
        f"  {server} XADD '{requests}' '*' json '{body}'; {server} XREAD BLOCK 9999 STREAMS '{out}' 0",
        *([] if encodes else [f"  headrace submit {_client_options(fleet, address)}--chat 'What is a headrace?'"]),
        f"  python -c 'from headrace.producer import Client; {python}'",
    ]


def _preparation(settings: Settings, address: Address) -> list[str]:
    """What the lines to try need in the environment, where the server asks for a password."""
    lines = []
    if address.has_password:
        lines.append(
            "  (first: export HEADRACE_REDIS_URL with the URL that this fleet uses, and REDISCLI_AUTH, its password)"
        )
    if settings.redis_password_file is not None:
        path = shlex.quote(str(settings.redis_password_file.expanduser().resolve()))
        lines.append(f'  export HEADRACE_REDIS_PASSWORD_FILE={path} REDISCLI_AUTH="$(cat {path})"')
    return lines


def _client_options(fleet: Fleet, address: Address) -> str:
    settings = fleet.settings
    options = []
    if fleet.broker is None and not address.has_password:
        options += ["--redis-url", settings.redis_url]
    elif fleet.broker is not None and settings.port != Settings.model_fields["port"].default:
        options += ["--port", str(settings.port)]
    if settings.queue or settings.model != Settings.model_fields["model"].default:
        options += ["--queue", settings.queue_name]
    return "".join(f"{shlex.quote(option)} " for option in options)
