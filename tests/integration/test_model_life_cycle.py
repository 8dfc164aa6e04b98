"""Models change under load: reload, shadow, canary, thresholds, drift, over a real server."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import grpc
import numpy as np
import pytest
from google.protobuf.json_format import MessageToDict

from services.archive import bokeh
from services.archive.bars import quotes as quotes_of
from services.domain.errors import InvalidRequestError, ModelUnusableError
from services.domain.quote import Quote
from services.domain.score import SCORE_TOLERANCE, Score
from services.domain.threshold import PER_DAY, ThresholdCalibration, threshold_file
from services.runtime.errors import error_from_rpc
from services.scorer.deployment import lot
from services.scorer.registry import ModelRegistry
from services.scorer.service import ScoringService
from services.wire.quote import quote_to_proto
from services.wire.score import score_from_proto
from tapewatch.scorer.v1 import model_service_pb2 as pb
from tapewatch.scorer.v1 import scorer_service_pb2 as scorer_pb
from tapewatch.scorer.v1.model_service_pb2_grpc import ModelServiceStub
from tapewatch.scorer.v1.scorer_service_pb2_grpc import ScorerServiceStub
from tests.scorer_models import copy_version, model_folder, running_scorer

BARS = [q for q in quotes_of(bokeh.read(), tape="t", source=bokeh.SOURCE) if q.symbol in ("AAPL", "MSFT")]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory.mktemp("models"))


async def stream(channel: grpc.aio.Channel, batches: Sequence[Sequence[Quote]]) -> list[Score]:
    async def requests() -> AsyncIterator[scorer_pb.ScoreStreamRequest]:
        for batch in batches:
            yield scorer_pb.ScoreStreamRequest(quotes=[quote_to_proto(q) for q in batch])

    scores = []
    async for response in ScorerServiceStub(channel).ScoreStream(requests()):
        for result in response.results:
            assert result.WhichOneof("outcome") == "score", result
            scores.append(score_from_proto(result.score))
    return scores


def batches_of(quotes: Sequence[Quote], size: int) -> list[Sequence[Quote]]:
    return [quotes[i : i + size] for i in range(0, len(quotes), size)]


async def alone(models: Path, version: str, quotes: Sequence[Quote]) -> dict[str, Score]:
    """What a version says when nothing else judges."""
    service = ScoringService(ModelRegistry(models).load(version), None)
    results = await service.score(quotes, {})
    service.close()
    return {score.quote_id: score for score in results if isinstance(score, Score)}


def spread(quotes: Sequence[Quote], series: int) -> list[Quote]:
    """The same bars under many symbols, each symbol's in order."""
    return [replace(quote, symbol=f"S{i}") for quote in quotes for i in range(series)]


async def refusal(call: object) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call  # type: ignore[misc]
    error = error_from_rpc(raised.value, "scorer")
    if isinstance(error, InvalidRequestError):
        return raised.value.code(), error.violations[0].field
    return raised.value.code(), error.message


async def test_reloading_under_load_drops_no_stream_and_mixes_no_judgement(models: Path) -> None:
    """Four streams run while the model is exchanged again and again, a damaged one in between."""
    expected = {version: await alone(models, version, BARS) for version in ("champion", "challenger")}
    async with running_scorer(models) as channel:
        stub = ModelServiceStub(channel)
        played = [[replace(quote, tape=f"t{n}") for quote in BARS] for n in range(4)]
        streams = [asyncio.create_task(stream(channel, batches_of(quotes, 50))) for quotes in played]
        reloads = refused = 0
        while not all(task.done() for task in streams):
            for version in ("challenger", "champion"):
                answer = await stub.ReloadModel(pb.ReloadModelRequest(version=version))
                assert answer.model.version == version
                reloads += 1
            code, why = await refusal(stub.ReloadModel(pb.ReloadModelRequest(version="damaged")))
            assert (code, "is damaged" in why) == (grpc.StatusCode.FAILED_PRECONDITION, True)
            refused += 1
        answered = await asyncio.gather(*streams)
        assert (await stub.GetModel(pb.GetModelRequest())).model.version == "champion"
    assert reloads >= 10
    assert refused >= 5
    versions = set()
    for quotes, scores in zip(played, answered, strict=True):
        assert [score.quote_id for score in scores] == [quote.quote_id for quote in quotes]
        for bar, score in zip(BARS, scores, strict=True):
            versions.add(score.model_version)
            reference = expected[score.model_version][bar.quote_id]
            assert abs(score.ensemble - reference.ensemble) <= SCORE_TOLERANCE
            assert (score.detection, score.quality) == (reference.detection, reference.quality)
    assert versions == {"champion", "challenger"}


