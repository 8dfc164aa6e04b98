"""tapewatch calibrate on a real gateway and its lake, and on to a running scorer."""

import csv
import io
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from rich.console import Console

from services.cli.calibrate import CalibrateOptions, calibrate
from services.cli.calibration_files import FROM_ALERT, FROM_SAMPLE, LABELS_SCHEMA
from services.cli.settings import MeshSettings
from services.domain.score import Quality, ScoredQuote
from services.domain.threshold import PER_DAY, ThresholdCalibration
from services.wire.quote import quote_to_proto
from services.wire.score import score_to_proto
from tapewatch.gateway.v1 import alert_pb2, alert_service_pb2, detection_service_pb2
from tapewatch.scorer.v1 import model_service_pb2
from tapewatch.scorer.v1.model_service_pb2_grpc import ModelServiceStub
from tests.gateway_quotes import scored, spike
from tests.integration.gateway_server import Gateway, running_gateway
from tests.scorer_models import copy_version, open_client, scorer_address

QUIET = [scored(i, 0.001 * i, symbol="IBM") for i in range(300)]
"""Scores from 0 up to 0.299, none a detection."""
LOUD = [spike(100 * i, 0.9 + 0.01 * i, symbol=symbol) for i in range(3) for symbol in ("AAPL", "MSFT")]
"""Six alerts of one detection each."""
BETWEEN = [scored(100 * i + 50, 0.5 + 0.05 * i, symbol="AAPL") for i in range(4)]
"""Below the threshold of 0.8, far from each other."""


def options(**changes: object) -> CalibrateOptions:
    values: dict[str, object] = {
        "location": "",
        "tape": "",
        "budget": 8.0,
        "unit": PER_DAY,
        "model_version": "",
        "output": None,
        "plot": None,
        "sample": None,
        "sample_size": 50,
        "seed": 1,
        "reviewed": None,
        "export_labels": None,
        "reload": False,
        "dry_run": False,
    }
    return CalibrateOptions(**{**values, **changes})  # type: ignore[arg-type]


async def run(settings: MeshSettings, **changes: object) -> tuple[int, str]:
    out = io.StringIO()
    code = await calibrate(settings, options(**changes), Console(file=out, width=160))
    return code, out.getvalue()


async def record(gateway: Gateway, items: Sequence[ScoredQuote]) -> None:
    request = detection_service_pb2.RecordScoresRequest(
        items=[
            detection_service_pb2.ScoredQuote(quote=quote_to_proto(i.quote), score=score_to_proto(i.score))
            for i in items
        ]
    )
    response = await gateway.detections.RecordScores(request)
    assert all(result.HasField("recorded") for result in response.results)


async def close_alerts(gateway: Gateway) -> None:
    """MSFT's alerts are confirmed, AAPL's first one dismissed, the others stay open."""
    listed = await gateway.alerts.ListAlerts(alert_service_pb2.ListAlertsRequest())
    for alert in listed.alerts:
        if alert.symbol == "AAPL" and alert.peak_score > 0.9:
            continue
        alert.state = alert_pb2.ALERT_STATE_CLOSED
        confirmed, dismissed = alert_pb2.DISPOSITION_CONFIRMED, alert_pb2.DISPOSITION_DISMISSED
        alert.disposition = confirmed if alert.symbol == "MSFT" else dismissed
        await gateway.alerts.UpdateAlert(
            alert_service_pb2.UpdateAlertRequest(
                alert=alert,
                update_mask=FieldMask(paths=["state", "disposition"]),
                actor="analyst",
                comment="looked at",
            )
        )


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[MeshSettings]:
    """A folder with the lake of a gateway that also still runs: two tapes, scores without history, canaries."""
    warming = [
        scored(i, 0.97, symbol="NEW", quality=(Quality.WARMING_UP, Quality.UNADJUSTED)) for i in range(0, 3_000, 100)
    ]
    canaries = [spike(i, 0.95, tape="canary") for i in range(0, 1_000, 100)]
    async with running_gateway(tmp_path) as gateway:
        await record(gateway, [*warming, *canaries, *QUIET, *BETWEEN, *LOUD])
        await close_alerts(gateway)
        gateway_address = gateway.address
    async with running_gateway(tmp_path) as again:
        assert again.address != gateway_address
        yield MeshSettings(tapewatch_dir=tmp_path, gateway_address=again.address)


