"""A proxy in front of an emulator that notes each AWS call: who made it, the IAM action it needs, and on what.

In front of the wire rather than in boto3, because the lake is written by pyarrow's own S3 client. Who calls is told by
the access key id: each component is given one of its own.
"""

import http.client
import json
import re
import threading
from collections.abc import Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

from deploy.policies import ACCOUNT

_CREDENTIAL = re.compile(r"Credential=([^/]+)/\d+/([a-z0-9-]+)/([a-z0-9-]+)/")
_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "expect"}
_TRANSACTION_ACTIONS = {
    "Put": "PutItem",
    "Update": "UpdateItem",
    "Delete": "DeleteItem",
    "ConditionCheck": "ConditionCheckItem",
}


class Call(NamedTuple):
    """One call: the component, the IAM action and the resource's ARN."""

    who: str
    action: str
    resource: str


class CallRecorder:
    """Listens on a free loopback port, and forwards to the emulator's."""

    def __init__(self, upstream_port: int) -> None:
        self.calls: set[Call] = set()
        self.unknown: set[str] = set()
        """Calls that nobody here can name: a test must refuse them."""

        self._lock = threading.Lock()
        recorder = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _forward(self) -> None:
                body = self._body()
                recorder._note(self.command, self.path, dict(self.headers.items()), body)
                connection = http.client.HTTPConnection("127.0.0.1", upstream_port, timeout=60)
                headers = {k: v for k, v in self.headers.items() if k.lower() not in _HOP_BY_HOP}
                headers["Content-Length"] = str(len(body))
                connection.request(self.command, self.path, body, headers)
                answer = connection.getresponse()
                content = answer.read()
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

    def _note(self, method: str, path: str, headers: dict[str, str], body: bytes) -> None:
        named = {name.lower(): value for name, value in headers.items()}
        match = _CREDENTIAL.search(named.get("authorization", ""))
        if match is None:
            self._unknown(f"unsigned {method} {path}")
            return
        who, region, service = match.groups()
        operation = named.get("x-amz-target", "").rpartition(".")[2]
        try:
            if service == "s3":
                found = list(s3_calls(method, path))
            else:
                request = json.loads(body or b"{}")
                found = list(CALLS[service](operation, request, f"{region}:{ACCOUNT}"))
        except (KeyError, ValueError):
            self._unknown(f"{service} {operation or method + ' ' + path}")
            return
        with self._lock:
            self.calls.update(Call(who, action, resource) for action, resource in found)

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


CALLS = {"sqs": sqs_calls, "dynamodb": dynamodb_calls, "secretsmanager": secret_calls}
