"""tapewatch evaluate: what it refuses to measure, what it refuses to merge, and what it must not claim."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from services.domain.errors import NotConfiguredError
from services.domain.model import CLASSIFIER_FILE
from services.training.evaluate import _others, app
from tests.daily_bars import series
from tests.scorer_models import copy_version

pytest.importorskip("matplotlib")
pytest.importorskip("tensorflow")


def evaluate(model: Path, card: Path, data: Path | str = "bokeh") -> Result:
    options = ["--data", str(data), "--model", str(model), "--output", str(card), "--only", "days"]
    return CliRunner().invoke(app, options)


def words(result: Result) -> str:
    return " ".join((result.output + result.stderr).split())


def test_a_version_that_a_scorer_refuses_is_not_measured(tmp_path: Path) -> None:
    damaged = copy_version(tmp_path, "damaged")
    content = bytearray((damaged / CLASSIFIER_FILE).read_bytes())
    content[len(content) // 2] ^= 1
    (damaged / CLASSIFIER_FILE).write_bytes(content)
    other = copy_version(tmp_path, "other", feature_hash="0" * 64)
    half = copy_version(tmp_path, "half")
    (half / CLASSIFIER_FILE).unlink()
    for folder, sentence in ((damaged, "is damaged"), (other, "trained on other features"), (half, "lacks its auto")):
        result = evaluate(folder, tmp_path / "card.md")
        assert (result.exit_code, sentence in words(result)) == (2, True), result.output
    assert not (tmp_path / "card.md").exists()


def test_figures_on_other_data_claim_nothing_and_are_merged_with_their_own_only(tmp_path: Path) -> None:
    """The version says that it was trained on other bars, and these are of two symbols; S6 is on the test side."""
    data = tmp_path / "daily.csv"
    lines = ["symbol,timestamp,open,high,low,close,volume,interval_seconds"]
    for bars in (series(700, symbol="S5"), series(700, symbol="S6")):
        columns = (bars.event_time, bars.open, bars.high, bars.low, bars.close, bars.volume)
        lines += [
            f"{bars.symbol},{t}Z,{o},{h},{low},{c},{v},86400" for t, o, h, low, c, v in zip(*columns, strict=True)
        ]
    data.write_text("\n".join(lines) + "\n")
    version, card = copy_version(tmp_path, "one", trained_on="600 symbols with 9 bars of 86400 s"), tmp_path / "card.md"
    result = evaluate(version, card, data)
    assert result.exit_code == 0, result.output
    text = " ".join(card.read_text().split())
    for said in (words(result), text):
        assert "are not the data that one was trained on" in said
        assert "Of 2 symbols with bars of 86400 s none is held out" in said
    assert "**Careful.**" in text
    assert not any(claim in text for claim in ("nothing was fitted on", "unseen tickers"))
    kept = tmp_path / "card" / "figures.json"
    figures = json.loads(kept.read_text())
    assert (figures["version"], figures["data"]) == (
        "one",
        ["2 symbols with 1,400 bars of 86400 s, 2005-01-03 to 2006-12-03"],
    )

    kept.write_text(json.dumps(figures | {"equities": [], "days": {}}))
    assert evaluate(version, card, data).exit_code == 0
    assert json.loads(kept.read_text()) == figures | {"equities": []}
    kept.write_text(json.dumps(figures | {"data_sha256": "0"}))
    for model, foreign in ((version, "of one on 2 symbols"), (copy_version(tmp_path, "two"), "of one on 2 symbols")):
        before = kept.read_text()
        result = evaluate(model, card, data)
        assert (result.exit_code, foreign in words(result)) == (2, True), result.output
        assert "measure all again: the same command without --only" in words(result)
        assert kept.read_text() == before
    kept.write_text(json.dumps({"days": figures["days"]}))
    assert "holds figures of unknown origin" in words(evaluate(version, card, data))


def test_days_are_left_out_where_no_ticker_is_on_the_test_side(tmp_path: Path) -> None:
    """The bundled tape's five are all on the training side."""
    result = evaluate(copy_version(tmp_path, "one"), tmp_path / "card.md")
    assert (result.exit_code, "no known days: no ticker" in words(result)) == (0, True), result.output
    assert "Known real days" not in (tmp_path / "card.md").read_text()


def test_figures_of_the_pumps_go_with_those_of_the_same_version_on_any_bars(tmp_path: Path) -> None:
    kept = tmp_path / "figures.json"
    kept.write_text(json.dumps({"version": "one", "data": ["600 symbols"], "data_sha256": "a", "days": {}}))
    stamp = {"version": "one", "data": ["5 symbols"], "data_sha256": "b"}
    assert "days" in _others(kept, stamp, ["pumps"])
    for others, only in ((stamp, ["pumps", "days"]), (stamp | {"version": "two"}, ["pumps"])):
        with pytest.raises(NotConfiguredError, match="holds figures of one on 600 symbols"):
            _others(kept, others, only)
    for damaged in ("{", "[1]", "null"):
        kept.write_text(damaged)
        with pytest.raises(NotConfiguredError, match="cannot be read"):
            _others(kept, stamp, ["pumps"])
