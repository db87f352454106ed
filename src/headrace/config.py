"""Every setting of every process, in one frozen object that is built once at the edge and handed down.

Where their values come from stands in ``setting_sources``.
"""

import re
from pathlib import Path
from typing import Annotated, Literal, get_args
from urllib.parse import quote, urlsplit, urlunsplit

from pydantic import Field, field_validator

from headrace.errors import ConfigurationError
from headrace.keys import Lane, check_tenant
from headrace.setting_sources import SourcedSettings

Positive = Annotated[int, Field(gt=0)]
#: Of a lane or a tenant. Whoever had an infinite share would never wait for anybody.
Weight = Annotated[float, Field(gt=0, allow_inf_nan=False)]
#: How a window becomes batches, and what the dynamic program minimises; ``headrace.workers.scheduler.strategy``.
Batching = Literal["none", "naive", "sorted", "packed", "dp", "auto"]
Objective = Literal["total", "mean", "misses"]
#: When a window is handed over; ``headrace.workers.scheduler.trigger``.
Trigger = Literal["hungry", "lazy", "half_goal"]
#: A function of ``headrace.producer.jobs``.
RqJob = Literal[
    "generate", "generate_many", "embed", "classify", "rerank", "fill", "measure_costs", "take_stock", "replay_dead"
]