async def test_a_budget_sets_the_threshold_from_the_lake_and_from_the_gateway_alike(mesh: MeshSettings) -> None:
    """Six alerts of LOUD and two more of BETWEEN are eight: the threshold lies between its second and third."""
    folder = mesh.tapewatch_dir
    found = {}
    for source in ("", "gateway"):
        code, shown = await run(mesh, location=source)
        assert code == 0, shown
        assert "310 scores of model m1 on tape live" in shown
        assert "(budget 8)" in shown
        found[source] = ThresholdCalibration.from_json((folder / "threshold-m1.json").read_text())
    lake, gateway = found[""], found["gateway"]
    assert lake.threshold == pytest.approx((0.6 + 0.55) / 2)
    assert gateway.threshold == lake.threshold
    assert (lake.expected_alerts, lake.budget_unit, lake.model_version, lake.tape) == (8.0, PER_DAY, "m1", "live")
    assert (lake.quotes, lake.symbol_days, lake.source) == (310, 3, str(folder / "lake"))
    assert gateway.source.startswith("gateway 127.0.0.1:")
    assert (folder / "threshold.png").read_bytes().startswith(b"\x89PNG")


async def test_the_sample_below_the_line_comes_back_with_decisions(mesh: MeshSettings, tmp_path: Path) -> None:
    sample, labels = tmp_path / "sample.csv", tmp_path / "labels.parquet"
    code, _ = await run(mesh, sample=sample, sample_size=4)
    assert code == 0
    with sample.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4
    assert all(0.15 < float(row["ensemble"]) < 0.575 and row["disposition"] == "" for row in rows)
    rows[0]["disposition"], rows[1]["disposition"] = "confirmed", "DISMISSED"
    with sample.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    code, shown = await run(mesh, reviewed=sample, export_labels=labels, dry_run=True)
    assert code == 0, shown
    assert "6 labelled bars" in shown
    assert "below the line" in shown
    table = pq.read_table(labels)
    assert table.schema.names == LABELS_SCHEMA.names
    by_id = {row["quote_id"]: row for row in table.to_pylist()}
    expected = {item.quote.quote_id: item.quote.symbol == "MSFT" for item in (*LOUD[1::2], LOUD[0])}
    for quote_id, confirmed in expected.items():
        row = by_id.pop(quote_id)
        assert (row["label"], row["disposition"]) == (int(confirmed), "CONFIRMED" if confirmed else "DISMISSED")
        assert row["label_origin"] == FROM_ALERT
        assert row["label_time"] is not None
        assert row["alert_id"]
    assert {row["label_origin"] for row in by_id.values()} == {FROM_SAMPLE}
    assert {rows[0]["quote_id"]: 1, rows[1]["quote_id"]: 0} == {q: row["label"] for q, row in by_id.items()}


async def test_precision_by_band_of_closed_alerts(mesh: MeshSettings) -> None:
    """Peaks 0.9, 0.91 and 0.92 of MSFT are confirmed, 0.9 of AAPL is dismissed; one log-odd above 0.8 is 0.916."""
    _, shown = await run(mesh, dry_run=True)
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in shown.splitlines() if "–" in line]
    bands = {cells[0]: cells[1:4] for cells in rows if len(cells) == 5}
    assert bands["0.8 – 0.9158"] == ["2", "1", "0.67"]
    assert bands["0.9158 – 0.9673"] == ["1", "0", "1.00"]


