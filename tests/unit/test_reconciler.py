"""The reconciler over a real ledger, with tasks that a test ends as it likes: what shares a task, and every failure."""

import asyncio
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from services.dispatch.batch import MAX_TASK_BATCHES, Entry, NewBatch, TaskState, enter, together
from services.dispatch.ledger_sqlite import SqliteLedger
from services.dispatch.ports import NoCapacity, TaskPhase, TaskStatus
from services.dispatch.reconciler import CLAIM_SECONDS, Reconciler, TaskLimits
from services.dispatch.task_carrier import TaskCarrier
from services.dispatch.task_environment import MAX_OVERRIDE_CHARACTERS, container_overrides
from services.domain.errors import ConflictError, DependencyUnavailableError, TapewatchError
from services.domain.quote import Quote
from services.domain.score import Score
from services.pipeline.batch_files import manifest_name
from services.pipeline.ports import QueuedQuote
from services.pipeline.task_report import TaskReport, write_report
from services.queue import market_message
from services.queue.ports import DeadLetter
from services.runtime import telemetry_names as names
from tests.pipeline_fakes import quote, score

START = datetime(2026, 11, 24, 22, 0, tzinfo=UTC)
DONE, AT_ONCE, MIDWAY, UNREPORTED, AWAY, TAKEN = "done", "at once", "midway", "unreported", "away", "taken"
"""How a task ends: well; dies before, amid and after recording; finds no gateway; is taken away by its launcher."""


class DiedError(Exception):
    """The dispatcher's process is gone."""


class MemoryFiles:
    """Batch files that wait for no disk; a test may take one away."""

    def __init__(self) -> None:
        self.kept: dict[str, bytes] = {}

    def uri(self, name: str) -> str:
        return name

    def put(self, name: str, content: bytes) -> str:
        self.kept[name] = content
        return name

    def get(self, name: str) -> bytes | None:
        return self.kept.get(name)


@dataclass
class Task:
    """A launched task: what it was told, and how it ended."""

    environment: Mapping[str, str]
    quotes: list[Quote]
    status: TaskStatus = field(default_factory=lambda: TaskStatus(TaskPhase.RUNNING, START))

    @property
    def running(self) -> bool:
        return self.status.phase is TaskPhase.RUNNING


