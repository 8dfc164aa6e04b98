"""A way to AWS on which the session token can expire: requests go through to a stand-in, or come back as AWS's own.

No stand-in knows sessions that end. The answers are those of the services: DynamoDB and SQS speak JSON, S3 speaks XML
and has no body to answer HEAD with.
"""

import http.client
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

JSON_TOLD = "The security token included in the request is expired"
XML_TOLD = "The provided token has expired."
_HOP_BY_HOP = {"connection", "transfer-encoding", "content-length", "keep-alive", "server", "date"}


class ExpiringSession:
    """Its `url` is an endpoint for boto3 and pyarrow. `refused` counts the answers while `expired`, by service."""

    def __init__(self, port: int, upstream: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.upstream = upstream
        self.expired = False
        self.refused = {"dynamodb": 0, "sqs": 0, "s3": 0}


def _service(headers: "Message[str, str]") -> str:
    """By the scope of the signature."""
    scope = (headers["Authorization"] or "").partition("Credential=")[2].partition(",")[0].split("/")
    return scope[3] if len(scope) > 3 else "s3"


def _expired(service: str, method: str) -> tuple[int, dict[str, str], bytes]:
    if service == "s3":
        body = (
            f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>ExpiredToken</Code><Message>{XML_TOLD}</Message>'
            "<Token-0>gone</Token-0><RequestId>1</RequestId><HostId>1</HostId></Error>"
        ).encode()
        return 400, {"Content-Type": "application/xml"}, b"" if method == "HEAD" else body
    body = json.dumps({"__type": "com.amazon.coral.service#ExpiredTokenException", "message": JSON_TOLD}).encode()
    headers = {"Content-Type": "application/x-amz-json-1.0"}
    if service == "sqs":  # an older protocol's code, for clients that know it by that
        headers["x-amzn-query-error"] = "ExpiredToken;Sender"
    return 403 if service == "sqs" else 400, headers, body


def _handler(session: ExpiringSession) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            body = self._body()
            service = _service(self.headers)
            if session.expired:
                session.refused[service] = session.refused.get(service, 0) + 1
                status, headers, content = _expired(service, self.command)
            else:
                status, headers, content = self._forward(body)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            if "Content-Length" not in headers:
                self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def _body(self) -> bytes:
            if "chunked" in self.headers.get("Transfer-Encoding", ""):
                parts = []
                while size := int(self.rfile.readline().split(b";")[0], 16):
                    parts.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(parts)
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))

        def _forward(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
            connection = http.client.HTTPConnection("127.0.0.1", session.upstream, timeout=60)
            try:
                headers = {k: v for k, v in self.headers.items() if k.lower() not in _HOP_BY_HOP | {"expect"}}
                connection.request(self.command, self.path, body, headers | {"Content-Length": str(len(body))})
                response = connection.getresponse()
                content = response.read()
                kept = {k: v for k, v in response.getheaders() if k.lower() not in _HOP_BY_HOP}
                if self.command == "HEAD" and (length := response.getheader("Content-Length")):
                    kept["Content-Length"] = length
                return response.status, kept, content
            finally:
                connection.close()

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _answer  # noqa: N815 - names of http.server

        def log_message(self, *_: object) -> None:
            """Nothing: a test's output is its own."""

    return Handler


@contextmanager
def expiring_session(upstream: int) -> Iterator[ExpiringSession]:
    """A session to the stand-in that listens on that port of loopback."""
    session = ExpiringSession(0, upstream)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(session))
    session.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield session
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
