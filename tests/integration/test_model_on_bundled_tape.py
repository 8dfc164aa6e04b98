"""The shipped model on the real bars of the bundled tape: what must alert does, what must not does not."""

from datetime import UTC, datetime

import numpy as np
import pytest
from numpy.typing import NDArray

from services.archive import bokeh
from services.domain.canary import CANARIES, Canary, at
from services.domain.features import bar_rows, bars_windows, compute
from services.domain.model import Judgements
from services.domain.series_state import SeriesState
from services.domain.typology import Typology
from services.scorer.litert import LiteRTModel
from services.scorer.registry import ModelRegistry

Tape = dict[str, tuple[list[str], NDArray[np.float32], Judgements]]


@pytest.fixture(scope="module")
def model() -> LiteRTModel:
    return ModelRegistry().load()


@pytest.fixture(scope="module")
def tape(model: LiteRTModel) -> Tape:
    judged: Tape = {}
    for bars in bokeh.read():
        features = np.concatenate([compute(windows) for windows in bars_windows(bar_rows(bars))])
        days = [str(day) for day in bars.event_time.astype("datetime64[D]")]
        judged[bars.symbol] = (days, features, model.judge(features))
    return judged


def ensemble(tape: Tape, symbol: str, day: str) -> float:
    days, _, judgements = tape[symbol]
    return float(judgements.ensemble[days.index(day)])


def test_the_day_apple_lost_half_is_a_detection(model: LiteRTModel, tape: Tape) -> None:
    assert ensemble(tape, "AAPL", "2000-09-29") >= model.metadata.threshold


@pytest.mark.parametrize(
    ("symbol", "day"),
    [("AAPL", "2000-06-21"), ("AAPL", "2005-02-28"), ("MSFT", "2003-02-18"), ("MSFT", "2004-11-15")],
)
def test_splits_and_special_dividends_are_not(model: LiteRTModel, tape: Tape, symbol: str, day: str) -> None:
    assert ensemble(tape, symbol, day) < model.metadata.threshold


def test_less_than_one_bar_in_a_hundred_is_a_detection(model: LiteRTModel, tape: Tape) -> None:
    first = model.metadata.min_history_quotes
    scores = np.concatenate([judgements.ensemble[first:] for _, _, judgements in tape.values()])
    assert 0 < np.count_nonzero(scores >= model.metadata.threshold) < 0.01 * len(scores)


def test_every_detection_is_explained_in_words(model: LiteRTModel, tape: Tape) -> None:
    for _, features, judgements in tape.values():
        detected = judgements.ensemble >= model.metadata.threshold
        for reasons, typology in zip(model.explain(features[detected]), judgements.typology[detected], strict=True):
            assert 1 <= len(reasons) <= 3
            assert Typology(int(typology)) in model.metadata.typologies
            for reason in reasons:
                assert "usual" in reason.text
                assert not reason.usual_low <= reason.value <= reason.usual_high


@pytest.mark.parametrize("canary", CANARIES, ids=lambda canary: canary.name)
def test_every_canary_is_a_detection_with_room_to_spare(model: LiteRTModel, canary: Canary) -> None:
    played = at(canary, datetime(2026, 7, 5, 3, 31, tzinfo=UTC))
    windows = SeriesState.from_history(played.history).windows(played.manipulated)
    assert model.judge(compute(windows)).ensemble.max() > model.metadata.threshold + 0.1


def test_the_shipped_model_is_small_whole_and_not_trained_on_what_it_replays(model: LiteRTModel) -> None:
    folder = ModelRegistry().folder / model.metadata.version
    assert sum(file.stat().st_size for file in folder.iterdir()) < 2_000_000
    assert not model.partial
    assert model.metadata.train_time < datetime.now(UTC)
