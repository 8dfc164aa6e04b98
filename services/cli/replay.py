"""`tapewatch replay`: an archive or a file through a running mesh."""

import asyncio
from collections.abc import Sequence
from datetime import datetime

import grpc
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from services.runtime.channels import open_channel
from services.runtime.errors import error_from_rpc, exit_code_of
from services.runtime.exit_codes import EXIT_FAILED
from services.runtime.settings import ClientSettings
from services.wire.time import timestamp_to_proto
from tapewatch.ingest.v1 import ingest_service_pb2 as pb
from tapewatch.ingest.v1 import replay_pb2
from tapewatch.ingest.v1.ingest_service_pb2_grpc import IngestServiceStub

_POLL_SECONDS = 0.25
_ENDED = (
    replay_pb2.REPLAY_STATE_SUCCEEDED,
    replay_pb2.REPLAY_STATE_FAILED,
    replay_pb2.REPLAY_STATE_CANCELLED,
)


async def replay(
    address: str,
    settings: ClientSettings,
    location: str,
    tape: str,
    symbols: Sequence[str],
    speed: float,
    start: datetime | None,
    end: datetime | None,
    console: Console,
) -> int:
    """Start a replay and show its progress to the end. The exit code."""
    async with open_channel(address, settings) as channel:
        stub = IngestServiceStub(channel)
        request = pb.StartReplayRequest(
            location=location,
            tape=tape,
            symbols=symbols,
            speed=speed,
            start_time=None if start is None else timestamp_to_proto(start),
            end_time=None if end is None else timestamp_to_proto(end),
        )
        try:
            current = (await stub.StartReplay(request)).replay
            words = f"playing {location} on tape {current.tape} (tapewatch watch --tape {current.tape})"
            console.print(words, soft_wrap=True)
            columns = (TextColumn("published"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            with Progress(*columns, console=console) as progress:
                task = progress.add_task("published", total=current.total_quotes or None)
                while current.state not in _ENDED:
                    await asyncio.sleep(_POLL_SECONDS)
                    current = (await stub.GetReplay(pb.GetReplayRequest(tape=current.tape))).replay
                    done = current.published_quotes + current.rejected_quotes
                    progress.update(task, completed=done, total=current.total_quotes or None)
        except grpc.aio.AioRpcError as error:
            message = error_from_rpc(error, f"ingest {address}").message
            console.print(f"tapewatch replay: {message}", style="bold red", soft_wrap=True)
            return exit_code_of(error)
    state = replay_pb2.ReplayState.Name(current.state).removeprefix("REPLAY_STATE_").lower()
    rejected = f", {current.rejected_quotes} rejected (dead letters)" if current.rejected_quotes else ""
    why = f": {current.error}" if current.error else ""
    console.print(f"{state}: {current.published_quotes:,} quotes published{rejected}{why}", soft_wrap=True)
    return 0 if current.state == replay_pb2.REPLAY_STATE_SUCCEEDED else EXIT_FAILED