async def test_a_shadow_judges_everything_and_touches_nothing(models: Path) -> None:
    champion, challenger = await alone(models, "champion", BARS), await alone(models, "challenger", BARS)
    async with running_scorer(models) as channel:
        stub = ModelServiceStub(channel)
        shown = (await stub.SetShadowModel(pb.SetShadowModelRequest(version="challenger"))).model
        assert (shown.version, list(shown.roles), shown.serving) == ("challenger", [pb.MODEL_ROLE_SHADOW], False)
        scores = await stream(channel, batches_of(BARS, 100))
        report = (await stub.GetModel(pb.GetModelRequest())).shadow
        cleared = await stub.ClearCandidateModel(pb.ClearCandidateModelRequest(role=pb.MODEL_ROLE_SHADOW))
        assert list(cleared.versions) == ["challenger"]
        assert not (await stub.GetModel(pb.GetModelRequest())).HasField("shadow")
        assert not (await stub.ClearCandidateModel(pb.ClearCandidateModelRequest())).versions
    for score in scores:
        assert score.model_version == "champion"
        assert score.same_as(champion[score.quote_id])
    pairs = [(champion[quote.quote_id], challenger[quote.quote_id]) for quote in BARS]
    differences = [abs(one.ensemble - other.ensemble) for one, other in pairs]
    assert report.quotes == len(BARS)
    assert report.mean_absolute_difference == pytest.approx(np.mean(differences), abs=1e-6)
    assert report.largest_difference == pytest.approx(max(differences), abs=1e-6)
    assert report.mean_absolute_difference > 1e-5, "the two judge differently, or this proves nothing"
    assert report.both_detections == sum(one.detection and other.detection for one, other in pairs)
    assert report.shadow_only_detections == sum(other.detection and not one.detection for one, other in pairs)
    assert report.recorded_only_detections == sum(one.detection and not other.detection for one, other in pairs)
    differing = report.shadow_only_detections + report.recorded_only_detections
    assert differing > 0
    assert report.detection_difference_share == pytest.approx(differing / len(BARS))
    assert report.failed_batches == 0


async def test_a_canary_judges_its_share_of_the_series_always_the_same(models: Path) -> None:
    quotes = spread(BARS[:80], 40)
    chosen = {quote.symbol for quote in quotes if lot(quote.series) < 0.3}
    assert 0 < len(chosen) < 40
    versions: dict[str, dict[str, float]] = {}
    for attempt in ("first delivery", "redelivery to another scorer"):
        async with running_scorer(models) as channel:
            stub = ModelServiceStub(channel)
            await stub.SetCanaryModel(pb.SetCanaryModelRequest(version="challenger", weight=0.3))
            size = 400 if attempt == "first delivery" else 120
            scores = await stream(channel, batches_of(quotes, size))
            report = (await stub.GetModel(pb.GetModelRequest())).canary
        by_symbol = defaultdict(set)
        for quote, score in zip(quotes, scores, strict=True):
            by_symbol[quote.symbol].add(score.model_version)
        assert {s for s, found in by_symbol.items() if found == {"challenger"}} == chosen
        assert {s for s, found in by_symbol.items() if found == {"champion"}} == set(by_symbol) - chosen
        assert (report.quotes, report.serving_quotes) == (80 * len(chosen), 80 * (40 - len(chosen)))
        detections = dict.fromkeys(("challenger", "champion"), 0)
        for score in scores:
            detections[score.model_version] += score.detection
        assert (report.detections, report.serving_detections) == (detections["challenger"], detections["champion"])
        versions[attempt] = {score.quote_id: score.ensemble for score in scores}
    first, again = versions.values()
    assert first.keys() == again.keys()
    assert max(abs(first[q] - again[q]) for q in first) <= SCORE_TOLERANCE
    reference = await alone(models, "challenger", [q for q in quotes if q.symbol in chosen])
    assert all(abs(first[q] - score.ensemble) <= SCORE_TOLERANCE for q, score in reference.items())


