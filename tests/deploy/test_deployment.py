"""The stacks in ministack's CloudFormation: the resources that come of them, and quotes sent all the way through.

A stack's status proves little, so each resource is asked of its own service. What the emulator does not know is left
out and printed.
"""

import contextlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import botocore.exceptions
import pytest

from deploy.network import PORTS
from deploy.policies import ACCOUNT, Templates
from services.domain.quote import CANARY_TAPE
from services.domain.score import RecordedQuote
from services.gateway.dynamodb import DynamoDbStore
from services.gateway.ports import AlertQuery, QuoteQuery
from services.runtime.dynamodb_table import DynamoDbTable
from tests.deploy.call_recorder import Call, CallRecorder, judged
from tests.deploy.conftest import Synthesize
from tests.deploy.deployed_mesh import DeployedMesh
from tests.deploy.emulated import STACKS, Deployed, deployment
from tests.deploy.unused_permissions import unexplained
from tests.servers.process import REGION

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

BARS = 60
IMPOSSIBLE = "XYZ,2100-01-04T15:00:00Z,100,101,99,100,5"
"""A bar of a time to come: ingest itself sends it to the dead letters."""

LAMBDA_KEY = "000000000000"
"""The access key id that ministack gives a function: its account."""

ROLES = {
    "ingest": "Mesh/IngestRole",
    "dispatch": "Mesh/DispatchRole",
    "scorer": "Mesh/ScorerRole",
    "gateway": "Mesh/GatewayRole",
    LAMBDA_KEY: "Mesh/DispatcherRole",
}


@pytest.fixture(scope="module")
def deployed(synthesized: Synthesize, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    with deployment("small", synthesized, tmp_path_factory.mktemp("emulator")) as made:
        yield made


def test_every_resource_was_made_or_is_named_as_skipped(deployed: Deployed, capsys: pytest.CaptureFixture[str]) -> None:
    for stack in STACKS:
        resources = json.loads((deployed.assembly / f"Tapewatch{stack}.template.json").read_text())["Resources"]
        for logical in resources:
            known = f"Tapewatch{stack}/{logical}" in deployed.refused
            assert known or deployed.physical[f"Tapewatch{stack}"].get(logical), f"{stack}/{logical} was not made"
    with capsys.disabled():
        print("\nskipped, because the emulator does not know the type:")
        for kind, count in sorted(Counter(deployed.refused.values()).items()):
            print(f"  {count:3} {kind}")
        print("never deployed: AWS::AppSync::Api, AWS::AppSync::ChannelNamespace, AWS::DAX::* (linted only)")
    assert set(deployed.refused.values()) == {
        "AWS::EC2::FlowLog",
        "AWS::EC2::SecurityGroupEgress",
        "AWS::EC2::SecurityGroupIngress",
        "AWS::ApplicationAutoScaling::ScalableTarget",
        "AWS::ApplicationAutoScaling::ScalingPolicy",
        "AWS::Budgets::Budget",
    }


def test_the_queues(deployed: Deployed) -> None:
    sqs = deployed.client("sqs")

    def attributes(name: str) -> dict[str, str]:
        url = sqs.get_queue_url(QueueName=name)["QueueUrl"]
        found: dict[str, str] = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["All"])["Attributes"]
        return found

    queue, dead = attributes("market_queue.fifo"), attributes("market_queue_dead.fifo")
    assert (queue["FifoQueue"], dead["FifoQueue"]) == ("true", "true")
    assert (queue["DeduplicationScope"], queue["FifoThroughputLimit"]) == ("messageGroup", "perMessageGroupId")
    assert json.loads(queue["RedrivePolicy"]) == {"deadLetterTargetArn": dead["QueueArn"], "maxReceiveCount": 1000}
    assert queue["VisibilityTimeout"] == "180"


def test_the_table(deployed: Deployed) -> None:
    dynamodb = deployed.client("dynamodb")
    table = dynamodb.describe_table(TableName="tapewatch")["Table"]
    assert [(k["AttributeName"], k["KeyType"]) for k in table["KeySchema"]] == [("pk", "HASH"), ("sk", "RANGE")]
    assert table["BillingModeSummary"]["BillingMode"] == "PAY_PER_REQUEST"
    assert table["DeletionProtectionEnabled"] is False, "the small one may be deleted"


