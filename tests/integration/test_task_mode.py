"""Task mode through every fault: tasks that die, never start or hang, no room, duplicates; no quote lost or doubled.

A task is a process that loads the model, so it takes about a second: a few batches each, of a few bars.
"""

import dataclasses
import re
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from services.dispatch.batch import MAX_CRASHES, TaskState
from services.dispatch.ports import NoCapacity, TaskStatus
from services.dispatch.reconciler import CLAIM_SECONDS, Reconciler
from services.dispatch.task_environment import MAX_OVERRIDE_CHARACTERS
from tests.integration.gateway_server import Gateway, running_gateway
from tests.integration.task_mesh import COMMAND, TaskMesh, aws, bars, embedded
from tests.servers.faulty_ecs import FaultyEcs
from tests.servers.process import CREDENTIALS, Server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


class DiedError(Exception):
    """The process is gone."""


@pytest.fixture
def validator(ministack: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyEcs]:
    made = FaultyEcs(ministack.url, COMMAND).start()
    addresses = {f"AWS_ENDPOINT_URL_{service}": ministack.url for service in ("DYNAMODB", "S3")}
    for name, value in (CREDENTIALS | addresses | {"AWS_ENDPOINT_URL_ECS": made.url}).items():
        monkeypatch.setenv(name, value)
    yield made
    made.stop()


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Gateway]:
    async with running_gateway(tmp_path) as running:
        yield running


@pytest.fixture(params=["embedded", "aws"])
def mesh(request: pytest.FixtureRequest, tmp_path: Path, gateway: Gateway) -> Iterator[TaskMesh]:
    if request.param == "embedded":
        made = embedded(tmp_path, gateway)
    else:
        made = aws(tmp_path, gateway, request.getfixturevalue("validator"))
    yield made
    made.launcher.close()
    made.ledger.close()
    made.store.close()


@pytest.fixture
def local(tmp_path: Path, gateway: Gateway) -> Iterator[TaskMesh]:
    made = embedded(tmp_path, gateway)
    yield made
    made.launcher.close()
    made.ledger.close()
    made.store.close()


async def test_batches_of_a_lane_follow_each_other_and_other_lanes_do_not_wait(mesh: TaskMesh) -> None:
    await mesh.receive(bars("AAPL", 0, 20))
    await mesh.receive(bars("MSFT", 0, 10))
    await mesh.reconciler.step()
    await mesh.receive(bars("AAPL", 20, 40))
    await mesh.settle()
    mesh.check([*bars("AAPL", 0, 40), *bars("MSFT", 0, 10)])
    second, other, first = mesh.ledger.list(10)
    assert all(entry.state is TaskState.RECORDED and entry.attempt == 1 for entry in (first, second, other))
    assert first.stop_time is not None
    assert second.launch_time is not None
    assert other.launch_time is not None
    assert second.launch_time >= first.stop_time
    assert other.launch_time < first.stop_time
    assert len(mesh.launches) == 3


async def test_what_waits_behind_a_task_goes_in_one(mesh: TaskMesh) -> None:
    """A backlog: AAPL's batches, one that also has MSFT, and one of MSFT, behind a task that is at work."""
    await mesh.receive(bars("AAPL", 0, 10))
    await mesh.reconciler.step()
    for start in range(10, 50, 10):
        await mesh.receive(bars("AAPL", start, start + 10))
    await mesh.receive([*bars("AAPL", 50, 55), *bars("MSFT", 0, 5)])
    await mesh.receive(bars("MSFT", 5, 20))
    await mesh.settle()
    mesh.check([*bars("AAPL", 0, 55), *bars("MSFT", 0, 20)])
    assert [line.split()[1] for line in mesh.launches] == ["10", "65"]
    *riders, first = mesh.ledger.list(10)
    assert {entry.task for entry in riders} == {riders[0].task} != {first.task}
    assert all((entry.attempt, entry.settled, entry.shared) == (1, entry.messages, None) for entry in riders)


