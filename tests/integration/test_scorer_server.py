"""The scorer over gRPC: streams with bad quotes and bad requests, and the model's life cycle."""

import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from services.domain.errors import InvalidRequestError
from services.runtime.channels import open_channel
from services.runtime.errors import error_from_rpc
from services.runtime.settings import ClientSettings
from services.scorer.main import build
from services.scorer.registry import PACKAGED_MODELS
from services.scorer.settings import ScorerSettings
from services.wire.quote import quote_to_proto
from tapewatch.scorer.v1 import model_service_pb2 as model_pb
from tapewatch.scorer.v1 import scorer_service_pb2 as pb
from tapewatch.scorer.v1.model_service_pb2_grpc import ModelServiceStub
from tapewatch.scorer.v1.scorer_service_pb2_grpc import ScorerServiceStub
from tests.pipeline_fakes import quote
from tests.servers.in_process import served


@pytest.fixture
async def scorer(tmp_path: Path) -> AsyncIterator[tuple[grpc.aio.Channel, Path]]:
    models = tmp_path / "models"
    shutil.copytree(PACKAGED_MODELS, models)
    settings = ScorerSettings(grpc_port=0, gateway_address="none", model_dir=models)
    async with (
        served("scorer", settings, lambda lifetime: build(lifetime, settings)) as server,
        open_channel(server.address, ClientSettings()) as channel,
    ):
        yield channel, models


async def refused(call: object) -> InvalidRequestError:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call  # type: ignore[misc]
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    error = error_from_rpc(raised.value, "scorer")
    assert isinstance(error, InvalidRequestError)
    return error


async def test_a_long_stream_with_bad_quotes_in_it(scorer: tuple[grpc.aio.Channel, Path]) -> None:
    channel, _ = scorer
    sent = [[quote(100 * i + j, high=1.0 if j == 50 else 10.2) for j in range(100)] for i in range(40)]

    async def requests() -> AsyncIterator[pb.ScoreStreamRequest]:
        for batch in sent:
            yield pb.ScoreStreamRequest(quotes=[quote_to_proto(q) for q in batch])

    answers = [response async for response in ScorerServiceStub(channel).ScoreStream(requests())]
    assert [[r.quote_id for r in answer.results] for answer in answers] == [[q.quote_id for q in b] for b in sent]
    for answer in answers:
        assert [i for i, r in enumerate(answer.results) if r.HasField("error")] == [50]
    assert answers[-1].results[-1].score.history_quotes == 60


async def test_malformed_requests_name_their_fields(scorer: tuple[grpc.aio.Channel, Path]) -> None:
    channel, _ = scorer
    stub = ScorerServiceStub(channel)
    error = await refused(stub.Score(pb.ScoreRequest()))
    assert error.violations[0].field == "quote"
    bad = quote_to_proto(quote(0, low=-1.0, volume=float("nan")))
    error = await refused(stub.Score(pb.ScoreRequest(quote=bad)))
    assert {violation.field for violation in error.violations} == {"quote.low", "quote.volume"}
    good = quote_to_proto(quote(5))
    strangers = [quote(0, symbol="XYZ"), quote(1, open=-1.0), quote(9)]
    error = await refused(stub.Score(pb.ScoreRequest(quote=good, history=[quote_to_proto(q) for q in strangers])))
    fields = {violation.field for violation in error.violations}
    assert fields == {"history[0]", "history[1].open", "history[2].event_time"}
    many = [quote_to_proto(quote(i)) for i in range(1_001)]
    error = await refused(stub.Score(pb.ScoreRequest(quote=many[0], history=many)))
    assert error.violations[0].field == "history"

    async def empty() -> None:
        async for _ in stub.ScoreStream(iter([pb.ScoreStreamRequest()])):
            raise AssertionError("an empty request was answered")

    error = await refused(empty())
    assert error.violations[0].field == "quotes"
    assert (await stub.Score(pb.ScoreRequest(quote=quote_to_proto(quote(0))))).score.model_version


async def test_models_are_listed_and_reloaded_and_a_damaged_one_is_refused(
    scorer: tuple[grpc.aio.Channel, Path],
) -> None:
    channel, models = scorer
    stub = ModelServiceStub(channel)
    serving = (await stub.GetModel(model_pb.GetModelRequest())).model
    assert serving.serving
    assert serving.features
    observability = {t.name: t.observability for t in serving.typologies}
    assert observability["spoofing"] == model_pb.OBSERVABILITY_NOT_OBSERVABLE
    assert observability["pump and dump"] == model_pb.OBSERVABILITY_OBSERVABLE

    folder = models / "damaged"
    shutil.copytree(models / serving.version, folder)
    metadata = folder / "metadata.json"
    metadata.write_text(metadata.read_text().replace(f'"{serving.version}"', '"damaged"'))
    classifier = folder / "classifier.tflite"
    classifier.write_bytes(classifier.read_bytes() + b"?")
    listed = (await stub.ListModels(model_pb.ListModelsRequest())).models
    assert {model.version for model in listed} == {serving.version, "damaged"}
    assert [model.version for model in listed if model.serving] == [serving.version]
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await stub.ReloadModel(model_pb.ReloadModelRequest(version="damaged"))
    assert raised.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "damaged" in (raised.value.details() or "")
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await stub.ReloadModel(model_pb.ReloadModelRequest(version="../../etc"))
    assert raised.value.code() is grpc.StatusCode.NOT_FOUND
    shutil.rmtree(folder)
    reloaded = await stub.ReloadModel(model_pb.ReloadModelRequest())
    assert reloaded.model.version == serving.version
