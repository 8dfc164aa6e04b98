"""tapewatch evaluate: what it refuses to measure, what it refuses to merge, and what it must not claim."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from services.domain.model import CLASSIFIER_FILE
from services.training.evaluate import app
from tests.scorer_models import copy_version

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
pytest.importorskip("tensorflow")


def evaluate(model: Path, card: Path) -> Result:
    return CliRunner().invoke(app, ["--model", str(model), "--output", str(card), "--only", "old_task"])


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
    """The version says that it was trained on other bars, and the bundled tape has five symbols."""
    version, card = copy_version(tmp_path, "one", trained_on="600 symbols with 9 bars of 86400 s"), tmp_path / "card.md"
    result = evaluate(version, card)
    assert result.exit_code == 0, result.output
    text = " ".join(card.read_text().split())
    for said in (words(result), text):
        assert "are not the data that one was trained on" in said
        assert "Of 5 symbols with bars of 86400 s none is held out" in said
    assert "**Careful.**" in text
    assert not any(claim in text for claim in ("nothing was fitted on", "unseen tickers"))
    kept = tmp_path / "card" / "figures.json"
    figures = json.loads(kept.read_text())
    assert (figures["version"], figures["data"]) == (
        "one",
        ["5 symbols with 12,154 bars of 86400 s, 2000-03-01 to 2013-03-01"],
    )

    kept.write_text(json.dumps(figures | {"days": {"all": 0.01, "days": []}}))
    assert evaluate(version, card).exit_code == 0
    assert "Known real days" in card.read_text()
    kept.write_text(json.dumps(figures | {"data_sha256": "0"}))
    for model, foreign in ((version, "of one on 5 symbols"), (copy_version(tmp_path, "two"), "of one on 5 symbols")):
        before = kept.read_text()
        result = evaluate(model, card)
        assert (result.exit_code, foreign in words(result)) == (2, True), result.output
        assert "run the same command without --only" in words(result)
        assert kept.read_text() == before
    kept.write_text(json.dumps({"old_task": figures["old_task"]}))
    assert "holds figures of unknown origin" in words(evaluate(version, card))
