"""A proxy in front of an emulator that notes each AWS call: who made it, the IAM action it needs, and on what.

In front of the wire rather than in boto3, because the lake is written by pyarrow's own S3 client. Who calls is told by
the access key id: each component is given one of its own.
"""

import http.client
import json
import re
import threading
from collections.abc import Callable, Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

from deploy.policies import ACCOUNT, Role

_CREDENTIAL = re.compile(r"Credential=([^/]+)/\d+/([a-z0-9-]+)/([a-z0-9-]+)/")
_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "expect"}
_TRANSACTION_ACTIONS = {
    "Put": "PutItem",
    "Update": "UpdateItem",
    "Delete": "DeleteItem",
    "ConditionCheck": "ConditionCheckItem",
}


class Call(NamedTuple):
    """One call: the component, the IAM action, the resource's ARN, and the condition keys that the call has."""

    who: str
    action: str
    resource: str
    context: tuple[tuple[str, str], ...] = ()


def judged(role: Role, calls: Iterable[Call]) -> tuple[list[Call], set[str]]:
    """The calls that a role does not allow, and `<role> <statement>:<action>` of what it allows and none of them is."""
    made = set(calls)
    refused = [call for call in sorted(made) if not role.may(call.action, call.resource, dict(call.context))]
    unused = {
        f"{role.path} {statement.name}:{action}"
        for statement in role.statements
        for action in statement.actions
        if not any(c.action == action and statement.covers(action, c.resource, dict(c.context)) for c in made)
    }
    return refused, unused


class CallRecorder:
    """Listens on a free loopback port, and forwards to the emulator's.

    Args:
        upstream_port: The emulator's.
        ecs_port: Where ECS's calls go instead; 0 leaves them with the others.
        who: Whose the calls are, where the access key id does not say it: an emulator gives its functions one key.
    """

    def __init__(self, upstream_port: int, *, ecs_port: int = 0, who: str = "") -> None:
        self.calls: set[Call] = set()
        self.unknown: set[str] = set()
        """Calls that nobody here can name: a test must refuse them."""

        self._who = who
        self._lock = threading.Lock()
        recorder = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _forward(self) -> None:
                body = self._body()
                service = recorder._note(self.command, self.path, dict(self.headers.items()), body)
                port = ecs_port if service == "ecs" and ecs_port else upstream_port
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
                headers = {k: v for k, v in self.headers.items() if k.lower() not in _HOP_BY_HOP}
                headers["Content-Length"] = str(len(body))
                connection.request(self.command, self.path, body, headers)
                answer = connection.getresponse()
                content = answer.read()
                if service == "s3" and answer.status == http.HTTPStatus.NOT_FOUND:
                    recorder._note_listing(self.path, dict(self.headers.items()))
                self.send_response(answer.status)
                for name, value in answer.getheaders():
                    if name.lower() not in _HOP_BY_HOP | {"content-length"}:
                        self.send_header(name, value)
                length = answer.getheader("Content-Length", "0") if self.command == "HEAD" else str(len(content))
                self.send_header("Content-Length", length)
                self.end_headers()
                self.wfile.write(content)
                connection.close()

            def _body(self) -> bytes:
                if "chunked" not in self.headers.get("Transfer-Encoding", ""):
                    return self.rfile.read(int(self.headers.get("Content-Length", 0)))
                parts = []
                while size := int(self.rfile.readline().split(b";")[0], 16):
                    parts.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(parts)

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _forward  # noqa: N815

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _note(self, method: str, path: str, headers: dict[str, str], body: bytes) -> str:
        """Keep the call. Its service, or nothing."""
        named = {name.lower(): value for name, value in headers.items()}
        match = _CREDENTIAL.search(named.get("authorization", ""))
        if match is None:
            self._unknown(f"unsigned {method} {path}")
            return ""
        key, region, service = match.groups()
        operation = named.get("x-amz-target", "").rpartition(".")[2]
        context: tuple[tuple[str, str], ...] = ()
        try:
            if service == "s3":
                found = list(s3_calls(method, path))
            else:
                request = json.loads(body or b"{}")
                where = f"{region}:{ACCOUNT}"
                found = list(CALLS[service](operation, request, where))
                if service == "ecs":
                    context = (("ecs:cluster", cluster_arn(request["cluster"], where)),)
        except (KeyError, ValueError):
            self._unknown(f"{service} {operation or method + ' ' + path}")
            return service
        with self._lock:
            self.calls.update(Call(self._who or key, action, resource, context) for action, resource in found)
        return service

    def _note_listing(self, path: str, headers: dict[str, str]) -> None:
        """Only who may list a bucket is told that an object is not there: others are told that they may not read it."""
        self._note("GET", "/" + path.lstrip("/").partition("?")[0].partition("/")[0], headers, b"")

    def _unknown(self, what: str) -> None:
        with self._lock:
            self.unknown.add(what)