async def test_tasks_that_die_before_midway_and_after_recording(mesh: TaskMesh) -> None:
    mesh.lay("start", "midway", "midway", "after")
    for start in range(0, 60, 20):
        await mesh.receive(bars("AAPL", start, start + 20))
    await mesh.settle()
    mesh.check(bars("AAPL", 0, 60))
    assert len(mesh.launches) >= 5
    assert mesh.launches[0].endswith(" 60")
    assert mesh.launches[1].endswith(" 20"), "half as many batches of those whose task died"
    assert not list(mesh.faults.glob("*-*[0-9]")), "every fault was met"


async def test_a_shared_task_that_dies_midway_is_launched_again_for_what_is_not_recorded(mesh: TaskMesh) -> None:
    mesh.lay("midway")
    for start in range(0, 60, 15):
        await mesh.receive(bars("AAPL", start, start + 15))
    await mesh.settle()
    mesh.check(bars("AAPL", 0, 60))
    assert [line.split()[1] for line in mesh.launches] == ["60", "30"]
    fourth, third, second, first = mesh.ledger.list(10)
    assert [entry.attempt for entry in (first, second, third, fourth)] == [1, 1, 2, 2]


async def test_what_is_recorded_needs_no_report_and_no_second_task(local: TaskMesh) -> None:
    local.lay("after")
    await local.receive(bars("AAPL", 0, 5))
    await local.settle()
    local.check(bars("AAPL", 0, 5))
    (entry,) = local.ledger.list(10)
    assert (entry.attempt, len(local.launches)) == (1, 1)


async def test_duplicates_and_regrouped_batches(mesh: TaskMesh) -> None:
    await mesh.receive(bars("AAPL", 0, 20))
    await mesh.receive(bars("AAPL", 0, 20))  # the same event again: the batch is open
    await mesh.reconciler.step()
    await mesh.receive(bars("AAPL", 0, 7))  # a part of it, as another batch
    await mesh.receive(bars("AAPL", 7, 30))  # the rest, with newer ones
    assert len(mesh.ledger.open()) == 3
    await mesh.settle()
    mesh.check(bars("AAPL", 0, 30))
    assert len(mesh.launches) == 2, "what is recorded already launches nothing"
    assert mesh.launches[1].endswith(" 10")
    await mesh.receive(bars("AAPL", 0, 20))  # long after: it enters, and launches nothing
    await mesh.settle()
    mesh.check(bars("AAPL", 0, 30))
    assert len(mesh.launches) == 2


async def test_quotes_that_came_twice_are_in_a_shared_task_once(mesh: TaskMesh) -> None:
    for first, last in ((0, 20), (0, 7), (7, 30), (5, 25)):
        await mesh.receive(bars("AAPL", first, last))
    await mesh.settle()
    mesh.check(bars("AAPL", 0, 30))
    assert [line.split()[1] for line in mesh.launches] == ["30"]


async def test_no_capacity_and_throttling_leave_the_batch_in_the_ledger(
    tmp_path: Path, gateway: Gateway, validator: FaultyEcs
) -> None:
    mesh = aws(tmp_path, gateway, validator)
    validator.no_capacity, validator.throttled = 1, 0
    await mesh.receive(bars("AAPL", 0, 5))
    await mesh.receive(bars("AAPL", 5, 9))
    await mesh.reconciler.step()
    waiting, rider = mesh.ledger.open()
    for entry in (waiting, rider):
        assert (entry.state, entry.attempt, entry.shared) == (TaskState.WAITING, 1, None)
        assert "Capacity is unavailable" in entry.reason
    due = waiting.not_before
    assert due is not None
    assert rider.failures == 0
    early = mesh.another(clock=lambda: due - timedelta(microseconds=1))
    assert await early.step() == 2, "not before its time"
    assert not mesh.launches
    validator.throttled = 4  # more often than boto3 asks
    while (entry := mesh.ledger.open()[0]).attempt == 1:
        await mesh.reconciler.step()
    assert (entry.state, entry.failures) == (TaskState.LAUNCHING, 2)
    assert "ThrottlingException" in entry.reason
    assert mesh.ledger.open()[1].state is TaskState.LAUNCHING
    await mesh.settle()
    mesh.check(bars("AAPL", 0, 9))
    assert len(mesh.launches) == 1