async def test_a_dry_run_and_a_refused_budget_write_nothing(mesh: MeshSettings) -> None:
    before = sorted(mesh.tapewatch_dir.rglob("*"))
    code, shown = await run(mesh, dry_run=True)
    assert (code, "chosen" in shown) == (0, True)
    for changes, words in (
        ({"budget": 0.2}, "less than one alert"),
        ({"budget": 1e6}, "more than all scores"),
        ({"model_version": "m9"}, "there are m1 (310)"),
        ({"tape": "run-1"}, "does not hold the tape run-1"),
        ({"location": "/no/such/lake"}, "/no/such/lake"),
        ({"reviewed": Path("/no/such.csv")}, "/no/such.csv"),
        ({"plot": Path("/no/such.nothing")}, "/no/such.nothing ends in none of"),
    ):
        code, shown = await run(mesh, **changes)
        assert code == 2
        assert words in shown.replace("\n", " "), shown
    assert sorted(mesh.tapewatch_dir.rglob("*")) == before


async def test_a_reviewed_file_with_a_wrong_line_is_named(mesh: MeshSettings, tmp_path: Path) -> None:
    file = tmp_path / "reviewed.csv"
    for text, words in (
        ("quote_id,disposition\na,CONFIRMED\nb,maybe\n", "line 3 has disposition 'MAYBE'"),
        ("quote_id\na\n", "line 2 lacks quote_id or disposition"),
    ):
        file.write_text(text)
        code, shown = await run(mesh, reviewed=file, dry_run=True)
        assert code == 2
        assert words in shown.replace("\n", " ")


async def test_running_scorers_take_the_threshold_at_once(tmp_path: Path) -> None:
    models, file = tmp_path / "models", tmp_path / "threshold-m1.json"
    copy_version(models, "m1")
    async with running_gateway(tmp_path) as gateway:
        await record(gateway, [*QUIET, *LOUD, *BETWEEN])
        async with (
            scorer_address(models, threshold_dir=tmp_path) as address,
            open_client(address) as channel,
        ):
            stub = ModelServiceStub(channel)
            settings = MeshSettings(tapewatch_dir=tmp_path, gateway_address=gateway.address, scorer_addresses=address)
            code, shown = await run(settings, location="gateway", reload=True)
            assert code == 0, shown
            model = (await stub.GetModel(model_service_pb2.GetModelRequest())).model
            written = json.loads(file.read_text())
            assert model.threshold == written["threshold"]
            assert model.threshold_calibration.expected_alerts == 8.0
            elsewhere = tmp_path / "elsewhere.json"
            code, shown = await run(settings, location="gateway", budget=9.0, output=elsewhere, reload=True)
            assert code == 1
            assert "it reads another THRESHOLD_DIR" in shown


def judged_by(version: str, items: Sequence[ScoredQuote]) -> list[ScoredQuote]:
    return [replace(i, score=replace(i.score, model_version=version)) for i in items]


async def test_a_candidate_is_neither_calibrated_nor_promoted_unless_it_is_named(tmp_path: Path) -> None:
    """The canary has the newest scores, and most of them; what serves is the other."""
    models = tmp_path / "models"
    copy_version(models, "m1", train_time="2030-01-01T00:00:00Z")
    copy_version(models, "m2")
    async with running_gateway(tmp_path) as gateway:
        await record(gateway, [*QUIET, *LOUD[:1]])
        await record(gateway, judged_by("m2", [*LOUD[1:], *BETWEEN]))
        away = MeshSettings(tapewatch_dir=tmp_path, gateway_address=gateway.address, scorer_addresses="127.0.0.1:1")
        before = sorted(tmp_path.rglob("*"))
        code, shown = await run(away, location="gateway")
        assert code == 2
        assert "m1 (301), m2 (9), and no scorer says which one serves" in shown.replace("\n", " ")
        async with (
            scorer_address(models, threshold_dir=tmp_path) as address,
            open_client(address) as channel,
        ):
            stub = ModelServiceStub(channel)
            await stub.SetCanaryModel(model_service_pb2.SetCanaryModelRequest(version="m2", weight=0.9))
            settings = MeshSettings(tapewatch_dir=tmp_path, gateway_address=gateway.address, scorer_addresses=address)

            async def serving() -> str:
                return (await stub.GetModel(model_service_pb2.GetModelRequest())).model.version

            assert sorted(tmp_path.rglob("*")) == before
            code, shown = await run(settings, location="gateway", budget=1.0, reload=True)
            assert code == 0, shown
            assert "301 scores of model m1" in shown
            assert await serving() == "m1"
            code, shown = await run(settings, location="gateway", budget=5.0, model_version="m2")
            assert code == 0, shown
            thresholds = {version: tmp_path / f"threshold-{version}.json" for version in ("m1", "m2")}
            assert {ThresholdCalibration.from_json(f.read_text()).model_version for f in thresholds.values()} == {
                "m1",
                "m2",
            }
            assert await serving() == "m1"
            code, shown = await run(settings, location="gateway", budget=5.0, model_version="m2", reload=True)
            assert code == 0, shown
            assert await serving() == "m2"