def test_the_buckets(deployed: Deployed) -> None:
    s3 = deployed.client("s3")
    names = {logical.rstrip("0123456789ABCDEF"): physical for logical, physical in deployed.of_type("AWS::S3::Bucket")}
    assert len(names) == 3
    for logical in ("Lake", "Audit"):
        assert s3.get_bucket_versioning(Bucket=names[logical])["Status"] == "Enabled"
    for bucket in names.values():
        assert all(s3.get_public_access_block(Bucket=bucket)["PublicAccessBlockConfiguration"].values())
        (rule,) = s3.get_bucket_ownership_controls(Bucket=bucket)["OwnershipControls"]["Rules"]
        assert rule["ObjectOwnership"] == "BucketOwnerEnforced"
        policy = json.loads(s3.get_bucket_policy(Bucket=bucket)["Policy"])
        assert {"Bool": {"aws:SecureTransport": "false"}} in [part.get("Condition") for part in policy["Statement"]]


def test_what_the_emulator_ignores_is_printed(deployed: Deployed, capsys: pytest.CaptureFixture[str]) -> None:
    """Properties that no resource here shows; tests/deploy/test_synthesis.py asserts them on the templates."""
    s3, dynamodb = deployed.client("s3"), deployed.client("dynamodb")
    lake = next(p for logical, p in deployed.of_type("AWS::S3::Bucket") if logical.startswith("Lake"))
    audit = next(p for logical, p in deployed.of_type("AWS::S3::Bucket") if logical.startswith("Audit"))
    backups = dynamodb.describe_continuous_backups(TableName="tapewatch")["ContinuousBackupsDescription"]
    definition = deployed.client("ecs").describe_task_definition(taskDefinition="tapewatch-gateway")["taskDefinition"]
    (gateway,) = [c for c in definition["containerDefinitions"] if c["name"] == "gateway"]

    def answers(call: Callable[..., Any], **request: str) -> bool:
        try:
            call(**request)
        except botocore.exceptions.ClientError:
            return False
        return True

    seen = {
        "AWS::S3::Bucket LifecycleConfiguration": answers(s3.get_bucket_lifecycle_configuration, Bucket=lake),
        "AWS::S3::Bucket ReplicationConfiguration": answers(s3.get_bucket_replication, Bucket=lake),
        "AWS::S3::Bucket ObjectLockConfiguration": answers(s3.get_object_lock_configuration, Bucket=audit),
        "AWS::S3::Bucket LoggingConfiguration": "LoggingEnabled" in s3.get_bucket_logging(Bucket=lake),
        "AWS::DynamoDB::Table TimeToLiveSpecification": dynamodb.describe_time_to_live(TableName="tapewatch")[
            "TimeToLiveDescription"
        ]["TimeToLiveStatus"]
        == "ENABLED",
        "AWS::DynamoDB::Table PointInTimeRecoverySpecification": backups["PointInTimeRecoveryDescription"][
            "PointInTimeRecoveryStatus"
        ]
        == "ENABLED",
        "AWS::ECS::TaskDefinition HealthCheck": bool(gateway["healthCheck"]),
        "AWS::ECS::TaskDefinition Secrets": any(gateway["secrets"]),
    }
    with capsys.disabled():
        print("\nignored by the emulator:", *(f"  {name}" for name, kept in seen.items() if not kept), sep="\n")
    assert not any(seen.values()), "the emulator knows more now: assert it on the resource"


def test_the_function_and_its_mapping(deployed: Deployed) -> None:
    lambda_ = deployed.client("lambda")
    function = lambda_.get_function_configuration(FunctionName="tapewatch-dispatch")
    assert (function["Handler"], function["Timeout"], function["MemorySize"]) == (
        "services.dispatch.handler.lambda_handler", 30, 512
    )  # fmt: skip
    (mapping,) = lambda_.list_event_source_mappings(FunctionName="tapewatch-dispatch")["EventSourceMappings"]
    assert mapping["BatchSize"] == 10
    assert mapping["FunctionResponseTypes"] == ["ReportBatchItemFailures"]
    assert mapping["ScalingConfig"] == {"MaximumConcurrency": 10}
    assert mapping["EventSourceArn"].endswith(":market_queue.fifo")


