"""`tapewatch run` and `tapewatch up`: the mesh on this machine, with its live view."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import grpc
from rich.console import Console
from rich.table import Table

from services.archive.location import check
from services.archive.location import quotes as source_quotes
from services.cli.arguments import UpOptions
from services.cli.live_view import LiveView, Reading
from services.cli.mesh import Mesh
from services.cli.mesh_observer import MeshObserver
from services.cli.run_state import RunState
from services.cli.settings import MeshSettings
from services.cli.tally import Tally, take, valid_keys
from services.cli.watch import changes
from services.domain.errors import DependencyUnavailableError, TapewatchError
from services.domain.quote import LIVE_TAPE, format_time
from services.runtime.errors import error_from_rpc, exit_code_of, is_transient
from services.runtime.exit_codes import EXIT_FAILED, EXIT_INTERRUPTED
from services.runtime.stopping import stopped_within
from services.wire.time import timestamp_from_proto
from tapewatch.dispatch.v1 import dispatch_service_pb2
from tapewatch.gateway.v1 import alert_service_pb2
from tapewatch.ingest.v1 import coverage_pb2, replay_pb2

_POLL_SECONDS = 0.25


@asynccontextmanager
async def interruptible() -> AsyncIterator[asyncio.Event]:
    """An event that Ctrl-C or SIGTERM sets."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopping.set)
    try:
        yield stopping
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


async def _show_alerts(settings: MeshSettings, tape: str, view: LiveView, from_start: bool) -> None:
    wanted = alert_service_pb2.AlertFilter(tape=tape)
    async for response in changes(settings.gateway_address, settings, wanted, from_start=from_start):
        if response.WhichOneof("event") == "change":
            view.alert(response.change)


async def _show_troubles(observer: MeshObserver, view: LiveView) -> None:
    while True:
        view.show_troubles(await observer.troubles())
        await asyncio.sleep(_POLL_SECONDS * 2)


@asynccontextmanager
async def _shown_beside(
    observer: MeshObserver, settings: MeshSettings, tape: str, view: LiveView, from_start: bool
) -> AsyncIterator[None]:
    """Show alerts, and what is wrong with services, until the block ends."""
    shown = [
        asyncio.create_task(_show_alerts(settings, tape, view, from_start)),
        asyncio.create_task(_show_troubles(observer, view)),
    ]
    try:
        yield
    finally:
        for each in shown:
            each.cancel()
        await asyncio.gather(*shown, return_exceptions=True)


def _waiting(capacity: dispatch_service_pb2.GetCapacityResponse) -> int:
    """Messages in the queue, and of batches that tasks have not recorded."""
    backlog = capacity.backlog
    return backlog.ready_messages + backlog.in_flight_messages + capacity.tasks.open_messages


async def _replay_reading(observer: MeshObserver, tape: str) -> tuple[Reading, replay_pb2.Replay]:
    replay = await observer.replay(tape)
    capacity = await observer.capacity()
    reading = Reading(
        published=replay.published_quotes,
        total=replay.total_quotes,
        backlog=_waiting(capacity),
        dead_letters=capacity.backlog.dead_letters,
    )
    if replay.HasField("position"):
        reading.position = format_time(timestamp_from_proto(replay.position)).removesuffix("T00:00:00Z")
    return reading, replay


def _source_keys(location: str, tape: str, symbols: Sequence[str]) -> set[str]:
    """The quote_ids that a complete run has stored, read from the source itself."""
    _, source = source_quotes(location, tape=tape, symbols=symbols)
    return valid_keys(source, datetime.now(UTC))


@asynccontextmanager
async def _restarts_outlived(observer: MeshObserver, state: RunState | None, speed: float = 0.0) -> AsyncIterator[None]:
    """Go on when a service is being started again, and with a replay that ingest does not know any more.

    Raises: TapewatchError when ingest refuses the replay.
    """
    try:
        yield
    except grpc.aio.AioRpcError as error:
        if state is not None and error.code() is grpc.StatusCode.NOT_FOUND:  # ingest's file was lost
            await observer.start_replay(state.location, state.tape, state.symbols, speed)