@dataclass
class World:
    """A ledger, a gateway and a launcher; a test ends their tasks."""

    folder: Path
    limits: TaskLimits = field(default_factory=TaskLimits)
    poison: set[str] = field(default_factory=set)
    invalid: set[str] = field(default_factory=set)
    recorded: dict[str, Score] = field(default_factory=dict)
    newest: dict[str, datetime] = field(default_factory=dict)
    tasks: dict[str, Task] = field(default_factory=dict)
    letters: list[DeadLetter] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    now: datetime = START
    gateway_away: bool = False

    def __post_init__(self) -> None:
        self.ledger = SqliteLedger(self.folder / "ledger.db", timedelta(days=1), synchronous="off")
        self.files = MemoryFiles()
        self.reconciler = self.another()

    def another(self, dies_at: int = 0, *, afterwards: bool = False, launching: bool = False) -> Reconciler:
        """A dispatcher. One that dies does so at its nth call of ledger, launcher or files, or of the launcher only."""
        left = [dies_at or 10**9]

        def mortal(of: Any) -> Any:
            return Mortal(of, left, afterwards=afterwards)

        ledger, files = (self.ledger, self.files) if launching else (mortal(self.ledger), mortal(self.files))
        return Reconciler(ledger, mortal(self), files, self, self, self.limits, lambda: self.now)

    def enter(self, *quotes: Quote) -> None:
        messages = [QueuedQuote(each, market_message.encode(each).body, {}) for each in quotes]
        asyncio.run(TaskCarrier(self.ledger, self.files).carry(messages))

    def step(self, *reconcilers: Reconciler) -> list[str]:
        """One step of each, at once. What stood in the way."""

        async def one(reconciler: Reconciler) -> str:
            try:
                await reconciler.step()
            except (TapewatchError, DiedError) as error:
                return str(error) or "died"
            return ""

        async def all_of_them() -> list[str]:
            return await asyncio.gather(*map(one, reconcilers or [self.reconciler]))

        return [problem for problem in asyncio.run(all_of_them()) if problem]

    @property
    def running(self) -> list[Task]:
        return [task for task in self.tasks.values() if task.running]

    @property
    def sizes(self) -> list[int]:
        """Messages of each task that was launched."""
        return [len(task.quotes) for task in self.tasks.values()]

    def end(self, task: Task, how: str = DONE) -> None:
        """Let the task do its work, or a part of it."""
        if how == AWAY:
            self._report(task, TaskReport(len(task.quotes), 0, {}, ("gateway: is away",)))
            task.status = TaskStatus(TaskPhase.STOPPED, START, 1)
            return
        dies = how in (AT_ONCE, TAKEN) or any(each.quote_id in self.poison for each in task.quotes)
        work = [] if dies else task.quotes[: len(task.quotes) // 2] if how == MIDWAY else task.quotes
        for each in work:
            if each.quote_id in self.invalid or each.quote_id in self.recorded:
                continue
            series = each.series.key
            assert self.newest.get(series, datetime.min.replace(tzinfo=UTC)) < each.event_time, "order"
            self.newest[series] = each.event_time
            self.recorded[each.quote_id] = score(each)
        if how == DONE and not dies:
            wrong = {i: "never" for i, each in enumerate(task.quotes) if each.quote_id in self.invalid}
            self._report(task, TaskReport(len(task.quotes), len(task.quotes) - len(wrong), wrong))
            task.status = TaskStatus(TaskPhase.STOPPED, START, 1 if wrong else 0)
        else:
            task.status = TaskStatus(TaskPhase.STOPPED, START, None if how == TAKEN else 137, how)

    def _report(self, task: Task, report: TaskReport) -> None:
        write_report(self.files, task.environment["CORRELATION_ID"], report)

    def settle(self, how: Callable[[Task], str] = lambda _: DONE) -> None:
        """Step, end every task and let time pass until no batch is open."""
        for _ in range(600):
            if not self.ledger.open():
                return
            self.step()
            for task in self.running:
                self.end(task, how(task))
            self.now += timedelta(seconds=31)
        raise AssertionError(f"still open: {self.ledger.open()}")

    def launch(self, token: str, environment: Mapping[str, str]) -> str | NoCapacity:
        fault = self.faults.pop() if self.faults else ""
        if fault == "throttled":
            raise DependencyUnavailableError("task launcher", "throttles")
        if fault == "no capacity" and token not in self.tasks:  # what was launched is answered as before
            return NoCapacity("Capacity is unavailable")
        if token in self.tasks:
            assert self.tasks[token].environment == environment, "a token with another environment"
        else:
            assert len(json.dumps(container_overrides("scorer", environment))) <= MAX_OVERRIDE_CHARACTERS
            inline = environment.get("BATCH_MARKET_DATA")
            manifest = inline or self.files.kept[environment["BATCH_MANIFEST_URI"]].decode()
            quotes = [market_message.decode(json.dumps(message), {}) for message in json.loads(manifest)]
            assert len(quotes) == int(environment["BATCH_SIZE"]) > 0
            lanes = {each.series.key for task in self.running for each in task.quotes}
            assert lanes.isdisjoint(each.series.key for each in quotes), "two tasks in one lane"
            assert len(self.running) < self.limits.concurrent, "too many tasks"
            self.tasks[token] = Task(environment, quotes)
        if fault == "lost":
            raise DependencyUnavailableError("task launcher", "did not answer")
        return token

    def describe(self, tasks: Sequence[str]) -> dict[str, TaskStatus]:
        return {task: self.tasks[task].status for task in tasks}

    def stop(self, task: str, reason: str) -> None:
        self.tasks[task].status = TaskStatus(TaskPhase.STOPPED, START, 137, reason)

    def close(self) -> None:
        self.ledger.close()

    async def scores(self, quotes: Sequence[Quote]) -> dict[str, Score]:
        if self.gateway_away:
            raise DependencyUnavailableError("gateway", "is away")
        return {each.quote_id: self.recorded[each.quote_id] for each in quotes if each.quote_id in self.recorded}

    def send_dead_letter(self, letter: DeadLetter) -> None:
        self.letters.append(letter)


class Mortal:
    """Dies at the call that brings `left` to nothing, before or after it is done."""

    def __init__(self, of: Any, left: list[int], *, afterwards: bool) -> None:
        self._of, self._left, self._afterwards = of, left, afterwards

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._of, name)

        def call(*arguments: Any) -> Any:
            self._left[0] -= 1
            if self._left[0] < 0 or (self._left[0] == 0 and not self._afterwards):
                raise DiedError
            answer = method(*arguments)
            if self._left[0] == 0:
                raise DiedError
            return answer

        return call


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.close()


