"""ListTasks, GetTask and WatchTasks over a ledger, on a real server."""

import dataclasses
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from services.dispatch.batch import NewBatch, SharedTask, TaskState
from services.dispatch.ledger_sqlite import SqliteLedger
from services.dispatch.main import build
from services.dispatch.settings import DispatchSettings
from services.runtime.server import Lifetime
from tapewatch.dispatch.v1 import dispatch_service_pb2 as pb
from tapewatch.dispatch.v1 import task_pb2
from tapewatch.dispatch.v1.dispatch_service_pb2_grpc import DispatchServiceStub
from tests.integration.gateway_server import refusal
from tests.servers.in_process import served

pytestmark = pytest.mark.timeout(60)


@dataclasses.dataclass
class Dispatcher:
    stub: Any
    ledger: SqliteLedger
    lifetime: Lifetime


@pytest.fixture
async def dispatcher(tmp_path: Path) -> AsyncIterator[Dispatcher]:
    """A dispatcher in task mode without a gateway: its batches stay as they are."""
    settings = DispatchSettings(
        grpc_port=0,
        dispatch_mode="task",
        event_source="none",
        gateway_address="127.0.0.1:9",
        queue_path=tmp_path / "queue.db",
        ledger_path=tmp_path / "ledger.db",
        tasks_path=tmp_path / "tasks",
        batches_uri=str(tmp_path / "batches"),
        shutdown_grace_seconds=2,
    )
    async with (
        served("dispatch", settings, lambda lifetime: build(lifetime, settings)) as server,
        grpc.aio.insecure_channel(server.address) as channel,
    ):
        ledger = SqliteLedger(settings.ledger_path, timedelta(days=1))
        yield Dispatcher(DispatchServiceStub(channel), ledger, server.lifetime)
    ledger.close()


def entered(ledger: SqliteLedger, count: int, first: int = 0) -> list[str]:
    return [
        ledger.enter(NewBatch(f"d{i}", (f"lane{i}",), 3), datetime.now(UTC)).id for i in range(first, first + count)
    ]


def recorded(ledger: SqliteLedger, entry_id: str) -> None:
    entry = ledger.get(entry_id)
    assert entry is not None
    ledger.update(dataclasses.replace(entry, state=TaskState.RECORDED, settled=3, stop_time=datetime.now(UTC)))


async def test_pages_hold_every_batch_once(dispatcher: Dispatcher) -> None:
    ids = entered(dispatcher.ledger, 5)
    recorded(dispatcher.ledger, ids[2])
    pages, request = [], pb.ListTasksRequest(page_size=2)
    while True:
        response = await dispatcher.stub.ListTasks(request)
        pages.append([task.task_id for task in response.tasks])
        if not response.next_page_token:
            break
        request.page_token = response.next_page_token
    assert pages == [[ids[4], ids[3]], [ids[2], ids[1]], [ids[0]]]
    done = await dispatcher.stub.ListTasks(pb.ListTasksRequest(state=task_pb2.TASK_STATE_RECORDED))
    assert [task.task_id for task in done.tasks] == [ids[2]]
    request.state = task_pb2.TASK_STATE_WAITING
    code, _, fields = await refusal(dispatcher.stub.ListTasks(request))
    assert (code, fields) == (grpc.StatusCode.INVALID_ARGUMENT, {"page_token"})


async def test_a_batch_is_told_whole(dispatcher: Dispatcher) -> None:
    first, second = entered(dispatcher.ledger, 2)
    third = dispatcher.ledger.enter(NewBatch("d9", ("lane0", "lane1"), 7), datetime.now(UTC))
    task = (await dispatcher.stub.GetTask(pb.GetTaskRequest(task_id=third.id))).task
    assert list(task.predecessors) == [first, second]
    assert (list(task.lanes), task.message_count, task.attempt) == (["lane0", "lane1"], 7, 0)
    assert task.state == task_pb2.TASK_STATE_WAITING
    assert not task.HasField("launch_time")
    capacity = await dispatcher.stub.GetCapacity(pb.GetCapacityRequest())
    assert (capacity.tasks.open_batches, capacity.tasks.open_messages) == (3, 13)
    assert capacity.mode == pb.DISPATCH_MODE_TASK
    code, reason, _ = await refusal(dispatcher.stub.GetTask(pb.GetTaskRequest(task_id="x")))
    assert (code, reason) == (grpc.StatusCode.NOT_FOUND, "NOT_FOUND")


async def test_batches_that_share_a_task_are_told_with_it_and_it_is_one(dispatcher: Dispatcher) -> None:
    """Each of them runs, in the launcher's task of that name; the count of tasks is not theirs."""
    ids = entered(dispatcher.ledger, 3)
    leader, *riders = dispatcher.ledger.open()
    shared = SharedTask(f"{leader.id}.1", 3, "m", 9, riders=tuple(each.id for each in riders))
    changes: dict[str, Any] = {"state": TaskState.LAUNCHING, "attempt": 1, "launch_time": datetime.now(UTC)}
    claimed = dispatcher.ledger.claim(
        [dataclasses.replace(each, shared=shared, **changes) for each in (leader, *riders)], 1
    )
    assert claimed is not None
    dispatcher.ledger.update_together(
        [dataclasses.replace(each, state=TaskState.RUNNING, task="t1") for each in claimed]
    )
    listed = await dispatcher.stub.ListTasks(pb.ListTasksRequest(state=task_pb2.TASK_STATE_RUNNING))
    assert [(task.task_id, task.launcher_task, task.attempt) for task in reversed(listed.tasks)] == [
        (each, "t1", 1) for each in ids
    ]
    one = (await dispatcher.stub.GetTask(pb.GetTaskRequest(task_id=ids[1]))).task
    assert one == listed.tasks[1]
    capacity = await dispatcher.stub.GetCapacity(pb.GetCapacityRequest())
    assert (capacity.tasks.open_batches, capacity.tasks.running_tasks) == (3, 1)


async def test_a_watcher_is_told_what_is_open_then_what_changes(dispatcher: Dispatcher) -> None:
    ledger = dispatcher.ledger
    (old,) = entered(ledger, 1)
    call = dispatcher.stub.WatchTasks(pb.WatchTasksRequest(heartbeat_interval=Duration(seconds=1)))
    stream = call.__aiter__()
    assert (await anext(stream)).task.task_id == old
    assert (await anext(stream)).synchronized.open_batches == 1
    while (event := await anext(stream)).WhichOneof("event") != "heartbeat":
        pass
    assert event.heartbeat.time.seconds > 0
    (new,) = entered(ledger, 1, first=1)
    (quick,) = entered(ledger, 1, first=2)
    recorded(ledger, quick)
    recorded(ledger, old)
    told: dict[str, int] = {}
    while told.get(old) != TaskState.RECORDED or new not in told or told.get(quick) != TaskState.RECORDED:
        event = await anext(stream)
        if event.WhichOneof("event") == "task":
            told[event.task.task_id] = event.task.state
    assert told[quick] == TaskState.RECORDED, "one that came and went between two polls"
    dispatcher.lifetime.draining.set()
    with pytest.raises(grpc.aio.AioRpcError) as ended:
        while True:
            await anext(stream)
    assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
