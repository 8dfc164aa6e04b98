"""Task mode's stacks in ministack: batches go by one-shot scorers, and every AWS call on the way is judged by its role.

Three components launch, follow, stop and settle tasks by the same permissions: the dispatch Lambda after each event,
the reconciler's Lambda, and the dispatch service. Each takes a batch through all that may become of it: a task that
never starts, one that dies midway, a message that can never be scored.
"""

import asyncio
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import boto3
import pytest

from deploy.policies import ACCOUNT, Templates
from services.dispatch.batch import TaskState
from services.dispatch.ledger_dynamodb import DynamoDbLedger
from services.domain.quote import Quote
from services.gateway.dynamodb import DynamoDbStore
from services.gateway.ports import QuoteQuery
from services.runtime.channels import open_channel
from services.runtime.dynamodb_table import DynamoDbTable
from services.runtime.settings import ClientSettings
from services.wire.quote import quote_to_proto
from tapewatch.dispatch.v1 import dispatch_service_pb2 as pb
from tapewatch.dispatch.v1.dispatch_service_pb2_grpc import DispatchServiceStub
from tests.deploy.call_recorder import Call, CallRecorder, judged, passed_roles
from tests.deploy.conftest import Synthesize
from tests.deploy.deployed_mesh import TLS_FILES, DeployedMesh
from tests.deploy.emulated import Deployed, deployment
from tests.deploy.unused_permissions import TASK_MODE_UNUSED, unexplained
from tests.integration.task_mesh import bars, event
from tests.servers.faulty_ecs import FaultyEcs
from tests.servers.process import REGION, REPOSITORY

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

NAME = "trial-tasks"
TASK = "runonce"
TIMEOUT_SECONDS = 20.0
"""One that never starts is waited for so long; the others load the model, score and record in it, also when busy."""
NEVER_SCORED = bars("ANY", 2, 3)[0].quote_id.split("/")[4]
"""The time of the bar of each batch that can never be scored."""

LAMBDAS = {"dispatch": "Mesh/DispatcherRole", "reconcile": "Mesh/TasksReconcilerRole"}
ROLES = {
    **LAMBDAS,
    "dispatch service": "Mesh/DispatchRole",
    TASK: "Mesh/TasksRole",
    "agent": "Mesh/TasksRunOnceExecutionRole",
}


