"""A gateway that reads detections through DAX: the real client, against a node of our own, and against none.

No test has seen a real cluster. The node (tests/servers/dax_node.py) shows that adapter and client fit together.
"""

import asyncio
import logging
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

from services.cli.doctor import examine
from services.cli.settings import MeshSettings
from services.domain.errors import NotConfiguredError
from services.gateway.dynamodb_items import quote_key
from services.gateway.main import open_store
from services.gateway.settings import GatewaySettings
from services.runtime.dynamodb_table import DynamoDbTable
from tapewatch.gateway.v1 import alert_pb2, alert_service_pb2, detection_service_pb2
from tests.certificates import Authority
from tests.gateway_quotes import scored, spike
from tests.integration.gateway_server import Gateway, message, running_gateway, updating
from tests.servers.dax_node import DaxNode
from tests.servers.process import CREDENTIALS, REGION, Server, free_port

ITEM = spike(0)
LOGGER = "services.gateway.dax"


@pytest.fixture
def table(dynamodb_local: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    name = f"tapewatch-{uuid.uuid4().hex[:12]}"
    values = {"AWS_ENDPOINT_URL_DYNAMODB": dynamodb_local.url, "STORE_BACKEND": "dynamodb", "STORE_TABLE": name}
    for variable, value in (CREDENTIALS | values).items():
        monkeypatch.setenv(variable, value)
    made = DynamoDbTable.connect(name, REGION)
    made.create()
    yield name
    made.close()


@pytest.fixture
def node(table: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[DaxNode]:
    monkeypatch.setattr("services.gateway.dax._ANSWER_SECONDS", 30.0)  # a busy machine is no absent cluster
    made = DaxNode().start()
    monkeypatch.setenv("DAX_ENDPOINT", made.endpoint)
    yield made
    made.stop()


async def record(gateway: Gateway) -> None:
    items = [message(ITEM), message(scored(1))]
    answer = await gateway.detections.RecordScores(detection_service_pb2.RecordScoresRequest(items=items))
    assert [result.HasField("recorded") for result in answer.results] == [True, True]


async def detection(gateway: Gateway) -> detection_service_pb2.Detection:
    request = detection_service_pb2.GetDetectionRequest(quote_id=ITEM.quote.quote_id)
    answer: detection_service_pb2.GetDetectionResponse = await gateway.detections.GetDetection(request, timeout=90)
    return answer.detection


async def until(condition: Callable[[], bool], gateway: Gateway, seconds: float = 90.0) -> None:
    """Get the detection, again and again, until the condition holds: each answer must be right."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        assert (await detection(gateway)).quote_id == ITEM.quote.quote_id
        await asyncio.sleep(0.05)


def lines(caplog: pytest.LogCaptureFixture, level: int) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.name == LOGGER and r.levelno == level]


async def test_a_detection_comes_from_the_cluster(node: DaxNode, table: str, tmp_path: Path) -> None:
    async with running_gateway(tmp_path) as gateway:
        await record(gateway)
        await until(lambda: bool(node.asked), gateway)
        key = quote_key(ITEM)
        assert node.asked[0] == (table, key["pk"]["S"], key["sk"]["S"])
        first = await detection(gateway)
        boto3.client("dynamodb", region_name=REGION).delete_item(TableName=table, Key=key)
        assert await detection(gateway) == first, "the table has it no more"


async def test_only_get_detection_asks_the_cluster(node: DaxNode, tmp_path: Path) -> None:
    """Etags, cursors, queries and writes are the table's alone: DAX may be a minute behind."""
    async with running_gateway(tmp_path) as gateway:
        await record(gateway)
        await until(lambda: bool(node.asked), gateway)
        asked = len(node.asked)
        alert_id = (await detection(gateway)).alert_id
        assert len(node.asked) == asked + 1
        await record(gateway)
        detections, alerts = gateway.detections, gateway.alerts
        await detections.ListDetections(detection_service_pb2.ListDetectionsRequest())
        listed = await detections.ListQuotes(detection_service_pb2.ListQuotesRequest(symbol="AAPL"))
        assert [quote.record_count for quote in listed.quotes] == [2, 2]
        alert = (await alerts.GetAlert(alert_service_pb2.GetAlertRequest(alert_id=alert_id))).alert
        alert.state = alert_pb2.ALERT_STATE_ACKNOWLEDGED
        await alerts.UpdateAlert(updating(alert, "state"))
        evidence = await alerts.GetEvidence(alert_service_pb2.GetEvidenceRequest(alert_id=alert_id))
        assert evidence.alert.state == alert_pb2.ALERT_STATE_ACKNOWLEDGED
        assert len(node.asked) == asked + 1


@pytest.mark.parametrize("trusted", [True, False])
async def test_an_encrypted_cluster_must_show_a_certificate_that_is_trusted(
    table: str, trusted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    authority, other = Authority("ours"), Authority("another")
    roots = tmp_path / "roots.pem"
    roots.write_bytes((authority if trusted else other).pem)
    monkeypatch.setenv("SSL_CERT_FILE", str(roots))  # what the system trusts
    monkeypatch.setattr("services.gateway.dax._ANSWER_SECONDS", 30.0)
    node = DaxNode(certificate=authority.issue("node").write(tmp_path, "node")).start()
    monkeypatch.setenv("DAX_ENDPOINT", node.endpoint)
    async with running_gateway(tmp_path) as gateway:
        await record(gateway)
        await until(lambda: bool(node.asked or lines(caplog, logging.WARNING)), gateway)
        assert bool(node.asked) == trusted
        assert len(lines(caplog, logging.WARNING)) == (not trusted)
    node.stop()


async def test_a_cluster_that_is_away_costs_a_line_and_no_answer(
    table: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The real client at a closed port: the gateway starts and answers, and uses the cluster once it is there."""
    caplog.set_level(logging.INFO)
    monkeypatch.setattr("services.gateway.dax._ANSWER_SECONDS", 30.0)
    node = DaxNode(free_port())
    monkeypatch.setenv("DAX_ENDPOINT", node.endpoint)
    async with running_gateway(tmp_path) as gateway:
        await record(gateway)
        await until(lambda: bool(lines(caplog, logging.WARNING)), gateway)
        began = time.monotonic()
        for _ in range(20):
            assert (await detection(gateway)).quote_id == ITEM.quote.quote_id
        assert time.monotonic() - began < 30
        (line,) = lines(caplog, logging.WARNING)
        assert node.endpoint in line
        assert "read from the table" in line
        assert lines(caplog, logging.INFO) == []
        node.start()
        await until(lambda: bool(node.asked and lines(caplog, logging.INFO)), gateway)
        assert len(lines(caplog, logging.WARNING)) == len(lines(caplog, logging.INFO)) == 1
    node.stop()
    assert not [r for r in caplog.records if r.name.startswith("amazondax")], "said once, and not by the client too"


async def test_a_node_that_goes_and_comes_back(node: DaxNode, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, LOGGER)
    async with running_gateway(tmp_path) as gateway:
        await record(gateway)
        await until(lambda: bool(node.asked), gateway)
        node.stop()
        for _ in range(20):
            assert (await detection(gateway)).quote_id == ITEM.quote.quote_id
        assert len(lines(caplog, logging.WARNING)) == 1
        asked = len(node.asked)
        node.start()
        await until(lambda: len(node.asked) > asked and len(lines(caplog, logging.INFO)) > 1, gateway)
        assert len(lines(caplog, logging.INFO)) == 2, "when it was found, and when it was back"
        assert not [r for r in caplog.records if r.name.startswith("amazondax")]


async def test_a_node_that_does_not_answer_delays_one_read(
    node: DaxNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("services.gateway.dax._ANSWER_SECONDS", 5.0)
    monkeypatch.setattr("services.gateway.dax._FIRST_PAUSE_SECONDS", 30.0)
    async with running_gateway(tmp_path) as gateway:
        await record(gateway)
        await until(lambda: bool(node.asked), gateway)
        node.hangs = True
        asked, began = len(node.asked), time.monotonic()
        assert (await detection(gateway)).quote_id == ITEM.quote.quote_id
        assert time.monotonic() - began > 4.9
        for _ in range(4):
            assert (await detection(gateway)).quote_id == ITEM.quote.quote_id
        assert len(node.asked) <= asked + 2, "one read, which the client repeats by itself"
        (line,) = lines(caplog, logging.WARNING)
        assert "timed out" in line
        node.hangs = False


async def test_a_permission_that_is_missing_is_named(
    node: DaxNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("services.gateway.dax._FIRST_PAUSE_SECONDS", 30.0)
    node.refuses = True
    async with running_gateway(tmp_path) as gateway:
        await record(gateway)
        await until(lambda: bool(node.asked), gateway)
        for _ in range(20):
            assert (await detection(gateway)).quote_id == ITEM.quote.quote_id
        (line,) = lines(caplog, logging.WARNING)
        assert f"refuses the use of the DAX cluster {node.endpoint}" in line
        assert "credentials that allow dax:GetItem" in line
        assert len(node.asked) == 2, "one read, which the client repeats by itself"


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"dax_endpoint": "localhost:8111"}, r"no URL of a cluster.*set DAX_ENDPOINT to daxs://"),
        ({"dax_endpoint": "https://host"}, r"no URL of a cluster.*set DAX_ENDPOINT to daxs://"),
        ({"dax_endpoint": "daxs://host:port"}, r"no URL of a cluster.*set DAX_ENDPOINT to daxs://"),
        ({"dax_endpoint": "dax://host", "store_backend": "sqlite"}, "set STORE_BACKEND=dynamodb, or DAX_ENDPOINT"),
    ],
)
def test_what_cannot_be_meant_is_refused(table: str, changed: dict[str, Any], sentence: str) -> None:
    with pytest.raises(NotConfiguredError, match=sentence):
        open_store(GatewaySettings(**changed))


def test_without_the_client_the_sentence_says_what_installs_it(table: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "amazondax", None)
    with pytest.raises(
        NotConfiguredError, match=r"needs amazon-dax-client: install it \(pip install -e '\.\[aws\]'\).*DAX_ENDPOINT"
    ):
        open_store(GatewaySettings(dax_endpoint="daxs://host"))
    open_store(GatewaySettings()).close()


async def test_doctor_says_whether_the_cluster_is_there(node: DaxNode, tmp_path: Path) -> None:
    nobody = "127.0.0.1:1"
    settings = MeshSettings(
        tapewatch_dir=tmp_path,
        ingest_address=nobody,
        dispatch_address=nobody,
        gateway_address=nobody,
        scorer_addresses=nobody,
    )

    async def finding() -> tuple[str, str]:
        (found,) = [each for each in await examine(settings) if each.subject == "cache"]
        return found.state, found.detail

    assert await finding() == ("ok", f"{node.endpoint} answers")
    node.stop()
    state, detail = await finding()
    assert state == "bad"
    assert "NoRouteException" in detail
