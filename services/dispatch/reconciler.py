"""What keeps task mode going: launches what may start, and settles what a task left, by the gateway's record.

Whoever runs it - the embedded dispatcher's loop, a Lambda on a schedule or on ECS's task-state events - may die or run
twice at any moment: every step is a conditional change of the ledger, and a launch has a token of its own.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from opentelemetry import trace

from services.dispatch.batch import (
    Ending,
    Entry,
    TaskState,
    delayed,
    hopeless,
    ready,
    select,
    settle,
)
from services.dispatch.manifests import ManifestReader, Member
from services.dispatch.ports import Ledger, NoCapacity, TaskLauncher, TaskPhase, TaskStatus
from services.dispatch.task_environment import client_token, manifest_of, task_environment
from services.dispatch.task_metrics import TaskMetrics
from services.domain.errors import ConflictError, DependencyUnavailableError, NotConfiguredError, TapewatchError
from services.pipeline.batch_files import BatchFiles, digest_of, manifest_name
from services.pipeline.ports import Record
from services.pipeline.task_report import TaskReport, read_report
from services.queue import market_message
from services.queue.ports import DeadLetters
from services.runtime import telemetry_names as names
from services.runtime.backoff import pause_seconds
from services.runtime.exit_codes import EXIT_FAILED, EXIT_MISCONFIGURED
from services.runtime.stopping import stopped_within
from services.runtime.telemetry import context_of

CLAIM_SECONDS = 10.0
"""How long a launch may take before another dispatcher makes it again, with the same token."""

_IDLE_SECONDS = 1.0
_BUSY_SECONDS = 0.2
_LONGEST_PAUSE_SECONDS = 3.0
_AT_ONCE = 16
_ITS_OWN_ENDS = (0, EXIT_FAILED, EXIT_MISCONFIGURED)
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TaskLimits:
    """How many tasks at once, and how long one may take from its launch to its end, seconds."""

    concurrent: int = 10
    timeout_seconds: float = 300.0
    container: str = "scorer"


class Reconciler:
    """Follows the ledger's open batches. `clock` is the time."""

    def __init__(
        self,
        ledger: Ledger,
        launcher: TaskLauncher,
        files: BatchFiles,
        record: Record,
        dead_letters: DeadLetters,
        limits: TaskLimits,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._ledger = ledger
        self._launcher = launcher
        self._files = files
        self._manifests = ManifestReader(files)
        self._record = record
        self._dead_letters = dead_letters
        self._limits = limits
        self._clock = clock
        self._metrics = TaskMetrics(clock)
        self._tracer = trace.get_tracer("tapewatch.dispatch")
        self._at_once = asyncio.Semaphore(_AT_ONCE)

    async def run(self, draining: asyncio.Event, wake: asyncio.Event) -> None:
        """Step by step until `draining` is set; at once after `wake` is, else a few times a second."""
        failed = 0
        while not draining.is_set():
            wake.clear()
            try:
                pause = _BUSY_SECONDS if await self.step() else _IDLE_SECONDS
                failed = 0
            except TapewatchError as error:
                failed += 1
                pause = pause_seconds(error, failed, _LONGEST_PAUSE_SECONDS)
                _log.warning("task mode waits: %s", error.message)
            if failed or pause == _BUSY_SECONDS:
                await stopped_within(pause, draining)
            else:
                await _either(draining, wake, pause)

    async def step(self) -> int:
        """Settle what ended and launch what may start. How many batches are open.

        Raises: TapewatchError, the first that kept a batch from its next step; every other one was tried too.
        """
        entries = await asyncio.to_thread(self._ledger.open)
        running = [entry for entry in entries if entry.state is TaskState.RUNNING]
        failures: list[TapewatchError] = []
        if running:
            statuses = await asyncio.to_thread(self._launcher.describe, [entry.task for entry in running])
            failures += await self._each(running, lambda entry: self._follow(entry, statuses.get(entry.task)))
            entries = await asyncio.to_thread(self._ledger.open)
        now = self._clock()
        stale = [entry for entry in entries if self._launch_is_due(entry, now)]
        failures += await self._each(stale, self._launch_again)
        busy = sum(entry.busy for entry in entries)
        open_ids = frozenset(entry.id for entry in entries)
        startable = [entry for entry in entries if ready(entry, open_ids, now)]
        failures += await self._each(startable[: max(0, self._limits.concurrent - busy)], self._launch)
        self._metrics.see(entries)
        if failures:
            raise failures[0]
        return len(entries)

    async def _each(self, entries: Sequence[Entry], act: Callable[[Entry], Awaitable[None]]) -> list[TapewatchError]:
        async def one(entry: Entry) -> TapewatchError | None:
            async with self._at_once:
                try:
                    await act(entry)
                except ConflictError:
                    _log.debug("batch %s: another dispatcher was faster", entry.id)
                except TapewatchError as error:
                    return error
            return None

        return [error for error in await asyncio.gather(*map(one, entries)) if error is not None]

    async def _update(self, entry: Entry) -> Entry:
        return await asyncio.to_thread(self._ledger.update, entry)

    def _launch_is_due(self, entry: Entry, now: datetime) -> bool:
        if entry.state is not TaskState.LAUNCHING or entry.launch_time is None:
            return False
        if entry.not_before is not None:
            return entry.not_before <= now
        return (now - entry.launch_time).total_seconds() > CLAIM_SECONDS

    async def _launch(self, entry: Entry) -> None:
        """Claim the entry's next attempt, and launch it; nothing to launch when all of it is recorded by now."""
        members = await asyncio.to_thread(self._manifests.read, entry.digest)
        missing = await self._missing(entry, members)
        if not missing:
            await self._update(settle(entry, missing, (), Ending(False, entry.reason), self._clock()))
            return
        chosen = select(entry, missing)
        manifest = manifest_of([members[i].message for i in chosen])
        digest = digest_of(manifest)
        if digest != entry.digest:
            await asyncio.to_thread(self._files.put, manifest_name(digest), manifest)
        claimed = replace(
            entry,
            state=TaskState.LAUNCHING,
            attempt=entry.attempt + 1,
            attempt_digest=digest,
            attempt_messages=len(chosen),
            settled=entry.messages - len(missing),
            task="",
            launch_time=self._clock(),
            start_time=None,
            stop_time=None,
            not_before=None,
        )
        kept = await asyncio.to_thread(self._ledger.claim, claimed, self._limits.concurrent)
        if kept is not None:  # else another dispatcher's batch took the last place
            await self._start(kept)

    async def _launch_again(self, entry: Entry) -> None:
        """The same attempt with the same token: if it was launched after all, this launches nothing."""
        await self._start(await self._update(replace(entry, launch_time=self._clock(), not_before=None)))

    async def _start(self, entry: Entry) -> None:
        name = manifest_name(entry.attempt_digest)
        manifest = await asyncio.to_thread(self._manifests.content, entry.attempt_digest)
        environment = task_environment(entry, self._files.uri(name), manifest, self._limits.container)
        try:
            with self._span(names.SPAN_LAUNCH, entry, trace.SpanKind.PRODUCER):
                answer = await asyncio.to_thread(self._launcher.launch, client_token(entry), environment)
        except (ConflictError, NotConfiguredError) as error:
            self._metrics.launches("refused")
            _log.error("batch %s waits, its task is refused: %s", entry.id, error.message)
            await self._update(delayed(entry, self._clock(), error.message))
            return
        except DependencyUnavailableError as error:
            self._metrics.launches("refused")
            _log.warning("batch %s waits: %s", entry.id, error.message)
            await self._update(delayed(entry, self._clock(), error.message, TaskState.LAUNCHING))
            return
        if isinstance(answer, NoCapacity):
            self._metrics.launches("no_capacity")
            _log.warning("batch %s waits, there is no capacity: %s", entry.id, answer.reason)
            await self._update(delayed(entry, self._clock(), f"no capacity: {answer.reason}"))
            return
        self._metrics.launches("launched")
        await self._update(replace(entry, state=TaskState.RUNNING, task=answer))

    def _span(
        self, name: str, entry: Entry, kind: trace.SpanKind = trace.SpanKind.INTERNAL
    ) -> AbstractContextManager[trace.Span]:
        """A step of an attempt, within the trace of the batch: its task is beside it there, told by environment."""
        return self._tracer.start_as_current_span(
            name,
            context=context_of({"traceparent": entry.traceparent, "tracestate": entry.tracestate}),
            kind=kind,
            attributes={
                names.ATTRIBUTE_BATCH: entry.id,
                names.ATTRIBUTE_ATTEMPT: entry.attempt,
                names.ATTRIBUTE_CORRELATION: entry.correlation_id,
            },
        )

    async def _follow(self, entry: Entry, status: TaskStatus | None) -> None:
        now = self._clock()
        if status is not None and status.phase is not TaskPhase.STOPPED:
            launched = entry.launch_time or entry.entered_time
            if (now - launched).total_seconds() > self._limits.timeout_seconds:
                reason = f"not done {self._limits.timeout_seconds:.0f} s after its launch"
                await asyncio.to_thread(self._launcher.stop, entry.task, reason)
            elif status.start_time is not None and entry.start_time is None:
                await self._update(replace(entry, start_time=status.start_time))
            return
        with self._span(names.SPAN_SETTLE, entry):
            await self._settle(entry, status, now)

    async def _settle(self, entry: Entry, status: TaskStatus | None, now: datetime) -> None:
        """Note what became of an attempt that ended, and send to the dead letters what can never be scored."""
        members = await asyncio.to_thread(self._manifests.read, entry.digest)
        report = await asyncio.to_thread(read_report, self._files, entry.correlation_id)
        missing = await self._missing(entry, members)
        ending = _ending(status, report)
        dead = await self._bury(entry, members, missing, report, ending)
        missing = [i for i in missing if i not in dead]
        started = entry.start_time or (status.start_time if status is not None else None)
        after = settle(replace(entry, start_time=started), missing, dead, ending, now)
        self._metrics.ended(_outcome(entry, after, report, ending))
        if after.open:
            _log.warning(
                "batch %s attempt %d: %d messages left: %s", entry.id, entry.attempt, len(missing), after.reason
            )
        await self._update(after)

    async def _missing(self, entry: Entry, members: Sequence[Member]) -> list[int]:
        """Positions of the messages that are neither recorded nor dead letters."""
        left = [i for i in range(len(members)) if i not in entry.dead]
        recorded = await self._record.scores([members[i].quote for i in left])
        return [i for i in left if members[i].quote.quote_id not in recorded]

    async def _bury(
        self,
        entry: Entry,
        members: Sequence[Member],
        missing: Sequence[int],
        report: TaskReport | None,
        ending: Ending,
    ) -> list[int]:
        """Send to the dead letters what can never be scored. Its positions."""
        attempt = await asyncio.to_thread(self._manifests.positions, entry.digest, entry.attempt_digest)
        reasons: dict[int, str] = {}
        if report is not None:
            reasons = {attempt[at]: why for at, why in report.invalid.items() if 0 <= at < len(attempt)}
        elif hopeless(entry, ending):
            reasons = {attempt[0]: f"its task died {entry.crashes + 1} times without recording it: {ending.reason}"}
        dead = [i for i in sorted(reasons) if i in missing]
        for i in dead:
            letter = market_message.dead_letter(members[i].message, members[i].quote, reasons[i])
            await asyncio.to_thread(self._dead_letters.send_dead_letter, letter)
            _log.warning("dead letter from %s: %s", letter.group_id, letter.reason)
        return dead


def _ending(status: TaskStatus | None, report: TaskReport | None) -> Ending:
    """Whether the messages are to blame: only when the task died by itself, which its exit code says."""
    if report is not None:
        return Ending(False, "; ".join(report.transient[:3]))
    if status is None:
        return Ending(False, "its task is no longer known, and never reported")
    code = status.exit_code
    crashed = code is not None and code not in _ITS_OWN_ENDS
    return Ending(crashed, f"no report: {status.reason or 'the launcher gives no reason'}")


def _outcome(entry: Entry, after: Entry, report: TaskReport | None, ending: Ending) -> str:
    if not after.open:
        return "recorded"
    if after.settled > entry.settled:
        return "partly"
    if report is not None:
        return "transient"
    return "crashed" if ending.crashed else "never_reported"


async def _either(first: asyncio.Event, second: asyncio.Event, seconds: float) -> None:
    waits = [asyncio.create_task(event.wait()) for event in (first, second)]
    await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()
    await asyncio.gather(*waits, return_exceptions=True)
