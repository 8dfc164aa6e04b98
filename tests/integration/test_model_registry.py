"""The registry and the LiteRT adapter with real files: refusals, partial models, threads, batches."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from services.archive import bokeh
from services.domain.errors import ModelUnusableError, NotFoundError
from services.domain.features import bar_rows, bars_windows, compute
from services.domain.model import AUTOENCODER_FILE, CLASSIFIER_FILE, METADATA_FILE, ModelMetadata
from services.domain.typology import Typology
from services.scorer.registry import PACKAGED_MODELS, ModelRegistry
from tests.scorer_models import copy_version


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A registry with a copy of the newest shipped version."""
    version = ModelRegistry().names()[0]
    shutil.copytree(PACKAGED_MODELS / version, tmp_path / version)
    return tmp_path


@pytest.fixture(scope="module")
def features() -> NDArray[np.float32]:
    return np.concatenate([compute(windows) for windows in bars_windows(bar_rows(bokeh.read()[0]))])


def only(folder: Path) -> Path:
    (version,) = folder.iterdir()
    return version


def edit(folder: Path, **changes: object) -> None:
    path = only(folder) / METADATA_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_metadata_survives_its_file(folder: Path) -> None:
    text = (only(folder) / METADATA_FILE).read_text()
    assert ModelMetadata.from_json(text).to_json() == text


@pytest.mark.parametrize("name", [AUTOENCODER_FILE, CLASSIFIER_FILE])
def test_a_damaged_file_is_refused(folder: Path, name: str) -> None:
    path = only(folder) / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ModelUnusableError, match="is damaged"):
        ModelRegistry(folder).load()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"feature_hash": "0" * 64}, "was trained on other features"),
        ({"window_quotes": 99}, "was trained on other features"),
        ({"threshold": 1.5}, "threshold 1.5"),
        ({"min_history_quotes": 0}, "min_history_quotes 0"),
        ({"version": "another"}, "not of its folder's"),
        ({"calibration": {}}, "lacks 'error_knots'"),
        ({"checksums": {}}, "has no checksum"),
        ({"train_time": 5}, "wrong type"),
    ],
)
def test_metadata_that_does_not_fit_is_refused_with_the_reason(
    folder: Path, changes: dict[str, object], words: str
) -> None:
    edit(folder, **changes)
    with pytest.raises(ModelUnusableError, match=words):
        ModelRegistry(folder).load()


def test_metadata_that_is_not_json_is_refused(folder: Path) -> None:
    (only(folder) / METADATA_FILE).write_text("{")
    (listed,) = ModelRegistry(folder).versions()
    assert (listed.metadata, "is not JSON" in listed.problem) == (None, True)
    with pytest.raises(ModelUnusableError, match="is not JSON"):
        ModelRegistry(folder).load()


def test_a_file_that_is_no_model_is_refused_even_with_its_checksum(folder: Path) -> None:
    import hashlib

    content = b"not a model at all, but long enough to look at"
    (only(folder) / CLASSIFIER_FILE).write_bytes(content)
    checksums = json.loads((only(folder) / METADATA_FILE).read_text())["checksums"]
    edit(folder, checksums=checksums | {CLASSIFIER_FILE: hashlib.sha256(content).hexdigest()})
    with pytest.raises(ModelUnusableError, match="is not a usable TFLite model"):
        ModelRegistry(folder).load()


def test_what_cannot_judge_is_listed_with_the_reason_and_never_taken_as_the_newest(tmp_path: Path) -> None:
    copy_version(tmp_path, "good", train_time="2027-01-01T00:00:00Z")
    copy_version(tmp_path, "features", feature_hash="0" * 64, train_time="2028-01-01T00:00:00Z")
    damaged = copy_version(tmp_path, "damaged", train_time="2029-01-01T00:00:00Z") / CLASSIFIER_FILE
    damaged.write_bytes(damaged.read_bytes() + b"?")
    (copy_version(tmp_path, "unreadable") / METADATA_FILE).write_text("{")
    registry = ModelRegistry(tmp_path)
    found = {each.version: each.problem for each in registry.versions()}
    assert list(found) == ["damaged", "features", "good", "unreadable"]
    for version, words in (("damaged", "is damaged"), ("features", "other features"), ("unreadable", "is not JSON")):
        assert words in found[version]
    assert found["good"] == ""
    assert registry.load().metadata.version == "good"
    shutil.rmtree(tmp_path / "good")
    with pytest.raises(ModelUnusableError, match="is damaged"):
        registry.load()


def test_nothing_to_serve(tmp_path: Path) -> None:
    with pytest.raises(ModelUnusableError, match="holds no model"):
        ModelRegistry(tmp_path).load()
    with pytest.raises(NotFoundError):
        ModelRegistry(tmp_path).load("tw-none")
    with pytest.raises(NotFoundError):
        ModelRegistry().load("../models")


@pytest.mark.parametrize(
    ("missing", "present"), [(AUTOENCODER_FILE, CLASSIFIER_FILE), (CLASSIFIER_FILE, AUTOENCODER_FILE)]
)
def test_one_missing_file_leaves_a_partial_model(
    folder: Path, features: NDArray[np.float32], missing: str, present: str
) -> None:
    whole = ModelRegistry(folder).load()
    (only(folder) / missing).unlink()
    model = ModelRegistry(folder).load()
    assert model.partial
    assert not whole.partial
    judged = model.judge(features[:100])
    assert (judged.autoencoder_percentile is None) == (missing == AUTOENCODER_FILE)
    assert (judged.classifier_probability is None) == (missing == CLASSIFIER_FILE)
    assert ((judged.ensemble >= 0) & (judged.ensemble <= 1)).all()
    assert model.explain(features[70:71])[0]
    if missing == CLASSIFIER_FILE:
        assert set(judged.typology.tolist()) == {int(Typology.UNSPECIFIED)}
    (only(folder) / present).unlink()
    with pytest.raises(ModelUnusableError, match="neither"):
        ModelRegistry(folder).load()


@pytest.mark.parametrize("size", [1, 2, 8, 9, 31, 128, 129, 513, 1_100])
def test_a_batch_gives_each_row_the_score_it_has_alone(features: NDArray[np.float32], size: int) -> None:
    model = ModelRegistry().load()
    together = model.judge(features[:size])
    assert len(together) == size
    for i in {0, size // 2, size - 1}:
        assert abs(model.judge(features[i : i + 1]).ensemble[0] - together.ensemble[i]) < 1e-6


def test_an_empty_batch(features: NDArray[np.float32]) -> None:
    assert len(ModelRegistry().load().judge(features[:0])) == 0


def test_threads_at_once_give_the_scores_of_one(features: NDArray[np.float32]) -> None:
    model = ModelRegistry().load()
    parts = [features[i : i + 128] for i in range(0, len(features), 128)] * 8
    alone = [model.judge(part).ensemble for part in parts]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda part: model.judge(part).ensemble, parts))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one, other)