def bars(symbol: str, first: int, last: int) -> list[Quote]:
    return [quote(i, symbol) for i in range(first, last)]


def entered(world: World, *sizes: int, symbol: str = "AAPL") -> list[Quote]:
    """Batches of these sizes, one behind the other. What is in them."""
    start = 0
    for size in sizes:
        world.enter(*bars(symbol, start, start + size))
        start += size
    return bars(symbol, 0, start)


def test_what_waits_goes_in_one_task_in_the_ledgers_order(world: World) -> None:
    quotes = entered(world, 10, 5, 7)
    world.enter(*bars("MSFT", 0, 3))
    world.step()
    assert sorted(world.sizes) == [3, 22]
    assert quotes in [task.quotes for task in world.running]
    leader, *riders, other = world.ledger.open()
    assert {entry.task for entry in (leader, *riders)} == {leader.task} != {other.task}
    assert {entry.state for entry in (leader, *riders)} == {TaskState.RUNNING}
    assert [entry.attempt_messages for entry in (leader, *riders)] == [10, 5, 7]
    assert [entry.holds_place for entry in (leader, *riders, other)] == [True, False, False, True]
    world.settle()
    assert set(world.recorded) == {each.quote_id for each in [*quotes, *bars("MSFT", 0, 3)]}
    assert len(world.tasks) == 2


def test_what_comes_while_a_task_runs_goes_in_the_next(world: World) -> None:
    world.enter(*bars("AAPL", 0, 10))
    world.step()
    for start in range(10, 40, 10):
        world.enter(*bars("AAPL", start, start + 10))
        world.step()
    world.settle()
    assert world.sizes == [10, 30]


def test_batches_of_two_symbols_join_what_they_wait_for(world: World) -> None:
    world.enter(*bars("AAPL", 0, 2))
    world.enter(*bars("MSFT", 0, 2))
    world.enter(quote(2, "AAPL"), quote(2, "MSFT"))
    world.enter(*bars("IBM", 0, 1))
    world.step()
    assert sorted(world.sizes) == [1, 6]
    world.settle()
    assert len(world.recorded) == 7


def test_a_task_takes_no_more_messages_than_allowed_and_batches_stay_whole(world: World) -> None:
    world.limits = TaskLimits(messages=20)
    world.reconciler = world.another()
    entered(world, 9, 9, 9, 30, 5)
    world.settle()
    assert world.sizes == [18, 9, 30, 5]


def test_a_task_takes_no_more_batches_than_the_ledger_claims_at_once(world: World) -> None:
    entered(world, *[1] * (MAX_TASK_BATCHES + 5))
    world.settle()
    assert world.sizes == [MAX_TASK_BATCHES, 5]


