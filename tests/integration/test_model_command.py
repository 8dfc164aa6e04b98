"""tapewatch model on a pool of two scorers: both change, and one that is away is told apart."""

import io
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from rich.console import Console

from services.cli import model
from services.cli.settings import MeshSettings
from services.domain.model import CLASSIFIER_FILE, METADATA_FILE
from services.scorer.deployment import lot
from services.wire.quote import quote_to_proto
from tapewatch.scorer.v1 import model_service_pb2
from tapewatch.scorer.v1 import scorer_service_pb2 as pb
from tapewatch.scorer.v1.model_service_pb2_grpc import ModelServiceStub
from tapewatch.scorer.v1.scorer_service_pb2_grpc import ScorerServiceStub
from tests.pipeline_fakes import quote
from tests.scorer_models import copy_version, model_folder, open_client, scorer_address


@pytest.fixture
async def pool(tmp_path: Path) -> AsyncIterator[MeshSettings]:
    models = model_folder(tmp_path / "models")
    async with scorer_address(models) as one, scorer_address(models) as other:
        yield MeshSettings(scorer_addresses=f"{one},{other}")


async def test_every_scorer_changes_and_says_what_it_does(pool: MeshSettings) -> None:
    out = io.StringIO()
    console = Console(file=out, width=200)

    def said() -> str:
        text = out.getvalue()
        out.truncate(0)
        out.seek(0)
        return text

    assert await model.shadow(pool, "challenger", console) == 0
    assert said().count("challenger judges as shadow") == 2
    assert await model.canary(pool, "challenger", 0.5, console) == 0
    assert said().count("challenger judges 50.0% of the series") == 2
    assert await model.canary(pool, "challenger", 1.5, console) == 2
    assert said().count("1.5 is not above 0 and at most 1") == 2
    assert await model.reload(pool, "damaged", console) == 2
    assert said().count("is damaged") == 2
    assert await model.shadow(pool, "nobody", console) == 2
    assert said().count("no model named 'nobody'") == 2
    async with open_client(pool.pool()[0]) as channel:
        batch = pb.ScoreStreamRequest(quotes=[quote_to_proto(quote(i)) for i in range(700)])
        canary_has_it = lot(quote(0).series) < 0.5
        assert [r async for r in ScorerServiceStub(channel).ScoreStream(iter([batch]))]
    assert await model.show(pool, console) == 0
    shown = said()
    assert shown.count("serves champion at threshold") == 2
    assert f"shadow challenger: {0 if canary_has_it else 700} quotes, mean difference" in shown
    assert "canary challenger at 50.0%" in shown
    assert await model.listed(pool, console) == 0
    rows = [line for line in said().splitlines() if "challenger" in line]
    assert "shadow, canary" in rows[0]
    assert await model.reload(pool, "challenger", console) == 0
    assert said().count("serves challenger") == 2
    assert await model.clear(pool, console) == 0
    assert said().count("had no candidates") == 2


async def test_a_scorer_that_is_away_fails_the_command_and_not_the_others(pool: MeshSettings) -> None:
    out = io.StringIO()
    settings = MeshSettings(scorer_addresses=f"{pool.pool()[0]},127.0.0.1:1")
    assert await model.shadow(settings, "challenger", Console(file=out, width=200)) == 1
    assert out.getvalue().count("judges as shadow") == 1
    assert "127.0.0.1:1" in out.getvalue()


async def test_the_list_says_what_cannot_judge_and_a_reload_of_the_newest_passes_it_over(tmp_path: Path) -> None:
    models = model_folder(tmp_path / "models")
    out = io.StringIO()
    console = Console(file=out, width=300)
    async with scorer_address(models, model_version="challenger") as address:
        settings = MeshSettings(scorer_addresses=address)
        newest = copy_version(models, "newest", train_time="2031-01-01T00:00:00Z") / CLASSIFIER_FILE
        newest.write_bytes(b"")
        (copy_version(models, "unreadable") / METADATA_FILE).write_text("{")
        assert await model.listed(settings, console) == 0
        rows = {line.split("│")[1].strip(): line for line in out.getvalue().splitlines() if line.count("│") == 6}
        assert "yes" in rows["champion"]
        assert "no: " in rows["newest"]
        assert "is damaged" in rows["newest"]
        assert "is damaged" in rows["damaged"]
        assert "is not JSON" in rows["unreadable"]
        assert await model.reload(settings, "", console) == 0
        assert "serves champion at threshold" in out.getvalue()
        async with open_client(address) as channel:
            asked = model_service_pb2.GetModelRequest(version="newest")
            assert "is damaged" in (await ModelServiceStub(channel).GetModel(asked)).model.problem