class TaskFlow:
    """The deployment, a gateway, and tasks as processes behind the validator of RunTask."""

    def __init__(self, deployed: Deployed, folder: Path) -> None:
        self.deployed = deployed
        self.validator = FaultyEcs(
            f"http://127.0.0.1:{deployed.port}", (sys.executable, str(REPOSITORY / "tests" / "faulty_task.py"))
        ).start()
        port = int(self.validator.url.rpartition(":")[2])
        self.recorder = CallRecorder(deployed.port, ecs_port=port)
        self.of_lambdas = {who: CallRecorder(deployed.port, ecs_port=port, who=who) for who in LAMBDAS}
        self.mesh = DeployedMesh(deployed, self.recorder.url, folder, NAME)
        self.faults = folder / "faults"
        self.faults.mkdir()
        self.store = DynamoDbStore(DynamoDbTable.connect(NAME, REGION))
        self.ledger = DynamoDbLedger(DynamoDbTable.connect(f"{NAME}-ledger", REGION), timedelta(days=1))

    def start(self) -> None:
        self.deployed.client("events").disable_rule(Name=f"{NAME}-reconcile")  # each works alone here
        self.mesh.start("gateway")
        self.mesh.wait_for(self.serves("gateway"), 90, "the gateway")
        self.mesh.put_certificates("scorer")
        told = {"FAULTS": str(self.faults), "INVALID": NEVER_SCORED, "PYTHONPATH": ":".join(sys.path)}
        self.validator.environment = self.mesh.environment("scorer", TASK) | told
        for who, recorder in self.of_lambdas.items():
            self.tell(
                who,
                GATEWAY_ADDRESS=self.mesh.address("gateway"),
                OTEL_EXPORTER_OTLP_ENDPOINT="",
                TASK_TIMEOUT_SECONDS=str(TIMEOUT_SECONDS),
                **{f"AWS_ENDPOINT_URL_{service}": recorder.url
                   for service in ("DYNAMODB", "S3", "SQS", "ECS", "SECRETS_MANAGER")},
            )  # fmt: skip

    def tell(self, who: str, **more: str) -> None:
        """Add to a Lambda's environment."""
        client = self.deployed.client("lambda")
        told = client.get_function_configuration(FunctionName=f"{NAME}-{who}")["Environment"]["Variables"]
        client.update_function_configuration(FunctionName=f"{NAME}-{who}", Environment={"Variables": told | more})

    def serves(self, service: str) -> Callable[[], bool]:
        return lambda: self.mesh.command(service, "health", self.mesh.address(service)).returncode == 0

    def call(self, who: str, payload: dict[str, Any]) -> dict[str, Any]:
        """Call a Lambda as AWS does."""
        client = self.deployed.client("lambda")
        answer = client.invoke(FunctionName=f"{NAME}-{who}", Payload=json.dumps(payload).encode())
        told: dict[str, Any] = json.loads(answer["Payload"].read())
        assert "FunctionError" not in answer, told
        assert "problem" not in told, told
        return told

    def receive(self, symbol: str, *, faults: bool = True) -> None:
        """The dispatch Lambda is given a batch, by an event as its mapping makes it, and launches its task."""
        if faults:
            self.lay_faults()
        assert self.call("dispatch", event(bars(symbol, 0, 4))) == {"batchItemFailures": []}

    def lay_faults(self) -> None:
        """The next task never starts, and the one after dies midway."""
        self.validator.never_starts = 1
        self.faults.joinpath("midway-0").touch()

    def settled(self, symbol: str, step: Callable[[], object]) -> bool:
        """Whether the symbol's batch is through; asked after a step."""
        step()
        (entry,) = [each for each in self.ledger.list(10) if each.lanes == (f"market-data-{symbol}",)]
        if entry.open:
            return False
        assert (entry.state, entry.attempt, entry.dead) == (TaskState.RECORDED, 3, (2,)), entry
        return True

    def check(self, quotes: Sequence[Quote]) -> None:
        """All of a batch is in the store once, in order, but for the third, which can never be scored."""
        found = self.store.list_quotes(QuoteQuery("live", quotes[0].symbol), 100, None).items
        assert [each.scored.quote.quote_id for each in found] == [q.quote_id for i, q in enumerate(quotes) if i != 2]

    def calls(self) -> set[Call]:
        """All that were made, and what the launches pass."""
        made = {
            call._replace(who="dispatch service") if call.who == "dispatch" else call for call in self.recorder.calls
        }
        made |= {call for recorder in self.of_lambdas.values() for call in recorder.calls}
        return made | passed_roles(made, self.roles_of)

    def roles_of(self, definition: str) -> list[str]:
        ecs = self.deployed.client("ecs")
        found = ecs.describe_task_definition(taskDefinition=definition)["taskDefinition"]
        return [found["taskRoleArn"], found["executionRoleArn"]]

    def stop(self) -> None:
        self.mesh.stop()
        self.validator.stop()
        self.store.close()
        self.ledger.close()
        for recorder in (self.recorder, *self.of_lambdas.values()):
            recorder.close()


@pytest.fixture(scope="module")
def flow(synthesized: Synthesize, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TaskFlow]:
    with deployment("tasks", synthesized, tmp_path_factory.mktemp("emulator")) as deployed:
        made = TaskFlow(deployed, tmp_path_factory.mktemp("tasks"))
        try:
            made.start()
            yield made
        finally:
            made.stop()


def test_the_dispatch_lambda_takes_a_batch_through(flow: TaskFlow) -> None:
    flow.receive("BYEVENT")
    look = partial(flow.call, "dispatch", {"Records": []})
    flow.mesh.wait_for(partial(flow.settled, "BYEVENT", look), 200, "the batch")
    flow.check(bars("BYEVENT", 0, 4))
    broken = event(bars("BYEVENT", 4, 5))
    broken["Records"][0]["body"] = '{"broken'
    assert flow.call("dispatch", broken) == {"batchItemFailures": []}


def test_the_reconcilers_lambda_takes_a_batch_through(flow: TaskFlow) -> None:
    flow.receive("BYRECONCILER")
    look = partial(flow.call, "reconcile", {})
    flow.mesh.wait_for(partial(flow.settled, "BYRECONCILER", look), 200, "the batch")
    flow.check(bars("BYRECONCILER", 0, 4))


