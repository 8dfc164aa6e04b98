"""The stacks under several settings: what cdk-nag and cfn-lint say, and what each resource must be."""

import json
import re
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from deploy.nag import ACKNOWLEDGED
from deploy.network import CALLS, PORTS
from deploy.policies import ACCOUNT, Templates, allowed
from deploy.settings import REPOSITORY, read
from services.domain.threshold import ThresholdCalibration, threshold_file
from services.runtime import telemetry_names
from services.runtime.dynamodb_table import DynamoDbTable
from services.runtime.secret_files import write_secret_files
from services.scorer.registry import ModelRegistry
from services.scorer.thresholds import ModelLoader
from tests.deploy.assemblies import VARIANTS, Assembly
from tests.deploy.conftest import Synthesize

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

LINT_IGNORES = {
    "W3005": "CDK writes the dependency on a role also where it follows from a reference",
    "W3010": "zones are named on purpose: synthesis asks no account",
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_cfn_lint_has_nothing_to_say(variant: str, synthesized: Synthesize) -> None:
    assembly = synthesized(variant)
    command = [str(Path(sys.executable).with_name("cfn-lint")), "--regions", "eu-central-1"]
    command += ["--ignore-checks", *LINT_IGNORES, "--template", *map(str, assembly.template_files())]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_acknowledged_finding_of_cdk_nag_is_still_found(synthesized: Synthesize) -> None:
    found: dict[str, set[str]] = {}
    for variant in VARIANTS:
        assembly = synthesized(variant)
        for stack, rules in assembly.acknowledged_findings().items():
            plain = (
                r.replace(f"{assembly.prefix}Storage", "{storage}").replace("eu-central-1", "{region}") for r in rules
            )
            found.setdefault(stack, set()).update(plain)
    assert found == {stack: set(rules) for stack, rules in ACKNOWLEDGED.items()}


def test_the_table_is_the_one_that_create_table_makes(synthesized: Synthesize) -> None:
    asked: dict[str, Any] = {}

    class Client:
        class meta:  # noqa: N801, as boto3 names it
            region_name = "eu-central-1"

        class exceptions:  # noqa: N801
            ResourceInUseException = KeyError

        def create_table(self, **request: Any) -> None:
            asked["table"] = request

        def update_time_to_live(self, **request: Any) -> None:
            asked["ttl"] = request

        def get_waiter(self, _: str) -> Any:
            return type("Waiter", (), {"wait": lambda self, **_: None})()

    DynamoDbTable(Client(), "trial-tasks").create()
    tables = {str(p["TableName"]): p for _, p in synthesized("tasks").resources("AWS::DynamoDB::Table")}
    table = tables["trial-tasks"]
    assert set(tables) == {"trial-tasks", "trial-tasks-ledger", "trial-tasks-ingest"}
    assert all(each["KeySchema"] == table["KeySchema"] for each in tables.values())
    for name in ("TableName", "KeySchema", "AttributeDefinitions", "BillingMode"):
        assert table[name] == asked["table"][name], name
    wanted = asked["ttl"]["TimeToLiveSpecification"]
    assert table["TimeToLiveSpecification"] == wanted
    assert table["PointInTimeRecoverySpecification"]["PointInTimeRecoveryEnabled"] is True
    assert table["DeletionProtectionEnabled"] is True


def test_another_name_of_the_queue_is_its_dead_letters_too_and_nothing_names_another(synthesized: Synthesize) -> None:
    production = synthesized("production")
    names = {str(p["QueueName"]) for _, p in production.resources("AWS::SQS::Queue")}
    assert names == {"equities-US.fifo", "equities-US_dead.fifo"}
    assert all("market_queue" not in path.read_text() for path in production.template_files())


def test_the_queue_is_fifo_in_high_throughput_mode_and_patient(synthesized: Synthesize) -> None:
    queues = {str(p["QueueName"]): p for _, p in synthesized("tasks").resources("AWS::SQS::Queue")}
    queue, dead = queues["market_queue.fifo"], queues["market_queue_dead.fifo"]
    assert (queue["FifoQueue"], queue["DeduplicationScope"], queue["FifoThroughputLimit"]) == (
        True,
        "messageGroup",
        "perMessageGroupId",
    )
    assert dead["FifoQueue"] is True
    assert queue["RedrivePolicy"]["maxReceiveCount"] == 1000
    for _, function in synthesized("tasks").resources("AWS::Lambda::Function"):
        assert queue["VisibilityTimeout"] >= 6 * function["Timeout"]


def test_the_lambda_answers_partial_batches_of_ten(synthesized: Synthesize) -> None:
    for variant, architecture in (("small", "arm64"), ("production", "x86_64")):
        assert synthesized(variant).only("AWS::Lambda::Function")["Architectures"] == [architecture]
    mapping = synthesized("tasks").only("AWS::Lambda::EventSourceMapping")
    assert mapping["BatchSize"] == 10
    assert mapping["FunctionResponseTypes"] == ["ReportBatchItemFailures"]
    assert mapping["ScalingConfig"] == {"MaximumConcurrency": 10}


def test_every_service_has_its_name_health_check_certificates_and_token(synthesized: Synthesize) -> None:
    assembly = synthesized("production")
    names = {p["Name"] for _, p in assembly.resources("AWS::ServiceDiscovery::Service")}
    assert names == set(PORTS)
    served = 0
    for logical, task in assembly.resources("AWS::ECS::TaskDefinition"):
        containers = {c["Name"]: c for c in task["ContainerDefinitions"]}
        assert {"certificates", "collector"} < set(containers), logical
        (name,) = set(containers) - {"certificates", "collector"}
        main = containers[name]
        environment = {e["Name"]: e["Value"] for e in main["Environment"]}
        assert {s["Name"] for s in main["Secrets"]} == {"AUTH_TOKEN"}
        assert {s["Name"] for s in containers["certificates"]["Secrets"]} == {
            "TLS_CERT_PEM",
            "TLS_KEY_PEM",
            "TLS_CA_PEM",
        }
        assert all(c["ReadonlyRootFilesystem"] for c in containers.values())
        assert not {k: v for k, v in environment.items() if "TOKEN" in k or "PEM" in k}
        if "PortMappings" not in main:
            assert main["Command"] == ["tapewatch", "scorer", "run-once"]
            continue
        served += 1
        assert main["HealthCheck"]["Command"] == ["CMD", "tapewatch", "health", f"localhost:{PORTS[name]}"]
        assert environment["GRPC_HOST"] == "0.0.0.0"
        assert environment.get("MARKET_CALENDAR") == ("XNYS" if name == "ingest" else None)
        assert {"TLS_CERT_FILE", "TLS_KEY_FILE", "TLS_CA_FILE", "TLS_CLIENT_CA_FILE"} <= set(environment)
    assert served == len(PORTS)


def test_every_variable_of_a_container_is_a_setting(synthesized: Synthesize) -> None:
    from services.cli.settings_table import table

    known = set(re.findall(r"^\| `([A-Z_]+)`", table(), re.MULTILINE)) | {"TAPEWATCH_DIR", "METRICS_LOG_GROUP"}
    for variant in VARIANTS:
        for logical, task in synthesized(variant).resources("AWS::ECS::TaskDefinition"):
            for container in task["ContainerDefinitions"]:
                named = {e["Name"] for e in container.get("Environment", [])}
                assert named <= known, (variant, logical, named - known)


def calibration(version: str) -> str:
    return ThresholdCalibration(
        model_version=version, threshold=0.4321, trained_threshold=0.5, budget=2.0, budget_unit="day",
        expected_alerts=1.9, source="lake", tape="live", quotes=10_000, symbol_days=300,
        create_time=datetime(2026, 11, 1, tzinfo=UTC),
    ).to_json()  # fmt: skip


def test_a_model_and_its_calibrated_threshold_reach_every_scorer(code: Path, tmp_path: Path) -> None:
    from deploy.app import build

    version = ModelRegistry().names()[0]
    file = tmp_path / "threshold.json"
    file.write_text(calibration(version))
    settings = read(name="modelled", model={"version": version, "threshold": str(file)})
    application = build(settings, code, tmp_path / "assembly")
    application.app.synth()
    scorers = 0
    for _, task in Assembly(Path(application.app.outdir), application.prefix).resources("AWS::ECS::TaskDefinition"):
        containers = {
            c["Name"]: {e["Name"]: e["Value"] for e in c["Environment"]} for c in task["ContainerDefinitions"]
        }
        if "scorer" not in containers:
            assert "THRESHOLD_JSON" not in containers["certificates"]
            assert not {"MODEL_VERSION", "THRESHOLD_DIR"} & set.union(*map(set, containers.values()))
            continue
        scorers += 1
        folder = tmp_path / f"scorer-{scorers}"
        folder.mkdir()
        environment = containers["certificates"]
        assert environment["THRESHOLD_DIR"] == containers["scorer"]["THRESHOLD_DIR"]
        for name in ("TLS_CERT_FILE", "TLS_KEY_FILE", "TLS_CA_FILE"):
            environment.pop(name)
        assert write_secret_files(environment | {"THRESHOLD_DIR": str(folder)}) == [folder / threshold_file(version)]
        loaded = ModelLoader(ModelRegistry(), folder).load(containers["scorer"]["MODEL_VERSION"])
        assert loaded.metadata.threshold == 0.4321
    assert scorers == 2, "the service and the one-shot task"


@pytest.mark.parametrize(
    ("version", "text", "sentence"),
    [
        ("tw-0", "", "version 'tw-0' is not in services/scorer/models, where there is tw-"),
        ("", None, "cannot be read: No such file"),
        ("", "{", "is not JSON"),
        ("", calibration("tw-0"), "is for version 'tw-0': set version to it"),
    ],
)
def test_a_model_that_cannot_be_served_ends_in_a_sentence(
    tmp_path: Path, version: str, text: str | None, sentence: str
) -> None:
    file = tmp_path / "threshold.json"
    if text:
        file.write_text(text)
    with pytest.raises(SystemExit, match=re.escape(sentence)):
        read(model={"version": version, "threshold": "" if text == "" else str(file)})


def test_nothing_reaches_the_internet_without_nat(synthesized: Synthesize) -> None:
    small, production = synthesized("small"), synthesized("production")
    assert not list(small.resources("AWS::EC2::NatGateway"))
    assert not list(small.resources("AWS::EC2::InternetGateway"))
    services = {str(p["ServiceName"]) for _, p in small.resources("AWS::EC2::VPCEndpoint")}
    for name in ("sqs", "ecr.api", "ecr.dkr", "logs", "secretsmanager", "xray", "s3", "dynamodb"):
        assert any(re.search(rf"\b{re.escape(name)}\b", service) for service in services), name
    assert len(list(production.resources("AWS::EC2::NatGateway"))) == 1
    kinds = {p["VpcEndpointType"] for _, p in production.resources("AWS::EC2::VPCEndpoint")}
    assert kinds == {"Gateway"}


def test_each_service_admits_its_callers_and_operators(synthesized: Synthesize) -> None:
    assembly = synthesized("small")
    kind = {f"{name.capitalize()}Group": name for name in (*PORTS, "lambda", "operator")}

    def named(reference: Any) -> str:
        return next(name for group, name in kind.items() if f"'{group}" in str(reference))

    admitted = {
        (named(rule["SourceSecurityGroupId"]), named(rule["GroupId"]), rule["FromPort"])
        for _, rule in assembly.resources("AWS::EC2::SecurityGroupIngress")
        if "CacheGroup" not in str(rule["GroupId"]) and rule["FromPort"] in PORTS.values()
    }
    calls = {(caller, callee, PORTS[callee]) for caller, callee in CALLS}
    assert admitted == calls | {("operator", callee, port) for callee, port in PORTS.items()}
    (operator,) = [p for name, p in assembly.resources("AWS::EC2::SecurityGroup") if "OperatorGroup" in name]
    assert [(rule["CidrIp"], rule["FromPort"]) for rule in operator["SecurityGroupEgress"]] == [("0.0.0.0/0", 443)]
    out = {
        (named(rule["DestinationSecurityGroupId"]), rule["FromPort"])
        for _, rule in assembly.resources("AWS::EC2::SecurityGroupEgress")
        if named(rule["GroupId"]) == "operator"
    }
    assert out == set(PORTS.items())


def test_the_documents_call_the_mesh_as_it_is_deployed(synthesized: Synthesize) -> None:
    from services.cli.commands import app

    assembly = synthesized("small")
    outputs = assembly.template("Network")["Outputs"]
    text = (REPOSITORY / "docs" / "operations.md").read_text()
    section = text.partition("## Calling the mesh")[2].partition("\n## ")[0]
    assert "OperatorGroup" in str(outputs["OperatorGroupId"]["Value"])
    for output in ("OperatorGroupId", "MeshSubnetIds"):
        assert output in outputs
        assert output in section
    assert "OperatorGroupId" in (REPOSITORY / "docs" / "deployment.md").read_text()
    assert {int(port) for port in re.findall(r"\((50\d{3})\)", section)} == set(PORTS.values())
    call = re.search(r"--task-definition <name>-(\S+) .*?--overrides '(.*?)'", section, re.DOTALL)
    assert call is not None
    (override,) = json.loads(call[2])["containerOverrides"]
    (task,) = [
        task
        for _, task in assembly.resources("AWS::ECS::TaskDefinition")
        if task["Family"] == f"{assembly.prefix.lower()}-{call[1]}"
    ]
    (container,) = [c for c in task["ContainerDefinitions"] if c["Name"] == override["name"]]
    assert "EntryPoint" not in container
    program, *words = override["command"]
    assert program == "tapewatch"
    command: Any = typer.main.get_command(app)
    while hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    command.make_context(program, [word.replace("<namespace>", "tapewatch.internal") for word in words])
    assert words[-1] == f"dispatch.<namespace>:{PORTS['dispatch']}"


def test_the_audit_copy_is_locked_and_follows_the_lake(synthesized: Synthesize) -> None:
    buckets = dict(synthesized("production").resources("AWS::S3::Bucket"))
    (audit,) = [b for b in buckets.values() if b.get("ObjectLockEnabled")]
    rule = audit["ObjectLockConfiguration"]["Rule"]["DefaultRetention"]
    assert rule == {"Mode": "COMPLIANCE", "Days": 7 * 365}
    (lake,) = [b for b in buckets.values() if "ReplicationConfiguration" in b]
    prefixes = {r["Filter"]["Prefix"] for r in lake["ReplicationConfiguration"]["Rules"]}
    assert prefixes == {"lake/changes/", "export/"}
    storages = {t["StorageClass"] for r in lake["LifecycleConfiguration"]["Rules"] for t in r.get("Transitions", [])}
    assert storages == {"STANDARD_IA", "GLACIER_IR"}
    assert all(b["PublicAccessBlockConfiguration"]["BlockPublicAcls"] for b in buckets.values())


def test_the_scorers_follow_the_backlog_and_the_market(synthesized: Synthesize) -> None:
    assembly = synthesized("tasks")
    target = assembly.only("AWS::ApplicationAutoScaling::ScalableTarget")
    crons = {(a["Schedule"], a["Timezone"]) for a in target["ScheduledActions"]}
    assert crons == {
        ("cron(15 9 ? * MON-FRI *)", "America/New_York"),
        ("cron(15 16 ? * MON-FRI *)", "America/New_York"),
    }
    policy = assembly.only("AWS::ApplicationAutoScaling::ScalingPolicy")["TargetTrackingScalingPolicyConfiguration"]
    assert policy["TargetValue"] == 500
    metrics = {m["Id"]: m for m in policy["CustomizedMetricSpecification"]["Metrics"]}
    assert metrics["waiting"]["MetricStat"]["Metric"]["MetricName"] == "ApproximateNumberOfMessagesVisible"
    assert metrics["backlog"]["Expression"] == "IF(running > 0, waiting / running, waiting)"


def test_only_task_mode_may_launch_tasks(synthesized: Synthesize) -> None:
    def launchers(variant: str) -> set[str]:
        return {
            logical
            for logical, policy in synthesized(variant).resources("AWS::IAM::Policy")
            if "ecs:RunTask" in str(policy["PolicyDocument"])
        }

    assert not launchers("small")
    found = launchers("tasks")
    assert len(found) == 3
    for who in ("Dispatcher", "DispatchRole", "Reconciler"):
        assert any(who in logical for logical in found), found
    functions = {str(p["FunctionName"]): p for _, p in synthesized("tasks").resources("AWS::Lambda::Function")}
    assert functions["trial-tasks-reconcile"]["Handler"] == "services.dispatch.reconcile_handler.lambda_handler"
    rules = {str(p["Name"]): p for _, p in synthesized("tasks").resources("AWS::Events::Rule")}
    assert rules["trial-tasks-task-stopped"]["EventPattern"]["detail-type"] == ["ECS Task State Change"]
    assert rules["trial-tasks-reconcile"]["ScheduleExpression"] == "rate(1 minute)"


def test_alerts_are_pushed_by_the_gateway_alone(synthesized: Synthesize) -> None:
    production = synthesized("production")
    assert production.only("AWS::AppSync::ChannelNamespace")["Name"] == "alerts"
    config = production.only("AWS::AppSync::Api")["EventConfig"]
    assert config["DefaultPublishAuthModes"] == [{"AuthType": "AWS_IAM"}]
    assert {m["AuthType"] for m in config["DefaultSubscribeAuthModes"]} == {"AWS_IAM", "OPENID_CONNECT"}
    assert "Serving" not in synthesized("small").stacks()


def test_the_gateway_alone_reaches_the_cache_and_may_get_items(synthesized: Synthesize) -> None:
    from amazondax.Cluster import SCHEMES_TO_DEFAULT_PORTS

    from services.gateway.dax import _PERMISSIONS

    production = synthesized("production")
    cluster = production.only("AWS::DAX::Cluster")
    assert cluster["ClusterEndpointEncryptionType"] == "TLS"
    informed = {
        logical.partition("/")[2]: environment["DAX_ENDPOINT"]
        for logical, task in production.resources("AWS::ECS::TaskDefinition")
        for container in task["ContainerDefinitions"]
        if "DAX_ENDPOINT" in (environment := {e["Name"]: e["Value"] for e in container.get("Environment", [])})
    }
    assert [name.startswith("Gateway") for name in informed] == [True]
    assert all("ClusterDiscoveryEndpointURL" in str(value) for value in informed.values())
    allowed = {
        logical.partition("/")[2]: statement["Action"]
        for logical, policy in production.resources("AWS::IAM::Policy")
        for statement in policy["PolicyDocument"]["Statement"]
        if "dax:" in str(statement["Action"])
    }
    assert [(name.startswith("GatewayRole"), action) for name, action in allowed.items()] == [(True, *_PERMISSIONS)]
    groups = dict(production.resources("AWS::EC2::SecurityGroup"))
    (ingress,) = [
        rule
        for _, rule in production.resources("AWS::EC2::SecurityGroupIngress")
        if "CacheGroup" in str(rule["GroupId"])
    ]
    assert "GatewayGroup" in str(ingress["SourceSecurityGroupId"])
    assert ingress["FromPort"] == ingress["ToPort"] == SCHEMES_TO_DEFAULT_PORTS["daxs"]
    (gateway,) = [group for name, group in groups.items() if "GatewayGroup" in name]
    assert [rule["IpProtocol"] for rule in gateway["SecurityGroupEgress"]] == ["-1"]
    for variant in ("small", "tasks"):
        every = " ".join(str(synthesized(variant).template(stack)) for stack in synthesized(variant).stacks())
        assert "dax:" not in every
        assert "DAX_ENDPOINT" not in every


def test_the_collector_passes_on_what_the_alarms_and_the_dashboard_read(synthesized: Synthesize) -> None:
    config = yaml.safe_load((REPOSITORY / "deploy" / "collector" / "config.yaml").read_text())
    exporter = config["exporters"]["awsemf"]
    selectors = [s for d in exporter["metric_declarations"] for s in d["metric_name_selectors"]]
    passed = {selector.strip("^$").replace("\\", "") for selector in selectors}
    known = {value for value in vars(telemetry_names).values() if isinstance(value, str)}
    assert passed <= known
    read: set[str] = set()
    for variant in VARIANTS:
        assembly = synthesized(variant)
        for _, alarm in assembly.resources("AWS::CloudWatch::Alarm"):
            if alarm.get("Namespace") == exporter["namespace"]:
                read.add(alarm["MetricName"])
                assert [d["Name"] for d in alarm["Dimensions"]] == ["service.name"]
        dashboard = str(assembly.only("AWS::CloudWatch::Dashboard"))
        read |= set(re.findall(r'"Tapewatch\\?",\\?"([a-z_.]+)', dashboard))
    assert read == passed


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_alarm_may_tell_the_topic(variant: str, synthesized: Synthesize) -> None:
    assembly = synthesized(variant)
    templates = Templates(assembly.folder, "eu-central-1")
    told = templates.topic_statements("cloudwatch.amazonaws.com")
    encrypted = {"aws:SourceAccount": ACCOUNT, "aws:SecureTransport": "true"}
    alarms = list(templates.resources("AWS::CloudWatch::Alarm"))
    assert alarms
    for stack, logical, alarm in alarms:
        context = encrypted | {"aws:SourceArn": templates.arn(stack, logical)}
        for when in ("AlarmActions", "OKActions"):
            (topic,) = (templates.resolve(stack, action) for action in alarm["Properties"][when])
            assert allowed(told[topic], "sns:Publish", topic, context), (logical, when)
            for wrong in (
                {"aws:SourceAccount": "111111111111"},
                {"aws:SecureTransport": "false"},
                {"aws:SourceArn": context["aws:SourceArn"].replace(":alarm:", ":alarm:another-")},
            ):
                assert not allowed(told[topic], "sns:Publish", topic, context | wrong), (logical, wrong)
    budget = templates.topic_statements("budgets.amazonaws.com")
    assert all(allowed(budget[topic], "sns:Publish", topic, encrypted) for topic in told)
    stranger = templates.topic_statements("events.amazonaws.com")
    assert not any(allowed(stranger[topic], "sns:Publish", topic, encrypted) for topic in told)


def test_only_task_mode_watches_its_batches_and_its_reconciler(synthesized: Synthesize) -> None:
    def alarms(variant: str) -> dict[str, Any]:
        return {p["AlarmName"]: p for _, p in synthesized(variant).resources("AWS::CloudWatch::Alarm")}

    tasks, small = alarms("tasks"), alarms("small")
    ours = {"oldest-batch", "reconcile-errors"}
    assert {n.removeprefix("trial-tasks-") for n in tasks} - {n.removeprefix("tapewatch-") for n in small} == ours
    oldest, errors = tasks["trial-tasks-oldest-batch"], tasks["trial-tasks-reconcile-errors"]
    assert (oldest["Threshold"], oldest["TreatMissingData"]) == (1800, "breaching")
    assert oldest["Dimensions"] == [{"Name": "service.name", "Value": "tapewatch-dispatch"}]
    assert (errors["Namespace"], errors["MetricName"]) == ("AWS/Lambda", "Errors")
    assert "Reconciler" in str(errors["Dimensions"])


def test_failures_of_tasks_and_of_their_placement_are_counted(synthesized: Synthesize) -> None:
    rules = {p["Name"]: p["EventPattern"] for _, p in synthesized("small").resources("AWS::Events::Rule")}
    pattern = rules["tapewatch-task-failures"]
    assert set(pattern["detail-type"]) == {"ECS Task State Change", "ECS Service Action"}

    def counted(**detail: str) -> bool:
        def matches(wanted: list[Any], given: str | None) -> bool:
            return given is not None and any(
                given.startswith(one["prefix"]) if isinstance(one, dict) else given == one for one in wanted
            )

        simple = [each for each in pattern["detail"]["$or"] if "containers" not in each]
        return any(all(matches(wanted, detail.get(key)) for key, wanted in each.items()) for each in simple)

    stopped = {"lastStatus": "STOPPED", "stopCode": "ServiceSchedulerInitiated"}
    assert counted(**stopped, stoppedReason="Task failed container health checks")
    assert not counted(**stopped, stoppedReason="Scaling activity initiated by (deployment ecs-svc/1)")
    assert counted(lastStatus="STOPPED", stopCode="TaskFailedToStart")
    assert not counted(lastStatus="DEACTIVATING", stopCode="TaskFailedToStart")
    assert counted(eventName="SERVICE_TASK_PLACEMENT_FAILURE")
    assert not counted(eventName="SERVICE_STEADY_STATE")


def test_canaries_that_nobody_plays_are_not_missed(code: Path, tmp_path: Path) -> None:
    from deploy.app import build

    application = build(read(dispatch={"canary_interval_seconds": 0}), code, tmp_path)
    application.app.synth()
    assembly = Assembly(Path(application.app.outdir), application.prefix)
    names = {p["AlarmName"] for _, p in assembly.resources("AWS::CloudWatch::Alarm")}
    assert "tapewatch-silent-symbol" in names
    assert not {name for name in names if "canary" in name}
    schedules = " ".join(str(p["Target"]) for _, p in assembly.resources("AWS::Scheduler::Schedule"))
    assert "SilentSymbol" in schedules
    assert "Canary" not in schedules


def test_a_dispatcher_that_has_not_played_yet_turns_no_alarm(synthesized: Synthesize) -> None:
    """The gauge begins when its first play ends: the miss waits for it, and its absence outlasts the longest play."""
    for variant, name, periods in (("small", "tapewatch", 3), ("tasks", "trial-tasks", 8)):
        alarms = {p["AlarmName"]: p for _, p in synthesized(variant).resources("AWS::CloudWatch::Alarm")}
        missed, unplayed = (alarms[f"{name}-canary-{each}"] for each in ("missed", "not-played"))
        assert missed["MetricName"] == unplayed["MetricName"] == telemetry_names.CANARY_HEALTHY
        assert (missed["TreatMissingData"], missed["Threshold"], missed["EvaluationPeriods"]) == ("ignore", 1, 2)
        assert (unplayed["TreatMissingData"], unplayed["Threshold"]) == ("breaching", 0)
        assert unplayed["ComparisonOperator"] == "LessThanThreshold", "which neither 0 nor 1 is"
        assert (unplayed["EvaluationPeriods"], unplayed["Period"]) == (periods, 300)


def test_alarms_of_the_market_page_while_quotes_must_come_and_are_judged_anew(synthesized: Synthesize) -> None:
    assembly = synthesized("small")
    templates = Templates(assembly.folder, "eu-central-1")
    schedules = {p["Name"]: p for _, p in assembly.resources("AWS::Scheduler::Schedule")}
    role = templates.roles(assembly.prefix)["Monitoring/MarketHoursRole"]
    alarms = {
        templates.resolve(stack, {"Ref": logical}): templates.arn(stack, logical)
        for stack, logical, _ in templates.resources("AWS::CloudWatch::Alarm")
    }
    market = ["tapewatch-silent-symbol", "tapewatch-canary-missed", "tapewatch-canary-not-played"]

    def calls(name: str) -> tuple[str, str, dict[str, Any]]:
        found = schedules[f"tapewatch-{name}"]
        assert found["ScheduleExpressionTimezone"] == "America/New_York"
        call = found["Target"]["Arn"].rpartition(":")[2]
        given = json.loads(templates.resolve(f"{assembly.prefix}Monitoring", found["Target"]["Input"]))
        for alarm in given.get("AlarmNames", [given.get("AlarmName")]):
            assert role.may(f"cloudwatch:{call[0].upper()}{call[1:]}", alarms[alarm])
        return found["ScheduleExpression"], call, given

    # 15 minutes after the market's opening; and at its close, before one-minute series are called stale
    assert calls("enable-market-alarms") == ("cron(45 9 ? * MON-FRI *)", "enableAlarmActions", {"AlarmNames": market})
    assert calls("disable-market-alarms") == ("cron(0 16 ? * MON-FRI *)", "disableAlarmActions", {"AlarmNames": market})
    for alarm in market:
        when, call, given = calls(f"judge-{alarm.removeprefix('tapewatch-')}-anew")
        assert (when, call) == ("cron(47 9 ? * MON-FRI *)", "setAlarmState")
        assert (given["AlarmName"], given["StateValue"]) == (alarm, "OK")
        assert given["StateReason"]


def test_both_audit_copies_and_the_schedules_are_watched(synthesized: Synthesize) -> None:
    assembly = synthesized("small")
    alarms = [p for _, p in assembly.resources("AWS::CloudWatch::Alarm")]
    replicated = {
        rule["Id"]
        for _, bucket in assembly.resources("AWS::S3::Bucket")
        for rule in bucket.get("ReplicationConfiguration", {}).get("Rules", [])
    }
    watched = {
        d["Value"]
        for alarm in alarms
        if alarm.get("MetricName") == "OperationsFailedReplication"
        for d in alarm["Dimensions"]
        if d["Name"] == "RuleId"
    }
    assert watched == replicated == {"changes-to-audit", "exports-to-audit"}
    (schedules,) = [alarm for alarm in alarms if alarm.get("Namespace") == "AWS/Scheduler"]
    assert schedules["MetricName"] == "TargetErrorCount"
    ((_, made),) = assembly.resources("AWS::Scheduler::ScheduleGroup")
    assert {p.get("GroupName") for _, p in assembly.resources("AWS::Scheduler::Schedule")} == {made["Name"]}
    assert made["Name"] == "tapewatch", "other applications' schedules are in the default group"
    assert schedules["Dimensions"] == [{"Name": "ScheduleGroup", "Value": made["Name"]}]


def test_every_alarm_has_its_section_in_operations(synthesized: Synthesize) -> None:
    text = (REPOSITORY / "docs" / "operations.md").read_text()
    headings = set(re.findall(r"^### `([a-z-]+)`$", text, re.MULTILINE))
    alarms: Mapping[str, str] = {
        re.sub(r"^(trial-tasks|tapewatch)-", "", p["AlarmName"]): str(p["AlarmDescription"])
        for variant in VARIANTS
        for _, p in synthesized(variant).resources("AWS::CloudWatch::Alarm")
    }
    assert headings == set(alarms)
    for name, description in alarms.items():
        assert description.endswith(f"docs/operations.md#{name}")


def test_glue_has_the_columns_that_the_gateway_writes(synthesized: Synthesize) -> None:
    from services.archive.lake import SCHEMA
    from services.gateway.lake import CHANGES_SCHEMA

    tables = {p["TableInput"]["Name"]: p["TableInput"] for _, p in synthesized("small").resources("AWS::Glue::Table")}
    for name, schema in (("quotes", SCHEMA), ("changes", CHANGES_SCHEMA)):
        descriptor = tables[name]["StorageDescriptor"]
        assert [c["Name"] for c in descriptor["Columns"]] == schema.names
        assert str(descriptor["Location"]).endswith(f"/lake/{name}/']]}}")
        assert tables[name]["PartitionKeys"] == [{"Name": "dt", "Type": "string"}]
    types = {c["Name"]: c["Type"] for c in tables["quotes"]["StorageDescriptor"]["Columns"]}
    assert types["event_time"] == "timestamp"
    assert types["quality"] == "array<string>"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"ingest": {"source": "yahoo"}}, "network.nat_gateways"),
        ({"dispatch": {"mode": "task"}}, "set dispatch.canary_interval_seconds to 2000 or more, or to 0"),
        ({"market_hours": {"pages_until": "16:30"}}, "pages_from and pages_until must be in this order"),
        ({"serving": {"events": True}}, "serving.events needs the internet: set network.nat_gateways"),
        ({"scorer": {"minimum": 9}}, "scorer.maximum is below a minimum"),
        ({"gateway": {"memory_mib": 777}}, "Fargate has no task of 512 CPU units and 777 MiB"),
        ({"availability_zones": ["us-east-1a", "us-east-1b"]}, "us-east-1a, us-east-1b is not in eu-central-1"),
        ({"queue": {"surprise": 1}}, "queue.surprise"),
        (
            {"queue": {"name": "market_queue"}},
            "queue.name: 'market_queue' must be letters, digits, _ and -, and end in .fifo",
        ),
        ({"queue": {"name": ".fifo"}}, "must be letters"),
        ({"queue": {"name": "a queue.fifo"}}, "must be letters"),
        ({"queue": {"name": "q" * 71 + ".fifo"}}, "has 76 characters; 75 are allowed: SQS takes 80"),
        (
            {"network": {"cidr": "banana"}},
            "network.cidr: Expected 4 octets in 'banana': must be a network",
        ),
        ({"network": {"cidr": "10.20.0.1/16"}}, "10.20.0.1/16 has host bits set"),
        ({"network": {"cidr": "10.20.0.0/24"}}, "10.20.0.0/24 must be from /16 to /18"),
        ({"market_hours": {"timezone": "Mars/Olympus"}}, "'Mars/Olympus' is no time zone"),
        ({"market_hours": {"timezone": "../etc"}}, "'../etc' is no time zone"),
        (
            {"market_hours": {"calendar": "NOPE"}},
            "no exchange's calendar is named 'NOPE': set calendar to one such as XNYS, or empty it",
        ),
        ({"market_hours": {"timezone": "Europe/Berlin"}}, "calendar XNYS goes by America/New_York: set timezone to it"),
        ({"market_hours": {"days": "WEEKEND"}}, "market_hours.days: 'WEEKEND' must be days like MON-FRI"),
        ({"market_hours": {"opens": "17:00"}}, "opens 17:00 is not before closes 16:15"),
        ({"audit": {"export_days": "nonsense"}}, "audit.export_days: 'nonsense' must be days"),
        ({"lake": {"infrequent_access_days": 365}}, "glacier_days 365 must be 30 days or more after"),
        ({"serving": {"dax_node_type": "banana"}}, "serving.dax_node_type"),
        ({"monitoring": {"email": "nobody"}}, "monitoring.email"),
        ({"ingest": {"symbols": "aapl;;"}}, "'aapl;;' must be default, large_caps, or tickers with commas"),
        ({"ingest": {"symbols": ","}}, "',' must be default"),
        ({"dispatch": {"max_concurrent_tasks": 5_000}}, "dispatch.max_concurrent_tasks: Input should be less than"),
    ],
)
def test_wrong_settings_end_in_a_sentence(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SystemExit, match=re.escape(sentence)):
        read(**changes)


def test_settings_that_can_be_deployed_are_taken() -> None:
    taken = read(
        network={"cidr": "10.0.64.0/18"},
        market_hours={
            "calendar": "XETR",
            "timezone": "Europe/Berlin",
            "days": "MON,WED-FRI",
            "opens": "08:45",
            "closes": "17:45",
        },
        audit={"export_days": "MON-FRI"},
        lake={"infrequent_access_days": 30, "glacier_days": 60},
        serving={"dax_node_type": "dax.r5.24xlarge"},
        monitoring={"email": "surveillance@example.org"},
        ingest={"symbols": "brk-b, ^GSPC"},
        dispatch={"max_concurrent_tasks": 1_000},
        queue={"name": "q" * 70 + ".fifo"},
    )
    assert taken.ingest.symbols == "brk-b, ^GSPC"
    assert len(taken.queue.dead_letters_name) == 80
    for kind in ("dax.t2.small", "dax.t3.medium", "dax.r4.large", "dax.r5.xlarge", "dax.r7i.2xlarge"):
        assert read(serving={"dax_node_type": kind}).serving.dax_node_type == kind
