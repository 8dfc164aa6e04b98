"""A training that is stopped goes on behind its last fitted network, and makes what it would have made."""

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
    return train.run(["bokeh"], output, seed=3, epochs=1, passes=1, members=2, console=Console(quiet=True))


@pytest.mark.slow
def test_a_stopped_training_goes_on_and_makes_the_same_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    whole = run(tmp_path / "whole")
    fitted: list[str] = []
    fit, save = networks._fit_classifiers, Checkpoint.save

    def stop(*_: Any) -> None:
        raise StoppedError

    def noted(self: Checkpoint, name: str, model: Any) -> None:
        save(self, name, model)
        fitted.append(name)

    monkeypatch.setattr(networks, "_fit_classifiers", stop)
    monkeypatch.setattr(Checkpoint, "save", noted)
    with pytest.raises(StoppedError):
        run(tmp_path / "stopped")
    assert fitted == ["autoencoder"]
    assert [path.name for path in (tmp_path / "stopped").iterdir()] == [
        f".unfinished-{whole.training_fingerprint[:16]}"
    ]

    monkeypatch.setattr(networks, "_fit_classifiers", fit)
    resumed = run(tmp_path / "stopped")
    assert fitted == ["autoencoder", "member_86400s"]
    assert resumed.to_json() == whole.to_json()
    for file in (AUTOENCODER_FILE, CLASSIFIER_FILE):
        one, other = ((tmp_path / name / whole.version / file).read_bytes() for name in ("whole", "stopped"))
        assert one == other
    assert [path.name for path in (tmp_path / "stopped").iterdir()] == [whole.version]


def test_damaged_weights_count_as_none(tmp_path: Path) -> None:
    keras = networks.tensorflow().keras
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    checkpoint = Checkpoint(tmp_path)
    assert not checkpoint.restore("member_0", model)
    checkpoint.save("member_0", model)
    assert checkpoint.restore("member_0", model)
    (tmp_path / "member_0.npz").write_bytes((tmp_path / "member_0.npz").read_bytes()[:100])
    assert not checkpoint.restore("member_0", model)
    (tmp_path / "member_0.npz").write_bytes(b"")
    assert not checkpoint.restore("member_0", model)