async def _follow_replay(
    observer: MeshObserver, mesh: Mesh, state: RunState, view: LiveView, stopping: asyncio.Event
) -> replay_pb2.Replay | None:
    """Show a replay until every quote left the queue; None when stopped before. One that ingest lost begins again.

    Raises: MeshFailedError; DependencyUnavailableError when the replay cannot go on.
    """
    while not stopping.is_set():
        if mesh.failure is not None:
            raise mesh.failure
        async with _restarts_outlived(observer, state):
            reading, replay = await _replay_reading(observer, state.tape)
            reading.latency_seconds = await observer.latency_seconds(state.tape)
            view.show(reading)
            if replay.state == replay_pb2.REPLAY_STATE_FAILED:
                raise DependencyUnavailableError("replay", replay.error)
            if replay.state == replay_pb2.REPLAY_STATE_CANCELLED:
                await observer.start_replay(replay.location, replay.tape, replay.symbols, replay.speed)
            elif replay.state == replay_pb2.REPLAY_STATE_SUCCEEDED and reading.backlog == 0:
                return replay
        await stopped_within(_POLL_SECONDS, stopping)
    return None


async def _tally(
    observer: MeshObserver,
    mesh: Mesh,
    tape: str,
    keys: Collection[str],
    replay: replay_pb2.Replay,
    stopping: asyncio.Event,
) -> Tally | None:
    """The tally, however often the gateway has to be started again meanwhile; None when stopped before.

    Raises: MeshFailedError; DependencyUnavailableError when the gateway refuses.
    """
    while not stopping.is_set():
        if mesh.failure is not None:
            raise mesh.failure
        try:
            return await take(observer.gateway, tape, keys, replay.published_quotes, replay.rejected_quotes)
        except grpc.aio.AioRpcError as error:
            if not is_transient(error.code()):
                raise error_from_rpc(error, "gateway") from error
        await stopped_within(_POLL_SECONDS, stopping)
    return None


def _print_summary(console: Console, tally: Tally, state: RunState, settings: MeshSettings) -> None:
    table = Table(title=f"run {state.tape}", title_justify="left", show_header=False)
    folder = settings.tapewatch_dir
    for name, value in (
        ("quotes published", f"{tally.published:,}"),
        ("quotes scored and stored", f"{tally.stored:,}"),
        ("lost, duplicated", f"{tally.lost}, {tally.duplicated}"),
        ("recorded again, same score", f"{tally.redelivered:,}"),
        ("rejected, in the dead-letter queue", f"{tally.rejected:,}"),
        ("detections, alerts", f"{tally.detections}, {tally.alerts} ({tally.detections / max(1, tally.stored):.2%})"),
        ("throughput", f"{tally.stored / max(state.seconds, 1e-9):,.0f} quotes/s, start and stop of the mesh included"),
        ("lake", str(folder / "lake")),
        ("logs", str(folder / "logs")),
    ):
        table.add_row(name, value)
    console.print(table)


async def run(
    settings: MeshSettings, location: str, symbols: Sequence[str], scorers: int, mode: str, console: Console
) -> int:
    """Replay `location` through the mesh to its end, and compare what is stored with the source. The exit code."""
    started = time.monotonic()
    check(location, symbols)  # ingest would find out only when the mesh is up
    path = settings.tapewatch_dir / "run.json"
    state, goes_on = RunState.load_or_new(path, location, symbols)
    state.save(path)
    if goes_on:
        console.print(f"going on with {state.tape}, which was stopped before its end")
    mesh = Mesh(settings, scorers, mode=mode)
    observer = None
    tally = None
    code = EXIT_FAILED
    async with interruptible() as stopping:
        try:
            await mesh.start()
            observer = MeshObserver(settings, mesh)
            await observer.start_replay(location, state.tape, symbols, 0.0)
            with LiveView(console, f"tapewatch · {location} on tape {state.tape}") as view:
                async with _shown_beside(observer, settings, state.tape, view, from_start=True):
                    replay = await _follow_replay(observer, mesh, state, view, stopping)
                    if replay is not None:
                        keys = await asyncio.to_thread(_source_keys, location, state.tape, symbols)
                        tally = await _tally(observer, mesh, state.tape, keys, replay, stopping)
        except TapewatchError as error:
            console.print(f"tapewatch: {error.message}", style="bold red", soft_wrap=True)
            code = exit_code_of(error)
        finally:
            if observer is not None:
                await observer.close()
            await mesh.stop()
    state.seconds += time.monotonic() - started
    state.finished = tally is not None
    state.save(path)
    if tally is None:
        if not stopping.is_set():
            return code
        console.print(f"stopped; nothing is lost. The same command goes on with {state.tape}.")
        return EXIT_INTERRUPTED
    _print_summary(console, tally, state, settings)
    if not tally.complete:
        for process in mesh.processes:
            if process.restarts:
                words = f"{process.name} was started again ({process.restarts}); it had ended with: {process.end}"
                console.print(words, style="yellow", soft_wrap=True, highlight=False)
    console.print(tally.last_line(state.seconds), soft_wrap=True, highlight=False)
    return 0 if tally.complete else EXIT_FAILED


