"""`tapewatch up-aws-local`: the mesh on its AWS adapters, with ministack for AWS, on loopback and without an account.

The very Lambda zip runs behind an event source mapping of an SQS FIFO queue; quotes, scores and alerts are in DynamoDB,
the lake in S3, and alerts are pushed over AppSync Events. In task mode the dispatcher launches one-shot scorers by ECS
RunTask, as processes behind a validator of its limits. ministack keeps everything in memory: stopped is gone.
Tens of quotes a second go through, not thousands: docs/deployment.md says why.
"""

import asyncio
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from services.cli.arguments import UpOptions
from services.cli.run import up
from services.cli.run_task_validator import RunTaskValidator
from services.cli.settings import MeshSettings
from services.dispatch.launcher_subprocess import RUN_ONCE
from services.domain.errors import DependencyUnavailableError, NotConfiguredError
from services.gateway.appsync import NAMESPACE
from services.gateway.settings import GatewaySettings
from services.queue.settings import EMBEDDED_NAME
from services.runtime.aws import AwsResource, open_session
from services.runtime.dynamodb_table import DynamoDbTable

FOLDER = "aws-local"
HANDLER = "services.dispatch.handler.lambda_handler"
_REGION = "eu-central-1"
_FUNCTION = "tapewatch-dispatch"
_BUCKET = "tapewatch-lake"
_TABLE = str(GatewaySettings.model_fields["store_table"].default)
_LEDGER_TABLE = "tapewatch-ledger"
_INGEST_TABLE = "tapewatch-ingest"
_BATCHES_URI = f"s3://{_BUCKET}/batches"
_CLUSTER = "tapewatch"
_TASK_FAMILY = "tapewatch-runonce"
_CONTAINER = "scorer"
_FUNCTION_SECONDS = 30
_VISIBILITY_SECONDS = 6 * _FUNCTION_SECONDS
_MAX_RECEIVES = 1_000
_BATCH_MESSAGES = 10
_CONCURRENCY = 10
_START_SECONDS = 30.0
_STOP_SECONDS = 10.0
_ACCOUNT = ("AWS_PROFILE", "AWS_DEFAULT_PROFILE", "AWS_SESSION_TOKEN")
"""Variables that would lead to an account of the caller's."""

_API_KEY = [{"authType": "API_KEY"}]


@dataclass(frozen=True, slots=True)
class Made:
    """What was made in ministack, for the mesh's environment and for the user."""

    environment: Mapping[str, str]
    realtime: str
    api_key: str


def _check(program: Path, code: Path, port: int) -> None:
    """Whether everything is there that this needs. Raises: NotConfiguredError naming what is not."""
    if not program.is_file():
        raise NotConfiguredError(f"ministack is not at {program}", "set --ministack to it (`make tools` installs it)")
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            raise NotConfiguredError(f"port {port} is in use", "set --port to a free one")
    if not code.is_file():
        raise NotConfiguredError(
            f"the function's zip is not at {code}", "set --function to it (`make lambda-zip` makes it)"
        )
    if importlib.util.find_spec("boto3") is None:
        raise NotConfiguredError(
            "the mesh on AWS's services needs boto3", "install it (pip install -e '.[aws]'), or use `tapewatch up`"
        )


@contextmanager
def ministack(program: Path, port: int, folder: Path) -> Iterator[str]:
    """Ministack on loopback; its URL. Raises: DependencyUnavailableError when it cannot run."""
    log = folder / "logs" / "ministack.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {
        **os.environ,
        "BIND_HOST": "127.0.0.1",  # else it listens on every interface
        "GATEWAY_PORT": str(port),
        "MINISTACK_REGION": _REGION,
        "LOG_LEVEL": "WARNING",
        "PYTHONPATH": "",  # its functions have their zip, and nothing of this checkout
        "SFTP_ENABLED": "0",
        "IOT_MTLS_ENABLED": "0",
        "TMPDIR": str(folder),
        "S3_DATA_DIR": str(folder / "s3"),
    }
    with log.open("ab") as out:
        # A session of its own: Ctrl-C reaches the command only, which stops the mesh before what it stands on.
        process = subprocess.Popen(
            [str(program.absolute())],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + _START_SECONDS
        while not _answers(url):
            if process.poll() is not None or time.monotonic() > deadline:
                raise DependencyUnavailableError("ministack", f"does not answer on {url} (log: {log})")
            time.sleep(0.05)
        yield url
    finally:
        _end(process)


def _answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=2).close()  # noqa: S310 - loopback
    except urllib.error.HTTPError as error:
        error.close()
    except OSError:
        return False
    return True


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Stop it with the functions that it runs: all of its own session."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            continue
    process.wait()


