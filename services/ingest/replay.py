"""Replays: an archive played onto a tape of its own, with a checkpoint after each batch.

A replay that was killed goes on at the next start, one that was cancelled or failed when it is started again. The batch
in flight at that moment is sent again, and the queue removes it by its deduplication ids.
"""

import asyncio
import logging
import math
import secrets
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from typing import Any

from services.archive import location as archive
from services.domain.errors import (
    UNUSABLE,
    DependencyUnavailableError,
    FieldViolation,
    FileLostError,
    InvalidRequestError,
    NotFoundError,
    TapewatchError,
    shown,
)
from services.domain.quote import (
    CANARY_TAPE,
    EARLIEST_EVENT,
    LIVE_TAPE,
    MAX_CLOCK_SKEW,
    SYMBOL_PATTERN,
    TAPE_PATTERN,
    format_time,
)
from services.ingest.archive_source import ArchiveSource
from services.ingest.ports import Progress, Replay, ReplayState
from services.ingest.service import IngestService
from services.queue.ports import Queue
from services.runtime.backoff import pause_seconds
from services.runtime.stopping import stopped_within

_log = logging.getLogger(__name__)
_BACKPRESSURE_SECONDS = 0.02
_SYMBOLS_LIMIT = 1_000

Spawn = Callable[[Coroutine[Any, Any, None], str], None]


@dataclass(slots=True)
class _Running:
    """A replay that is playing: as it was last saved, and the switch that stops it."""

    replay: Replay
    stop: asyncio.Event
    ended: asyncio.Event


