"""A pump model that is kept: the same bytes each time, described, refused when it does not fit, measured elsewhere."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from services.domain.errors import ModelUnusableError, TapewatchError
from services.domain.model import METADATA_FILE
from services.scorer.registry import ModelRegistry
from services.training.pumps import forward_test, recordings, train
from services.training.pumps.models import Feed
from services.training.pumps.recordings import CHUNK_SECONDS, EVENTS_FILE, FEATURES_FILE, PUBLISHED
from services.training.pumps.version import MODEL_FILE, PumpMetadata, read

needs_training = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("sklearn", "tensorflow")), reason="needs tapewatch[train]"
)

HOURS, JUDGED_FROM, ONSET = 73, 71, 72


def record(folder: Path, *, seed: int, events: int = 10) -> Path:
    """Made recordings in both files' columns: quiet trading, and a pump of two minutes at hour 72 of each."""
    folder.mkdir()
    rng = np.random.default_rng(seed)
    fine, chunks = [], []
    for number in range(events):
        begin = 1_560_000_000 // CHUNK_SECONDS * CHUNK_SECONDS + number * 10_000_000
        onset = begin + ONSET * 3_600
        seconds = begin + 5 * np.flatnonzero(rng.random(HOURS * 720) < 0.05)
        seconds = np.union1d(seconds, [begin, *range(onset, onset + 120, 5), begin + HOURS * 3_600 - 5])
        pumped = (seconds >= onset) & (seconds < onset + 120)
        close = 1e-5 * np.exp(np.cumsum(0.001 * rng.normal(size=len(seconds)) + 0.02 * pumped))
        trades = 1 + rng.poisson(1.0 + 20.0 * pumped)
        volume = rng.gamma(0.5, 0.05, len(seconds)) * np.where(pumped, 80.0, 1.0) + 1e-4
        event = f"COIN{number}_{seed}"
        fine.append(
            pa.table(
                {
                    "event": [event] * len(seconds),
                    "time": pa.array(seconds * 1_000_000, pa.timestamp("us")),
                    "open": close,
                    "high": close * 1.001,
                    "low": close * 0.999,
                    "close": close,
                    "volume_base": volume / close,
                    "volume_quote_btc": volume,
                    "buy_volume_quote_btc": volume * np.where(pumped, 0.9, rng.random(len(seconds))),
                    "trades": trades.astype(np.int32),
                    "buy_trades": (trades // 2 + pumped * trades // 3).astype(np.int32),
                    "rush_orders": rng.poisson(0.1 + 5.0 * pumped).astype(np.int32),
                    "onset_25s": pa.array([onset * 1_000_000] * len(seconds), pa.timestamp("us")),
                    "onset_5s": pa.array([onset * 1_000_000] * len(seconds), pa.timestamp("us")),
                }
            )
        )
        judged = np.unique(seconds[seconds >= begin + JUDGED_FROM * 3_600] // CHUNK_SECONDS * CHUNK_SECONDS)
        chunks.append(
            pa.table(
                {
                    "event": [event] * len(judged),
                    "date": pa.array(judged * 1_000_000, pa.timestamp("us")),
                    "gt": (judged == onset).astype(np.int64),
                    **{name: rng.normal(size=len(judged)) + 5.0 * (judged == onset) for name in PUBLISHED},
                }
            )
        )
    pq.write_table(pa.concat_tables(fine), folder / EVENTS_FILE)
    pq.write_table(pa.concat_tables(chunks), folder / FEATURES_FILE)
    return folder


@needs_training
def test_a_model_is_made_the_same_twice_and_finds_pumps_that_it_was_not_made_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    known = record(tmp_path / "known", seed=1)
    metadata = train.run(known, tmp_path / "first", Feed.QUOTES, seed=1)
    assert train.run(known, tmp_path / "second", Feed.QUOTES, seed=1) == metadata
    folder = tmp_path / "first" / metadata.version
    for name in (METADATA_FILE, MODEL_FILE):
        assert (folder / name).read_bytes() == (tmp_path / "second" / metadata.version / name).read_bytes()
    kept, _ = read(folder)
    assert kept == metadata
    words = " ".join(column.formula for column in kept.columns)
    assert "trades" in words
    assert "bought" in words
    assert not any(lacking in words for lacking in ("rush", "trades that takers bought in"))
    assert all(column.formula and column.low <= column.median <= column.high for column in kept.columns)
    assert len({column.name for column in kept.columns}) == len(kept.columns)

    found = forward_test.measure(record(tmp_path / "later", seed=2), folder)
    assert found.average_precision > 0.8
    assert found.detected_within_120_s > 0.8
    with pytest.raises(ModelUnusableError, match="was made of the recordings"):
        forward_test.measure(known, folder)
    with pytest.raises(ModelUnusableError, match="lacks"):
        ModelRegistry(tmp_path / "first").load(metadata.version)

    document = json.loads((folder / METADATA_FILE).read_text())
    document["columns"][0]["name"] = "another"
    (folder / METADATA_FILE).write_text(json.dumps(document))
    with pytest.raises(ModelUnusableError, match="other columns"):
        forward_test.measure(tmp_path / "later", folder)
    (folder / MODEL_FILE).write_bytes(b"damaged")
    with pytest.raises(ModelUnusableError, match="SHA-256"):
        read(folder)


@needs_training
def test_without_trades_no_column_needs_them(tmp_path: Path) -> None:
    known = record(tmp_path / "known", seed=3)
    result = CliRunner().invoke(
        train.app, ["--pumps", str(known), "--output", str(tmp_path / "models"), "--feed", "bars"]
    )
    assert result.exit_code == 0, result.output
    (folder,) = (tmp_path / "models").iterdir()
    metadata, _ = read(folder)
    assert metadata.feed == "bars"
    words = " ".join(column.formula for column in metadata.columns)
    assert "traded volume" in words
    assert not any(word in words for word in ("/ trades", "rush", "bought", "takers"))


@needs_training
def test_recordings_that_cannot_be_used_are_named_and_nothing_is_written(tmp_path: Path) -> None:
    arguments = ["--pumps", str(tmp_path), "--output", str(tmp_path / "models")]
    result = CliRunner().invoke(train.app, arguments)
    assert result.exit_code == 2
    assert EVENTS_FILE in result.output
    (tmp_path / EVENTS_FILE).write_bytes(b"")
    (tmp_path / FEATURES_FILE).write_bytes(b"")
    assert "not readable as Parquet" in CliRunner().invoke(train.app, arguments).output
    pq.write_table(pa.table({"gt": [1]}), tmp_path / FEATURES_FILE)
    assert "lacks the columns" in CliRunner().invoke(train.app, arguments).output
    assert not (tmp_path / "models").exists()
    with pytest.raises(TapewatchError, match="cannot be read"):
        recordings.digest(tmp_path / "models")


def test_metadata_that_is_not_a_pump_models_is_refused_in_words(tmp_path: Path) -> None:
    for text, reason in (("{", "not JSON"), ("{}", "lacks 'columns'"), ("[]", "not a pump model's")):
        (tmp_path / METADATA_FILE).write_text(text)
        with pytest.raises(ValueError, match=reason):
            PumpMetadata.from_json(text)
        with pytest.raises(ModelUnusableError, match=reason):
            read(tmp_path)
