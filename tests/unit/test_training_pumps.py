"""The labelled pumps' protocol: causal columns, folds by event, alerts and delays; and the old system's rule."""

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest
from numpy.typing import NDArray

from services.archive import bokeh
from services.domain.feature_definitions import FEATURE_NAMES, WINDOW
from services.domain.features import SeriesState, compute
from services.domain.quote import Quote
from services.training.evaluation import rule
from services.training.networks import run_tflite
from services.training.pumps import described, models, protocol, section, summary
from services.training.pumps.protocol import Choice, Rows
from services.training.pumps.recordings import (
    OF_QUOTES,
    Pumps,
    Recording,
    Shifted,
    against_past,
    mesh_features,
    past_names,
)

needs_sklearn = pytest.mark.skipif(importlib.util.find_spec("sklearn") is None, reason="needs tapewatch[train]")
needs_training = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("sklearn", "tensorflow")), reason="needs tapewatch[train]"
)

LONG_NAMES = ("volume_peak_600", "trades_peak_600", "rise_now")


def made(events: int = 10, chunks: int = 100) -> Pumps:
    rng = np.random.default_rng(1)
    n = events * chunks
    onset = np.zeros(n, bool)
    onset[np.arange(events) * chunks + chunks // 2] = True
    features = rng.normal(size=(n, len(FEATURE_NAMES))).astype(np.float32)
    features[onset, FEATURE_NAMES.index("volume_log_ratio")] += 9.0
    long = rng.normal(size=(n, len(LONG_NAMES))).astype(np.float32)
    long[onset] += 9.0
    moment = np.tile(np.arange(chunks) * 25.0, events)
    return Pumps(
        features=features,
        published=rng.normal(size=(n, 12)).astype(np.float32),
        long=long,
        long_names=LONG_NAMES,
        label=onset,
        event=np.repeat(np.arange(events), chunks),
        names=tuple(f"COIN{event}_2019-01-0{1 + event % 9}_17.00" for event in range(events)),
        moment=moment,
        seconds=moment - 25.0 * (chunks // 2),
        finer=np.zeros(events),
        symbol_days=float(events),
        width=25,
        shifted=Shifted(np.empty((0, len(LONG_NAMES)), np.float32), np.empty(0, bool), np.empty(0, np.int64)),
    )


def recording(hours: int = 2) -> Recording:
    rng = np.random.default_rng(3)
    begin = 1_560_000_000
    seconds = begin + 5 * np.flatnonzero(rng.random(hours * 720) < 0.3)
    close = 1e-5 * np.exp(np.cumsum(0.002 * rng.normal(size=len(seconds))))
    volume = rng.gamma(0.5, 0.05, len(seconds)) + 1e-4
    trades = 1.0 + rng.poisson(1.0, len(seconds))
    bars = {
        "open": close * np.exp(0.001 * rng.normal(size=len(seconds))),
        "high": close * 1.003,
        "low": close * 0.997,
        "close": close,
        "base": volume / close,
        "volume": volume,
        "bought": volume * rng.random(len(seconds)),
        "trades": trades,
        "buys": np.floor(trades / 2),
        "rush": np.zeros(len(seconds)),
    }
    return Recording("COIN_2019-06-08_13.00", seconds, bars, begin + 3_600, begin + 3_600)


def quotes(of: Recording) -> list[Quote]:
    """The recording's chunks of 25 s with trades as a feed of the mesh would send them."""
    found = []
    for chunk in sorted(set((of.seconds // 25).tolist())):
        inside = np.flatnonzero(of.seconds // 25 == chunk)
        part = {name: values[inside] for name, values in of.bars.items()}
        found.append(
            Quote(
                symbol="COIN",
                event_time=datetime.fromtimestamp(25 * chunk, UTC),
                open=part["open"][0],
                high=part["high"].max(),
                low=part["low"].min(),
                close=part["close"][-1],
                volume=part["base"].sum(),
                interval_seconds=25,
                trades=int(part["trades"].sum()),
                buy_volume=part["base"].sum() * part["bought"].sum() / part["volume"].sum(),
            )
        )
    return found


def test_what_quotes_carry_is_what_the_stream_computes_of_the_same_bars() -> None:
    taken = recording()
    stream = quotes(taken)
    assert len(stream) > 2 * WINDOW
    state, streamed = SeriesState(), []
    for quote in stream:
        streamed.append(compute(state.windows([quote]))[0])
        state.append(quote)
    begins = np.array([quote.event_time.timestamp() for quote in stream])
    found = mesh_features(taken, begins)
    # Sums of a chunk in another order differ in the last bit, and floors of a deviation keep that small.
    np.testing.assert_allclose(found, np.stack(streamed), rtol=1e-5, atol=1e-5)
    assert np.array_equal(mesh_features(taken, begins[40:90]), found[40:90])
    known = replace(made(events=1, chunks=len(begins)), features=found)
    model = models.mesh_features(known)
    assert model.names == FEATURE_NAMES
    assert np.array_equal(model.inputs, found)
    flow = [FEATURE_NAMES.index(name) for name in ("trades_log_ratio", "trade_size_log_ratio", "buy_share_change")]
    assert np.ptp(found[WINDOW:, flow], axis=0).min() > 0.1


def test_columns_against_the_past_know_neither_the_future_nor_another_event() -> None:
    known = made()
    columns = against_past(known.features, known.published, known.event)
    assert columns.shape[1] == len(past_names()) == len(set(past_names()))
    highest = columns[:, past_names().index("minutes_return_z_highest_of_5")]
    followed = known.features[:, FEATURE_NAMES.index("return_z")]
    assert highest[104] == followed[100:104].max()
    assert highest[160] == followed[155:160].max()
    later = known.features.copy()
    later[151:] += 5.0
    changed = against_past(later, known.published, known.event)
    assert np.array_equal(columns[:151], changed[:151])
    others = known.features.copy()
    others[:100] += 5.0
    assert np.array_equal(columns[100:], against_past(others, known.published, known.event)[100:])


@needs_sklearn
def test_no_event_is_on_both_sides_of_a_fold() -> None:
    known = made()
    for train, test in protocol.folds(known.event):
        assert not set(known.event[train].tolist()) & set(known.event[test].tolist())


def test_one_pump_listed_twice_is_not_trained_on_where_it_is_tested() -> None:
    known = made(events=3)
    twice = replace(known, names=("NXS_2020-03-03_15.59", "NXS_2020-03-03_16.00", "POA_2020-03-03_16.00"))
    rows = np.arange(300)
    assert set(twice.event[protocol.apart(twice, rows[100:], rows[:100])].tolist()) == {2}
    elsewhere = replace(twice, moment=twice.moment + 1e6 * (twice.event == 1))
    assert set(twice.event[protocol.apart(elsewhere, rows[100:], rows[:100])].tolist()) == {1, 2}


@needs_sklearn
def test_pumps_that_can_be_seen_are_found_and_noise_is_not() -> None:
    known = made(events=25, chunks=60)
    model = models.trees(known, minutes=False)
    found, delay = protocol.figures(known, protocol.judge(known, model.parts, model.choice))
    assert found.average_precision > 0.8
    assert found.average_precision_interval[0] <= found.average_precision <= found.average_precision_interval[1]
    assert found.detected_within_120_s > 0.5
    assert np.median(delay) == 0.0
    published = models.forest(known)
    noise, _ = protocol.figures(known, protocol.judge(known, published.parts, published.choice))
    assert noise.average_precision < 0.2


@needs_training
def test_the_file_of_a_model_scores_as_its_fitted_parts_do() -> None:
    known = made(events=10, chunks=60)
    model = models.trees(known)
    assert model.inputs.shape == (600, len(model.names))
    choice = Choice(onset=(("days", "minutes"),), alert=(("course", "minutes"),))
    rows = np.arange(600)
    chosen = protocol.choose(known, model.parts, choice, rows[:480])
    scores = run_tflite(models.tflite(chosen, len(model.names)), model.inputs)
    # A share near 1 - 1e-4 that is rounded to float32 moves its log-odds by some 6e-4.
    np.testing.assert_allclose(scores, protocol.mean_scores(chosen)(rows), rtol=0, atol=2e-3)
    assert np.ptp(scores, axis=0).min() > 1.0
    assert not np.allclose(scores[:, 0], scores[:, 1])


@needs_sklearn
def test_parts_and_thresholds_of_a_fold_are_chosen_without_its_labels() -> None:
    known = made(events=25, chunks=60)
    seen: list[set[int]] = []

    def good(train: Rows) -> Callable[[Rows], NDArray[np.float64]]:
        seen.append(set(known.event[train].tolist()))
        return lambda rows: known.long[rows, 0].astype(np.float64)

    def bad(train: Rows) -> Callable[[Rows], NDArray[np.float64]]:
        del train
        return lambda rows: known.published[rows, 0].astype(np.float64)

    choice = Choice(onset=(("bad",), ("good",)), alert=(("bad",), ("good",)))
    parts = {"good": good, "bad": bad}
    verdicts = protocol.judge(known, parts, choice)
    assert verdicts.onset_parts == ("good",) * 5
    for number, (_, test) in enumerate(protocol.folds(known.event)):
        tested = set(known.event[test].tolist())
        assert not any(tested & fitted for fitted in seen[5 * number : 5 * number + 5])
        # Other labels of the test fold change neither its detections nor its alerts.
        moved = np.roll(known.label, 7)
        label = known.label.copy()
        label[test] = moved[test]
        again = protocol.judge(replace(known, label=label), parts, choice)
        assert np.array_equal(again.chosen[test], verdicts.chosen[test])
        assert np.array_equal(again.alerting[test], verdicts.alerting[test])


def test_what_follows_a_likely_onset_within_the_course_is_none_by_hand() -> None:
    known = made(events=2, chunks=6)
    rows = np.array([0, 1, 2, 4, 5, 6, 7])  # a chunk of the first event is not judged
    score = np.array([3.0, 4.0, -2.0, 5.0, 1.0, -1.0, 2.0])
    # 50 s back: chunks 4 and 5 see chunk 2 and 4 only; the second event sees nothing of the first.
    found = protocol.onset_score(known, rows, score, 50)
    assert found.tolist() == [3.0, 1.0, -6.0, 5.0, -4.0, -1.0, 2.0]
    assert protocol.onset_score(known, rows, score, 0).tolist() == score.tolist()
    later = np.where(rows >= 4, 9.0, score)
    assert protocol.onset_score(known, rows, later, 50)[:3].tolist() == found[:3].tolist()


def test_alerts_close_together_count_once_and_the_hour_after_the_onset_is_free() -> None:
    known = made(events=2, chunks=400)
    detected = np.zeros(800, bool)
    detected[[10, 11, 12, 200, 205, 399]] = True  # before; at the onset; 83 minutes after it
    assert protocol.false_alerts(known, np.arange(800), detected) == 2
    assert protocol.delays(known, detected).tolist() == [0.0, np.inf]


def test_errors_by_hand() -> None:
    # The finer label lies in the chunk before the first onset, in the second's, and in the one after the third.
    known = replace(made(events=3), finer=np.array([-5.0, 10.0, 40.0]))
    chosen, alerting = np.zeros(300, bool), np.zeros(300, bool)
    chosen[[49, 150, 200]] = True  # the chunk before the first onset; the second onset; far from the third
    alerting[[49, 51, 150]] = True
    verdicts = protocol.Verdicts(np.zeros(300), chosen, alerting, (), ())
    assert protocol.errors(known, verdicts) == {
        "false": 2,
        "false_near_onset": 1,
        "f1_either_label": 2 * 2 / (2 + 1 + 3),
        "f1_within_a_chunk": 2 * 2 / (2 + 1 + 3),
        "missed": 2,
        "missed_found_near": 1,
        "missed_disputed": 2,
        "disputed": 2,
        "early_alerts": 1,
        "missed_alerted": 1,
        "undetected": [known.names[2]],
    }
    chosen[[49, 251]] = False, True
    chosen[49 - 1] = True  # two chunks before the first onset; the chunk after the third
    found = protocol.errors(known, replace(verdicts, chosen=chosen))
    assert found["f1_either_label"] == found["f1_within_a_chunk"] == 2 * 2 / (2 + 2 + 3)
    first = replace(verdicts, chosen=np.arange(300) == 51)  # within a chunk of the label, but of no label
    assert protocol.errors(known, first)["f1_within_a_chunk"] == 2 * 1 / (1 + 0 + 3)
    assert protocol.errors(known, first)["f1_either_label"] == 0.0


def test_the_card_has_the_row_of_what_quotes_carry_and_says_what_it_is() -> None:
    known = made(events=4)
    chosen = np.zeros(400, bool)
    chosen[[50, 150, 251, 351]] = True  # two onsets, and the chunk after each of the others'
    verdicts = protocol.Verdicts(chosen.astype(float), chosen, known.label, ("minutes",), ("course",))
    names = ("published forest on its 12 features", "trees", "trees, what quotes carry")
    found = [described(name, known, verdicts) | {"file_bytes": 1, "milliseconds_a_chunk": 1.0} for name in names]
    text = section.text(summary(known, found), "card")
    (row,) = [line for line in text.splitlines() if line.startswith("| trees, what quotes carry |")]
    assert row.split(" | ")[2:4] == ["0.500", "0.500"]
    assert f"{len(OF_QUOTES)} features that `services.domain.features.compute`" in text
    assert "services.domain.features" not in section.text(summary(known, found[:2]), "card")


def test_the_budget_is_the_lowest_threshold_with_at_most_one_false_alert_per_ten_symbol_days() -> None:
    known = made(events=20, chunks=8_000)
    rows = np.arange(len(known.label))
    assert known.moment.max() / 86_400 > 2.3
    score = np.zeros(len(rows))
    false = [8_000 * event + 10 for event in range(8)]  # 46 symbol-days allow four
    score[false] = [9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0]
    assert protocol.budget(known, rows, score) == 6.0


def test_the_old_rule_by_hand() -> None:
    bars = bokeh.read()[0]
    flat = np.full(60, 10.0)
    close, volume = flat.copy(), np.full(60, 100.0)
    close[40], volume[40] = 11.0, 900.0
    close[50], volume[50] = 11.0, 150.0
    short = replace(bars, event_time=bars.event_time[:60], open=flat, high=flat, low=flat, close=close, volume=volume)
    assert np.flatnonzero(rule(short)).tolist() == [40]
