"""Task mode's functions in ministack: the dispatch Lambda launches by RunTask, and another one reconciles."""

import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import boto3
import pytest

from services.cli.run_task_validator import RunTaskValidator
from services.dispatch.launcher_subprocess import RUN_ONCE
from services.dispatch.ledger_dynamodb import DynamoDbLedger
from services.runtime.dynamodb_table import DynamoDbTable
from tests.e2e.mapped_function import Function, mapped_function
from tests.servers.process import REGION, Server


@dataclass
class TaskFunctions:
    """The dispatch function with its mesh, the reconciler's function, the ledger, and the tasks' launcher."""

    function: Function
    reconciler: str
    ledger: DynamoDbLedger
    validator: RunTaskValidator

    def reconcile(self) -> dict[str, Any]:
        """Call the reconciler as EventBridge does. How many batches are open."""
        answer = boto3.client("lambda", region_name=REGION).invoke(FunctionName=self.reconciler, Payload=b"{}")
        told: dict[str, Any] = json.loads(answer["Payload"].read())
        assert "problem" not in told, told
        return told


def define_task(name: str) -> None:
    """A cluster, and the one-shot scorer's task definition."""
    ecs = boto3.client("ecs", region_name=REGION)
    ecs.create_cluster(clusterName=name)
    ecs.register_task_definition(
        family=name,
        networkMode="awsvpc",
        containerDefinitions=[{"name": "scorer", "image": "scorer", "essential": True}],
    )


@contextmanager
def task_functions(
    ministack: Server, code: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, **environment: str
) -> Iterator[TaskFunctions]:
    """Both functions, of one zip; `environment` is theirs, the mesh's and the tasks'."""
    name = f"tasks-{uuid.uuid4().hex[:12]}"
    with RunTaskValidator(ministack.url, RUN_ONCE) as validator:
        environment = {
            "DISPATCH_MODE": "task",
            "LEDGER_BACKEND": "dynamodb",
            "LEDGER_TABLE": name,
            "BATCHES_URI": f"s3://{name}/batches",
            "TASK_LAUNCHER": "ecs",
            "ECS_CLUSTER_NAME": name,
            "ECS_TASK_DEFINITION": name,
            "ECS_SUBNET_IDS": "subnet-1,subnet-2",
            "AWS_ENDPOINT_URL_ECS": validator.url,
            "CANARY_INTERVAL_SECONDS": "0",
            **environment,
        }
        with mapped_function(ministack, code, folder, monkeypatch, **environment) as function:
            boto3.client("s3", region_name=REGION).create_bucket(
                Bucket=name, CreateBucketConfiguration={"LocationConstraint": REGION}
            )
            table = DynamoDbTable.connect(name, REGION)
            table.create()
            define_task(name)
            validator.environment = function.mesh.environment
            lambda_ = boto3.client("lambda", region_name=REGION)
            made = lambda_.get_function_configuration(FunctionName=function.name)
            reconciler = f"{function.name}-reconciler"
            lambda_.create_function(
                FunctionName=reconciler,
                Runtime=made["Runtime"],
                Role=made["Role"],
                Handler="services.dispatch.reconcile_handler.lambda_handler",
                Code={"ZipFile": code.read_bytes()},
                Timeout=30,
                Environment={"Variables": made["Environment"]["Variables"]},
            )
            ledger = DynamoDbLedger(table, timedelta(days=1))
            try:
                yield TaskFunctions(function, reconciler, ledger, validator)
            finally:
                ledger.close()
                lambda_.delete_function(FunctionName=reconciler)