def local_aws(url: str) -> dict[str, str]:
    """The variables that send every call of AWS's to `url`, whatever account the caller is signed in to."""
    services = ("SQS", "DYNAMODB", "S3", "LAMBDA", "APPSYNC", "ECS")
    return {
        "AWS_ACCESS_KEY_ID": "local",
        "AWS_SECRET_ACCESS_KEY": "local",
        "AWS_REGION": _REGION,
        "AWS_DEFAULT_REGION": _REGION,
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_ENDPOINT_URL": url,
        **{f"AWS_ENDPOINT_URL_{name}": url for name in services},
    }


def make_resources(url: str, code: Path, settings: MeshSettings, scorers: int, mode: str) -> Made:
    """What the stack makes on AWS, with the stack's own settings where they matter.

    In mode `warm` the function takes from the queue; in the others the dispatcher does, which launches one-shot scorers
    by RunTask, with its ledger in DynamoDB and its batches in S3.

    Raises: NotConfiguredError, DependencyUnavailableError when ministack refuses.
    """
    resource = AwsResource("AWS", "endpoint", url, "AWS_ENDPOINT_URL", ("*",), _REGION)
    session = open_session(_REGION, resource, "use `tapewatch up`")
    with resource.translated():
        queue, arn = _make_queue(session.client("sqs"))
        for table in (_TABLE, _LEDGER_TABLE, _INGEST_TABLE):
            DynamoDbTable.connect(table, _REGION).create()
        where = {"LocationConstraint": _REGION}
        session.client("s3").create_bucket(Bucket=_BUCKET, CreateBucketConfiguration=where)
        http, realtime, key = _make_api(session.client("appsync"))
        function = {
            "QUEUE_BACKEND": "sqs",
            "SQS_QUEUE_URL": queue,
            "SCORER_ADDRESSES": ",".join(settings.pool(scorers)),
            "GATEWAY_ADDRESS": settings.gateway_address,
            "AWS_ENDPOINT_URL": url,
        }
        if mode == "warm":
            _make_function(session.client("lambda"), code, function, arn)
        else:
            _define_task(session.client("ecs"), settings)
    return Made(
        {
            **local_aws(url),
            "QUEUE_BACKEND": "sqs",
            "SQS_QUEUE_URL": queue,
            "EVENT_SOURCE": "none" if mode == "warm" else "embedded",
            "LEDGER_BACKEND": "dynamodb",
            "LEDGER_TABLE": _LEDGER_TABLE,
            "BATCHES_URI": _BATCHES_URI,
            "TASK_LAUNCHER": "ecs",
            "ECS_CLUSTER_NAME": _CLUSTER,
            "ECS_TASK_DEFINITION": _TASK_FAMILY,
            "ECS_CONTAINER_NAME": _CONTAINER,
            "ECS_SUBNET_IDS": "subnet-local",
            "INGEST_BACKEND": "dynamodb",
            "INGEST_TABLE": _INGEST_TABLE,
            "STORE_BACKEND": "dynamodb",
            "STORE_TABLE": _TABLE,
            "LAKE_URI": f"s3://{_BUCKET}/lake",
            "APPSYNC_ENDPOINT": f"{url}/event",
            "APPSYNC_HOST": http,
            "APPSYNC_API_KEY": key,
        },
        realtime,
        key,
    )


def _make_queue(sqs: Any) -> tuple[str, str]:
    """The quote queue with its dead-letter queue: URL and ARN."""

    def arn(url: str) -> str:
        answer = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])
        return str(answer["Attributes"]["QueueArn"])

    fifo = {"FifoQueue": "true"}
    dead = sqs.create_queue(QueueName=EMBEDDED_NAME.replace(".fifo", "_dlq.fifo"), Attributes=fifo)["QueueUrl"]
    attributes = {
        **fifo,
        "DeduplicationScope": "messageGroup",
        "FifoThroughputLimit": "perMessageGroupId",
        "VisibilityTimeout": str(_VISIBILITY_SECONDS),
        "RedrivePolicy": json.dumps({"deadLetterTargetArn": arn(dead), "maxReceiveCount": _MAX_RECEIVES}),
    }
    url = str(sqs.create_queue(QueueName=EMBEDDED_NAME, Attributes=attributes)["QueueUrl"])
    return url, arn(url)


def _make_api(appsync: Any) -> tuple[str, str, str]:
    """The Event API with its namespace: HTTP host, realtime host, key."""
    api = appsync.create_api(
        name="tapewatch",
        eventConfig={
            "authProviders": _API_KEY,
            "connectionAuthModes": _API_KEY,
            "defaultPublishAuthModes": _API_KEY,
            "defaultSubscribeAuthModes": _API_KEY,
        },
    )["api"]
    appsync.create_channel_namespace(apiId=api["apiId"], name=NAMESPACE)
    key = appsync.create_api_key(apiId=api["apiId"])["apiKey"]["id"]
    return str(api["dns"]["HTTP"]), str(api["dns"]["REALTIME"]), str(key)