def test_the_services_and_their_names(deployed: Deployed) -> None:
    ecs = deployed.client("ecs")
    services = ecs.describe_services(cluster="tapewatch", services=list(PORTS))["services"]
    assert {s["serviceName"]: s["desiredCount"] for s in services} == dict.fromkeys(PORTS, 1)
    for name, port in PORTS.items():
        definition = ecs.describe_task_definition(taskDefinition=f"tapewatch-{name}")["taskDefinition"]
        containers = {c["name"]: c for c in definition["containerDefinitions"]}
        assert set(containers) == {"certificates", name, "collector"}
        assert [m["containerPort"] for m in containers[name]["portMappings"]] == [port]
        assert all(container["readonlyRootFilesystem"] for container in containers.values())
        assert definition["taskRoleArn"] != definition["executionRoleArn"]
    names = deployed.client("servicediscovery").list_services()["Services"]
    assert {entry["Name"] for entry in names} == set(PORTS)


def test_the_network_reaches_aws_and_nothing_else(deployed: Deployed) -> None:
    ec2 = deployed.client("ec2")
    (vpc,) = [physical for _, physical in deployed.of_type("AWS::EC2::VPC")]
    found = ec2.describe_vpc_endpoints(Filters=[{"Name": "vpc-id", "Values": [vpc]}])["VpcEndpoints"]
    kinds = Counter(endpoint["VpcEndpointType"] for endpoint in found)
    assert kinds == {"Gateway": 2, "Interface": 6}
    assert not ec2.describe_nat_gateways()["NatGateways"]


def test_alarms_schedules_rules_and_catalogue(deployed: Deployed) -> None:
    alarms = deployed.client("cloudwatch").describe_alarms()["MetricAlarms"]
    by_name = {alarm["AlarmName"].removeprefix("tapewatch-"): alarm for alarm in alarms}
    assert {"dead-letters", "oldest-message", "silent-symbol", "canary-missed", "task-failures"} <= set(by_name)
    assert all(alarm["AlarmActions"] for alarm in alarms)
    assert by_name["canary-missed"]["TreatMissingData"] == "ignore"
    assert by_name["canary-not-played"]["TreatMissingData"] == "breaching"
    group = "tapewatch"
    schedules = {s["Name"] for s in deployed.client("scheduler").list_schedules(GroupName=group)["Schedules"]}
    assert schedules == {
        "tapewatch-audit-export",
        "tapewatch-enable-market-alarms",
        "tapewatch-disable-market-alarms",
        "tapewatch-judge-silent-symbol-anew",
        "tapewatch-judge-canary-missed-anew",
        "tapewatch-judge-canary-not-played-anew",
    }
    rules = {r["Name"]: r for r in deployed.client("events").list_rules()["Rules"]}
    assert json.loads(rules["tapewatch-task-failures"]["EventPattern"])["source"] == ["aws.ecs"]
    tables = deployed.client("glue").get_tables(DatabaseName="tapewatch")["TableList"]
    assert {table["Name"] for table in tables} == {"quotes", "changes"}
    queries = deployed.client("athena").get_work_group(WorkGroup="tapewatch")["WorkGroup"]
    assert queries["Configuration"]["BytesScannedCutoffPerQuery"] == 50 * 1024**3


