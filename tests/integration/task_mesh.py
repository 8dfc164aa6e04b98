"""Task mode with a real gateway and real task processes, embedded or on AWS's interfaces."""

import asyncio
import sys
import uuid
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import boto3

from services.dispatch.launcher_ecs import EcsLauncher
from services.dispatch.launcher_subprocess import SubprocessLauncher
from services.dispatch.ledger_dynamodb import DynamoDbLedger
from services.dispatch.ledger_sqlite import SqliteLedger
from services.dispatch.ports import Ledger, TaskLauncher
from services.dispatch.reconciler import Reconciler, TaskLimits
from services.dispatch.task_carrier import TaskCarrier
from services.domain.errors import TapewatchError
from services.domain.quote import Quote
from services.gateway.sqlite import SqliteStore
from services.pipeline.batch_files import BatchFiles, open_batch_files
from services.pipeline.gateway_client import GatewayClient
from services.pipeline.sqs_handler import SqsBatchHandler
from services.queue.market_message import encode
from services.queue.ports import DeadLetter
from services.runtime.dynamodb_table import DynamoDbTable
from tests.integration.gateway_server import Gateway
from tests.pipeline_fakes import quote
from tests.servers.faulty_ecs import FaultyEcs
from tests.servers.process import REGION

REPOSITORY = Path(__file__).resolve().parents[2]
COMMAND = (sys.executable, str(REPOSITORY / "tests" / "faulty_task.py"))
RETENTION = timedelta(days=7)


class Letters:
    """The dead letters."""

    def __init__(self) -> None:
        self.kept: list[DeadLetter] = []

    def send_dead_letter(self, letter: DeadLetter) -> None:
        self.kept.append(letter)


def event(quotes: Sequence[Quote]) -> dict[str, Any]:
    """The SQS event with these quotes."""
    messages = [encode(each) for each in quotes]
    return {
        "Records": [
            {
                "messageId": f"m{i}",
                "body": message.body,
                "attributes": {"MessageGroupId": message.group_id},
                "messageAttributes": {},
            }
            for i, message in enumerate(messages)
        ]
    }


def bars(symbol: str, first: int, last: int) -> list[Quote]:
    """Bars of one symbol, one a minute."""
    return [quote(i, symbol) for i in range(first, last)]


@dataclass
class TaskMesh:
    """A dispatcher in task mode. `faults` is the folder of `tests/faulty_task.py`."""

    gateway: Gateway
    store: SqliteStore
    ledger: Ledger
    launcher: TaskLauncher
    files: BatchFiles
    faults: Path
    letters: Letters = field(default_factory=Letters)
    limits: TaskLimits = field(default_factory=TaskLimits)

    def __post_init__(self) -> None:
        self.handler = SqsBatchHandler(TaskCarrier(self.ledger, self.files), self.letters, "market_queue.fifo")
        self.reconciler = self.another()

    def another(self, **changes: Any) -> Reconciler:
        """A reconciler, as another dispatcher has one."""
        parts: dict[str, Any] = {
            "ledger": self.ledger,
            "launcher": self.launcher,
            "files": self.files,
            "record": GatewayClient(self.gateway.channel),
            "dead_letters": self.letters,
            "limits": self.limits,
        }
        return Reconciler(**(parts | changes))

    def lay(self, *faults: str) -> None:
        """Faults that the next tasks meet, one each."""
        for i, fault in enumerate(faults):
            (self.faults / f"{fault}-{i}").touch()

    @property
    def laid(self) -> list[Path]:
        """Faults that no task has met yet."""
        return list(self.faults.glob("*-*"))

    async def receive(self, quotes: Sequence[Quote]) -> None:
        """One event; all of it must be acknowledged."""
        assert await self.handler(event(quotes)) == {"batchItemFailures": []}

    async def settle(self, *reconcilers: Reconciler, seconds: float = 240) -> list[str]:
        """Step until no batch is open. What stood in the way meanwhile."""
        problems: list[str] = []
        async with asyncio.timeout(seconds):
            while self.ledger.open():
                for each in reconcilers or (self.reconciler,):
                    try:
                        await each.step()
                    except TapewatchError as error:
                        problems.append(error.message)
                await asyncio.sleep(0.05)
        return problems

    @property
    def launches(self) -> list[str]:
        """CORRELATION_ID and BATCH_SIZE of each process that was started."""
        log = self.faults / "launched.log"
        return log.read_text().splitlines() if log.exists() else []

    def check(self, published: Sequence[Quote], *, dead: int = 0) -> None:
        """None lost, none doubled, order per symbol kept."""
        kept = self.store.quotes_after(0, 10_000)
        assert [each.sequence for each in kept] == list(range(1, len(kept) + 1))
        ids = [each.scored.quote.quote_id for each in kept]
        assert len(set(ids)) == len(ids)
        assert len(ids) == len(published) - dead
        assert set(ids) <= {each.quote_id for each in published}
        times: dict[str, list[datetime]] = defaultdict(list)
        for each in kept:
            times[each.scored.quote.symbol].append(each.scored.quote.event_time)
        assert all(each == sorted(each) for each in times.values()), "order per symbol"
        assert len(self.letters.kept) == dead


def embedded(folder: Path, gateway: Gateway, **environment: str) -> TaskMesh:
    """SQLite, a folder and subprocesses."""
    variables = _environment(folder, gateway, str(folder / "batches"), environment)
    return TaskMesh(
        gateway,
        SqliteStore(folder / "store.db"),
        SqliteLedger(folder / "ledger.db", RETENTION),
        SubprocessLauncher(folder / "tasks", COMMAND, variables),
        open_batch_files(str(folder / "batches")),
        folder / "faults",
    )


def aws(folder: Path, gateway: Gateway, validator: FaultyEcs) -> TaskMesh:
    """DynamoDB, S3 and ECS; the environment names the servers already."""
    name = f"tasks-{uuid.uuid4().hex[:12]}"
    boto3.client("s3", region_name=REGION).create_bucket(
        Bucket=name, CreateBucketConfiguration={"LocationConstraint": REGION}
    )
    table = DynamoDbTable.connect(name, REGION)
    table.create()
    ecs = boto3.client("ecs", region_name=REGION)
    ecs.create_cluster(clusterName=name)
    ecs.register_task_definition(
        family=name,
        networkMode="awsvpc",
        requiresCompatibilities=["FARGATE"],
        cpu="256",
        memory="512",
        containerDefinitions=[{"name": "scorer", "image": "scorer", "essential": True}],
    )
    location = f"s3://{name}/lake/batches"
    validator.environment = _environment(folder, gateway, location, {})
    return TaskMesh(
        gateway,
        SqliteStore(folder / "store.db"),
        DynamoDbLedger(table, RETENTION),
        EcsLauncher.connect(name, name, "scorer", ["subnet-1", "subnet-2"], ["sg-1"], REGION),
        open_batch_files(location, REGION),
        folder / "faults",
    )


def _environment(folder: Path, gateway: Gateway, location: str, more: Mapping[str, str]) -> dict[str, str]:
    (folder / "faults").mkdir(exist_ok=True)
    return {
        "FAULTS": str(folder / "faults"),
        "GATEWAY_ADDRESS": gateway.address,
        "BATCHES_URI": location,
        "PYTHONPATH": ":".join(sys.path),
        "RPC_TIMEOUT_SECONDS": "60",
        **more,
    }
