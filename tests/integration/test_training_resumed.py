"""One seed, one artefact: also of a training that was stopped, and goes on behind its last epoch."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from services.domain.model import AUTOENCODER_FILE, CLASSIFIER_FILE, ModelMetadata
from services.scorer.registry import ModelRegistry
from services.training import networks, train
from services.training.checkpoint import Checkpoint
from tests import classifier_members

pytest.importorskip("tensorflow")


class StoppedError(Exception):
    """The power went away."""


def run(output: Path) -> ModelMetadata:
    return train.run(["bokeh"], output, seed=3, epochs=2, passes=1, members=2, console=Console(quiet=True))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, ModelMetadata]]:
    """A training from beginning to end on the bundled tape: its folder, and what it says of itself."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOURCE_DATE_EPOCH", "1700000000")
        folder = tmp_path_factory.mktemp("whole")
        yield folder, run(folder)


def check_same(whole: tuple[Path, ModelMetadata], folder: Path, made: ModelMetadata) -> None:
    """Folder and metadata are a training's that made the same files, and nothing else is left in the folder."""
    expected, metadata = whole
    assert made.to_json() == metadata.to_json()
    for file in (AUTOENCODER_FILE, CLASSIFIER_FILE):
        assert (folder / made.version / file).read_bytes() == (expected / made.version / file).read_bytes()
    assert [path.name for path in folder.iterdir()] == [made.version]


@pytest.mark.slow
def test_two_trainings_with_one_seed_are_identical_and_can_be_served(
    whole: tuple[Path, ModelMetadata], tmp_path: Path
) -> None:
    made = run(tmp_path)
    check_same(whole, tmp_path, made)
    assert ModelRegistry(tmp_path).load().metadata == made


@pytest.mark.slow
def test_a_stopped_training_goes_on_and_makes_the_same_files(
    whole: tuple[Path, ModelMetadata], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted: list[str] = []
    save = Checkpoint.save

    def stop_behind(last: str) -> None:
        def noted(self: Checkpoint, name: str, state: Any) -> None:
            save(self, name, state)
            fitted.append(name)
            if name == last:
                raise StoppedError

        monkeypatch.setattr(Checkpoint, "save", noted)

    for last in ("autoencoder", "member_86400s_epoch_1"):
        stop_behind(last)
        with pytest.raises(StoppedError):
            run(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == [f".unfinished-{whole[1].training_fingerprint[:16]}"]
    stop_behind("")
    resumed = run(tmp_path)
    assert fitted == ["autoencoder", "member_86400s_epoch_1", "member_86400s_epoch_2"]
    check_same(whole, tmp_path, resumed)


def test_an_epoch_that_is_damaged_is_fitted_again_and_makes_the_same_networks(tmp_path: Path) -> None:
    rows = classifier_members.rows(5_000)
    seen: list[bool] = []

    def fitted(name: str) -> list[bytes]:
        def watch(_: int, losses: dict[str, float]) -> None:
            seen.append("loss" in losses)

        members = classifier_members.members(rows, epochs=3, name=name, folder=tmp_path, progress=watch)
        return [networks.export(member) for member in members]

    whole = [fitted("long"), fitted("short")]
    assert seen == [True] * 6
    newest = tmp_path / "short_epoch_3.npz"
    newest.write_bytes(newest.read_bytes()[:100])
    seen.clear()
    assert [fitted("long"), fitted("short")] == whole
    assert seen == [False] * 5 + [True]


def test_a_damaged_state_counts_as_none(tmp_path: Path) -> None:
    keras = networks.tensorflow().keras
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    other = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    checkpoint = Checkpoint(tmp_path)
    assert not checkpoint.restore("member_0", model.variables)
    checkpoint.save("member_0", model.variables)
    assert checkpoint.restore("member_0", model.variables)
    assert not checkpoint.restore("member_0", other.variables)
    (tmp_path / "member_0.npz").write_bytes((tmp_path / "member_0.npz").read_bytes()[:100])
    assert not checkpoint.restore("member_0", model.variables)
    (tmp_path / "member_0.npz").write_bytes(b"")
    assert not checkpoint.restore("member_0", model.variables)
