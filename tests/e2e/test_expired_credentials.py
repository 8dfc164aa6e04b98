"""AWS credentials that expire: a process that starts with them says so and ends; one at work says so and waits."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.test_aws_run import Cloud, deployed
from tests.servers.expiring_session import ExpiringSession, expiring_session
from tests.servers.process import Server

BARS = 196
WHAT_TO_DO = r"sign in again \(aws sso login\), or set AWS_ACCESS_KEY_ID, its secret and AWS_SESSION_TOKEN anew"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture
def session(ministack: Server) -> Iterator[ExpiringSession]:
    with expiring_session(ministack.port) as session:
        yield session


@pytest.fixture
def cloud(
    session: ExpiringSession, ministack: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Cloud]:
    """The test itself looks at ministack; only the mesh's way to it expires."""
    with deployed(ministack, ministack, ministack, tmp_path, monkeypatch) as made:
        ways = {f"AWS_ENDPOINT_URL_{name}": session.url for name in ("SQS", "DYNAMODB", "S3")}
        made.mesh.environment |= ways | {"AWS_SESSION_TOKEN": "for a while"}
        yield made


def test_a_process_that_starts_with_them_says_so_and_ends(cloud: Cloud, session: ExpiringSession) -> None:
    session.expired = True
    mesh = cloud.mesh
    for service, named in (("gateway", f"table {cloud.table}"), ("dispatch", f"queue {cloud.queue_url}")):
        done = mesh.command(service, "serve", GRPC_PORT="0")
        assert done.returncode == 2, done.stderr
        told = done.stderr.splitlines()[-1]
        assert re.search(rf"AWS credentials have expired \(ExpiredToken\w*\) for the {named}.*: {WHAT_TO_DO}", told)
        assert "Traceback" not in done.stderr
    queried = mesh.command("lake", "query", "SELECT 1")
    assert queried.returncode != 0
    assert "AWS credentials have expired" in queried.stderr
    examined = mesh.command("doctor")
    assert examined.returncode == 1
    assert " ".join(examined.stdout.split()).count("credentials have expired") == 3, examined.stdout
    assert all(session.refused.values()), session.refused


def test_a_mesh_at_work_says_so_waits_and_goes_on_with_new_ones(cloud: Cloud, session: ExpiringSession) -> None:
    mesh = cloud.mesh
    process = mesh.start("run", "--symbols", "FB")
    store = cloud.store()
    mesh.wait_for(lambda: store.last_quote() > 20, 120, "the first recorded quotes")
    session.expired = True

    def told(name: str, what: str) -> bool:
        words = rf"AWS credentials have expired \(ExpiredToken\w*\) for the {what}.*: {WHAT_TO_DO}"
        return re.search(words, (mesh.folder / "logs" / f"{name}.log").read_text()) is not None

    mesh.wait_for(lambda: told("gateway", "table"), 60, "the gateway's words")
    mesh.wait_for(lambda: told("dispatch", "queue"), 60, "the dispatcher's words")
    mesh.wait_for(lambda: told("ingest", "queue"), 60, "ingest's words")
    mesh.wait_for(lambda: mesh.command("health", mesh.gateway).returncode == 1, 60, "the gateway's health")
    assert process.poll() is None, "a run waits for somebody to mend it"
    refused = dict(session.refused)
    session.expired = False
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output
    assert f"published={BARS} scored={BARS} stored={BARS} lost=0 duplicated=0" in output
    assert store.last_quote() == BARS
    assert max(refused.values()) < 1_000, "never a tight loop"
    store.close()