def _make_function(functions: Any, code: Path, environment: Mapping[str, str], queue_arn: str) -> None:
    functions.create_function(
        FunctionName=_FUNCTION,
        Runtime=f"python3.{sys.version_info[1]}",
        Role="arn:aws:iam::000000000000:role/dispatch",
        Handler=HANDLER,
        Code={"ZipFile": code.read_bytes()},
        Timeout=_FUNCTION_SECONDS,
        Environment={"Variables": dict(environment)},
    )
    functions.create_event_source_mapping(
        EventSourceArn=queue_arn,
        FunctionName=_FUNCTION,
        BatchSize=_BATCH_MESSAGES,
        FunctionResponseTypes=["ReportBatchItemFailures"],
        ScalingConfig={"MaximumConcurrency": _CONCURRENCY},
    )


def _define_task(ecs: Any, settings: MeshSettings) -> None:
    """The cluster, and the one-shot scorer's task definition with what the stack tells it."""
    told = {
        "GATEWAY_ADDRESS": settings.gateway_address,
        "BATCHES_URI": _BATCHES_URI,
        "THRESHOLD_DIR": os.environ.get("THRESHOLD_DIR", str(settings.tapewatch_dir.absolute() / FOLDER)),
    }
    ecs.create_cluster(clusterName=_CLUSTER)
    ecs.register_task_definition(
        family=_TASK_FAMILY,
        networkMode="awsvpc",
        requiresCompatibilities=["FARGATE"],
        cpu="256",
        memory="512",
        containerDefinitions=[
            {
                "name": _CONTAINER,
                "image": "scorer",
                "essential": True,
                "environment": [{"name": name, "value": value} for name, value in told.items()],
            }
        ],
    )


def up_aws_local(program: Path, code: Path, port: int, options: UpOptions, console: Console) -> int:
    """Start ministack, make everything in it, and keep the mesh up until Ctrl-C; then stop both. The exit code."""
    settings = MeshSettings()
    _check(program, code, port)  # before anything of an earlier run is thrown away
    folder = settings.tapewatch_dir.absolute() / FOLDER
    shutil.rmtree(folder, ignore_errors=True)  # positions in it are those of a ministack that is gone
    folder.mkdir(parents=True)
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    with ministack(program, port, folder) as url, ExitStack() as tasks:
        for name in _ACCOUNT:
            os.environ.pop(name, None)
        os.environ.update(local_aws(url))
        made = make_resources(url, code, settings, options.scorers, options.mode)
        os.environ.update(made.environment)
        if options.mode != "warm":
            ecs = tasks.enter_context(RunTaskValidator(url, RUN_ONCE, logs=folder / "logs" / "tasks"))
            os.environ["AWS_ENDPOINT_URL_ECS"] = ecs.url
        console.print(f"SQS, Lambda, DynamoDB, S3 and AppSync Events on {url} (ministack; nothing leaves this machine)")
        console.print(f"queue {made.environment['SQS_QUEUE_URL']}", soft_wrap=True)
        dispatches = (
            f"function {_FUNCTION}"
            if options.mode == "warm"
            else f"ledger {_LEDGER_TABLE}, batches in mode {options.mode}"
        )
        console.print(f"table {_TABLE}, lake {made.environment['LAKE_URI']}, {dispatches}", soft_wrap=True)
        if options.mode != "warm":
            where = f"{os.environ['AWS_ENDPOINT_URL_ECS']} (a validator of AWS's limits)"
            console.print(
                f"tasks: ECS RunTask on {where}, as processes; logs in {folder / 'logs' / 'tasks'}", soft_wrap=True
            )
        console.print(
            f"alerts: subscribe to /{NAMESPACE}/live/* on ws://127.0.0.1:{port}/event/realtime "
            f"with host {made.realtime} and key {made.api_key}",
            soft_wrap=True,
        )
        console.print(
            f"from another terminal: AWS_ENDPOINT_URL={url} AWS_REGION={_REGION} "
            "AWS_ACCESS_KEY_ID=local AWS_SECRET_ACCESS_KEY=local aws sqs list-queues",
            soft_wrap=True,
        )
        local = settings.model_copy(update={"tapewatch_dir": folder})
        code_of_exit = asyncio.run(up(local, options, console, kept=False))
    console.print(
        "stopped, ministack too; what it held was in memory and is gone, and the same command begins anew.",
        soft_wrap=True,
    )
    return code_of_exit