async def test_a_shadow_that_is_the_canary_too_is_not_compared_with_itself(models: Path) -> None:
    quotes = spread([quote for quote in BARS if quote.symbol == "AAPL"][:80], 20)
    champion, challenger = await alone(models, "champion", quotes), await alone(models, "challenger", quotes)
    others = [quote.quote_id for quote in quotes if lot(quote.series) >= 0.5]
    assert 0 < len(others) < len(quotes)
    async with running_scorer(models) as channel:
        stub = ModelServiceStub(channel)
        await stub.SetShadowModel(pb.SetShadowModelRequest(version="challenger"))
        await stub.SetCanaryModel(pb.SetCanaryModelRequest(version="challenger", weight=0.5))
        await stream(channel, batches_of(quotes, 130))
        report = (await stub.GetModel(pb.GetModelRequest())).shadow
        assert report.quotes == len(others)
        differences = [abs(champion[each].ensemble - challenger[each].ensemble) for each in others]
        assert report.mean_absolute_difference == pytest.approx(np.mean(differences), abs=1e-6)
        await stub.SetCanaryModel(pb.SetCanaryModelRequest(version="challenger", weight=1.0))
        await stream(channel, batches_of(quotes, 130))
        assert (await stub.GetModel(pb.GetModelRequest())).shadow.quotes == len(others), "the canary judges all"


async def test_candidates_come_from_the_environment_and_a_promoted_one_is_none_any_more(models: Path) -> None:
    settings = {"shadow_model_version": "challenger", "canary_model_version": "challenger", "canary_weight": 0.5}
    async with running_scorer(models, model_version="champion", **settings) as channel:
        stub = ModelServiceStub(channel)
        listed = {m.version: list(m.roles) for m in (await stub.ListModels(pb.ListModelsRequest())).models}
        assert listed == {
            "champion": [pb.MODEL_ROLE_SERVING],
            "challenger": [pb.MODEL_ROLE_SHADOW, pb.MODEL_ROLE_CANARY],
            "damaged": [],
        }
        assert (await stub.GetModel(pb.GetModelRequest())).canary.weight == 0.5
        promoted = (await stub.ReloadModel(pb.ReloadModelRequest(version="challenger"))).model
        assert list(promoted.roles) == [pb.MODEL_ROLE_SERVING]
    with pytest.raises(ModelUnusableError, match="damaged"):
        async with running_scorer(models, shadow_model_version="damaged"):
            pass


async def test_refused_candidates_change_nothing(models: Path) -> None:
    async with running_scorer(models) as channel:
        stub = ModelServiceStub(channel)
        await stub.SetCanaryModel(pb.SetCanaryModelRequest(version="challenger", weight=0.5))
        before = await stub.GetModel(pb.GetModelRequest())
        shadow, canary = pb.SetShadowModelRequest, pb.SetCanaryModelRequest
        invalid = grpc.StatusCode.INVALID_ARGUMENT
        for call, code, field in (
            (stub.SetShadowModel(shadow()), invalid, "version"),
            (stub.SetShadowModel(shadow(version="champion")), invalid, "version"),
            (stub.SetShadowModel(shadow(version="damaged")), grpc.StatusCode.FAILED_PRECONDITION, "is damaged"),
            (stub.SetShadowModel(shadow(version="../x")), grpc.StatusCode.NOT_FOUND, "no model"),
            (stub.SetCanaryModel(canary(weight=0.5)), invalid, "version"),
            (stub.SetCanaryModel(canary(version="champion", weight=0.5)), invalid, "version"),
            (stub.SetCanaryModel(canary(version="challenger")), invalid, "weight"),
            (stub.SetCanaryModel(canary(version="challenger", weight=1.01)), invalid, "weight"),
            (stub.SetCanaryModel(canary(version="challenger", weight=float("nan"))), invalid, "weight"),
            (stub.SetCanaryModel(canary(version="damaged", weight=0.5)), grpc.StatusCode.FAILED_PRECONDITION, "damage"),
            (stub.ClearCandidateModel(pb.ClearCandidateModelRequest(role=pb.MODEL_ROLE_SERVING)), invalid, "role"),
            (stub.ClearCandidateModel(pb.ClearCandidateModelRequest(role=9)), invalid, "role"),  # type: ignore[arg-type]
        ):
            got, words = await refusal(call)
            assert got is code
            assert field in words
        assert MessageToDict(await stub.GetModel(pb.GetModelRequest())) == MessageToDict(before)


def calibration(version: str, threshold: float) -> ThresholdCalibration:
    now = datetime(2026, 11, 24, 12, tzinfo=UTC)
    return ThresholdCalibration(version, threshold, 0.5, 3.0, PER_DAY, 2.5, "lake", "live", 1_000, 29, now)


