"""``headrace status``: what a queue holds, and who works on it."""

import json
from dataclasses import asdict
from typing import Annotated, Any

import typer

from headrace.broker import Broker
from headrace.cli.options import Json, Model, Port, Queue, RedisUrl, Set, load_settings
from headrace.cli.units import duration
from headrace.overview import Overview, look
from headrace.redaction import redact


def status(
    redis_url: RedisUrl = None,
    port: Port = None,
    model: Model = None,
    queue: Queue = None,
    batches: Annotated[int, typer.Option("--batches", min=0, help="How many of the newest batches to tell of.")] = 5,
    json_: Json = False,
    set_: Set = None,
) -> None:
    """Show what waits, what runs, and who works."""
    settings = load_settings(set_, redis_url=redis_url, port=port, model=model, queue=queue)
    broker = Broker.connect(settings)
    found = look(broker, batches)
    broker.close()
    url = redact(settings.redis_url)
    if json_:
        print(json.dumps({"redis_url": url} | asdict(found)))
    else:
        print("\n".join(_lines(url, found)))


def _lines(url: str, found: Overview) -> list[str]:
    load = found.load
    lines = [
        f"{url}  queue {found.queue}  scheduler {found.leadership}",
        f"queued   {load['queued']:>8} requests {load['queued_tokens']:>10} tokens",
        f"running  {load['running']:>8} requests {load['running_tokens']:>10} tokens",
        f"ready {load['ready']}, batches {load['batches']}, dead {load['dead']}",
    ]
    about = "about " if found.is_sampled else ""
    lines += [
        f"lane {lane.lane}: {lane.num_new} new, {about}{lane.num_ready} ready, oldest {duration(lane.oldest_wait_ms)}"
        for lane in found.lanes
        if lane.oldest_wait_ms is not None
    ]
    lines += [f"{suffix}: {length} not admitted yet" for suffix, length in found.streams.items() if length]
    for batch in found.batches:
        real = "not computed yet"
        if batch.run:
            real = f"took {batch.run.cost_ms:.1f} ms"
            if batch.run.num_tokens < batch.num_tokens:
                # Nobody knew at the cut, or the prediction would look wrong.
                real += f"  {batch.run.num_tokens} of {batch.num_tokens} tokens computed, the others were known"
        lines.append(f"batch {batch.batch}  {batch.num_rows} rows  predicted {batch.predicted_ms:.1f} ms  {real}")
    if not found.workers:
        lines.append("no worker")
    for worker in found.workers:
        seen = duration(max(0, found.now_ms - worker.seen_ms))
        lines.append(f"worker {worker.worker}  {seen} ago  {_details(worker.details)}")
    return lines


def _details(details: Any) -> str:
    return "  ".join(f"{name} {value}" for name, value in details.items())
