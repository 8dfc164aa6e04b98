"""Task mode as it is configured."""

import sys
from collections.abc import Callable
from dataclasses import dataclass

from services.dispatch.launcher_ecs import EcsLauncher
from services.dispatch.launcher_subprocess import SubprocessLauncher
from services.dispatch.ledger_dynamodb import LEDGER_PERMISSIONS, DynamoDbLedger
from services.dispatch.ledger_sqlite import SqliteLedger
from services.dispatch.ports import Ledger, TaskLauncher
from services.dispatch.reconciler import Reconciler, TaskLimits
from services.dispatch.settings import DispatchSettings
from services.dispatch.task_carrier import AutoCarrier, TaskCarrier
from services.domain.errors import TapewatchError
from services.pipeline.batch_files import FolderFiles, manifest_name, open_batch_files
from services.pipeline.ports import Carrier, Record
from services.pipeline.warm_pool import WarmPool
from services.queue.ports import DeadLetters
from services.runtime.dynamodb_table import DynamoDbTable
from services.runtime.exit_codes import EXIT_MISCONFIGURED


@dataclass(frozen=True, slots=True)
class TaskMode:
    """The parts of task mode."""

    ledger: Ledger
    launcher: TaskLauncher
    carrier: TaskCarrier
    reconciler: Reconciler

    def close(self) -> None:
        """Release what they hold."""
        self.launcher.close()
        self.ledger.close()


def _connect_table(settings: DispatchSettings) -> DynamoDbTable:
    return DynamoDbTable.connect(
        settings.ledger_table,
        settings.aws_region,
        dependency="ledger",
        setting="LEDGER_TABLE",
        instead="set LEDGER_BACKEND=sqlite",
        permissions=LEDGER_PERMISSIONS,
    )


def create_table() -> int:
    """Make the ledger's DynamoDB table, for local use: on AWS the stack makes it. The exit code."""
    settings = DispatchSettings()
    try:
        _connect_table(settings).create()
    except TapewatchError as error:
        print(f"tapewatch: {error.message}", file=sys.stderr)
        return EXIT_MISCONFIGURED
    print(f"the table {settings.ledger_table} is there")
    return 0


def open_ledger(settings: DispatchSettings) -> Ledger:
    """The ledger. Raises: NotConfiguredError or DependencyUnavailableError when it cannot be used."""
    if settings.ledger_backend == "sqlite":
        return SqliteLedger(settings.ledger_path, settings.ledger_retention)
    return DynamoDbLedger(_connect_table(settings), settings.ledger_retention)


def open_launcher(settings: DispatchSettings) -> TaskLauncher:
    """The task launcher. Raises: NotConfiguredError when one of its settings is missing."""
    if settings.task_launcher == "subprocess":
        return SubprocessLauncher(settings.tasks_path)
    return EcsLauncher.connect(
        settings.ecs_cluster_name,
        settings.ecs_task_definition,
        settings.ecs_container_name,
        _listed(settings.ecs_subnet_ids),
        _listed(settings.ecs_security_group_ids),
        settings.aws_region,
        public_ip=settings.ecs_assign_public_ip,
    )


def open_task_mode(
    settings: DispatchSettings, record: Record, dead_letters: DeadLetters, entered: Callable[[], None] = lambda: None
) -> TaskMode:
    """All of it; `entered` is called after a batch has entered the ledger."""
    ledger = open_ledger(settings)
    launcher = open_launcher(settings)
    files = open_batch_files(settings.batches_uri, settings.aws_region)
    if isinstance(files, FolderFiles):  # a bucket has its lifecycle rule
        digests = {each for entry in ledger.open() for each in (entry.digest, entry.attempt_digest, entry.task_digest)}
        needed = {manifest_name(digest) for digest in digests}
        files.remove_older(settings.ledger_retention, needed)
    limits = TaskLimits(
        concurrent=settings.max_concurrent_tasks,
        timeout_seconds=settings.task_timeout_seconds,
        messages=settings.max_task_messages,
        container=settings.ecs_container_name,
    )
    reconciler = Reconciler(ledger, launcher, files, record, dead_letters, limits)
    return TaskMode(ledger, launcher, TaskCarrier(ledger, files, entered), reconciler)


def carrier_of(mode: str, warm: Carrier, pool: WarmPool, tasks: TaskMode | None) -> Carrier:
    """What carries the queue's messages in that mode: `warm`, `task` or `auto`."""
    if tasks is None or mode == "warm":
        return warm
    if mode == "task":
        return tasks.carrier
    return AutoCarrier(warm, tasks.carrier, tasks.ledger, pool.any_serving)


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]
