"""What a small training learns from and says; bad input ends in one sentence."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from rich.progress import Progress
from typer.testing import CliRunner

from services.domain.feature_definitions import FEATURE_NAMES
from services.domain.model import METADATA_FILE
from services.scorer.registry import ModelRegistry
from services.training import networks, train
from services.training.console import LARGEST_SEED
from services.training.dataset import Part
from services.training.fit import Training
from services.training.held_out import unseen
from tests import classifier_members
from tests.daily_bars import series

pytest.importorskip("tensorflow")


def test_the_exported_classifier_is_the_mean_of_its_members() -> None:
    rows = classifier_members.rows(2_000)
    members = classifier_members.members(rows, epochs=2)
    alone = [networks.run_tflite(networks.export(member), rows) for member in members]
    assert np.abs(alone[0] - alone[1]).max() > 0.01
    together = networks.run_tflite(networks.export(networks.mean_of(members, "mean")), rows)
    np.testing.assert_allclose(together, np.mean(alone, axis=0), atol=1e-5)


def test_a_threshold_without_enough_validation_days_is_set_by_members_that_have_not_seen_the_ticker(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[set[bytes]] = []
    fit = networks.train_classifiers

    def watched(features: networks.Matrix, label: Any, kind: Any, weights: Any, *more: Any, **named: Any) -> Any:
        seen.extend({row.tobytes() for row in features[weight > 0]} for weight in weights)
        return fit(features, label, kind, weights, *more, **named)

    monkeypatch.setattr(networks, "train_classifiers", watched)
    with Progress(disable=True) as progress:
        training = Training(["bokeh"], seed=3, epochs=1, passes=1, members=2, progress=progress)
        (source,) = training.sources
        normal = training.rows(source, Part.TRAIN)
        exported = training.networks([normal])
        feeds = unseen(training, source, exported)
    assert training.folded(source)
    for number in range(len(source.sides[Part.TRAIN])):
        own = [row.tobytes() for row in normal.features[normal.series == number]]
        without, with_it = seen[number % 2], seen[1 - number % 2]
        assert not without.intersection(own)
        assert len(with_it.intersection(own)) > 20
        for feed in feeds:
            here = feed.rows.series == number
            assert feed.rows.time[here].max() < source.sides[Part.TEST][0].event_time[0]
            said = networks.run_tflite(exported.members[86_400][number % 2], feed.rows.features[here])[:, 0]
            np.testing.assert_array_equal(feed.outputs.probability[here], said)


def test_each_bar_length_is_judged_by_the_network_of_the_nearest() -> None:
    keras = networks.tensorflow().keras
    column = FEATURE_NAMES.index("bar_length")

    def constant(value: float) -> Any:
        raw = keras.Input((len(FEATURE_NAMES),))
        return keras.Model(raw, raw[:, :2] * 0.0 + value, name=f"says_{value:.0f}")

    whole = networks.by_bar_length({86_400: constant(3.0), 5: constant(1.0), 60: constant(2.0)})
    features = np.zeros((6, len(FEATURE_NAMES)), np.float32)
    seconds = np.array([1, 5, 30, 60, 3_600, 86_400])
    features[:, column] = np.log(seconds / 60.0)
    assert networks.run_tflite(networks.export(whole), features)[:, 0].tolist() == [1.0, 1.0, 2.0, 2.0, 3.0, 3.0]
    alone = networks.export(networks.by_bar_length({86_400: constant(4.0)}))
    assert set(networks.run_tflite(alone, features)[:, 0]) == {4.0}


def test_data_for_the_calibration_only_is_not_learnt_from_and_is_named_in_the_command(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    lines = ["symbol,timestamp,open,high,low,close,volume,interval_seconds"]
    for symbol in ("A", "B"):
        close = 50.0 * np.exp(np.cumsum(rng.normal(0.0, 0.001, 3_000)))
        for i, (price, volume) in enumerate(zip(close, rng.integers(100, 900, 3_000), strict=True)):
            day, minute = divmod(i, 390)
            time = f"2024-01-{day + 1:02d}T{14 + minute // 60}:{minute % 60:02d}:00Z"
            lines.append(f"{symbol},{time},{price},{price * 1.001},{price * 0.999},{price},{volume},60")
    minutes = tmp_path / "minutes.csv"
    minutes.write_text("\n".join(lines) + "\n")
    made = train.run(
        ["bokeh"], tmp_path, [str(minutes)], seed=3, epochs=1, passes=1, members=1, console=Console(quiet=True)
    )
    assert len(made.calibration.length_knots) == 2
    assert "60 s, 2024-01-01 to 2024-01-08 (minutes, for the calibration only)" in made.trained_on
    assert made.trained_by.startswith(
        "tapewatch train --data bokeh --calibration-data minutes.csv --seed 3 --epochs 1 --passes 1 --members 1 ("
    )
    assert made == ModelRegistry(tmp_path).load().metadata


def test_a_few_bars_make_a_model_that_says_how_little_it_knows(tmp_path: Path) -> None:
    bars = series(400, 1, symbol="TINY")
    lines = ["symbol,timestamp,open,high,low,close,volume"]
    lines += [
        f"TINY,{bars.event_time[i]},{bars.open[i]},{bars.high[i]},{bars.low[i]},{bars.close[i]},{bars.volume[i]}"
        for i in range(len(bars))
    ]
    (tmp_path / "tiny.csv").write_text("\n".join(lines) + "\n")
    said = io.StringIO()
    console = Console(file=said, width=80)
    made = train.run(
        [str(tmp_path / "tiny.csv")], tmp_path, seed=LARGEST_SEED, epochs=1, passes=1, members=2, console=console
    )
    days = made.metrics["threshold_86400s_symbol_days"]
    assert 0 < days < 556
    told = said.getvalue()
    assert (
        f"the threshold of 86400 s bars is set on {days:.0f} symbol-days, where the alert budget allows not one" in told
    )
    assert "used 1 of 1 symbols, with bars of 86400 s" in told

    def refuse(constant: str) -> None:
        raise AssertionError(f"metadata.json holds {constant}")

    text = (tmp_path / made.version / METADATA_FILE).read_text()
    assert json.loads(text, parse_constant=refuse)["metrics"] == dict(made.metrics)
    assert "not measured, for want of test bars or events: " in told
    assert ModelRegistry(tmp_path).load().metadata == made


def test_a_threshold_on_enough_days_is_not_warned_of() -> None:
    assert train.too_few_days(60, 555)
    assert not train.too_few_days(60, 556)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("missing.parquet", None, "does not exist"),
        ("empty.parquet", b"", "not a readable Parquet file"),
        ("wrong.csv", b"a,b\n1,2\n", "lacks"),
    ],
)
def test_bad_data_ends_in_a_sentence_that_names_the_file(
    tmp_path: Path, name: str, content: bytes | None, words: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    result = CliRunner().invoke(train.app, ["--data", str(path), "--output", str(tmp_path / "models")])
    assert result.exit_code == 2
    said = " ".join(result.output.split())
    assert name in said.replace(" ", "")
    assert words in said
    assert not (tmp_path / "models").exists()


def test_two_sources_of_one_bar_length_are_refused() -> None:
    result = CliRunner().invoke(train.app, ["--data", "bokeh", "--data", "bokeh"])
    assert result.exit_code == 2
    assert "same length" in " ".join(result.output.split())
