"""The mesh in task mode: a one-shot scorer a batch, with tasks, dispatcher and gateway killed at random.

A task is a process that loads the model, about a second here. The queue gives ten messages of a symbol at a time; the
batches that wait behind a running task go on in one, so that the whole tape takes some tens of tasks.
"""

import contextlib
import json
import os
import random
import re
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import grpc
import pytest

from services.cli.run_task_validator import RunTaskValidator
from services.dispatch.batch import TaskState
from services.dispatch.launcher_subprocess import RUN_ONCE
from services.dispatch.ledger_dynamodb import DynamoDbLedger
from services.dispatch.ledger_sqlite import SqliteLedger
from services.dispatch.ports import Ledger
from services.domain.score import RecordedQuote
from services.gateway.ports import QuoteQuery, Store
from services.gateway.sqlite import SqliteStore
from services.queue.market_message import encode
from services.runtime.dynamodb_table import DynamoDbTable
from services.wire.quote import quote_to_proto
from tapewatch.dispatch.v1 import dispatch_service_pb2 as pb
from tapewatch.dispatch.v1 import task_pb2
from tapewatch.dispatch.v1.dispatch_service_pb2_grpc import DispatchServiceStub
from tests.e2e.processes import Mesh, alive
from tests.e2e.task_functions import define_task, task_functions
from tests.e2e.test_aws_run import deployed
from tests.pipeline_fakes import quote
from tests.servers import stand_ins
from tests.servers.process import REGION, REPOSITORY, Server

BARS = 12_154
KILLS = ("task", "dispatch", "gateway", "task", "dispatch", "task")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@dataclass
class Running:
    """A mesh in task mode, and how to look into it."""

    mesh: Mesh
    ledger: Ledger
    store: Store
    task_pids: Callable[[], list[int]]
    launched: Callable[[], int]
    servers: tuple[Server, ...] = ()