def test_a_shared_task_is_one_of_the_tasks_at_once(world: World) -> None:
    world.limits = TaskLimits(concurrent=2)
    world.reconciler = world.another()
    for symbol in ("AAPL", "MSFT", "IBM"):
        entered(world, 2, 2, symbol=symbol)
    world.step(world.reconciler, world.another(), world.another())
    assert world.sizes == [4, 4]
    world.settle()
    assert world.sizes == [4, 4, 4]


def test_a_batch_that_cannot_be_read_keeps_only_what_waits_for_it(world: World) -> None:
    for symbol in ("AAPL", "MSFT"):
        entered(world, 2, 2, symbol=symbol)
    world.enter(quote(4, "AAPL"), quote(4, "MSFT"))
    broken = world.ledger.open()[1]
    manifest = world.files.kept.pop(manifest_name(broken.digest))
    assert "is gone" in world.step()[0]
    assert world.sizes == [6], "AAPL's first with both of MSFT"
    for task in world.running:
        world.end(task)
    world.step()
    assert [entry.settled for entry in world.ledger.open()] == [0, 0]
    world.files.put(manifest_name(broken.digest), manifest)
    world.settle()
    assert len(world.recorded) == 10


def test_a_batch_that_cannot_be_read_any_more_is_settled_later_and_holds_up_nobody(world: World) -> None:
    entered(world, 2, 2, 2)
    world.step()
    broken = world.ledger.open()[0]
    world.end(world.running[0])
    manifest = world.files.kept.pop(manifest_name(broken.digest))
    another = world.another()
    assert "is gone" in world.step(another)[0]
    assert [entry.id for entry in world.ledger.open()] == [broken.id]
    world.files.put(manifest_name(broken.digest), manifest)
    world.step(another)
    assert world.ledger.open() == []


@pytest.mark.parametrize("how", [AT_ONCE, MIDWAY, UNREPORTED, AWAY, TAKEN])
def test_a_shared_task_that_fails_is_launched_again_for_what_is_not_recorded(world: World, how: str) -> None:
    quotes = entered(world, 4, 4, 4, 4)
    ends = [how]
    world.settle(lambda _: ends.pop() if ends else DONE)
    assert list(world.recorded) == [each.quote_id for each in quotes]
    expected = {AT_ONCE: [16, 8, 8], MIDWAY: [16, 8], UNREPORTED: [16], AWAY: [16, 8, 8], TAKEN: [16, 8, 8]}
    assert world.sizes == expected[how]
    assert world.letters == []


def test_after_an_outage_the_next_but_one_task_is_full(world: World) -> None:
    """Whose task finds no gateway is careful; what waits behind it was not to blame."""
    entered(world, *[4] * 20)
    ends = [AWAY] * 6
    world.settle(lambda _: ends.pop() if ends else DONE)
    assert world.sizes == [80, 40, 20, 8, 4, 4, 4, 76]


def test_a_task_that_is_too_much_for_its_time_becomes_small_enough(world: World) -> None:
    entered(world, *[4] * 20)
    world.settle(lambda task: AT_ONCE if len(task.quotes) > 24 else DONE)
    assert len(world.recorded) == 80
    assert world.sizes == [80, 40, 20, 20, 40, 20, 20]


@pytest.mark.parametrize("position", [0, 9, 22, 31])
def test_poison_is_isolated_and_its_companions_are_recorded(world: World, position: int) -> None:
    quotes = entered(world, *[4] * 8)
    world.poison = {quotes[position].quote_id}
    world.settle()
    assert set(world.recorded) == {each.quote_id for each in quotes} - world.poison
    (letter,) = world.letters
    assert quotes[position].event_time.isoformat()[:19] in letter.body
    assert [entry.dead for entry in reversed(world.ledger.list(10)) if entry.dead] == [(position % 4,)]
    assert len(world.tasks) < 30


