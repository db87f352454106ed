"""``headrace submit``: ask, and watch the answer come."""

import sys
import time
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from headrace.cli.options import Json, Model, Port, Queue, RedisUrl, Set, load_settings
from headrace.cli.printing import Meter, print_chunks, timeout_s
from headrace.cli.request_options import (
    DeadlineMs,
    Fields,
    IgnoreEos,
    MaxTokens,
    MinP,
    MinTokens,
    ReplyTo,
    Seed,
    Stop,
    StopTokenIds,
    Temperature,
    TopK,
    TopP,
    TtlMs,
    request_fields,
)
from headrace.errors import ConfigurationError
from headrace.keys import Lane
from headrace.producer import Client
from headrace.producer.handle import Handle
from headrace.wire import Chunk, Encoding

#: What a shell reports of a program that Ctrl-C has ended.
INTERRUPTED_EXIT = 130


def submit(
    prompt: Annotated[str | None, typer.Argument(help="The text; - or nothing reads it from stdin.")] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Ask as in a conversation: use the model's template.")] = False,
    system: Annotated[
        str | None, typer.Option("--system", help="With --chat: what the model shall know first.")
    ] = None,
    max_tokens: MaxTokens = None,
    min_tokens: MinTokens = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    min_p: MinP = None,
    seed: Seed = None,
    stop: Stop = None,
    stop_token_ids: StopTokenIds = None,
    ignore_eos: IgnoreEos = None,
    deadline_ms: DeadlineMs = None,
    ttl_ms: TtlMs = None,
    reply_to: ReplyTo = None,
    field: Fields = None,
    id_: Annotated[str | None, typer.Option("--id", help="The request's name. Default: drawn.")] = None,
    lane: Annotated[str, typer.Option("--lane", help="interactive, normal or bulk.")] = "normal",
    tenant: Annotated[str, typer.Option("--tenant", help="Whose request it is.")] = "",
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Only print the id, and leave.")] = True,
    timeout: Annotated[float | None, typer.Option("--timeout-s", help="Stop waiting after this time.")] = None,
    stats: Annotated[
        bool, typer.Option("--stats", help="End with a line on stderr: time to first token, tokens/s.")
    ] = False,
    json_: Json = False,
    redis_url: RedisUrl = None,
    port: Port = None,
    model: Model = None,
    queue: Queue = None,
    set_: Set = None,
) -> None:
    """Put a request into the queue and print its text as it comes. Ctrl-C cancels the request.

    With --field task=embed (classify, fill) an encoder is asked; what it answers is one line of JSON.
    """
    settings = load_settings(set_, redis_url=redis_url, port=port, model=model, queue=queue)
    limit_s = timeout_s(timeout)
    fields = request_fields(
        field, max_tokens=max_tokens, min_tokens=min_tokens, temperature=temperature, top_p=top_p, top_k=top_k,
        min_p=min_p, seed=seed, stop=stop, stop_token_ids=stop_token_ids, ignore_eos=ignore_eos,
        deadline_ms=deadline_ms, ttl_ms=ttl_ms, reply_to=reply_to,
    )  # fmt: skip
    fields = _with_prompt(fields, prompt, system, is_chat=chat)
    with Client(settings) as client:
        # lane: the client checks it, and says which ones there are.
        meter = Meter(time.monotonic())
        # For somebody who reads it, an encoder's answer is a list of numbers.
        encoding: Encoding = "json" if "task" in fields else "mp"
        handle = client.submit(request_id=id_, lane=_lane(lane), tenant=tenant, encoding=encoding, **fields)
        if handle.known_already:
            what = "this is its result, not a new one" if wait else "nothing new was submitted"
            print(f"headrace: {handle.id} is known already: {what}", file=sys.stderr)
        if not wait:
            print(handle.id)
            return
        _watch(handle, meter.watch(handle.stream(timeout_s=limit_s)), as_json=json_)
    if stats:
        print(meter, file=sys.stderr)


def _lane(name: str) -> Lane:
    if name in ("interactive", "normal", "bulk"):
        return name  # type: ignore[return-value]
    raise ConfigurationError(f"--lane {name!r}: must be interactive, normal or bulk")


def _with_prompt(fields: dict[str, Any], prompt: str | None, system: str | None, *, is_chat: bool) -> dict[str, Any]:
    """Add what is asked, from the command line or stdin, unless ``--field`` has told already."""
    if system is not None and not is_chat:
        raise ConfigurationError("--system goes with --chat")
    for name in ("prompt", "messages"):
        if name in fields and prompt is not None:
            raise ConfigurationError(f"--field {name}: given twice, the prompt is there as well")
        if name in fields and is_chat:
            raise ConfigurationError(f"--field {name}: --chat makes messages of a prompt, not of a field")
    if "prompt" in fields or "messages" in fields:
        return fields
    encodes = fields.get("task", "generate") != "generate"
    if encodes and is_chat:
        raise ConfigurationError(f"--chat: {fields['task']} takes texts, not a conversation")
    if encodes and ("input" in fields or "documents" in fields):
        if prompt is not None:
            raise ConfigurationError("give the text once: as the argument, or as --field input")
        return fields
    if prompt is None and sys.stdin.isatty():
        raise ConfigurationError("give a prompt, or write one to stdin")
    text = sys.stdin.read() if prompt in (None, "-") else prompt
    if not text:
        raise ConfigurationError("give a prompt: stdin is empty" if prompt in (None, "-") else "give a prompt")
    if not is_chat:
        return fields | {"input" if encodes else "prompt": text}
    turns = [{"role": "system", "content": system}] if system is not None else []
    return fields | {"messages": [*turns, {"role": "user", "content": text}]}


def _watch(handle: Handle, chunks: Iterator[Chunk], *, as_json: bool) -> None:
    try:
        print_chunks(chunks, as_json=as_json)
    except KeyboardInterrupt as error:
        print(f"headrace: {handle.id} {_cancel(handle)}", file=sys.stderr)
        raise typer.Exit(INTERRUPTED_EXIT) from error
    except BrokenPipeError:
        _cancel(handle)  # nobody reads it any more
        raise


def _cancel(handle: Handle) -> str:
    return "had ended" if handle.cancel() == "done" else "is cancelled"
