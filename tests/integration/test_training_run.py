"""A whole small training on the bundled tape: one seed, one artefact; bad input ends in one sentence."""

from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from services.domain.model import AUTOENCODER_FILE, CLASSIFIER_FILE
from services.scorer.registry import ModelRegistry
from services.training import train

pytest.importorskip("tensorflow")


@pytest.mark.slow
def test_two_trainings_with_one_seed_are_identical_and_can_be_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    made = [
        train.run(["bokeh"], tmp_path / name, seed=3, epochs=1, passes=1, members=2, console=Console(quiet=True))
        for name in ("one", "two")
    ]
    assert made[0].to_json() == made[1].to_json()
    for file in (AUTOENCODER_FILE, CLASSIFIER_FILE):
        one, two = ((tmp_path / name / made[0].version / file).read_bytes() for name in ("one", "two"))
        assert one == two
    assert ModelRegistry(tmp_path / "one").load().metadata == made[0]
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == [made[0].version]


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
    assert result.exit_code == 1
    said = " ".join(result.output.split())
    assert name in said.replace(" ", "")
    assert words in said
    assert not (tmp_path / "models").exists()


def test_two_sources_of_one_bar_length_are_refused() -> None:
    result = CliRunner().invoke(train.app, ["--data", "bokeh", "--data", "bokeh"])
    assert result.exit_code == 1
    assert "same length" in " ".join(result.output.split())