class Replays:
    """Starts, watches and stops replays. Belongs to one event loop.

    `spawn` runs a coroutine in the background for the server's life; `draining` stops all replays.
    """

    def __init__(
        self,
        service: IngestService,
        queue: Queue,
        progress: Progress,
        clock: Callable[[], datetime],
        spawn: Spawn,
        *,
        batch_quotes: int = 250,
        max_ready: int = 5_000,
        sectors: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self._service = service
        self._queue = queue
        self._progress = progress
        self._clock = clock
        self._spawn = spawn
        self._batch_quotes = batch_quotes
        self._max_ready = max_ready
        self._sectors = sectors
        self._running: dict[str, _Running] = {}
        self._starting = asyncio.Lock()

    async def resume(self) -> None:
        """Go on with the replays that were running when the server was killed."""
        for replay in await asyncio.to_thread(self._progress.running):
            _log.info("going on with the replay on tape %s at quote %d", replay.tape, replay.next_row)
            self._play(replay)

    async def start(
        self,
        location: str,
        tape: str,
        symbols: Sequence[str],
        speed: float,
        start: datetime | None = None,
        end: datetime | None = None,
    ) -> Replay:
        """Start a replay, or go on with the tape's; one that plays the same already, or has played it, stays as it is.

        `start` and `end` bound the event times: from the one, to before the other.

        Raises: InvalidRequestError naming each wrong field; NotConfiguredError when the bundled tape is not installed.
        """
        now = self._clock()
        symbols = tuple(sorted(set(symbols)))
        _check(location, tape, symbols, speed)
        _check_bounds(start, end, now)
        tape = tape or f"replay-{now:%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
        async with self._starting:
            known = await self._find(tape)
            if known is not None:
                if not known.plays_same(location, symbols, start, end):
                    text = f"{tape} plays {_what(known)}: name another tape"
                    raise InvalidRequestError([FieldViolation("tape", text)])
                if known.state in (ReplayState.RUNNING, ReplayState.SUCCEEDED):
                    return known
                replay = known.changed(now, state=ReplayState.RUNNING, speed=speed, error="")
            else:
                await asyncio.to_thread(archive.check, location, symbols)
                replay = Replay(tape, location, symbols, speed, ReplayState.RUNNING, now, now, start=start, end=end)
            await asyncio.to_thread(self._progress.save, replay)
            self._play(replay)
        return replay

    async def get(self, tape: str) -> Replay:
        """How far the tape's replay is. Raises: NotFoundError."""
        replay = await self._find(tape)
        if replay is None:
            raise NotFoundError("replay", tape)
        return replay

    async def cancel(self, tape: str) -> Replay:
        """Stop the tape's replay and wait until it has; an ended one stays as it is. Raises: NotFoundError."""
        if (running := self._running.get(tape)) is not None:
            running.stop.set()
            await running.ended.wait()
        return await self.get(tape)

    def stop_all(self) -> None:
        """Tell all replays to stop."""
        for running in self._running.values():
            running.stop.set()

    async def _find(self, tape: str) -> Replay | None:
        if (running := self._running.get(tape)) is not None:
            return running.replay
        return await asyncio.to_thread(self._progress.find, tape)

    def _play(self, replay: Replay) -> None:
        running = _Running(replay, asyncio.Event(), asyncio.Event())
        self._running[replay.tape] = running
        self._spawn(self._run(running), f"replay {replay.tape}")

    async def _run(self, running: _Running) -> None:
        try:
            finished = await self._publish(running)
            end: dict[str, object] | None = {"state": ReplayState.SUCCEEDED if finished else ReplayState.CANCELLED}
        except FileLostError as error:
            # It takes the server down, and the next start knows what is left: the replay did not fail by itself.
            _log.warning("the replay on tape %s stops: %s", running.replay.tape, error.message)
            end = None
        except TapewatchError as error:
            _log.warning("the replay on tape %s failed: %s", running.replay.tape, error.message)
            end = {"state": ReplayState.FAILED, "error": error.message}
        except Exception:
            _log.exception("the replay on tape %s failed", running.replay.tape)
            end = {"state": ReplayState.FAILED, "error": "a fault of the server; its log has it"}
        try:
            if end is not None:
                await self._save(running, **end)
        except DependencyUnavailableError as error:
            # It stays RUNNING in the file, so that the next start of the server goes on with it.
            _log.warning("cannot note the end of the replay on tape %s: %s", running.replay.tape, error.message)
        finally:
            del self._running[running.replay.tape]
            running.ended.set()

    async def _save(self, running: _Running, **changes: object) -> None:
        running.replay = running.replay.changed(self._clock(), **changes)
        await asyncio.to_thread(self._progress.save, running.replay)

    async def _publish(self, running: _Running) -> bool:
        """Publish from the checkpoint on. Whether the end was reached."""
        replay = running.replay
        source = await asyncio.to_thread(
            ArchiveSource,
            replay.location,
            tape=replay.tape,
            stop=running.stop,
            symbols=replay.symbols,
            start=replay.start,
            end=replay.end,
            first_row=replay.next_row,
            speed=replay.speed,
            batch_quotes=self._batch_quotes,
            sectors=self._sectors,
        )
        if replay.total_quotes not in (0, source.total):
            counted = f"has {source.total:,} quotes and had {replay.total_quotes:,}"
            text = f"{replay.location} {counted}: use another tape, and for a lake that grows an end in the past"
            raise InvalidRequestError([FieldViolation("location", text)])
        await self._save(running, total_quotes=source.total)
        async for batch in source.batches():
            if not await self._queue_has_room(running.stop):
                return False
            counts = await self._service.publish_all(batch.quotes, running.stop)
            if counts is None:
                return False
            await self._save(
                running,
                published_quotes=running.replay.published_quotes + counts[0],
                rejected_quotes=running.replay.rejected_quotes + counts[1],
                position=batch.quotes[-1].event_time,
            )
        return running.replay.next_row >= source.total

    async def _queue_has_room(self, stop: asyncio.Event) -> bool:
        """Wait until the mesh has taken enough of the queue. False when `stop` was set before."""
        attempt = 0
        while not stop.is_set():
            try:
                depth = await asyncio.to_thread(self._queue.depth)
            except UNUSABLE as error:
                attempt += 1
                _log.warning("a replay waits: %s", error.message)
                await stopped_within(pause_seconds(error, attempt), stop)
                continue
            if depth.ready < self._max_ready:
                return True
            await stopped_within(_BACKPRESSURE_SECONDS, stop)
        return False


def _what(replay: Replay) -> str:
    start = [f"from {format_time(replay.start)}"] if replay.start else []
    end = [f"before {format_time(replay.end)}"] if replay.end else []
    return " ".join([replay.location, *replay.symbols, *start, *end])


def _check_bounds(start: datetime | None, end: datetime | None, now: datetime) -> None:
    wrong = []
    if start is not None and start > now + MAX_CLOCK_SKEW:
        wrong.append(FieldViolation("start_time", f"{format_time(start)} is in the future: no quote is that new"))
    if end is not None and end <= EARLIEST_EVENT:
        wrong.append(FieldViolation("end_time", f"{format_time(end)} lies before 1900: no quote is that old"))
    if start is not None and end is not None and end <= start:
        text = f"{format_time(end)} is not after start_time {format_time(start)}: no quote lies between them"
        wrong.append(FieldViolation("end_time", text))
    if wrong:
        raise InvalidRequestError(wrong)


def _check(location: str, tape: str, symbols: Sequence[str], speed: float) -> None:
    wrong = []
    if not location:
        wrong.append(FieldViolation("location", "is required"))
    if tape in (LIVE_TAPE, CANARY_TAPE):
        wrong.append(FieldViolation("tape", f"{tape} is not for replays"))
    elif tape and not TAPE_PATTERN.fullmatch(tape):
        wrong.append(FieldViolation("tape", f"{shown(tape)} does not match {TAPE_PATTERN.pattern}"))
    if len(symbols) > _SYMBOLS_LIMIT:
        wrong.append(
            FieldViolation("symbols", f"has {len(symbols):,} items; {_SYMBOLS_LIMIT:,} are allowed, or none for all")
        )
    for i, symbol in enumerate(symbols[:_SYMBOLS_LIMIT]):
        if not SYMBOL_PATTERN.fullmatch(symbol):
            wrong.append(FieldViolation(f"symbols[{i}]", f"{shown(symbol)} does not match {SYMBOL_PATTERN.pattern}"))
    if not (math.isfinite(speed) and speed >= 0):
        wrong.append(FieldViolation("speed", f"{speed} is not a finite factor of 0 or more"))
    if wrong:
        raise InvalidRequestError(wrong)