async def test_a_reload_that_would_let_another_version_serve_is_refused_before_anything_is_written(
    mesh: MeshSettings, tmp_path: Path
) -> None:
    """The tape has scores of m1 only, and m0 serves; or nobody knows."""
    models = tmp_path / "models"
    copy_version(models, "m0")
    before = sorted(tmp_path.glob("*.*"))
    async with scorer_address(models) as address:
        settings = mesh.model_copy(update={"scorer_addresses": address})
        code, shown = await run(settings, reload=True)
        assert (code, "would let m1 serve, and m0 serves" in shown.replace("\n", " ")) == (2, True)
    code, shown = await run(mesh.model_copy(update={"scorer_addresses": "127.0.0.1:1"}), reload=True)
    assert (code, "no scorer answers" in shown.replace("\n", " ")) == (2, True)
    assert sorted(tmp_path.glob("*.*")) == before


async def test_reviewed_bars_that_are_not_on_the_tape_are_counted(mesh: MeshSettings, tmp_path: Path) -> None:
    file = tmp_path / "reviewed.csv"
    here, elsewhere = QUIET[7].quote.quote_id, scored(7, 0.1, tape="run-9").quote.quote_id
    for ids, words in (
        ((here, elsewhere), "1 of 2 reviewed bars are on tape live"),
        ((elsewhere,), "0 of 1 reviewed bars are on tape live"),
    ):
        file.write_text("quote_id,disposition\n" + "".join(f'"{quote_id}",CONFIRMED\n' for quote_id in ids))
        code, shown = await run(mesh, reviewed=file, dry_run=True)
        assert (code, words in shown) == (0, True), shown


async def test_files_are_replaced_together_or_not_at_all(mesh: MeshSettings, tmp_path: Path) -> None:
    kept = {name: tmp_path / name for name in ("below_the_line.csv", "threshold.png")}
    for file in kept.values():
        file.write_text("as it was")
    for output in (Path("/proc/x/y"), tmp_path):
        with pytest.raises(OSError, match=r"No such file|Is a directory"):
            await run(mesh, output=output)
        assert {file.read_text() for file in kept.values()} == {"as it was"}
        assert not list(tmp_path.glob(".*"))
    code, _ = await run(mesh)
    assert code == 0
    assert not list(tmp_path.glob(".*"))


async def test_several_thresholds_that_were_in_force_are_told(tmp_path: Path) -> None:
    def at(threshold: float, items: Sequence[ScoredQuote]) -> list[ScoredQuote]:
        return [replace(i, score=replace(i.score, threshold=threshold)) for i in items]

    async with running_gateway(tmp_path) as gateway:
        await record(gateway, [*QUIET, *BETWEEN])
        await record(gateway, at(0.75, LOUD))
        settings = MeshSettings(tapewatch_dir=tmp_path, gateway_address=gateway.address)
        code, shown = await run(settings, location="gateway", dry_run=True)
        assert code == 0, shown
        assert "2 were in force, from 0.75 to 0.8; the newest, 0.75, would give 6" in shown