def test_what_can_never_be_scored_is_a_dead_letter_of_its_own_batch(world: World) -> None:
    quotes = entered(world, 4, 4, 4)
    world.invalid = {quotes[2].quote_id, quotes[5].quote_id}
    world.settle()
    assert [entry.dead for entry in reversed(world.ledger.list(10))] == [(2,), (1,), ()]
    assert len(world.letters) == 2
    assert world.sizes == [12]


def test_a_quote_that_came_twice_goes_with_the_batch_that_entered_first(world: World) -> None:
    """A batch may so have nothing to give to its task; it is settled like the others."""
    for first, last in ((0, 6), (0, 3), (4, 9)):
        world.enter(*bars("AAPL", first, last))
    world.step()
    assert [entry.attempt_messages for entry in world.ledger.open()] == [6, 0, 3]
    assert world.running[0].quotes == bars("AAPL", 0, 9)
    world.invalid = {quote(5).quote_id}
    world.settle()
    assert world.sizes == [9, 1], "what its first batch buried, the other one learns from a task of its own"
    assert [entry.dead for entry in reversed(world.ledger.list(10))] == [(5,), (), (1,)]


def test_no_capacity_is_held_against_nobody_who_rides(world: World) -> None:
    entered(world, 4, 4, 4)
    world.faults = ["no capacity"]
    world.step()
    leader, *riders = world.ledger.open()
    assert [entry.state for entry in (leader, *riders)] == [TaskState.WAITING] * 3
    assert all("Capacity" in entry.reason and entry.shared is None for entry in (leader, *riders))
    assert leader.not_before is not None
    assert [(entry.failures, entry.not_before) for entry in riders] == [(0, None)] * 2
    world.settle()
    assert world.sizes == [12]


@pytest.mark.parametrize("fault", ["throttled", "lost"])
def test_a_launch_without_an_answer_is_made_again_as_it_was(world: World, fault: str) -> None:
    """However many batches came meanwhile: the same token with the same environment."""
    entered(world, 4, 4)
    world.faults = [fault]
    world.step()
    assert [entry.state for entry in world.ledger.open()] == [TaskState.LAUNCHING] * 2
    world.enter(*bars("AAPL", 8, 12))
    world.settle()
    assert world.sizes == [8, 4]


def test_a_dispatcher_that_died_while_launching_is_taken_over(world: World) -> None:
    entered(world, 4, 4)
    world.step(world.another(1, afterwards=True, launching=True))
    (task,) = world.tasks.values()
    assert {entry.state for entry in world.ledger.open()} == {TaskState.LAUNCHING}
    world.step()
    assert {entry.state for entry in world.ledger.open()} == {TaskState.LAUNCHING}, "not taken over at once"
    world.now += timedelta(seconds=CLAIM_SECONDS + 1)
    world.step()
    assert {entry.state for entry in world.ledger.open()} == {TaskState.RUNNING}
    world.end(task)
    world.settle()
    assert world.sizes == [8]


def test_a_task_that_takes_too_long_is_stopped_once_for_all(world: World) -> None:
    entered(world, 4, 4)
    world.step()
    world.now += timedelta(seconds=world.limits.timeout_seconds + 1)
    world.step()
    assert not world.running
    world.settle()
    assert world.sizes == [8, 4, 4]


def test_a_gateway_that_is_away_keeps_a_shared_task_unsettled(world: World) -> None:
    entered(world, 4, 4)
    world.step()
    world.end(world.running[0])
    world.gateway_away = True
    assert world.step() == ["gateway: is away"]
    assert {entry.state for entry in world.ledger.open()} == {TaskState.RUNNING}
    world.gateway_away = False
    world.step()
    assert world.ledger.open() == []


def counted(reader: InMemoryMetricReader, name: str) -> dict[str, int]:
    """The counter's values by outcome."""
    data = reader.get_metrics_data()
    assert data is not None
    return {
        str((point.attributes or {})["outcome"]): int(point.value)  # type: ignore[union-attr]
        for metric in data.resource_metrics[0].scope_metrics[0].metrics
        if metric.name == name
        for point in metric.data.data_points
    }


