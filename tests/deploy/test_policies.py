"""How policies are judged, and the page that is written from them."""

import json
from pathlib import Path
from typing import Any

import pytest

from deploy.iam_document import DOCUMENT, document, roles
from deploy.policies import Role, Statement, Templates
from services.dispatch import launcher_ecs
from services.dispatch.ledger_dynamodb import LEDGER_PERMISSIONS
from services.pipeline import batch_files
from tests.deploy.conftest import Synthesize
from tests.deploy.unused_permissions import UNUSED, unexplained

QUEUE = "arn:aws:sqs:eu-central-1:000000000000:market_queue.fifo"


def role(*statements: Statement) -> Role:
    return Role("Mesh/Any", "", ("ecs-tasks.amazonaws.com",), statements)


def allow(action: str, resource: str) -> Statement:
    return Statement("Any", True, (action,), (resource,))


def test_a_call_is_allowed_by_action_and_resource_together() -> None:
    sender = role(allow("sqs:SendMessage", QUEUE), allow("sqs:*", QUEUE.replace("queue.", "queue_dead.")))
    assert sender.may("sqs:SendMessage", QUEUE)
    assert not sender.may("sqs:ReceiveMessage", QUEUE)
    assert not sender.may("sqs:SendMessage", QUEUE.replace("market", "other"))
    assert sender.may("sqs:ReceiveMessage", QUEUE.replace("queue.", "queue_dead."))


def test_what_is_denied_is_not_allowed_whatever_else_allows_it() -> None:
    denied = Statement("No", False, ("sqs:SendMessage",), ("*",))
    assert not role(allow("sqs:*", "*"), denied).may("sqs:SendMessage", QUEUE)
    assert not role().may("sqs:SendMessage", QUEUE)


def test_a_statement_holds_only_where_its_conditions_do() -> None:
    definition, cluster = "arn:aws:ecs:eu-central-1:000000000000:task-definition/t:1", {"ecs:cluster": "arn:c"}
    launch = Statement("Launch", True, ("ecs:RunTask",), (definition,), {"ArnEquals": cluster})
    assert role(launch).may("ecs:RunTask", definition, cluster)
    assert not role(launch).may("ecs:RunTask", definition, {"ecs:cluster": "arn:other"})
    assert not role(launch).may("ecs:RunTask", definition)
    odd = Statement("Launch", True, ("ecs:RunTask",), (definition,), {"NumericLessThan": cluster})
    with pytest.raises(ValueError, match="NumericLessThan"):
        role(odd).may("ecs:RunTask", definition, cluster)


def test_prefixes_end_where_they_end() -> None:
    writer = role(allow("s3:PutObject", "arn:aws:s3:::lake/lake/*"))
    assert writer.may("s3:PutObject", "arn:aws:s3:::lake/lake/quotes/dt=2026-11-20/part.parquet")
    assert not writer.may("s3:PutObject", "arn:aws:s3:::lake/export/part.parquet")


def test_references_become_the_names_that_resources_will_have(tmp_path: Path) -> None:
    storage = {
        "Resources": {"Queue": {"Type": "AWS::SQS::Queue", "Properties": {"QueueName": "market_queue.fifo"}}},
        "Outputs": {"O": {"Value": {"Fn::GetAtt": ["Queue", "Arn"]}, "Export": {"Name": "S:Queue"}}},
    }
    statement = {"Effect": "Allow", "Action": "sqs:SendMessage", "Resource": {"Fn::ImportValue": "S:Queue"}}
    trust = {"Statement": [{"Principal": {"Service": "ecs-tasks.amazonaws.com"}}]}
    mesh: dict[str, Any] = {
        "Resources": {
            "R": {"Type": "AWS::IAM::Role", "Properties": {"AssumeRolePolicyDocument": trust}},
            "P": {
                "Type": "AWS::IAM::Policy",
                "Properties": {"Roles": [{"Ref": "R"}], "PolicyDocument": {"Statement": [statement]}},
            },
        }
    }
    (tmp_path / "S.template.json").write_text(json.dumps(storage))
    (tmp_path / "M.template.json").write_text(json.dumps(mesh))
    (found,) = Templates(tmp_path, "eu-central-1").roles("X").values()
    assert found.may("sqs:SendMessage", QUEUE)
    mesh["Resources"]["R"]["Properties"]["ManagedPolicyArns"] = ["arn:aws:iam::aws:policy/AdministratorAccess"]
    (tmp_path / "M.template.json").write_text(json.dumps(mesh))
    with pytest.raises(ValueError, match="managed policies"):
        Templates(tmp_path, "eu-central-1").roles("X")


def test_an_unused_permission_needs_a_reason_and_a_reason_a_permission() -> None:
    explained = {pattern.replace("*", "x") for pattern in UNUSED}
    assert unexplained(explained) == []
    assert unexplained(explained | {"Mesh/GatewayRole Table:dynamodb:Scan"}) == [
        "nothing used Mesh/GatewayRole Table:dynamodb:Scan"
    ]
    gone = "Network/FlowWriter *"
    assert unexplained(explained - {gone.replace("*", "x")}) == [f"used, or gone: {gone}"]


@pytest.mark.slow
def test_launchers_launch_in_their_cluster_and_pass_roles_to_ecs_alone(synthesized: Synthesize) -> None:
    assembly = synthesized("tasks")
    found = Templates(assembly.folder, "eu-central-1").roles(assembly.prefix)
    wanted = {*launcher_ecs._PERMISSIONS, *batch_files._PERMISSIONS}  # what the adapters' messages ask for
    for path in ("Mesh/DispatcherRole", "Mesh/DispatchRole", "Mesh/TasksReconcilerRole"):
        has = {action for statement in found[path].statements for action in statement.actions}
        assert wanted <= has, path
        (launch,) = [s for s in found[path].statements if "ecs:RunTask" in s.actions]
        assert launch.conditions["ArnEquals"]["ecs:cluster"].endswith(":cluster/trial-tasks")
        (passed,) = [s for s in found[path].statements if "iam:PassRole" in s.actions]
        assert passed.conditions == {"StringEquals": {"iam:PassedToService": "ecs-tasks.amazonaws.com"}}
        assert "*" not in passed.resources
        (ledger,) = [s for s in found[path].statements if s.name == "Ledger"]
        if path != "Mesh/TasksReconcilerRole":  # which enters nothing
            assert set(ledger.actions) == set(LEDGER_PERMISSIONS)
    task = {a for s in found["Mesh/TasksRole"].statements for a in s.actions if a.startswith("s3:")}
    assert task == set(batch_files._PERMISSIONS)


@pytest.mark.slow
def test_the_page_is_up_to_date() -> None:
    assert DOCUMENT.read_text() == document(roles()), "make iam-document"
