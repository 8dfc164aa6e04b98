"""A training that is stopped goes on behind its last epoch, and makes what it would have made."""

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from services.domain.model import AUTOENCODER_FILE, CLASSIFIER_FILE, ModelMetadata
from services.training import networks, train
from services.training.checkpoint import Checkpoint

pytest.importorskip("tensorflow")


class StoppedError(Exception):
    """The power went away."""


def run(output: Path) -> ModelMetadata:
    return train.run(["bokeh"], output, seed=3, epochs=2, passes=1, members=2, console=Console(quiet=True))


@pytest.mark.slow
def test_a_stopped_training_goes_on_and_makes_the_same_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    whole = run(tmp_path / "whole")
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
            run(tmp_path / "stopped")
        assert [path.name for path in (tmp_path / "stopped").iterdir()] == [
            f".unfinished-{whole.training_fingerprint[:16]}"
        ]
    stop_behind("")
    resumed = run(tmp_path / "stopped")
    assert fitted == ["autoencoder", "member_86400s_epoch_1", "member_86400s_epoch_2"]
    assert resumed.to_json() == whole.to_json()
    for file in (AUTOENCODER_FILE, CLASSIFIER_FILE):
        one, other = ((tmp_path / name / whole.version / file).read_bytes() for name in ("whole", "stopped"))
        assert one == other
    assert [path.name for path in (tmp_path / "stopped").iterdir()] == [whole.version]


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