async def up(settings: MeshSettings, options: UpOptions, console: Console, *, kept: bool = True) -> int:
    """The mesh, staying up until Ctrl-C. The exit code. What is not `kept` the same command cannot go on with."""
    source, location, symbols = options.source, options.location, options.symbols
    ingest = {"SYMBOLS": ",".join(symbols)} if symbols else {}
    if source != "replay":
        ingest |= {"SOURCE": source, "POLL_INTERVAL_SECONDS": str(options.interval_seconds), "CSV_PATH": location}
    mesh = Mesh(settings, options.scorers, ingest, settings.canary_interval_seconds, options.mode)
    path = settings.tapewatch_dir / "up.json"
    state = None
    tape = LIVE_TAPE
    if source == "replay":
        check(location, symbols)
        state, goes_on = RunState.load_or_new(path, location, symbols, "replay")
        state.save(path)
        tape = state.tape
        if goes_on:
            console.print(f"going on with {tape}, which was stopped before its end")
    observer = None
    async with interruptible() as stopping:
        try:
            await mesh.start()
            observer = MeshObserver(settings, mesh)
            if state is not None:
                await observer.start_replay(location, tape, symbols, options.speed)
            with LiveView(console, f"tapewatch · {source} on tape {tape} · Ctrl-C stops") as view:
                async with _shown_beside(observer, settings, tape, view, from_start=state is not None):
                    await _follow_live(observer, mesh, state, options.speed, view, stopping)
        except TapewatchError as error:
            console.print(f"tapewatch: {error.message}", style="bold red", soft_wrap=True)
            return exit_code_of(error)
        finally:
            if observer is not None:
                await observer.close()
            await mesh.stop()
    if state is not None:
        state.save(path)
    if not kept:
        return 0
    if state is not None and state.finished:
        console.print(f"stopped; {tape} was played to its end, and the same command starts a new tape.")
    else:
        console.print("stopped; what was published is kept, and the same command goes on from there.")
    return 0


async def _follow_live(
    observer: MeshObserver,
    mesh: Mesh,
    replaying: RunState | None,
    speed: float,
    view: LiveView,
    stopping: asyncio.Event,
) -> None:
    """Show the mesh, and the replay if it plays one, until stopped. Raises: MeshFailedError."""
    while not stopping.is_set():
        if mesh.failure is not None:
            raise mesh.failure
        async with _restarts_outlived(observer, replaying, speed):
            if replaying is not None:
                reading, replay = await _replay_reading(observer, replaying.tape)
                replaying.finished = replay.state == replay_pb2.REPLAY_STATE_SUCCEEDED
            else:
                reading = await _live_reading(observer)
            tape = LIVE_TAPE if replaying is None else replaying.tape
            reading.latency_seconds = await observer.latency_seconds(tape)
            reading.canaries = await observer.canaries()
            view.show(reading)
        await stopped_within(_POLL_SECONDS * 2, stopping)


async def _live_reading(observer: MeshObserver) -> Reading:
    coverage = await observer.coverage()
    capacity = await observer.capacity()
    silent = (coverage_pb2.FRESHNESS_STALE, coverage_pb2.FRESHNESS_NEVER_SEEN)
    return Reading(
        published=sum(c.accepted_quotes for c in coverage),
        backlog=_waiting(capacity),
        dead_letters=capacity.backlog.dead_letters,
        stale=[c.series.symbol for c in coverage if c.freshness in silent],
    )