class Flow:
    """Quotes on their way through the deployment, and every AWS call that was made meanwhile."""

    def __init__(self, deployed: Deployed, folder: Path) -> None:
        self.deployed = deployed
        self.recorder = CallRecorder(deployed.port)
        self.mesh = DeployedMesh(deployed, self.recorder.url, folder)
        self.store = DynamoDbStore(DynamoDbTable.connect("tapewatch", REGION))

    def start(self) -> None:
        """The function finds scorer and gateway before ingest and dispatch, with its canaries, send it anything."""
        self._serve("gateway", "scorer")
        client = self.deployed.client("lambda")
        told = client.get_function_configuration(FunctionName="tapewatch-dispatch")["Environment"]["Variables"]
        here = {
            "SCORER_ADDRESSES": self.mesh.address("scorer"),
            "GATEWAY_ADDRESS": self.mesh.address("gateway"),
            "OTEL_EXPORTER_OTLP_ENDPOINT": "",
            "AWS_ENDPOINT_URL_SQS": self.recorder.url,
            "AWS_ENDPOINT_URL_SECRETS_MANAGER": self.recorder.url,
        }
        client.update_function_configuration(FunctionName="tapewatch-dispatch", Environment={"Variables": told | here})
        self._serve("ingest", "dispatch")

    def _serve(self, *services: str) -> None:
        for service in services:
            self.mesh.start(service)
        for service in services:
            self.mesh.wait_for(partial(self._serves, service), 90, f"{service} serving")

    def _serves(self, service: str) -> bool:
        return self.mesh.command(service, "health", self.mesh.address(service)).returncode == 0

    def quotes(self, tape: str) -> list[RecordedQuote]:
        return list(self.store.list_quotes(QuoteQuery(tape, "XYZ"), 1_000, None).items)

    def bars(self, tape: str) -> int:
        return len(self.quotes(tape))

    def state(self, tape: str) -> str:
        """How many of a tape's bars came, what the queues hold, and what the function last said."""
        sqs, lambda_, logs = (self.deployed.client(name) for name in ("sqs", "lambda", "logs"))
        lines = [f"{self.bars(tape)} of {BARS} bars of {tape}; the lake holds what came up to {self.archived()}"]
        for name in ("market_queue.fifo", "market_queue_dead.fifo"):
            url = sqs.get_queue_url(QueueName=name)["QueueUrl"]
            held = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["All"])["Attributes"]
            counts = {key: value for key, value in held.items() if key.startswith("ApproximateNumber")}
            lines.append(f"{name}: {counts}")
        url = sqs.get_queue_url(QueueName="market_queue_dead.fifo")["QueueUrl"]
        letters = sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=10, MessageAttributeNames=["All"])
        lines += [f"dead letter: {letter}" for letter in letters.get("Messages", [])]
        (mapping,) = lambda_.list_event_source_mappings(FunctionName="tapewatch-dispatch")["EventSourceMappings"]
        lines.append(f"the function's last batch: {mapping.get('LastProcessingResult')}")
        group = lambda_.get_function_configuration(FunctionName="tapewatch-dispatch")["LoggingConfig"]["LogGroup"]
        with contextlib.suppress(logs.exceptions.ResourceNotFoundException):  # it has not said anything yet
            for stream in logs.describe_log_streams(logGroupName=group)["logStreams"]:
                events = logs.get_log_events(logGroupName=group, logStreamName=stream["logStreamName"])["events"]
                lines += [event["message"].rstrip() for event in events[-40:]]
        return "\n".join(lines)

    def an_alert_has_grown(self) -> bool:
        """Whether an alert has a second detection; only the canaries raise any here."""
        alerts = self.store.list_alerts(AlertQuery(CANARY_TAPE), 100, None).items
        return any(alert.detection_count > 1 for alert in alerts)

    def lake(self) -> str:
        bucket = next(p for logical, p in self.deployed.of_type("AWS::S3::Bucket") if logical.startswith("Lake"))
        return f"s3://{bucket}/lake"

    def archived(self) -> int:
        """The last sequence that the parts in the lake hold, by their names: every tape's rows count, canaries too."""
        found = self.deployed.client("s3").list_objects_v2(Bucket=self.lake().split("/")[2], Prefix="lake/quotes/")
        return max((int(entry["Key"].removesuffix(".parquet")[-12:]) for entry in found.get("Contents", [])), default=0)

    def stop(self) -> None:
        self.mesh.stop()
        self.store.close()
        self.recorder.close()


@pytest.fixture(scope="module")
def flow(deployed: Deployed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Flow]:
    made = Flow(deployed, tmp_path_factory.mktemp("mesh"))
    try:
        made.start()
        yield made
    finally:
        made.stop()


