"""Certificates and their authority renewed in Secrets Manager while services that follow their secrets are called."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import boto3
import grpc
import pytest
from cryptography import x509

from deploy.certificates import SERVICES, fill, renew
from deploy.settings import DeploySettings
from services.domain.errors import NotConfiguredError
from services.runtime.channels import open_channel
from services.runtime.secret_files import FIELDS, FILES, follow_secret, refresh_secret_files
from services.runtime.settings import ClientSettings, ServerSettings
from services.runtime.tls import LOOK_SECONDS
from tapewatch.gateway.v1 import alert_service_pb2 as pb
from tapewatch.gateway.v1.alert_service_pb2_grpc import AlertServiceStub
from tests.integration.runtime_server import running
from tests.servers.process import CREDENTIALS, REGION, Server

REFRESH_SECONDS = 0.3
SETTINGS = DeploySettings(name="renewed")


@pytest.fixture
def secrets(ministack: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Secrets Manager with an empty secret for each service, as the storage stack makes them."""
    for name, value in (CREDENTIALS | {"AWS_ENDPOINT_URL": ministack.url}).items():
        monkeypatch.setenv(name, value)
    client = boto3.client("secretsmanager", region_name=REGION)
    for service in SERVICES:
        client.create_secret(Name=f"{SETTINGS.name}/tls/{service}", SecretString="{}")
    yield client
    for service in SERVICES:
        client.delete_secret(SecretId=f"{SETTINGS.name}/tls/{service}", ForceDeleteWithoutRecovery=True)


def files(folder: Path, secrets: Any, service: str) -> tuple[str, dict[str, str]]:
    """The secret's ARN, and files with what it has now."""
    arn = secrets.describe_secret(SecretId=f"{SETTINGS.name}/tls/{service}")["ARN"]
    (folder / service).mkdir(exist_ok=True)
    paths = {name: str(folder / service / f"{name}.pem") for name in FILES}
    refresh_secret_files(arn, paths)
    return arn, paths


def client_settings(paths: dict[str, str]) -> ClientSettings:
    return ClientSettings(**{name.lower(): Path(path) for name, path in paths.items()})  # type: ignore[arg-type]


@pytest.fixture
async def served(secrets: Any, tmp_path: Path) -> AsyncIterator[str]:
    """A service that asks for the certificates of its callers, and follows its secret; its address."""
    assert len(fill(secrets, SETTINGS)) == len(SERVICES)
    assert fill(secrets, SETTINGS) == [], "filled twice"
    arn, paths = files(tmp_path, secrets, "gateway")
    settings = ServerSettings(
        **{name.lower(): Path(path) for name, path in paths.items()},  # type: ignore[arg-type]
        tls_client_ca_file=Path(paths["TLS_CA_FILE"]),
        tls_secret_arn=arn,
        tls_refresh_seconds=REFRESH_SECONDS,
    )
    async with running(settings) as server:
        yield server.address


async def call(address: str, settings: ClientSettings) -> None:
    """A call on a connection of its own."""
    async with open_channel(address, settings) as channel:
        await AlertServiceStub(channel).GetAlert(pb.GetAlertRequest(alert_id="fine"), timeout=30)


async def test_renewal_fails_no_call_and_leaves_the_former_authority_behind(
    served: str, secrets: Any, tmp_path: Path
) -> None:
    arn, paths = files(tmp_path, secrets, "scorer")
    follower = client_settings(paths)
    _, former = files(tmp_path / "scorer", secrets, "dispatch")
    done = asyncio.Event()
    calls = 0

    async def keep_calling(channel: grpc.aio.Channel) -> None:
        nonlocal calls
        stub = AlertServiceStub(channel)
        while not done.is_set():
            await stub.GetAlert(pb.GetAlertRequest(alert_id="fine"), timeout=30)
            await call(served, follower)
            calls += 1

    def serial() -> int:
        return x509.load_pem_x509_certificate(Path(paths["TLS_CERT_FILE"]).read_bytes()).serial_number

    before = serial()
    steps: list[tuple[str, int]] = []

    def pause(step: str) -> None:
        """Until both sides have what their secrets have, as 600 s are long enough for in earnest."""
        deadline = time.monotonic() + 120
        for service in ("gateway", "scorer"):
            secret = secrets.get_secret_value(SecretId=f"{SETTINGS.name}/tls/{service}")["SecretString"]
            wanted = json.loads(secret)
            while any((tmp_path / service / f"{name}.pem").read_text() != wanted[FIELDS[name]] for name in FILES):
                assert time.monotonic() < deadline, f"{service} did not follow"
                time.sleep(0.05)
        time.sleep(2 * LOOK_SECONDS)
        wanted = calls + 2  # the first of them may have begun before
        while calls < wanted:
            assert time.monotonic() < deadline, "calls went on in each step"
            time.sleep(0.05)
        steps.append((step, calls))

    following = asyncio.create_task(follow_secret(arn, paths, REFRESH_SECONDS, done))
    async with open_channel(served, follower) as channel:
        calling = asyncio.create_task(keep_calling(channel))
        await asyncio.to_thread(renew, secrets, SETTINGS, pause)
        await asyncio.to_thread(pause, "the former authority is forgotten")
        done.set()
        await calling  # raises what a call met
    await following

    assert serial() != before
    assert [step for step, _ in steps[:2]] == ["all trust the new authority too", "all show new certificates"]
    assert 0 < steps[0][1] < steps[1][1] < steps[2][1], "calls went on in each step"
    await call(served, follower)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call(served, client_settings(former))
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE, "who did not follow is left behind"
    kept = json.loads(secrets.get_secret_value(SecretId=arn)["SecretString"])
    assert kept["authority"].count("BEGIN CERTIFICATE") == 1


async def test_a_secret_that_is_away_leaves_the_certificates_in_use(
    served: str, secrets: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    secrets.put_secret_value(SecretId=f"{SETTINGS.name}/tls/gateway", SecretString='{"certificate": "half"}')
    async with asyncio.timeout(30):
        while "has not all of certificate, key, authority" not in caplog.text:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    await asyncio.sleep(LOOK_SECONDS)
    _, paths = files(tmp_path, secrets, "scorer")
    await call(served, client_settings(paths))


async def test_files_that_are_not_named_are_asked_for(secrets: Any) -> None:
    with pytest.raises(NotConfiguredError, match="TLS_CERT_FILE, TLS_KEY_FILE, TLS_CA_FILE"):
        async with running(ServerSettings(tls_secret_arn="arn:aws:secretsmanager:eu-central-1:000000000000:secret:s")):
            pass


def test_what_is_empty_is_not_renewed(secrets: Any) -> None:
    with pytest.raises(SystemExit, match=r"renewed/tls/ingest.* without --renew"):
        renew(secrets, SETTINGS, lambda _: None)