def ecs_event(flow: TaskFlow, task: str, **changes: Any) -> dict[str, Any]:
    """The event that ECS sends of a task, as its developer guide shows it ("Amazon ECS task state change events")."""
    ecs = boto3.client("ecs", region_name=REGION, endpoint_url=flow.validator.url)
    (detail,) = ecs.describe_tasks(cluster=NAME, tasks=[task])["tasks"]
    return {
        "version": "0",
        "id": "3317b2af-7005-947d-b652-f55e762e571a",
        "detail-type": "ECS Task State Change",
        "source": "aws.ecs",
        "account": ACCOUNT,
        "time": "2026-11-20T15:31:00Z",
        "region": REGION,
        "resources": [task],
        "detail": json.loads(json.dumps(detail, default=str)) | changes,
    }


def test_the_rules_take_the_events_that_ecs_sends(flow: TaskFlow) -> None:
    events = flow.deployed.client("events")
    flow.receive("BYRULE", faults=False)
    task = flow.ledger.open()[0].task

    def taken(rule: str, **changes: Any) -> bool:
        pattern = events.describe_rule(Name=f"{NAME}-{rule}")["EventPattern"]
        answer = events.test_event_pattern(EventPattern=pattern, Event=json.dumps(ecs_event(flow, task, **changes)))
        return bool(answer["Result"])

    stopped = {"lastStatus": "STOPPED", "stopCode": "EssentialContainerExited"}
    assert taken("task-stopped", **stopped)
    assert not taken("task-stopped", lastStatus="RUNNING")
    other = ecs_event(flow, task)["detail"]["taskDefinitionArn"].replace(TASK, "gateway")
    assert not taken("task-stopped", **stopped, taskDefinitionArn=other), "a service's task"
    assert not taken("task-stopped", **stopped, clusterArn=f"arn:aws:ecs:{REGION}:{ACCOUNT}:cluster/other")

    ended_well = [{"name": "certificates", "exitCode": 0}, {"name": "scorer", "exitCode": 0}]
    killed = [{"name": "certificates", "exitCode": 0}, {"name": "scorer", "exitCode": 137}]
    assert taken("task-failures", **stopped, containers=killed)
    assert not taken("task-failures", **stopped, containers=ended_well)
    assert not taken("task-failures", lastStatus="STOPPED", stopCode="UserInitiated", containers=killed)
    never = [{"name": "certificates", "lastStatus": "STOPPED"}, {"name": "scorer", "lastStatus": "STOPPED"}]
    assert taken("task-failures", lastStatus="STOPPED", stopCode="TaskFailedToStart", containers=never)
    scheduled = {"lastStatus": "STOPPED", "stopCode": "ServiceSchedulerInitiated", "containers": killed}
    assert taken("task-failures", **scheduled, stoppedReason="Task failed container health checks")
    assert not taken("task-failures", **scheduled, stoppedReason="Scaling activity initiated by (deployment ecs-svc/1)")
    placed = {"detail-type": "ECS Service Action", "source": "aws.ecs", "account": ACCOUNT, "region": REGION}
    for name, counts in (("SERVICE_TASK_PLACEMENT_FAILURE", True), ("SERVICE_STEADY_STATE", False)):
        detail = {"eventName": name, "clusterArn": f"arn:aws:ecs:{REGION}:{ACCOUNT}:cluster/{NAME}"}
        pattern = events.describe_rule(Name=f"{NAME}-task-failures")["EventPattern"]
        answer = events.test_event_pattern(EventPattern=pattern, Event=json.dumps(placed | {"detail": detail}))
        assert answer["Result"] is counts, name