def local_tasks(folder: Path) -> list[int]:
    """Process ids of the tasks that this machine's launcher has running."""
    pids = []
    for record in folder.glob("*.json"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # the task ended between two looks
            pid = json.loads(record.read_text()).get("pid")
            if pid is not None and alive(pid) and b"run-once" in Path(f"/proc/{pid}/cmdline").read_bytes():
                pids.append(pid)
    return pids


def embedded(tmp_path: Path) -> Iterator[Running]:
    mesh = Mesh(tmp_path / "mesh")
    (tmp_path / "mesh").mkdir()
    ledger = SqliteLedger(tmp_path / "mesh" / "ledger.db", timedelta(days=1))
    store = SqliteStore(tmp_path / "mesh" / "store.db")
    tasks = tmp_path / "mesh" / "tasks"
    yield Running(mesh, ledger, store, lambda: local_tasks(tasks), lambda: len(list(tasks.glob("*.json"))))
    mesh.stop()
    store.close()
    ledger.close()


def on_aws(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    """SQS (ElasticMQ), DynamoDB for store and ledger, S3, and ECS (ministack) behind the validator."""
    queue: Server = request.getfixturevalue("elasticmq")
    ministack: Server = request.getfixturevalue("ministack")
    dynamodb = stand_ins.dynamodb_local(request.getfixturevalue("fast_folder") / "dynamodb", durable=True).start()
    s3 = stand_ins.versitygw(tmp_path / "s3").start()
    with deployed(queue, dynamodb, s3, tmp_path, monkeypatch) as cloud:
        mesh, ledger_table = cloud.mesh, f"{cloud.table}-ledger"
        validator = RunTaskValidator(ministack.url, RUN_ONCE).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL_ECS", validator.url)
        define_task(cloud.table)
        mesh.environment |= {
            "AWS_ENDPOINT_URL_ECS": validator.url,
            "DISPATCH_CONCURRENCY": "1",  # one event at a time: it has what all symbols may give now
            "LEDGER_BACKEND": "dynamodb",
            "LEDGER_TABLE": ledger_table,
            "BATCHES_URI": f"{cloud.lake}/batches",
            "TASK_LAUNCHER": "ecs",
            "ECS_CLUSTER_NAME": cloud.table,
            "ECS_TASK_DEFINITION": cloud.table,
            "ECS_SUBNET_IDS": "subnet-1,subnet-2",
        }
        validator.environment = mesh.environment
        made = mesh.command("dispatch", "create-table")
        assert made.returncode == 0, made.stderr
        ledger = DynamoDbLedger(DynamoDbTable.connect(ledger_table, REGION), timedelta(days=1))
        store = cloud.store()
        yield Running(mesh, ledger, store, validator.pids, lambda: sum(validator.launched.values()), (dynamodb, s3))
        mesh.stop()
        validator.stop()
        store.close()
        ledger.close()
    dynamodb.stop()
    s3.stop()


@pytest.fixture(params=["embedded", "aws"])
def running(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    if request.param == "embedded":
        yield from embedded(tmp_path)
    else:
        yield from on_aws(request, tmp_path, monkeypatch)


def recorded_by_now(running: Running) -> int:
    """How many quotes are recorded; it leaves the machine to the mesh for a while, too."""
    time.sleep(0.2)
    return running.store.last_quote()


def kill(running: Running, victim: str, wait_seconds: float) -> int:
    """Kill one at work, so long after a task was seen; how many messages its work holds.

    Without a wait a task is killed that has only just begun: it has scored nothing yet.
    """
    mesh = running.mesh
    held: list[int] = []
    before = set(running.task_pids()) if wait_seconds == 0 else set()

    def begun() -> list[int]:
        return [pid for pid in running.task_pids() if pid not in before]

    def at_work() -> bool:
        pids = begun()
        entries = [entry for entry in running.ledger.open() if entry.state is TaskState.RUNNING]
        if not pids or not entries:
            return False
        held.append(sum(entry.attempt_messages for entry in entries))
        pid = pids[0] if victim == "task" else mesh.pids()[victim]
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            return False
        return True

    mesh.wait_for(lambda: bool(begun()), 60, "a task")
    time.sleep(wait_seconds)
    mesh.wait_for(at_work, 60, f"work of {victim}")
    return held[-1]


@pytest.mark.timeout(900)
def test_a_run_while_tasks_dispatcher_and_gateway_are_killed(running: Running) -> None:
    """Whom and when is drawn anew in each run; KILL_SEED repeats one. On AWS's interfaces stores restart in between."""
    mesh, began = running.mesh, time.monotonic()
    seed = int(os.environ.get("KILL_SEED") or random.SystemRandom().randrange(10**6))
    chance = random.Random(seed)
    plan = chance.sample(KILLS, len(KILLS))
    if running.servers:
        plan.insert(chance.randrange(1, len(plan)), "servers")
    marks = sorted(chance.sample(range(BARS // 20, 7 * BARS // 10), len(plan)))
    process = mesh.start("run", "--mode", "task")
    mesh.wait_for(lambda: "gateway" in mesh.pids(), 60, "the mesh")
    assert "scorer" not in mesh.pids()
    held: list[tuple[str, int]] = []
    restarted = ""
    for victim, mark in zip(plan, marks, strict=True):
        mesh.wait_for(
            lambda n=mark: recorded_by_now(running) >= n or process.poll() is not None,  # type: ignore[misc]
            600,
            f"{mark} quotes (KILL_SEED={seed})",
        )
        assert process.poll() is None, f"KILL_SEED={seed}, killed {held}{restarted}\n{process.communicate()[0]}"
        if victim == "servers":
            for server in running.servers:
                server.stop()
                server.start()
            restarted = f", stores restarted at {mark}"
            continue
        before = mesh.pids()
        # Somewhere on its way: starting, scoring, recording, reporting; the first task at its start.
        first = victim == "task" and "task" not in (name for name, _ in held)
        held.append((victim, kill(running, victim, 0.0 if first else chance.uniform(0.01, 0.8))))
        if victim != "task":
            mesh.wait_for(lambda v=victim, b=before: mesh.pids()[v] != b[v], 30, f"{victim} again")  # type: ignore[misc]
    output, _ = process.communicate(timeout=600)
    output = f"KILL_SEED={seed}, killed with messages at work {held}{restarted}\n{output}"

    assert process.returncode == 0, output
    assert re.search(rf"published={BARS} scored={BARS} stored={BARS} lost=0 duplicated=0", output), output
    order: dict[str, list[datetime]] = defaultdict(list)
    again = 0
    for start in range(0, BARS, 1_000):
        for recorded in running.store.quotes_after(start, 1_000):
            order[recorded.scored.quote.symbol].append(recorded.scored.quote.event_time)
            again += recorded.record_count > 1
    assert sum(len(times) for times in order.values()) == BARS
    assert all(times == sorted(set(times)) for times in order.values()), "order per symbol"
    entries = running.ledger.list(1_000)
    assert all(entry.state is TaskState.RECORDED and not entry.dead for entry in entries)
    assert sum(entry.messages for entry in entries) >= BARS
    attempts = sum(entry.attempt for entry in entries)
    assert all(messages > 0 for _, messages in held), "a kill hit nothing"
    repeated = sum(entry.messages for entry in entries if entry.attempt > 1)
    assert repeated > 0, "no message was given to a task twice: the kills hit nothing"
    print(
        f"{output.splitlines()[0]}; {len(entries)} batches, {attempts} attempts by {running.launched()} tasks, "
        f"{repeated} messages given to a task again, {again} recorded again, {time.monotonic() - began:.0f} s in all; "
        f"{output.strip().splitlines()[-1]}"
    )


def test_the_functions_in_task_mode(
    ministack: Server, code: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The dispatch Lambda's zip enters and launches; the reconciler's, called as EventBridge does, does the rest."""
    with task_functions(ministack, code, tmp_path, monkeypatch) as tasks:
        function, ledger, validator = tasks.function, tasks.ledger, tasks.validator
        mesh = function.mesh
        killed = tmp_path / "faults" / "midway-0"
        killed.parent.mkdir()
        killed.touch()
        validator.command = (sys.executable, str(REPOSITORY / "tests" / "faulty_task.py"))
        validator.environment = mesh.environment | {"FAULTS": str(killed.parent), "PYTHONPATH": ":".join(sys.path)}
        mesh.start("up", "--source", "csv", "--from", str(no_bars(tmp_path)), "--mode", "warm")
        mesh.wait_serving()
        quotes = [quote(i, symbol, tape="by-function") for i in range(12) for symbol in ("AAPL", "MSFT")]
        function.queue.send([encode(each) for each in quotes])
        store = function.store()

        def kept() -> list[RecordedQuote]:
            return store.list_quotes(QuoteQuery("by-function"), 100, None).items

        def reconciled() -> bool:
            return tasks.reconcile()["open_batches"] == 0 and len(kept()) == len(quotes)

        mesh.wait_for(reconciled, 120, "all scores")
        assert not killed.exists(), "no task was killed"
        sequence = {each.scored.quote.quote_id: each.sequence for each in kept()}
        for symbol in ("AAPL", "MSFT"):
            numbers = [sequence[each.quote_id] for each in quotes if each.symbol == symbol]
            assert numbers == sorted(numbers), "order per symbol"
        entries = ledger.list(100)
        assert sum(entry.attempt for entry in entries) > len(entries), "the kill hit nothing"
        mesh.wait_for(lambda: function.queue.depth().ready == 0, 60, "an empty queue")
        assert function.queue.depth().dead_letters == 0
        store.close()


def no_bars(folder: Path) -> Path:
    """A source that has next to nothing to say."""
    path = folder / "none.csv"
    path.write_text("symbol,timestamp,open,high,low,close,volume\nXYZ,2024-01-02,1,1,1,1,5\n")
    return path


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    folder = tmp_path_factory.mktemp("up")
    mesh = Mesh(folder / "mesh", environment={"CANARY_INTERVAL_SECONDS": "0"})
    mesh.start("up", "--source", "csv", "--from", str(no_bars(folder)), "--mode", "auto")
    mesh.wait_serving()
    ledger = SqliteLedger(folder / "mesh" / "ledger.db", timedelta(days=1))
    mesh.wait_for(lambda: not ledger.open(), 60, "the end of its batch, if a task had it")
    ledger.close()
    yield mesh
    mesh.stop()


def dispatched(stub: DispatchServiceStub, symbol: str, mode: "pb.DispatchMode.ValueType") -> list[pb.DispatchResult]:
    quotes = [quote_to_proto(quote(i, symbol, tape="by-hand")) for i in range(3)]
    return list(stub.Dispatch(pb.DispatchRequest(quotes=quotes, mode=mode), timeout=60).results)


def test_by_hand_by_task_and_what_the_rpcs_tell_of_it(up: Mesh) -> None:
    with grpc.insecure_channel(up.dispatch) as channel:
        stub = DispatchServiceStub(channel)
        watching = stub.WatchTasks(pb.WatchTasksRequest(), timeout=120)
        while next(watching).WhichOneof("event") != "synchronized":
            pass
        by_task = dispatched(stub, "TASK", pb.DISPATCH_MODE_TASK)
        assert [result.WhichOneof("outcome") for result in by_task] == ["score"] * 3
        newest = stub.ListTasks(pb.ListTasksRequest(page_size=1)).tasks[0]
        assert (newest.state, newest.attempt, newest.settled_count) == (task_pb2.TASK_STATE_RECORDED, 1, 3)
        assert stub.GetTask(pb.GetTaskRequest(task_id=newest.task_id)).task == newest
        states: list[int] = []
        while not states or states[-1] != task_pb2.TASK_STATE_RECORDED:
            event = next(watching)
            if event.task.task_id == newest.task_id:
                states.append(event.task.state)
        assert states == sorted(states)
        with pytest.raises(grpc.RpcError) as unknown:
            stub.GetTask(pb.GetTaskRequest(task_id="nothing"))
        assert unknown.value.code() is grpc.StatusCode.NOT_FOUND

        by_pool = dispatched(stub, "POOL", pb.DISPATCH_MODE_UNSPECIFIED)
        assert [result.WhichOneof("outcome") for result in by_pool] == ["score"] * 3
        assert stub.ListTasks(pb.ListTasksRequest(page_size=1)).tasks[0].task_id == newest.task_id
        capacity = stub.GetCapacity(pb.GetCapacityRequest())
        assert capacity.mode == pb.DISPATCH_MODE_AUTO
        assert (capacity.tasks.open_batches, capacity.tasks.running_tasks_limit) == (0, 10)
    scores = [result.score for result in by_task]
    for one, other in zip(scores, (result.score for result in by_pool), strict=True):
        assert one.ensemble == pytest.approx(other.ensemble, abs=1e-6)
    listed = up.command("dispatch", "tasks", "--state", "recorded")
    assert listed.returncode == 0, listed.stderr
    assert "by-hand/TASK" in listed.stdout
    assert "3/3" in listed.stdout
    none = up.command("dispatch", "tasks", "--state", "running")
    assert "no batches of task mode" in none.stdout
    examined = up.command("doctor", DISPATCH_MODE="auto")
    assert "auto: sqlite ledger with 0 open batches, tasks by subprocess" in examined.stdout
    wrong = up.command("doctor", DISPATCH_MODE="task", TASK_LAUNCHER="ecs", AWS_REGION="eu-central-1")
    assert wrong.returncode == 1
    assert "ECS_CLUSTER_NAME, ECS_TASK_DEFINITION, ECS_SUBNET_IDS" in " ".join(wrong.stdout.split())


def test_auto_goes_by_tasks_while_no_scorer_serves(up: Mesh) -> None:
    os.kill(up.pids()["scorer"], signal.SIGSTOP)
    try:
        with grpc.insecure_channel(up.dispatch) as channel:
            stub = DispatchServiceStub(channel)
            results = dispatched(stub, "AUTO", pb.DISPATCH_MODE_AUTO)
            assert [result.WhichOneof("outcome") for result in results] == ["score"] * 3, results
            newest = stub.ListTasks(pb.ListTasksRequest(page_size=1)).tasks[0]
            assert newest.lanes == ["by-hand/AUTO"]
    finally:
        os.kill(up.pids()["scorer"], signal.SIGCONT)


def test_warm_mode_says_that_it_has_no_tasks(running_mesh: Mesh) -> None:
    listed = running_mesh.command("dispatch", "tasks")
    assert listed.returncode == 2
    assert "DISPATCH_MODE" in listed.stdout
