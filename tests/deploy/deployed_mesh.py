"""The services of a deployment as processes on loopback, told what the deployed task definitions tell them.

What differs from Fargate, and is replaced here: addresses (no Cloud Map), credentials (no task roles; each service has
an access key id of its own, by which its calls are known), and the endpoint of AWS.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.deploy.emulated import Deployed
from tests.servers.process import REPOSITORY, free_port

TAPEWATCH = (sys.executable, "-m", "services.cli.main")
TLS_FILES = ("TLS_CERT_FILE", "TLS_KEY_FILE", "TLS_CA_FILE")


@dataclass
class DeployedMesh:
    """The services, and how to start and ask them."""

    deployed: Deployed
    endpoint: str
    folder: Path
    name: str = "tapewatch"
    ports: dict[str, int] = field(default_factory=dict)
    processes: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.ports = {service: free_port() for service in ("ingest", "dispatch", "scorer", "gateway")}

    def address(self, service: str) -> str:
        """Where a service listens: by the name that its certificate has."""
        return f"localhost:{self.ports[service]}"

    def secret(self, name: str) -> str:
        client = self.deployed.client("secretsmanager")
        return str(client.get_secret_value(SecretId=f"{self.name}/{name}")["SecretString"])

    def task_environment(self, family: str, container: str) -> dict[str, str]:
        """What a deployed task definition gives one of its containers."""
        client = self.deployed.client("ecs")
        definition = client.describe_task_definition(taskDefinition=f"{self.name}-{family}")["taskDefinition"]
        (found,) = [c for c in definition["containerDefinitions"] if c["name"] == container]
        return {entry["name"]: entry["value"] for entry in found["environment"]}

    def environment(self, service: str, family: str = "") -> dict[str, str]:
        """The task's environment, with files, addresses and AWS of this machine.

        `family` is the task definition's, where it is not called as the service is.
        """
        folder = self.folder / service
        folder.mkdir(parents=True, exist_ok=True)
        told = self.task_environment(family or service, service)
        files = {name: str(folder / Path(told[name]).name) for name in TLS_FILES}
        here = {
            **files,
            "TLS_CLIENT_CA_FILE": files["TLS_CA_FILE"],
            "AUTH_TOKEN": self.secret("token"),
            "GRPC_HOST": "127.0.0.1",
            "GRPC_PORT": str(self.ports[service]),
            "TAPEWATCH_DIR": str(folder),
            "INGEST_PATH": str(folder / "ingest.db"),
            "OTEL_EXPORTER_OTLP_ENDPOINT": "",
            "LAKE_FLUSH_SECONDS": "1",
            "SCORER_ADDRESSES": self.address("scorer"),
            **{f"{name.upper()}_ADDRESS": self.address(name) for name in ("ingest", "dispatch", "gateway")},
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": family or service,
            "AWS_SECRET_ACCESS_KEY": "none",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        return {**os.environ, **told, **here}

    def put_certificates(self, service: str) -> None:
        """What the first container of the service's task does."""
        fields = json.loads(self.secret(f"tls/{service}"))
        pems = {"TLS_CERT_PEM": fields["certificate"], "TLS_KEY_PEM": fields["key"], "TLS_CA_PEM": fields["authority"]}
        environment = self.environment(service) | pems
        subprocess.run([*TAPEWATCH, "secret-files"], env=environment, check=True, cwd=REPOSITORY, timeout=60)

    def start(self, service: str, **more: str) -> None:
        """Put the service's certificates in place, then serve; `more` is added to its environment."""
        self.put_certificates(service)
        environment = self.environment(service) | more
        with (self.folder / f"{service}.log").open("ab") as log:
            self.processes[service] = subprocess.Popen(
                [*TAPEWATCH, service, "serve"], env=environment, stdout=log, stderr=log, cwd=REPOSITORY
            )

    def command(self, service: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """A `tapewatch` command with the certificates and the token of a service, and calls of nobody's role."""
        environment = self.environment(service) | {"AWS_ACCESS_KEY_ID": "analyst"}
        return subprocess.run(
            [*TAPEWATCH, *arguments], env=environment, capture_output=True, text=True, timeout=120, cwd=REPOSITORY
        )

    def wait_for(
        self, condition: Callable[[], bool], seconds: float, what: str, state: Callable[[], str] = lambda: ""
    ) -> None:
        """Wait for the condition while all processes run; a failure says what `state` does, and the logs."""
        deadline = time.monotonic() + seconds
        while not condition():
            ended = [name for name, process in self.processes.items() if process.poll() is not None]
            assert not ended, f"{ended}: {self.log(ended[0])}"
            assert time.monotonic() < deadline, f"{what} did not come within {seconds} s: {state()}\n{self.logs()}"
            time.sleep(0.1)

    def log(self, service: str) -> str:
        return (self.folder / f"{service}.log").read_text()[-2_000:]

    def logs(self) -> str:
        return "\n".join(f"== {service}\n{self.log(service)}" for service in self.processes)

    def stop(self, *services: str) -> None:
        """Stop these, or all of them; `start` starts one again."""
        ending = {name: self.processes.pop(name) for name in services or list(self.processes)}
        for process in ending.values():
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in ending.values():
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
