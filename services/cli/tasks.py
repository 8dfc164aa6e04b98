"""The batches of task mode, listed."""

from datetime import datetime

import grpc
from rich.console import Console
from rich.table import Table

from services.cli.settings import MeshSettings
from services.domain.quote import format_time
from services.runtime.channels import open_channel
from services.runtime.errors import error_from_rpc, exit_code_of
from services.wire.time import timestamp_from_proto
from tapewatch.dispatch.v1 import dispatch_service_pb2, task_pb2
from tapewatch.dispatch.v1.dispatch_service_pb2_grpc import DispatchServiceStub

_PAGE = 500
_SHOWN_LANES = 3


def _state(task: task_pb2.Task) -> str:
    name = task_pb2.TaskState.Name(task.state).removeprefix("TASK_STATE_").lower()
    return f"{name} ({task.dead_letter_count} dead)" if task.dead_letter_count else name


def _time(moment: datetime) -> str:
    return format_time(moment.replace(microsecond=0)).removesuffix("Z").replace("T", " ")


def _lanes(task: task_pb2.Task) -> str:
    more = len(task.lanes) - _SHOWN_LANES
    return " ".join(task.lanes[:_SHOWN_LANES]) + (f" and {more} more" if more > 0 else "")


async def tasks(settings: MeshSettings, address: str, state: str, limit: int, console: Console) -> int:
    """Print the newest batches of task mode, of one state or all. The exit code."""
    wanted = task_pb2.TaskState.Value(f"TASK_STATE_{state.upper()}") if state else task_pb2.TASK_STATE_UNSPECIFIED
    found: list[task_pb2.Task] = []
    async with open_channel(address, settings) as channel:
        stub = DispatchServiceStub(channel)
        request = dispatch_service_pb2.ListTasksRequest(state=wanted, page_size=min(limit, _PAGE))
        while len(found) < limit:
            try:
                response = await stub.ListTasks(request)
            except grpc.aio.AioRpcError as error:
                console.print(f"tapewatch dispatch tasks: {error_from_rpc(error, 'dispatch').message}", soft_wrap=True)
                return exit_code_of(error)
            found += response.tasks
            if not response.next_page_token:
                break
            request.page_token = response.next_page_token
    table = Table("batch", "state", "attempt", "done", "entered (UTC)", "lanes", "reason")
    for task in found[:limit]:
        entered = _time(timestamp_from_proto(task.entered_time))
        done = f"{task.settled_count}/{task.message_count}"
        table.add_row(task.task_id, _state(task), str(task.attempt), done, entered, _lanes(task), task.reason)
    console.print(table if found else "no batches of task mode")
    return 0