async def test_a_calibrated_threshold_is_taken_at_start_and_on_reload(tmp_path: Path) -> None:
    models, folder = tmp_path / "models", tmp_path / "thresholds"
    copy_version(models, "m1")
    folder.mkdir()
    file = folder / threshold_file("m1")
    trained = ModelRegistry(models).load("m1").metadata.threshold
    file.write_text(calibration("m1", 0.75).to_json())
    async with running_scorer(models, threshold_dir=folder) as channel:
        stub = ModelServiceStub(channel)

        async def served() -> tuple[float, float, bool]:
            (score,) = await stream(channel, [BARS[:1]])
            model = (await stub.GetModel(pb.GetModelRequest())).model
            return score.threshold, model.threshold, model.HasField("threshold_calibration")

        assert await served() == (0.75, 0.75, True)
        file.write_text(calibration("m1", 0.875).to_json())
        assert await served() == (0.75, 0.75, True), "not before a reload"
        reloaded = (await stub.ReloadModel(pb.ReloadModelRequest())).model
        assert reloaded.threshold_calibration.expected_alerts == 2.5
        assert reloaded.threshold_calibration.tape == "live"
        assert await served() == (0.875, 0.875, True)
        for damage in (
            '{"threshold": 0.1',
            calibration("m1", 1.5).to_json(),
            "{}",
            calibration("m0", 0.9).to_json(),
        ):
            file.write_text(damage)
            code, why = await refusal(stub.ReloadModel(pb.ReloadModelRequest()))
            assert (code, str(file) in why) == (grpc.StatusCode.FAILED_PRECONDITION, True)
            assert await served() == (0.875, 0.875, True), "what serves goes on"
        file.unlink()
        (folder / "threshold.json").write_text(calibration("m1", 0.9).to_json())
        (models / threshold_file("m1")).write_text(calibration("m1", 0.9).to_json())
        await stub.ReloadModel(pb.ReloadModelRequest())
        assert await served() == (trained, trained, False), "nothing else is read"


async def test_each_version_has_a_threshold_file_of_its_own_without_a_folder_beside_the_versions(
    tmp_path: Path,
) -> None:
    models = model_folder(tmp_path / "models")
    for version, threshold in (("champion", 0.75), ("challenger", 0.25)):
        (models / threshold_file(version)).write_text(calibration(version, threshold).to_json())
    async with running_scorer(models, model_version="champion") as channel:
        stub = ModelServiceStub(channel)
        assert (await stub.GetModel(pb.GetModelRequest())).model.threshold == 0.75
        shadow = (await stub.SetShadowModel(pb.SetShadowModelRequest(version="challenger"))).model
        assert shadow.threshold_calibration.threshold == 0.25
        assert (await stub.ReloadModel(pb.ReloadModelRequest(version="challenger"))).model.threshold == 0.25
        assert (await stub.ReloadModel(pb.ReloadModelRequest(version="champion"))).model.threshold == 0.75


async def test_drift_is_reported_per_feature_and_grows_when_the_tape_changes(models: Path) -> None:
    """The real tape, then the same tape with every bar's range and volume blown up from bar to bar."""
    async with running_scorer(models) as channel:
        stub = ModelServiceStub(channel)
        assert not (await stub.GetModel(pb.GetModelRequest())).drifts
        await stream(channel, batches_of(BARS[:400], 100))
        (few,) = (await stub.GetModel(pb.GetModelRequest())).drifts
        assert (few.tape, 0 < few.quotes < 500) == ("replay", True)
        assert not any(value.HasField("index") for value in few.values)
        await stream(channel, batches_of(BARS[400:], 200))
        shown = await stub.GetModel(pb.GetModelRequest())
        (usual,) = shown.drifts
        names = [value.name for value in usual.values]
        assert names[: len(shown.model.features)] == [feature.name for feature in shown.model.features]
        assert names[len(shown.model.features)] == "autoencoder_percentile"
        wild = [
            replace(q, tape="live", high=q.high * 1.5, low=q.low / 1.5, volume=q.volume * (1 + 30 * (i % 7 == 0)))
            for i, q in enumerate(BARS)
        ]
        await stream(channel, batches_of(wild, 200))
        await stream(channel, batches_of([replace(q, tape="canary") for q in BARS], 200))
        drifts = {drift.tape: drift for drift in (await stub.GetModel(pb.GetModelRequest())).drifts}
    assert drifts.keys() == {"live", "replay"}
    assert drifts["replay"] == usual, "other tapes do not count"
    live = {value.name: value.index for value in drifts["live"].values}
    before = {value.name: value.index for value in usual.values}
    assert max(live.values()) > 1.0
    assert live["autoencoder_percentile"] > 4 * before["autoencoder_percentile"]