def sqs_calls(operation: str, request: dict[str, Any], where: str) -> Iterable[tuple[str, str]]:
    """A batch needs the permission of its single call."""
    queue = request.get("QueueName") or request["QueueUrl"].rpartition("/")[2]
    yield f"sqs:{operation.removesuffix('Batch')}", f"arn:aws:sqs:{where}:{queue}"


def dynamodb_calls(operation: str, request: dict[str, Any], where: str) -> Iterable[tuple[str, str]]:
    """A transaction needs the permissions of its parts."""

    def arn(table: str) -> str:
        return f"arn:aws:dynamodb:{where}:table/{table}"

    if operation == "TransactWriteItems":
        for item in request["TransactItems"]:
            ((kind, part),) = item.items()
            yield f"dynamodb:{_TRANSACTION_ACTIONS[kind]}", arn(part["TableName"])
    elif operation == "TransactGetItems":
        for item in request["TransactItems"]:
            yield "dynamodb:GetItem", arn(item["Get"]["TableName"])
    elif operation in ("BatchGetItem", "BatchWriteItem"):
        for table in request["RequestItems"]:
            yield f"dynamodb:{operation}", arn(table)
    else:
        yield f"dynamodb:{operation}", arn(request["TableName"])


def secret_calls(operation: str, request: dict[str, Any], where: str) -> Iterable[tuple[str, str]]:
    """A secret is asked for by its ARN, which ends in six characters that AWS makes up; or by its name."""
    secret = request["SecretId"]
    arn = secret if secret.startswith("arn:") else f"arn:aws:secretsmanager:{where}:secret:{secret}-abcdef"
    yield f"secretsmanager:{operation}", arn


def s3_calls(method: str, path: str) -> Iterable[tuple[str, str]]:
    """The permission of a request by method, key and query, path style."""
    parts = urlsplit(path)
    bucket, _, key = parts.path.lstrip("/").partition("/")
    query = parse_qs(parts.query, keep_blank_values=True)
    if not bucket:
        raise ValueError(path)
    if not key:
        if method not in ("GET", "HEAD"):
            raise ValueError(path)
        yield "s3:ListBucket", f"arn:aws:s3:::{bucket}"
    else:
        aborts = method == "DELETE" and "uploadId" in query
        action = {"GET": "GetObject", "HEAD": "GetObject", "PUT": "PutObject", "POST": "PutObject"}.get(method, "")
        action = "AbortMultipartUpload" if aborts else action or "DeleteObject"
        yield f"s3:{action}", f"arn:aws:s3:::{bucket}/{key}"


def ecs_calls(operation: str, request: dict[str, Any], where: str) -> Iterable[tuple[str, str]]:
    """A task is named by its ARN, and launched from a task definition."""
    if operation == "RunTask":
        definition = request["taskDefinition"]
        arn = definition if definition.startswith("arn:") else f"arn:aws:ecs:{where}:task-definition/{definition}"
        yield "ecs:RunTask", arn
    elif operation == "DescribeTasks":
        for task in request["tasks"]:
            yield "ecs:DescribeTasks", task
    elif operation == "StopTask":
        yield "ecs:StopTask", request["task"]
    else:
        raise KeyError(operation)


def cluster_arn(cluster: str, where: str) -> str:
    """A cluster by its name or ARN."""
    return cluster if cluster.startswith("arn:") else f"arn:aws:ecs:{where}:cluster/{cluster}"


def passed_roles(calls: Iterable[Call], roles_of: Callable[[str], Iterable[str]]) -> set[Call]:
    """What each RunTask needs beside itself: to pass the roles of its task definition to ECS."""
    passed = (("iam:PassedToService", "ecs-tasks.amazonaws.com"),)
    return {
        Call(call.who, "iam:PassRole", role, passed)
        for call in calls
        if call.action == "ecs:RunTask"
        for role in roles_of(call.resource)
    }


CALLS = {"sqs": sqs_calls, "dynamodb": dynamodb_calls, "secretsmanager": secret_calls, "ecs": ecs_calls}