def test_tasks_are_counted_not_their_batches(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = InMemoryMetricReader()
    provider = MeterProvider(metric_readers=[reader])
    monkeypatch.setattr(metrics, "get_meter", provider.get_meter)
    world.reconciler = world.another()
    entered(world, *[4] * 8)
    world.faults = ["no capacity"]
    ends = [MIDWAY, AWAY, AT_ONCE]
    world.settle(lambda _: ends.pop() if ends else DONE)
    assert world.sizes == [32, 16, 8, 4, 16, 8]
    assert counted(reader, names.TASKS_LAUNCHED) == {"no_capacity": 1, "launched": 6}
    assert counted(reader, names.TASKS_ENDED) == {"crashed": 1, "transient": 1, "partly": 1, "recorded": 3}
    provider.shutdown()


def test_a_launch_is_in_its_leaders_trace_and_linked_to_those_that_ride(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    world.reconciler = world.another()
    for i in range(3):
        with provider.get_tracer("test").start_as_current_span(f"batch {i}"):
            world.enter(quote(i))
    world.step()
    spans = exporter.get_finished_spans()
    traces = {span.name: span.context.trace_id for span in spans if span.name.startswith("batch")}
    (launch,) = (span for span in spans if span.name == names.SPAN_LAUNCH)
    assert launch.context.trace_id == traces["batch 0"]
    assert [link.context.trace_id for link in launch.links] == [traces["batch 1"], traces["batch 2"]]
    assert {link.context.span_id for link in launch.links} < {
        span.context.span_id for span in spans if span.name == names.SPAN_ENTER
    }
    assert launch.attributes is not None
    assert launch.attributes[names.ATTRIBUTE_BATCH_MESSAGES] == 3


SYMBOLS = ("A", "B", "C")
ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("enter"), st.lists(st.sampled_from(SYMBOLS), min_size=1, max_size=5)),
        st.tuples(st.just("again"), st.integers(0, 4)),
        st.tuples(st.just("step"), st.integers(1, 2)),
        st.tuples(st.just("die"), st.tuples(st.integers(1, 14), st.booleans())),
        st.tuples(st.just("end"), st.sampled_from((DONE, AT_ONCE, MIDWAY, UNREPORTED, AWAY, TAKEN))),
        st.tuples(st.just("fault"), st.sampled_from(("throttled", "lost", "no capacity"))),
        st.tuples(st.just("wait"), st.sampled_from((1, 12, 400))),
    ),
    max_size=30,
)


@settings(max_examples=80)
@given(actions=ACTIONS, poison=st.sets(st.integers(0, 12), max_size=2), invalid=st.sets(st.integers(0, 12), max_size=2))
def test_whatever_happens_nothing_is_lost_or_doubled_and_order_holds(
    actions: list[tuple[str, Any]], poison: set[int], invalid: set[int]
) -> None:
    """`World` asserts meanwhile: order, one task in a lane, no more tasks than places, one environment a token."""
    with TemporaryDirectory() as folder:
        world = World(Path(folder), TaskLimits(concurrent=2, messages=8))
        published: list[Quote] = []
        last: list[Quote] = []
        numbers: dict[str, int] = defaultdict(int)
        for what, how in actions:
            if what == "enter":
                last = []
                for symbol in how:
                    last.append(quote(numbers[symbol], symbol))
                    numbers[symbol] += 1
                published += last
                world.poison |= {last[0].quote_id} if len(published) in poison else set()
                world.invalid |= {last[-1].quote_id} if len(published) in invalid else set()
                world.enter(*last)
            elif what == "again" and last[how:]:
                world.enter(*last[how:])  # acknowledged too late: a part of it comes once more
            elif what == "step":
                world.step(*(world.another() for _ in range(how)))
            elif what == "die":
                world.step(world.another(how[0], afterwards=how[1]))
            elif what == "end" and world.running:
                world.end(world.running[0], how)
            elif what == "fault":
                world.faults.append(how)
            elif what == "wait":
                world.now += timedelta(seconds=how)
        world.settle()
        never = world.poison | world.invalid
        assert set(world.recorded) == {each.quote_id for each in published} - never
        assert all(entry.state is TaskState.RECORDED for entry in world.ledger.list(1_000))
        buried = {json.loads(letter.body)["symbol"] + json.loads(letter.body)["data"]["timestamp"][:19]
                  for letter in world.letters}  # fmt: skip
        named = {each.symbol + each.event_time.isoformat()[:19] for each in published if each.quote_id in never}
        assert buried == named
        world.close()