def test_quotes_go_through_the_deployed_stack(flow: Flow, tmp_path: Path) -> None:
    file = tmp_path / "bars.csv"
    rows = [
        f"XYZ,2024-01-02T15:{m:02}:00Z,{100 + m % 3},{104 + m % 3},99,{101 + m % 3},{1000 + m}" for m in range(BARS)
    ]
    file.write_text("\n".join(["symbol,timestamp,open,high,low,close,volume", *rows, IMPOSSIBLE]) + "\n")
    mesh = flow.mesh
    played = mesh.command("dispatch", "replay", "--from", str(file), "--tape", "first")
    assert played.returncode == 0, played.stdout + played.stderr
    assert f"{BARS} quotes published, 1 rejected" in played.stdout
    mesh.wait_for(lambda: flow.bars("first") == BARS, 90, "the recorded quotes", partial(flow.state, "first"))
    recorded = flow.quotes("first")
    times = [each.scored.quote.event_time for each in recorded]
    assert times == sorted(set(times))
    last = max(each.sequence for each in recorded)
    mesh.wait_for(lambda: flow.archived() >= last, 90, f"the lake's parts up to {last}", partial(flow.state, "first"))

    queue = flow.deployed.client("sqs")
    url = queue.get_queue_url(QueueName="market_queue.fifo")["QueueUrl"]
    queue.send_message(QueueUrl=url, MessageBody='{"broken', MessageGroupId="poison", MessageDeduplicationId="poison")
    dead = queue.get_queue_url(QueueName="market_queue_dead.fifo")["QueueUrl"]

    def letters() -> int:
        names = ["ApproximateNumberOfMessages"]
        found = queue.get_queue_attributes(QueueUrl=dead, AttributeNames=names)["Attributes"]
        return int(found["ApproximateNumberOfMessages"])

    mesh.wait_for(
        lambda: letters() == 2,
        60,
        "the dead letters, one of ingest and one of the Lambda",
        partial(flow.state, "first"),
    )

    again = mesh.command("dispatch", "replay", "--from", flow.lake(), "--tape", "again")
    assert again.returncode == 0, again.stdout + again.stderr
    assert f"{BARS} quotes published" in again.stdout, "the lake holds them all"
    mesh.wait_for(lambda: flow.bars("again") == BARS, 90, "the lake's quotes once more", partial(flow.state, "again"))
    mesh.wait_for(flow.an_alert_has_grown, 90, "a canary's second detection")


def test_what_the_function_returns_comes_again_soon(flow: Flow, tmp_path: Path) -> None:
    """Not only after the queue's visibility timeout of three minutes."""
    file = tmp_path / "bar.csv"
    file.write_text("symbol,timestamp,open,high,low,close,volume\nXYZ,2024-01-03T15:00:00Z,100,104,99,101,1000\n")
    mesh = flow.mesh
    url = flow.deployed.client("sqs").get_queue_url(QueueName="market_queue.fifo")["QueueUrl"]
    name = url.rpartition("/")[2]
    returned = Call(LAMBDA_KEY, "sqs:ChangeMessageVisibility", f"arn:aws:sqs:{REGION}:{ACCOUNT}:{name}")
    mesh.stop("scorer")
    flow.recorder.calls.discard(returned)  # of a canary, before
    played = mesh.command("dispatch", "replay", "--from", str(file), "--tape", "later")
    assert played.returncode == 0, played.stdout + played.stderr
    mesh.wait_for(lambda: returned in flow.recorder.calls, 60, "the bar's return", partial(flow.state, "later"))
    mesh.start("scorer")
    mesh.wait_for(lambda: flow.bars("later") == 1, 90, "the returned bar's score", partial(flow.state, "later"))


def test_every_call_is_allowed_and_every_permission_used(flow: Flow, capsys: pytest.CaptureFixture[str]) -> None:
    """Runs after the quotes went through: judges every call that was made on their way."""
    assert not flow.recorder.unknown
    templates = Templates(flow.deployed.assembly, REGION, flow.deployed.physical)
    roles = templates.roles("Tapewatch")
    calls = {call for call in flow.recorder.calls if call.who in ROLES}
    assert {call.who for call in calls} == {"ingest", "dispatch", "scorer", "gateway", LAMBDA_KEY}
    refused: list[Call] = []
    unused: set[str] = set()
    for path, role in roles.items():
        refusals, never = judged(role, [call for call in calls if ROLES[call.who] == path])
        refused += refusals
        unused |= never
    assert not refused, "no statement of its role allows it"
    with capsys.disabled():
        print(f"\n{len(calls)} different AWS calls of {len({call.who for call in calls})} components, all allowed")
    wrong = unexplained(unused)
    assert not wrong, "\n".join(wrong)
