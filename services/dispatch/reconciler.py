"""What keeps task mode going: launches what may start, and settles what a task left, by the gateway's record.

Whoever runs it - the embedded dispatcher's loop, a Lambda on a schedule or on ECS's task-state events - may die or run
twice at any moment: every step is a conditional change of the ledger, and a launch has a token of its own.
"""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context

from services.dispatch.batch import (
    Ending,
    Entry,
    SharedTask,
    TaskState,
    delayed,
    hopeless,
    left_behind,
    select,
    settle,
    together,
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
    """How many tasks at once, and how long one may take from its launch to its end, seconds.

    `messages` is the most that batches which wait behind each other put into one.
    """

    concurrent: int = 10
    timeout_seconds: float = 300.0
    messages: int = 1_000
    container: str = "scorer"


@dataclass(frozen=True, slots=True)
class _Part:
    """What a batch puts into a task; `settled` of its messages need none."""

    entry: Entry
    messages: Sequence[Mapping[str, Any]]
    settled: int


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
        running: dict[str, list[Entry]] = defaultdict(list)
        for entry in entries:
            if entry.state is TaskState.RUNNING:
                running[entry.task].append(entry)
        failures: list[TapewatchError] = []
        if running:
            statuses = await asyncio.to_thread(self._launcher.describe, list(running))
            failures += await self._each(
                running.values(), lambda batches: self._follow(batches, statuses.get(batches[0].task))
            )
            entries = await asyncio.to_thread(self._ledger.open)
        now = self._clock()
        failures += await self._each(self._unanswered(entries, now), self._launch_again)
        busy = sum(entry.holds_place for entry in entries)
        startable = together(entries, now, self._limits.messages)
        failures += await self._each(startable[: max(0, self._limits.concurrent - busy)], self._launch)
        self._metrics.see(entries)
        if failures:
            raise failures[0]
        return len(entries)

    async def _each(
        self, tasks: Iterable[Sequence[Entry]], act: Callable[[Sequence[Entry]], Awaitable[None]]
    ) -> list[TapewatchError]:
        """Act on the batches of each task. What went wrong."""

        async def one(batches: Sequence[Entry]) -> TapewatchError | None:
            async with self._at_once:
                try:
                    await act(batches)
                except ConflictError:
                    _log.debug("batch %s: another dispatcher was faster", batches[0].id)
                except TapewatchError as error:
                    return error
            return None

        return [error for error in await asyncio.gather(*map(one, tasks)) if error is not None]

    async def _update(self, entry: Entry) -> Entry:
        return await asyncio.to_thread(self._ledger.update, entry)

    def _unanswered(self, entries: Sequence[Entry], now: datetime) -> list[list[Entry]]:
        """Launches that are to be asked for again, each with the batches that share it."""
        known = {entry.id: entry for entry in entries}
        return [
            [entry, *(known[rider] for rider in (entry.shared.riders if entry.shared else ()) if rider in known)]
            for entry in entries
            if entry.leads and self._launch_is_due(entry, now)
        ]

    def _launch_is_due(self, entry: Entry, now: datetime) -> bool:
        if entry.state is not TaskState.LAUNCHING or entry.launch_time is None:
            return False
        if entry.not_before is not None:
            return entry.not_before <= now
        return (now - entry.launch_time).total_seconds() > CLAIM_SECONDS

    async def _launch(self, batches: Sequence[Entry]) -> None:
        """Claim the next attempt of each batch, and launch their task; one that is recorded by now needs none.

        A batch whose manifest cannot be read stays behind, and with it what waits for it; the others go.
        """
        read, failure = await self._read(batches)
        recorded = await self._recorded(read)
        stay = {entry.id for entry in batches} - {entry.id for entry, _ in read}
        parts: list[_Part] = []
        carried: set[str] = set()
        for entry, members in read:
            missing = _missing(entry, members, recorded)
            if not stay.isdisjoint(entry.after):
                stay.add(entry.id)
            elif missing:
                # A quote that came twice goes with the batch that entered first: the first one counts.
                chosen = [i for i in select(entry, missing) if members[i].quote.quote_id not in carried]
                carried |= {members[i].quote.quote_id for i in chosen}
                parts.append(_Part(entry, [members[i].message for i in chosen], entry.messages - len(missing)))
            else:
                try:
                    await self._update(settle(entry, missing, (), Ending(False, entry.reason), self._clock()))
                except ConflictError:
                    stay.add(entry.id)
        if parts and (kept := await self._claim(parts)) is not None:  # else another's batch took the last place
            await self._start(kept)
        if failure is not None:
            raise failure

    async def _claim(self, parts: Sequence[_Part]) -> list[Entry] | None:
        """The batches' next attempt, in one task. Its manifest is durable before; None when there is no place."""
        now = self._clock()
        whole = [message for part in parts for message in part.messages]
        shared: SharedTask | None = None
        if len(parts) > 1:
            leader = parts[0].entry
            shared = SharedTask(
                leader=f"{leader.id}.{leader.attempt + 1}",
                batches=len(parts),
                digest=await self._put(whole),
                messages=len(whole),
            )
        claimed: list[Entry] = []
        first = 0
        for part in parts:
            if shared is not None:
                riders = () if claimed else tuple(each.entry.id for each in parts[1:])
                shared = replace(shared, first=first, riders=riders)
            claimed.append(
                replace(
                    part.entry,
                    state=TaskState.LAUNCHING,
                    attempt=part.entry.attempt + 1,
                    attempt_digest=await self._put(part.messages, but=part.entry.digest),
                    attempt_messages=len(part.messages),
                    shared=shared,
                    settled=part.settled,
                    task="",
                    launch_time=now,
                    start_time=None,
                    stop_time=None,
                    not_before=None,
                )
            )
            first += len(part.messages)
        return await asyncio.to_thread(self._ledger.claim, claimed, self._limits.concurrent)

    async def _put(self, messages: Sequence[Mapping[str, Any]], but: str = "") -> str:
        """The digest of a manifest with these messages, which is there on return, as that of `but` is."""
        manifest = manifest_of(messages)
        digest = digest_of(manifest)
        if digest != but:
            await asyncio.to_thread(self._files.put, manifest_name(digest), manifest)
        return digest

    async def _launch_again(self, batches: Sequence[Entry]) -> None:
        """The same attempt with the same token: if it was launched after all, this launches nothing."""
        leader, *riders = batches
        await self._start([await self._update(replace(leader, launch_time=self._clock(), not_before=None)), *riders])

    async def _start(self, batches: Sequence[Entry]) -> None:
        """Launch the batches' task, which the first of them leads."""
        leader, *riders = batches
        name = manifest_name(leader.task_digest)
        manifest = await asyncio.to_thread(self._manifests.content, leader.task_digest)
        environment = task_environment(leader, self._files.uri(name), manifest, self._limits.container)
        try:
            with self._span(names.SPAN_LAUNCH, batches, trace.SpanKind.PRODUCER):
                answer = await asyncio.to_thread(self._launcher.launch, client_token(leader), environment)
        except (ConflictError, NotConfiguredError) as error:
            self._metrics.launches("refused")
            _log.error("batch %s waits, its task is refused: %s", leader.id, error.message)
            await self._give_back(batches, error.message)
            return
        except DependencyUnavailableError as error:
            self._metrics.launches("refused")
            _log.warning("batch %s waits: %s", leader.id, error.message)
            await self._update(delayed(leader, self._clock(), error.message, TaskState.LAUNCHING))
            return
        if isinstance(answer, NoCapacity):
            self._metrics.launches("no_capacity")
            _log.warning("batch %s waits, there is no capacity: %s", leader.id, answer.reason)
            await self._give_back(batches, f"no capacity: {answer.reason}")
            return
        self._metrics.launches("launched")
        if riders:
            _log.info("batch %s: %d others ride in its task", leader.id, len(riders))
        launched = [replace(entry, state=TaskState.RUNNING, task=answer) for entry in batches]
        await asyncio.to_thread(self._ledger.update_together, launched)

    async def _give_back(self, batches: Sequence[Entry], reason: str) -> None:
        """Let the batches wait for another task: only who led this one waits longer for it."""
        leader, *riders = batches
        waiting = [delayed(leader, self._clock(), reason), *(left_behind(entry, reason) for entry in riders)]
        await asyncio.to_thread(self._ledger.update_together, waiting)

    def _span(
        self, name: str, batches: Sequence[Entry], kind: trace.SpanKind = trace.SpanKind.INTERNAL
    ) -> AbstractContextManager[trace.Span]:
        """A step of an attempt, within the trace of the batch that leads: its task is beside it there.

        The task is told of that trace by environment. The traces of the batches that ride with it are linked.
        """
        leader, *riders = batches
        contexts = [trace.get_current_span(_context(entry)).get_span_context() for entry in riders]
        return self._tracer.start_as_current_span(
            name,
            context=_context(leader),
            kind=kind,
            links=[trace.Link(context) for context in contexts if context.is_valid],
            attributes={
                names.ATTRIBUTE_BATCH: leader.id,
                names.ATTRIBUTE_ATTEMPT: leader.attempt,
                names.ATTRIBUTE_CORRELATION: leader.correlation_id,
                names.ATTRIBUTE_BATCH_MESSAGES: leader.task_messages,
            },
        )

    async def _follow(self, batches: Sequence[Entry], status: TaskStatus | None) -> None:
        """Look after a task that was launched, and settle each of its batches once it is over."""
        now, one = self._clock(), batches[0]
        if status is not None and status.phase is not TaskPhase.STOPPED:
            launched = one.launch_time or one.entered_time
            if (now - launched).total_seconds() > self._limits.timeout_seconds:
                reason = f"not done {self._limits.timeout_seconds:.0f} s after its launch"
                await asyncio.to_thread(self._launcher.stop, one.task, reason)
            elif status.start_time is not None and one.start_time is None:
                started = [replace(entry, start_time=status.start_time) for entry in batches]
                await asyncio.to_thread(self._ledger.update_together, started)
            return
        with self._span(names.SPAN_SETTLE, batches):
            await self._settle(batches, status, now)

    async def _settle(self, batches: Sequence[Entry], status: TaskStatus | None, now: datetime) -> None:
        """Note what became of each batch of a task that ended; send to the dead letters what can never be scored."""
        report = await asyncio.to_thread(read_report, self._files, batches[0].correlation_id)
        ending = _ending(status, report)
        read, failure = await self._read(batches)
        recorded = await self._recorded(read)
        settled: list[tuple[Entry, Entry]] = []

        async def settle_one(entry: Entry, members: Sequence[Member]) -> None:
            missing = _missing(entry, members, recorded)
            dead = await self._bury(entry, members, missing, report, ending)
            missing = [i for i in missing if i not in dead]
            begun = entry.start_time or (status.start_time if status is not None else None)
            after = settle(replace(entry, start_time=begun), missing, dead, ending, now)
            await self._update(after)
            settled.append((entry, after))
            if after.open:
                _log.warning(
                    "batch %s attempt %d: %d messages left: %s", entry.id, entry.attempt, len(missing), after.reason
                )

        for error in await asyncio.gather(*(settle_one(*each) for each in read), return_exceptions=True):
            if isinstance(error, ConflictError):
                _log.debug("batch %s: another dispatcher was faster", batches[0].id)
            elif isinstance(error, TapewatchError):
                failure = failure or error
            elif isinstance(error, BaseException):
                raise error
        if any(entry.leads for entry, _ in settled):  # a task is counted once, by whom its leader was settled
            self._metrics.ended(_outcome(settled, report, ending))
        if failure is not None:
            raise failure

    async def _read(
        self, batches: Sequence[Entry]
    ) -> tuple[list[tuple[Entry, Sequence[Member]]], TapewatchError | None]:
        """The batches with what is in them, and why there is one that cannot be read."""

        async def one(entry: Entry) -> tuple[Entry, Sequence[Member]] | TapewatchError:
            try:
                return entry, await asyncio.to_thread(self._manifests.read, entry.digest)
            except TapewatchError as error:
                return error

        answers = await asyncio.gather(*map(one, batches))
        failure = next((answer for answer in answers if isinstance(answer, TapewatchError)), None)
        return [answer for answer in answers if not isinstance(answer, TapewatchError)], failure

    async def _recorded(self, read: Sequence[tuple[Entry, Sequence[Member]]]) -> Collection[str]:
        """Of the batches' quotes those that are recorded, by quote_id."""
        quotes = {
            member.quote.quote_id: member.quote
            for entry, members in read
            for i, member in enumerate(members)
            if i not in entry.dead
        }
        return await self._record.scores(list(quotes.values()))

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
        first = 0 if entry.shared is None else entry.shared.first
        reasons: dict[int, str] = {}
        if report is not None:
            invalid = {at - first: why for at, why in report.invalid.items()}
            reasons = {attempt[at]: why for at, why in invalid.items() if 0 <= at < len(attempt)}
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


def _outcome(settled: Sequence[tuple[Entry, Entry]], report: TaskReport | None, ending: Ending) -> str:
    """What became of a task, by its batches before and after."""
    if not any(after.open for _, after in settled):
        return "recorded"
    if any(after.settled > before.settled for before, after in settled):
        return "partly"
    if report is not None:
        return "transient"
    return "crashed" if ending.crashed else "never_reported"


def _missing(entry: Entry, members: Sequence[Member], recorded: Collection[str]) -> list[int]:
    """Positions of the messages that are neither recorded nor dead letters."""
    return [i for i, member in enumerate(members) if i not in entry.dead and member.quote.quote_id not in recorded]


def _context(entry: Entry) -> Context:
    return context_of({"traceparent": entry.traceparent, "tracestate": entry.tracestate})


async def _either(first: asyncio.Event, second: asyncio.Event, seconds: float) -> None:
    waits = [asyncio.create_task(event.wait()) for event in (first, second)]
    await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()
    await asyncio.gather(*waits, return_exceptions=True)