ODD: dict[str, dict[str, Any]] = {
    "running": {"state": TaskState.RUNNING},
    "late": {"not_before": START + timedelta(days=1)},
    "most": {"most": 1},
    "crashed": {"crashes": 1},
    "careful": {"most_batches": 2},
}


@given(
    lanes=st.lists(st.sets(st.integers(0, 4), min_size=1, max_size=3), max_size=25),
    sizes=st.lists(st.integers(1, 9), min_size=25, max_size=25),
    odd=st.dictionaries(st.integers(0, 24), st.sampled_from(sorted(ODD))),
    most=st.integers(1, 30),
)
def test_lists_keep_lanes_and_bounds(lanes: list[set[int]], sizes: list[int], odd: dict[int, str], most: int) -> None:
    """Whatever is open: each batch once, behind what it waits for, and alone where something is held against it."""
    tails: dict[int, str] = {}
    entries: list[Entry] = []
    for i, of in enumerate(lanes):
        after = tuple(sorted({tails[lane] for lane in of if lane in tails}))
        # A clock that goes back: ids do not always rise along a lane.
        moment = START + timedelta(seconds=i if i % 7 else i - 3, microseconds=i)
        entry = enter(NewBatch(f"d{i}", tuple(map(str, of)), sizes[i]), after, moment)
        entries.append(replace(entry, **ODD.get(odd.get(i, ""), {})))
        tails |= dict.fromkeys(of, entry.id)
    found = together(sorted(entries, key=lambda entry: entry.id), START + timedelta(hours=1), most)
    ids = frozenset(entry.id for entry in entries)
    members = [entry.id for task in found for entry in task]
    assert len(members) == len(set(members))
    for task in found:
        before: set[str] = set()
        for entry in task:
            assert entry.state is TaskState.WAITING
            assert before.issuperset(set(entry.after) & ids)
            before.add(entry.id)
        if len(task) > 1:
            assert sum(entry.messages for entry in task) <= most
            assert not any(entry.most or entry.crashes for entry in task)
            assert len(task) <= min(entry.most_batches or MAX_TASK_BATCHES for entry in task)
    could = {e.id for e in entries if e.state is TaskState.WAITING and e.not_before is None and not set(e.after) & ids}
    assert could <= set(members), "what is ready is launched"


def test_two_dispatchers_that_form_other_lists_at_once_launch_no_batch_twice(world: World) -> None:
    for _ in range(10):
        first = len(world.recorded)
        for start in range(first, first + 20, 4):
            world.enter(*bars("AAPL", start, start + 4))
        world.limits = TaskLimits(messages=8)
        small = world.another()
        world.limits = TaskLimits(messages=16)
        world.step(world.another(), small, world.another())
        assert len(world.running) == 1
        world.settle()
    assert len(world.recorded) == 200


def test_a_conflict_is_told_by_the_ledger_and_nothing_is_launched(world: World) -> None:
    entered(world, 4, 4)

    class Busy:
        def __getattr__(self, name: str) -> Any:
            return getattr(world.ledger, name)

        def claim(self, entries: Sequence[Entry], limit: int) -> None:
            raise ConflictError("changed since it was read")

    reconciler = Reconciler(Busy(), world, world.files, world, world, world.limits, lambda: world.now)
    assert world.step(reconciler) == []
    assert world.tasks == {}
