"""What a dispatcher can be told."""

from datetime import timedelta
from pathlib import Path
from typing import Literal

from pydantic import Field

from services.pipeline.batch_files import BatchSettings
from services.pipeline.canary_play import DEADLINE_SECONDS, TASKS_DEADLINE_SECONDS
from services.queue.settings import QueueSettings
from services.runtime.settings import ADDRESS, ADDRESSES, ServerSettings


class DispatchSettings(ServerSettings, QueueSettings, BatchSettings):
    """Environment of `tapewatch dispatch serve` and of the Lambda."""

    grpc_port: int = Field(50053, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    scorer_addresses: str = Field(
        "127.0.0.1:50051", pattern=ADDRESSES, description="the warm pool: host:port, several with commas"
    )
    gateway_address: str = Field("127.0.0.1:50054", pattern=ADDRESS, description="gateway that scores are recorded in")
    ingest_address: str = Field("127.0.0.1:50052", pattern=ADDRESS, description="ingest that canaries are published to")
    canary_interval_seconds: float = Field(
        0.0,
        ge=0,
        description="time between plays of the canaries, known manipulations that must alert, seconds; 0 plays none",
    )
    canary_deadline_seconds: float = Field(
        0.0,
        ge=0,
        description="time in which a canary must alert, at most 0.9 of the interval, seconds; 0 is 120 in `warm` mode, "
        "else 1800, since tasks take a minute to start and may wait for room",
    )
    event_source: str = Field(
        "embedded", pattern="^(embedded|none)$", description="`embedded` consumes the queue here; `none` with Lambda"
    )
    dispatch_batch_size: int = Field(
        100, ge=1, le=1_000, description="most messages in one batch (SQS takes 10 at most)"
    )
    dispatch_concurrency: int = Field(4, ge=1, le=64, description="most batches at once")
    dispatch_mode: Literal["warm", "task", "auto"] = Field(
        "warm",
        description="`warm` scores in the pool, `task` launches tasks, `auto` is warm while a scorer serves",
    )
    ledger_backend: Literal["sqlite", "dynamodb"] = Field(
        "sqlite", description="where task mode keeps its batches: `sqlite` (a file) or `dynamodb` (a table)"
    )
    ledger_path: Path = Field(Path(".tapewatch/ledger.db"), description="file of the embedded ledger")
    ledger_table: str = Field("tapewatch-ledger", description="name of the ledger's DynamoDB table")
    ledger_retention_days: float = Field(7.0, gt=0, description="days that recorded batches stay listed")
    task_launcher: Literal["subprocess", "ecs"] = Field(
        "subprocess", description="what launches tasks: `subprocess` on this machine, or `ecs` (RunTask on Fargate)"
    )
    tasks_path: Path = Field(Path(".tapewatch/tasks"), description="folder of the records and logs of tasks here")
    task_timeout_seconds: float = Field(
        300.0, gt=0, description="time from its launch after which a task that has not ended is stopped, seconds"
    )
    max_concurrent_tasks: int = Field(10, ge=1, le=1_000, description="most tasks at once")
    max_task_messages: int = Field(
        1_000,
        ge=1,
        le=1_000,
        description="most messages that batches waiting behind each other put into one task; 1 gives each its own",
    )
    ecs_cluster_name: str = Field("", description="ECS cluster that tasks run in")
    ecs_task_definition: str = Field("", description="family, family:revision or ARN of the tasks' definition")
    ecs_container_name: str = Field("scorer", description="container in it that scores")
    ecs_subnet_ids: str = Field("", description="subnets that tasks run in; several with commas")
    ecs_security_group_ids: str = Field("", description="security groups of tasks; several with commas")
    ecs_assign_public_ip: bool = Field(False, description="give tasks a public address, for subnets without NAT")

    @property
    def canary_deadline(self) -> float:
        """The time in which a canary must alert, seconds: as set, or else what the mode needs."""
        by_mode = DEADLINE_SECONDS if self.dispatch_mode == "warm" else TASKS_DEADLINE_SECONDS
        return self.canary_deadline_seconds or by_mode

    @property
    def ledger_retention(self) -> timedelta:
        """How long recorded batches stay listed."""
        return timedelta(days=self.ledger_retention_days)

    @property
    def pool(self) -> tuple[str, ...]:
        """The addresses of the warm pool."""
        return tuple(a.strip() for a in self.scorer_addresses.split(",") if a.strip())