async def test_a_task_that_never_starts_is_launched_again(
    tmp_path: Path, gateway: Gateway, validator: FaultyEcs
) -> None:
    mesh = aws(tmp_path, gateway, validator)
    validator.never_starts = 1
    await mesh.receive(bars("AAPL", 0, 5))
    late = mesh.another(clock=lambda: datetime.now(UTC) + timedelta(seconds=mesh.limits.timeout_seconds + 1))
    await mesh.reconciler.step()
    await late.step()  # stops it
    await mesh.settle()
    mesh.check(bars("AAPL", 0, 5))
    (entry,) = mesh.ledger.list(10)
    assert (entry.attempt, entry.crashes, len(mesh.launches)) == (2, 0, 1)


async def test_a_task_that_hangs_is_ended_and_launched_again(local: TaskMesh) -> None:
    local.lay("hang")
    await local.receive(bars("AAPL", 0, 5))
    while not local.launches or local.laid:  # killed before it hangs, its successor would hang
        await local.reconciler.step()
    late = local.another(clock=lambda: datetime.now(UTC) + timedelta(seconds=400))
    await late.step()
    await local.settle()
    local.check(bars("AAPL", 0, 5))
    assert len(local.launches) == 2


async def test_a_quote_that_kills_every_task_is_isolated(tmp_path: Path, gateway: Gateway) -> None:
    poison = bars("AAPL", 0, 4)[1]
    mesh = embedded(tmp_path, gateway, POISON=poison.quote_id)
    mesh.reconciler = _hurried(mesh)
    await mesh.receive(bars("AAPL", 0, 4))
    await mesh.settle()
    mesh.check(bars("AAPL", 0, 4), dead=1)
    (letter,) = mesh.letters.kept
    assert poison.quote_id.split("/")[-2][:19] in letter.body
    assert letter.group_id == "market-data-AAPL"
    assert re.search(rf"its task died {MAX_CRASHES} times .*exit code 137", letter.reason)
    (entry,) = mesh.ledger.list(10)
    assert (entry.state, entry.dead) == (TaskState.RECORDED, (1,))


async def test_a_quote_that_can_never_be_scored_is_isolated_at_once(tmp_path: Path, gateway: Gateway) -> None:
    wrong = bars("AAPL", 0, 6)[2]
    mesh = embedded(tmp_path, gateway, INVALID=wrong.quote_id)
    await mesh.receive(bars("AAPL", 0, 6))
    await mesh.settle()
    mesh.check(bars("AAPL", 0, 6), dead=1)
    assert mesh.letters.kept[0].reason == "close: is beyond this model"
    assert len(mesh.launches) == 1


async def test_a_quote_that_kills_every_task_is_isolated_from_the_batches_beside(
    tmp_path: Path, gateway: Gateway
) -> None:
    poison = bars("AAPL", 0, 12)[7]
    mesh = embedded(tmp_path, gateway, POISON=poison.quote_id)
    mesh.reconciler = _hurried(mesh)
    for start in range(0, 12, 2):
        await mesh.receive(bars("AAPL", start, start + 2))
    await mesh.settle()
    mesh.check(bars("AAPL", 0, 12), dead=1)
    assert [entry.dead for entry in reversed(mesh.ledger.list(10))] == [(), (), (), (1,), (), ()]
    assert [line.split()[1] for line in mesh.launches][:4] == ["12", "6", "6", "2"]


async def test_a_quote_that_can_never_be_scored_is_found_in_its_batch(tmp_path: Path, gateway: Gateway) -> None:
    wrong = bars("AAPL", 0, 12)[7]
    mesh = embedded(tmp_path, gateway, INVALID=wrong.quote_id)
    for start in range(0, 12, 4):
        await mesh.receive(bars("AAPL", start, start + 4))
    await mesh.settle()
    mesh.check(bars("AAPL", 0, 12), dead=1)
    assert [entry.dead for entry in reversed(mesh.ledger.list(10))] == [(), (3,), ()]
    assert len(mesh.launches) == 1


