"""The servers that stand in for AWS, as `make tools` installs them; versions are pinned beside this file and there."""

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.servers.process import (
    ACCESS_KEY,
    CREDENTIALS,
    INSTALLED,
    REGION,
    SECRET_KEY,
    Server,
    free_port,
    free_ports,
    installed,
)

_HEAP = "-Xmx512m"


def _java() -> str:
    found = shutil.which("java")
    if found is None:
        pytest.skip("Java is not installed; ElasticMQ and DynamoDB Local need version 17")
    return found


def ministack(folder: Path, *, strict: bool = False) -> Server:
    """SQS, DynamoDB, S3, Lambda and more in one process. Everything is in memory.

    `strict` checks signatures and policies; the credentials of `process.py` are the account's own then.
    """
    program = installed(INSTALLED / "ministack" / "bin" / "ministack")
    port = free_port()
    environment = {
        "BIND_HOST": "127.0.0.1",  # else it listens on every interface
        "GATEWAY_PORT": str(port),
        "MINISTACK_REGION": REGION,
        "LOG_LEVEL": "WARNING",
        "PYTHONPATH": "",  # its Lambda functions have their zip, and nothing of this checkout
        "SFTP_ENABLED": "0",
        "IOT_MTLS_ENABLED": "0",
        "TMPDIR": str(folder),
        "S3_DATA_DIR": str(folder / "s3"),
    }
    if strict:
        environment |= {**CREDENTIALS, "AUTH": "true"}
    return Server([str(program)], port, folder / "ministack.log", environment)


def elasticmq(folder: Path) -> Server:
    """SQS by another hand. Everything is in memory.

    Its `messages-storage` is of no use here (1.7.1, seen with H2): over a restart messages, receipt handles and
    visibility stay, but not that a group has messages in flight. It delivers the later ones at once, the earlier ones
    after them and in any order, and takes a deleted message a second time within the five minutes. Killed, it also
    loses the last half second, of what it had acknowledged too.
    """
    jars = installed(INSTALLED / "elasticmq" / ".installed").parent
    port = free_port()
    options = {
        "rest-sqs.bind-hostname": "127.0.0.1",
        "rest-sqs.bind-port": str(port),
        "rest-sqs.sqs-limits": "strict",
        "node-address.host": "127.0.0.1",
        "node-address.port": str(port),
        "rest-stats.enabled": "false",
        "aws.region": REGION,
    }
    command = [_java(), _HEAP, *(f"-D{name}={value}" for name, value in options.items())]
    return Server([*command, "-cp", f"{jars}/*", "org.elasticmq.server.Main"], port, folder / "elasticmq.log")


def dynamodb_local(folder: Path, *, durable: bool = False) -> Server:
    """AWS's own DynamoDB for developers, in memory; `durable` keeps its tables in the folder over a restart.

    It listens on every interface, and nothing binds it to loopback: of its options only the port concerns the socket,
    and its code makes Jetty's server from that alone (`new Server(port)`, which no system property changes).
    """
    jars = installed(INSTALLED / "dynamodb-local" / ".installed").parent
    port = free_port()
    command = [_java(), _HEAP, f"-Djava.library.path={jars}", "-cp", f"{jars}/*"]
    main = "software.amazon.dynamodb.services.local.main.ServerRunner"
    folder.mkdir(parents=True, exist_ok=True)
    storage = ["-dbPath", str(folder)] if durable else ["-inMemory"]
    return Server(
        [*command, main, *storage, "-sharedDb", "-disableTelemetry", "-port", str(port)],
        port,
        folder / "dynamodb-local.log",
    )


def versitygw(folder: Path) -> Server:
    """S3 over a folder; it checks signatures."""
    program = installed(Path(sys.prefix) / "go" / "bin" / "versitygw")
    port = free_port()
    files = folder / "objects"
    files.mkdir(parents=True)
    command = [str(program), "--port", f"127.0.0.1:{port}", "--region", REGION, "--quiet", "posix", str(files)]
    return Server(
        command, port, folder / "versitygw.log", {"ROOT_ACCESS_KEY": ACCESS_KEY, "ROOT_SECRET_KEY": SECRET_KEY}
    )


@dataclass
class Jaeger(Server):
    """Its `url` is the query API; spans are sent to `otlp`."""

    otlp: str = ""


def jaeger(folder: Path) -> Jaeger:
    """Traces in memory: OTLP in, HTTP API out. Every address that it would listen on is named, for loopback."""
    program = installed(INSTALLED / "jaeger" / ".installed").parent / "jaeger"
    names = (
        "query.http-server.host-port",
        "query.grpc-server.host-port",
        "collector.otlp.grpc.host-port",
        "collector.otlp.http.host-port",
        "collector.grpc-server.host-port",
        "collector.http-server.host-port",
    )
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    command = [str(program), *(f"--{name}=127.0.0.1:{port}" for name, port in ports.items())]
    otlp = f"http://127.0.0.1:{ports['collector.otlp.grpc.host-port']}"
    return Jaeger(command, ports["query.http-server.host-port"], folder / "jaeger.log", otlp=otlp)