def test_the_reconcilers_rules_call_it(flow: TaskFlow, capsys: pytest.CaptureFixture[str]) -> None:
    """What stopped, by the event's rule; what no event told, by the schedule's."""
    events = flow.deployed.client("events")
    rule = events.describe_rule(Name=f"{NAME}-task-stopped")
    pattern = json.loads(rule["EventPattern"])

    def put(event: dict[str, Any]) -> dict[str, Any]:
        entry = {"DetailType": event["detail-type"], "Source": event["source"], "Detail": json.dumps(event["detail"])}
        (answer,) = events.put_events(Entries=[entry])["Entries"]
        return dict(answer)

    (entry,) = flow.ledger.open()  # of the test before
    flow.mesh.wait_for(lambda: not flow.validator.pids(), 120, "the end of its task")
    event = ecs_event(flow, entry.task)
    assert event["detail"]["lastStatus"] == "STOPPED"
    assert put(event)["ErrorCode"] == "NotAuthorizedForSourceException"
    with capsys.disabled():
        print(
            "\nskipped: the emulator sends no events of ECS, and takes none from others whose source is aws.ecs; here "
            f"they are another's, and the rule {rule['Name']} is told to take these too"
        )
    widened = json.dumps(pattern | {"source": [*pattern["source"], NAME]})
    events.put_rule(Name=rule["Name"], EventPattern=widened, State="ENABLED")
    put(ecs_event(flow, entry.task, lastStatus="RUNNING") | {"source": NAME})
    time.sleep(2)
    assert flow.ledger.open() == [entry], "nobody looks before a task stops"
    put(event | {"source": NAME})
    flow.mesh.wait_for(lambda: not flow.ledger.open(), 120, "the event's call")
    flow.check(bars("BYRULE", 0, 4))

    flow.receive("BYSCHEDULE", faults=False)
    flow.mesh.wait_for(lambda: not flow.validator.pids(), 120, "the end of its task")
    assert len(flow.ledger.open()) == 1
    events.enable_rule(Name=f"{NAME}-reconcile")
    flow.mesh.wait_for(lambda: not flow.ledger.open(), 150, "the schedule's call")
    events.disable_rule(Name=f"{NAME}-reconcile")
    flow.check(bars("BYSCHEDULE", 0, 4))


def test_the_dispatch_service_takes_a_batch_through(flow: TaskFlow) -> None:
    told = flow.mesh.environment("dispatch")
    flow.lay_faults()
    flow.mesh.start("dispatch", TASK_TIMEOUT_SECONDS=str(TIMEOUT_SECONDS), CANARY_INTERVAL_SECONDS="0")
    flow.mesh.wait_for(flow.serves("dispatch"), 90, "the dispatch service")
    quotes = bars("BYHAND", 0, 60)  # too large for an override: its tasks read the manifest

    async def dispatched() -> list[str | None]:
        files = {name.lower(): Path(told[name]) for name in TLS_FILES}
        settings = ClientSettings(auth_token=told["AUTH_TOKEN"], **files)  # type: ignore[arg-type]
        async with open_channel(flow.mesh.address("dispatch"), settings) as channel:
            stub = DispatchServiceStub(channel)
            request = pb.DispatchRequest(quotes=[quote_to_proto(quote) for quote in quotes], mode=pb.DISPATCH_MODE_TASK)
            answer = await stub.Dispatch(request, timeout=120)
            return [result.WhichOneof("outcome") for result in answer.results]

    assert asyncio.run(dispatched()) == ["score", "score", "error", *["score"] * 57]
    assert flow.settled("BYHAND", lambda: None)
    flow.check(quotes)


def test_every_call_is_allowed_and_every_permission_used(flow: TaskFlow, capsys: pytest.CaptureFixture[str]) -> None:
    """Runs last: judges every call that was made meanwhile, by the roles that were deployed."""
    for recorder in (flow.recorder, *flow.of_lambdas.values()):
        assert not recorder.unknown
    templates = Templates(flow.deployed.assembly, REGION, flow.deployed.physical)
    roles = templates.roles("TrialTasks")
    calls = flow.calls()
    refused: list[Call] = []
    unused: set[str] = set()
    for who, path in ROLES.items():
        refusals, never = judged(roles[path], [call for call in calls if call.who == who])
        refused += refusals
        unused |= never
    gateway, _ = judged(roles["Mesh/GatewayRole"], [call for call in calls if call.who == "gateway"])
    assert not refused + gateway, "no statement of its role allows it"
    for who in (*LAMBDAS, "dispatch service"):
        launching = {call.action for call in calls if call.who == who} & {"ecs:RunTask", "ecs:StopTask", "iam:PassRole"}
        assert len(launching) == 3, (who, launching)
    with capsys.disabled():
        print(f"\n{len(calls)} different AWS calls of task mode's components, all allowed")
    wrong = unexplained(unused, TASK_MODE_UNUSED)
    assert not wrong, "\n".join(wrong)