async def test_what_may_pass_is_never_given_up(local: TaskMesh) -> None:
    local.lay(*["away"] * (MAX_CRASHES + 2))
    local.reconciler = _hurried(local)
    await local.receive(bars("AAPL", 0, 2))
    await local.settle()
    local.check(bars("AAPL", 0, 2))
    (entry,) = local.ledger.list(10)
    assert entry.attempt == MAX_CRASHES + 3


@pytest.mark.parametrize("batches", [1, 3])
async def test_a_dispatcher_that_died_while_launching_is_taken_over_with_the_same_token(
    mesh: TaskMesh, batches: int
) -> None:
    class Dying:
        """Launches, then dies before anyone is told."""

        def launch(self, token: str, environment: Mapping[str, str]) -> str | NoCapacity:
            mesh.launcher.launch(token, environment)
            raise DiedError

        def describe(self, tasks: Sequence[str]) -> dict[str, TaskStatus]:
            return mesh.launcher.describe(tasks)

        def stop(self, task: str, reason: str) -> None:
            mesh.launcher.stop(task, reason)

        def close(self) -> None:
            pass

    for i in range(batches):
        await mesh.receive(bars("AAPL", 5 * i, 5 * i + 5))
    with pytest.raises(DiedError):
        await mesh.another(launcher=Dying()).step()
    left = mesh.ledger.open()
    assert {entry.state for entry in left} == {TaskState.LAUNCHING}
    claimed = left[0].launch_time
    assert claimed is not None
    assert await mesh.another(clock=lambda: claimed + timedelta(seconds=CLAIM_SECONDS)).step() == batches
    assert mesh.ledger.open() == left, "it is not taken over at once"
    late = mesh.another(clock=lambda: datetime.now(UTC) + timedelta(seconds=CLAIM_SECONDS + 1))
    await late.step()
    await mesh.settle()
    mesh.check(bars("AAPL", 0, 5 * batches))
    assert len(mesh.launches) == 1


async def test_two_dispatchers_at_once_launch_each_batch_once(mesh: TaskMesh) -> None:
    symbols = ("AAPL", "MSFT", "IBM")
    for start in (0, 4):
        for symbol in symbols:
            await mesh.receive(bars(symbol, start, start + 4))
    await mesh.settle(mesh.reconciler, mesh.another())
    mesh.check([each for symbol in symbols for each in bars(symbol, 0, 8)])
    assert len(mesh.launches) == 3


async def test_no_more_tasks_at_once_than_allowed(local: TaskMesh) -> None:
    local.reconciler = local.another(limits=dataclasses.replace(local.limits, concurrent=1))
    for symbol in ("AAPL", "MSFT"):
        await local.receive(bars(symbol, 0, 2))
    await local.reconciler.step()
    states = sorted(entry.state for entry in local.ledger.open())
    assert states == [TaskState.WAITING, TaskState.RUNNING]
    await local.settle()
    local.check([*bars("AAPL", 0, 2), *bars("MSFT", 0, 2)])
    (_, stopped), (launched, _) = sorted((entry.launch_time, entry.stop_time) for entry in local.ledger.list(10))
    assert launched is not None
    assert stopped is not None
    assert launched >= stopped


async def test_a_batch_too_large_for_an_override_is_read_from_its_manifest(mesh: TaskMesh) -> None:
    published = bars("AAPL", 0, 100)
    manifest_characters = len(str(published))
    assert manifest_characters > MAX_OVERRIDE_CHARACTERS
    await mesh.receive(published)
    await mesh.settle()
    mesh.check(published)
    assert len(mesh.launches) == 1


def _hurried(mesh: TaskMesh) -> Reconciler:
    """Its clock runs ten times as fast: no test waits out a long backoff, and no task seems to take too long."""
    began = datetime.now(UTC)
    limits = dataclasses.replace(mesh.limits, timeout_seconds=10 * mesh.limits.timeout_seconds)
    return mesh.another(clock=lambda: began + (datetime.now(UTC) - began) * 10, limits=limits)
