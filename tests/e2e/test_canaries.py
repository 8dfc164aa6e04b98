"""Canaries through the whole mesh: green while the model sees them, red within two plays once it does not."""

import json
from datetime import UTC, datetime
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.domain.canary import CANARIES
from services.domain.threshold import PER_DAY, ThresholdCalibration, threshold_file
from services.scorer.registry import ModelRegistry
from tapewatch.dispatch.v1 import dispatch_service_pb2 as dispatch_pb
from tapewatch.dispatch.v1.dispatch_service_pb2_grpc import DispatchServiceStub
from tapewatch.gateway.v1 import alert_service_pb2
from tapewatch.gateway.v1.alert_service_pb2_grpc import AlertServiceStub
from tapewatch.scorer.v1 import model_service_pb2
from tapewatch.scorer.v1.model_service_pb2_grpc import ModelServiceStub
from tests.e2e.processes import Mesh

pytestmark = [pytest.mark.slow, pytest.mark.timeout(200)]

INTERVAL_SECONDS = 8.0
GREEN, RED = dispatch_pb.CANARY_STATE_GREEN, dispatch_pb.CANARY_STATE_RED


def blinding(folder: Path) -> Path:
    """The file of a threshold that nothing reaches."""
    metadata = ModelRegistry().load().metadata
    threshold = 1.0 - 1e-12
    now = datetime.now(UTC)
    calibration = ThresholdCalibration(
        metadata.version, threshold, metadata.threshold, 0.1, PER_DAY, 0.0, "test", "live", 1, 1, now
    )
    file = folder / threshold_file(metadata.version)
    file.write_text(calibration.to_json())
    return file


def test_a_blind_model_turns_the_canaries_red_and_nobody_is_paged(mesh: Mesh) -> None:
    mesh.environment["CANARY_INTERVAL_SECONDS"] = str(INTERVAL_SECONDS)
    mesh.start("up", "--source", "replay", "--symbols", "FB")
    mesh.wait_serving()
    with (
        grpc.insecure_channel(mesh.dispatch) as dispatch,
        grpc.insecure_channel(mesh.scorer) as scorer,
        grpc.insecure_channel(mesh.gateway) as gateway,
    ):
        canaries = DispatchServiceStub(dispatch)
        models = ModelServiceStub(scorer)

        def report() -> dispatch_pb.GetCanariesResponse:
            return canaries.GetCanaries(dispatch_pb.GetCanariesRequest(), timeout=30)

        def health() -> int:
            request = health_pb2.HealthCheckRequest(service="tapewatch.canary")
            stub = health_pb2_grpc.HealthStub(dispatch)
            return int(stub.Check(request, timeout=30).status)  # type: ignore[attr-defined]

        def until(wanted: int) -> tuple[dispatch_pb.GetCanariesResponse, int, int]:
            """The report, and how many canaries alerted until then and how many were missed."""
            before = report()
            seen: list[dispatch_pb.GetCanariesResponse] = []

            def has_come() -> bool:
                seen.append(report())
                return seen[-1].state == wanted

            mesh.wait_for(has_come, 12 * INTERVAL_SECONDS, f"canary state {wanted}")
            played, missed = seen[-1].plays - before.plays, seen[-1].missed - before.missed
            return seen[-1], played * len(CANARIES) - missed, missed

        green, *_ = until(GREEN)
        assert [result.name for result in green.results] == [canary.name for canary in CANARIES]
        assert all(result.alerted and result.alert_id for result in green.results)
        assert green.interval.seconds == INTERVAL_SECONDS
        mesh.wait_for(lambda: health() == health_pb2.HealthCheckResponse.SERVING, 60, "health of the canaries")
        assert mesh.command("health", mesh.dispatch, "--service", "tapewatch.canary").returncode == 0
        played = mesh.command("canary")
        assert played.returncode == 0, played.stdout + played.stderr
        assert f"all {len(CANARIES)} canaries alerted" in played.stdout
        assert played.stdout.count("alerted after") == len(CANARIES)

        file = blinding(mesh.folder)
        reloaded = models.ReloadModel(model_service_pb2.ReloadModelRequest(), timeout=60).model
        assert reloaded.threshold_calibration.source == "test"
        assert until(RED)[1] <= len(CANARIES), "the play that was under way may be green yet"
        mesh.wait_for(lambda: health() == health_pb2.HealthCheckResponse.NOT_SERVING, 60, "health of the canaries")
        assert mesh.command("health", mesh.dispatch).returncode == 0, "the dispatcher itself serves"
        assert mesh.command("health", mesh.dispatch, "--service", "tapewatch.canary").returncode == 1
        missed = mesh.command("canary", "price-spike")
        assert missed.returncode == 1
        assert "price-spike" in missed.stdout
        said = " ".join(missed.stdout.split())
        assert "MISSED: its bars were scored and recorded, and none is a detection: the highest score is 0." in said
        assert f"by model {reloaded.version} at threshold 1" in said

        file.unlink()
        models.ReloadModel(model_service_pb2.ReloadModelRequest(), timeout=60)
        assert until(GREEN)[2] <= len(CANARIES), "the play that was under way may be red yet"
        unknown = mesh.command("canary", "no-such-bird")
        assert unknown.returncode == 2
        assert "there are pump-and-dump" in unknown.stdout

        def tapes(asked: str) -> set[str]:
            wanted = alert_service_pb2.AlertFilter(tape=asked)
            request = alert_service_pb2.ListAlertsRequest(filter=wanted, page_size=1_000)
            return {alert.tape for alert in AlertServiceStub(gateway).ListAlerts(request, timeout=60).alerts}

        assert tapes("canary") == {"canary"}
        assert "canary" not in tapes("")
        watcher = mesh.start("watch", "--from-start", "--json", "--tape", "canary")
        assert watcher.stdout is not None
        first = next(line for line in watcher.stdout if line.startswith("{"))  # stderr says what it waits for
        assert json.loads(first)["change"]["alert"]["tape"] == "canary"