class Settings(SourcedSettings):
    """Settings with their defaults. Times are in ms, sizes in tokens, rows or bytes, as the names say."""

    # What is served, and where
    redis_url: str = Field(
        "redis://127.0.0.1:6380/0",
        description="rediss:// for TLS, unix:// for a socket",
    )
    redis_password_file: Path | None = Field(None, description="file holding the password, so that no URL has to")
    model: Annotated[str, Field(min_length=1)] = Field(
        "smollm2-135m", description="catalogue name, folder, .gguf file, or hub id org/name"
    )
    queue: str = Field("", description="tag of the queue's keys; empty: derived from the model")
    cache_dir: Path | None = Field(None, description="where pulled models live; default: the user's cache")
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    # What a request may ask
    max_body_bytes: Positive = Field(1 << 20, description="size of one request's body")
    max_context_tokens: Positive = Field(
        8192, description="prompt and output together; the model's own limit binds too"
    )
    default_max_tokens: Positive = Field(256, description="output, where the request does not say")
    max_request_texts: Positive = Field(1_024, description="texts, or documents, of one request to an encoder")
    max_request_tokens: Positive = Field(
        32_768, description="tokens of all texts of one request to an encoder; no worker's memory may hold fewer"
    )
    result_ttl_ms: Positive = Field(
        600_000, description="life of a result after its end, where the request does not say"
    )
    max_result_ttl_ms: Positive = 86_400_000
    max_queued_requests: Positive = Field(200_000, description="backlog at which new requests are refused")
    max_queued_tokens: Positive = Field(100_000_000, description="backlog, prompt and output tokens, of the same")

    # The response cache: of schedulers and workers alike
    cache_entries: Annotated[int, Field(ge=0)] = Field(
        0,
        description="answers kept for requests that come again, must come out alike and ask for one result; 0: none",
    )
    cache_bytes: Positive = Field(64 << 20, description="size of these answers, all together")
    cache_life_ms: Positive = Field(3_600_000, description="life of such an answer")

    # The scheduler
    lane_offset_tokens: dict[Lane, Annotated[int, Field(ge=0)]] = Field(
        default={"interactive": 0, "normal": 16_384, "bulk": 262_144},
        description="head start of lanes over each other, in tokens of virtual time",
    )
    lane_weights: dict[Lane, Weight] = Field(
        default={"interactive": 2.0, "normal": 1.0, "bulk": 0.5},
        description="shares of a window, in tokens, where every lane has a backlog",
    )
    tenants: dict[str, Weight] = Field(default={}, description="tenants with streams of their own, and their weights")
    window: Positive = Field(256, description="requests read, tokenised and partitioned at once")
    batching: Batching = Field(
        "auto", description="how a window becomes batches; auto: by the measured costs, padded or packed"
    )
    objective: Objective = Field(
        "total", description="what is least: total cost, mean completion time, or deadlines missed"
    )
    overtaking_tokens: Positive = Field(
        16_384, description="how far an objective may let others overtake a request, in tokens of virtual time"
    )
    trigger: Trigger = Field(
        "hungry", description="when a window is handed over: at once, when it is full or old, or by the latency goal"
    )
    lazy_timeout_ms: Annotated[int, Field(ge=0)] = Field(
        50, description="trigger lazy: how long the oldest request waits for company"
    )
    latency_goal_ms: Positive = Field(
        1_000, description="trigger half_goal: hand over when waiting and computing come to half of this"
    )
    hand_over_ms: Positive = Field(
        100, description="triggers lazy and half_goal: what a wait leaves of a deadline for the way to a worker"
    )
    drop_hopeless: bool = Field(
        False, description="end a request at once that cannot meet its deadline even alone, by the measured costs"
    )
    max_batch_rows: Annotated[int, Field(ge=0)] = Field(0, description="requests of one batch; 0: 16, of an encoder 64")
    max_batch_tokens: Positive = Field(16_384, description="prompt and output tokens of one batch")
    max_prefill_tokens: Positive = Field(16_384, description="prompt tokens of one batch, padding included")
    max_backlog_batches: Positive = Field(
        2,
        description="batches that may wait for a worker; an encoder's last one only if full, or if fewer wait than "
        "there are workers",
    )
    class_patience_ms: Annotated[int, Field(ge=0)] = Field(
        5_000,
        description="how long a batch waits for the kind of worker that it was cut for, before any takes it",
    )
    cost_life_ms: Positive = Field(86_400_000, description="how long what a kind of worker costs outlives its last one")
    batch_log_entries: Positive = Field(1_000, description="length of the log of batches, two entries a batch")
    max_strikes: Positive = Field(3, description="leases lost without a token until a request is poison")
    tombstone_ttl_ms: Positive = Field(600_000, description="how long a cancellation waits for its request")

    # Worker and scheduler
    lease_ms: Annotated[int, Field(ge=200)] = Field(10_000, description="how long a silent worker keeps its requests")

    metrics_port: Annotated[int, Field(ge=0, le=65535)] = Field(
        0, description="where a process tells Prometheus how it fares; 0: nowhere; of `up`: the first of several"
    )
    metrics_host: str = Field("127.0.0.1", description="address of the same; 0.0.0.0 for all there are")

    # The worker
    device: Annotated[str, Field(pattern=r"^(cpu|cuda(:\d+)?)$")] = Field(
        "cpu", description="where engines compute: cpu, cuda, or cuda:<index>"
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16", "int8"] = Field(
        "auto",
        description="of weights and activations; auto: float32 on a CPU, bfloat16 on a GPU; int8: encoders on a CPU",
    )
    num_threads: Annotated[int, Field(ge=0)] = Field(0, description="of an engine's products; 0: the cores to spare")
    max_rows: Annotated[int, Field(ge=0)] = Field(
        0, description="requests in one worker's running batch; 0: 32 on a CPU, 256 on a GPU"
    )
    kv_tokens: Annotated[int, Field(ge=0)] = Field(
        0, description="tokens in one worker's key-value memory; 0: 32,768 on a CPU, what it has memory for on a GPU"
    )
    cuda_graphs: bool = Field(
        True, description="on a GPU, capture and replay steps in which all rows decode, and encoders' smaller batches"
    )
    prompt_graphs: Annotated[int, Field(ge=0)] = Field(
        48, description="captured sizes of steps with prompts that an engine on a GPU keeps; 0: none"
    )
    encoder_graphs: Positive = Field(
        336, description="captured sizes of batches that an encoder on a GPU keeps, of 336; each takes about 0.3 MiB"
    )
    deterministic: bool = Field(
        False, description="on a GPU, in 16 bits: the same tokens alone, beside others and resumed; slower"
    )
    page_size: Positive = Field(16, description="tokens in a page of it, which rows that begin alike share whole")
    step_tokens: Annotated[int, Field(ge=0)] = Field(
        0, description="tokens of one step, decoding rows and prefill together; 0: 512 on a CPU, 8,192 on a GPU"
    )
    overtaking_rows: Annotated[int, Field(ge=0)] = Field(
        255,
        description="rows that an engine may begin before one that came earlier, because they ask for more output; "
        "and no more of them than wait",
    )
    stall_ms: Annotated[float, Field(ge=0)] = Field(
        50.0,
        description="on a GPU, what a step may take that computes prompts beside rows that decode, or a quarter more "
        "than the shortest takes, if that is longer; 0: no bound but step_tokens",
    )
    prompt_step_ms: Annotated[float, Field(ge=0)] = Field(
        200.0,
        description="on a GPU, what a step may take that computes prompts alone, at whose end their first tokens come; "
        "0: no bound but step_tokens",
    )
    memory_fraction: Annotated[float, Field(gt=0, le=1)] = Field(
        0.9, description="of a GPU's memory that one engine may take"
    )
    table_fraction: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.02,
        description="of a GPU's memory, what a table of the first layer's queries, keys and values of all tokens may "
        "take; a model whose table is larger, or with 0 any model, computes them in every step",
    )
    measure_ms: Annotated[int, Field(ge=0)] = Field(
        3_000, description="computing time for measuring costs where none are on file; 0: never measure"
    )
    engine_timeout_ms: Positive = Field(60_000, description="silence after which a computing engine is killed as hung")
    flush_ms: Annotated[int, Field(ge=0)] = Field(20, description="pause between two flushes of tokens to Redis")
    drain_ms: Annotated[int, Field(ge=0)] = Field(30_000, description="what SIGTERM leaves running requests to end")

    # Jobs on RQ
    rq_queue: Annotated[str, Field(min_length=1)] = Field("headrace", description="RQ queue that rq workers serve")
    rq_jobs: frozenset[RqJob] = Field(
        frozenset(get_args(RqJob)), description="functions of headrace.producer.jobs that rq workers carry out"
    )
    rq_lease_ms: Annotated[int, Field(ge=3_000)] = Field(
        30_000, description="how long a silent rq worker keeps its job"
    )
    rq_progress_ms: Annotated[int, Field(ge=50)] = Field(
        500,
        description="pause between two looks of a running job: whether it is cancelled, and what to tell in its meta",
    )
    rq_in_flight: Positive = Field(64, description="prompts of one generate_many that are in the queue at once")
    max_rq_prompts: Positive = Field(10_000, description="prompts of one generate_many")
    max_rq_job_bytes: Positive = Field(16 << 20, description="size of one job's arguments")

    # headrace up
    port: Annotated[int, Field(ge=0, le=65535)] = Field(6380, description="of the broker that `up` starts; 0: any free")
    workers: Positive = Field(1, description="workers that `up` starts")
    rq_workers: Annotated[int, Field(ge=0)] = Field(0, description="rq workers that `up` starts")
    data_dir: Path | None = Field(None, description="the broker's append-only file; default: the user's state folder")
    restart_ms: Annotated[int, Field(ge=0)] = Field(200, description="pause before a dead process is started again")

    @field_validator("tenants")
    @classmethod
    def _tenants_have_names(cls, tenants: dict[str, float]) -> dict[str, float]:
        for tenant in tenants:
            check_tenant(tenant)
        return tenants

    @property
    def engine_dtype(self) -> Literal["float32", "bfloat16", "float16", "int8"]:
        """The dtype, chosen for the device where that is left to it."""
        if self.dtype != "auto":
            return self.dtype
        return "float32" if self.device == "cpu" else "bfloat16"

    @property
    def batch_rows(self) -> int:
        """``max_batch_rows``, with what it is for a model that writes where it is left open."""
        return self.max_batch_rows or 16

    @property
    def queue_name(self) -> str:
        """The queue's tag: as set, else the last part of the model's name, in lower case."""
        if self.queue:
            return self.queue
        name = Path(self.model).name.removesuffix(".gguf")
        return re.sub(r"[^a-z0-9_.@+=-]", "-", name.lower())

    @property
    def connection_url(self) -> str:
        """The server's URL with the password from ``redis_password_file`` filled in: never log this one.

        Raises:
            ConfigurationError: the file cannot be read.
        """
        if self.redis_password_file is None:
            return self.redis_url
        try:
            password = self.redis_password_file.read_text().strip()
        except OSError as error:
            raise ConfigurationError(f"redis_password_file: {error}") from error
        parts = urlsplit(self.redis_url)
        user, host = parts.username or "", parts.netloc.rpartition("@")[2]
        return urlunsplit(parts._replace(netloc=f"{user}:{quote(password, safe='')}@{host}"))
