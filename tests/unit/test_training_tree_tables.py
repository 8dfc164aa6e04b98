"""A tree ensemble's TFLite file says what scikit-learn says: row by row, at thresholds, of NaN and of infinities."""

import importlib
import importlib.util
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from services.training.networks import run_tflite
from services.training.tree_tables import TreeTable, export

pytestmark = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("sklearn", "tensorflow")), reason="needs tapewatch[train]"
)

INPUTS = 7
Rows = NDArray[np.float32]


def shown(rows: int = 3_000, seed: int = 1) -> tuple[Rows, NDArray[np.bool_]]:
    """Rows of mixed scales, with ties, and a label that takes several splits to find."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(rows, INPUTS)) * 10.0 ** rng.integers(-6, 6, INPUTS)
    values[:, 3] = np.round(values[:, 3] / np.abs(values[:, 3]).max() * 4)
    label = (values[:, 0] * values[:, 1] > 0) ^ (values[:, 3] > 0) ^ (rng.random(rows) < 0.1)
    return values.astype(np.float32), label


def forest(kind: str, values: Rows, label: NDArray[Any], **options: Any) -> Any:
    made = getattr(importlib.import_module("sklearn.ensemble"), kind)
    return made(20, random_state=1, n_jobs=1, **options).fit(values, label)


def boosting(values: Rows, label: NDArray[Any], **options: Any) -> Any:
    made = importlib.import_module("sklearn.ensemble").HistGradientBoostingClassifier
    return made(max_iter=30, random_state=1, **options).fit(values, label)


def edges(model: Any, values: Rows) -> Rows:
    """Rows whose every value is the float32 at, just below or just above a threshold of the model."""
    rng = np.random.default_rng(3)
    found = np.empty((4_000, INPUTS), np.float32)
    for column in range(INPUTS):
        at = np.concatenate(
            [
                e.tree_.threshold[e.tree_.feature == column]
                for e in model.estimators_
                if (e.tree_.feature == column).any()
            ]
        )
        near = at.astype(np.float32)
        near = np.concatenate([near, np.nextafter(near, np.float32(np.inf)), np.nextafter(near, np.float32(-np.inf))])
        found[:, column] = rng.choice(near, len(found))
    return np.concatenate([found, np.repeat(values[:1], 10, axis=0), np.zeros((5, INPUTS), np.float32)])


@pytest.mark.parametrize("kind", ["ExtraTreesClassifier", "RandomForestClassifier"])
def test_a_forests_share_is_that_of_scikit_learn_also_at_its_thresholds(kind: str) -> None:
    values, label = shown()
    model = forest(kind, values, label, min_samples_leaf=2)
    content = export([TreeTable.of_forest(model)], INPUTS)
    unseen = np.concatenate([shown(2_000, seed=2)[0], edges(model, values)])
    found = run_tflite(content, unseen)
    assert found.shape == (len(unseen), 1)
    np.testing.assert_allclose(found[:, 0], model.predict_proba(unseen)[:, 1], rtol=0, atol=3e-7)
    assert np.ptp(found) > 0.5


def test_a_threshold_between_two_float32_values_is_rounded_towards_the_left_side() -> None:
    # 0.1 is no float32: the nearest one is larger, and must go right; the one before it must go left.
    values = np.array([[0.0], [0.0], [1.0], [1.0]], np.float32)
    model = forest("RandomForestClassifier", values, np.array([False, False, True, True]), bootstrap=False)
    above = np.float32(0.1)
    for estimator in model.estimators_:
        estimator.tree_.threshold[0] = 0.1
    assert float(above) > 0.1
    rows = np.array([[np.nextafter(above, np.float32(0.0))], [above]], np.float32)
    assert model.predict_proba(rows)[:, 1].tolist() == [0.0, 1.0]
    assert run_tflite(export([TreeTable.of_forest(model)], 1), rows)[:, 0].tolist() == pytest.approx([0.0, 1.0])


@pytest.mark.parametrize("missing_in_training", [False, True])
def test_a_nan_goes_where_scikit_learn_sends_it(missing_in_training: bool) -> None:
    values, label = shown()
    if missing_in_training:
        values[np.random.default_rng(5).random(values.shape) < 0.05] = np.nan
    unseen, _ = shown(2_000, seed=2)
    unseen[np.random.default_rng(6).random(unseen.shape) < 0.2] = np.nan
    model = forest("ExtraTreesClassifier", values, label)
    found = run_tflite(export([TreeTable.of_forest(model)], INPUTS), unseen)
    np.testing.assert_allclose(found[:, 0], model.predict_proba(unseen)[:, 1], rtol=0, atol=3e-7)
    boosted = boosting(values, label)
    found = run_tflite(export([TreeTable.of_boosting(boosted)], INPUTS), unseen)
    np.testing.assert_allclose(found[:, 0], boosted.decision_function(unseen), rtol=0, atol=5e-6)


def test_boosted_trees_log_odds_are_those_of_scikit_learn_of_infinities_too() -> None:
    values, label = shown()
    values[::20, 0] = np.nan  # a split of what is missing from the rest has an infinite threshold
    label[::20] = True
    model = boosting(values, label)
    assert any(np.isposinf(tree[0].nodes["num_threshold"]).any() for tree in model._predictors)
    unseen, _ = shown(2_000, seed=2)
    unseen[::5, 0] = np.nan
    unseen[::7, 0], unseen[::11, 3] = np.inf, -np.inf
    found = run_tflite(export([TreeTable.of_boosting(model)], INPUTS), unseen)
    np.testing.assert_allclose(found[:, 0], model.decision_function(unseen), rtol=0, atol=5e-6)


def test_a_forest_compares_an_infinity_as_the_largest_number() -> None:
    values, label = shown()
    model = forest("ExtraTreesClassifier", values, label)
    largest = values[:50].copy()
    largest[:, 0] = np.finfo(np.float32).max
    infinite = largest.copy()
    infinite[:, 0] = np.inf
    content = export([TreeTable.of_forest(model)], INPUTS)
    assert np.array_equal(run_tflite(content, infinite), run_tflite(content, largest))
    np.testing.assert_allclose(run_tflite(content, largest)[:, 0], model.predict_proba(largest)[:, 1], atol=3e-7)


def test_several_ensembles_of_other_columns_make_one_file_that_is_the_same_each_time() -> None:
    values, label = shown()
    first, second = np.array([6, 0, 3]), np.array([1, 0, 3, 5])
    model = forest("ExtraTreesClassifier", values[:, first], label)
    boosted = boosting(values[:, second], label)

    def made() -> bytes:
        tables = [TreeTable.of_forest(model, first), TreeTable.of_boosting(boosted, second)]
        return export(tables, INPUTS, lambda values: values * 2.0)

    content = made()
    found = run_tflite(content, values)
    np.testing.assert_allclose(found[:, 0], 2.0 * model.predict_proba(values[:, first])[:, 1], atol=6e-7)
    np.testing.assert_allclose(found[:, 1], 2.0 * boosted.decision_function(values[:, second]), atol=1e-5)
    assert content == made()


def test_a_tree_that_is_one_leaf_and_a_batch_of_one() -> None:
    values, label = shown(50)
    model = forest("ExtraTreesClassifier", values, label, min_samples_leaf=50)
    assert all(estimator.tree_.node_count == 1 for estimator in model.estimators_)
    found = run_tflite(export([TreeTable.of_forest(model)], INPUTS), values[:1])
    assert found[0, 0] == pytest.approx(label.mean(), abs=1e-6)


def test_what_is_no_ensemble_of_two_classes_is_refused() -> None:
    values, _ = shown(300)
    three = np.arange(300) % 3
    with pytest.raises(ValueError, match="3 classes"):
        TreeTable.of_forest(forest("ExtraTreesClassifier", values, three))
    with pytest.raises(ValueError, match="3 classes"):
        TreeTable.of_boosting(boosting(values, three))
    values[:, 3] = np.abs(np.round(values[:, 3]))
    with pytest.raises(ValueError, match="categories"):
        TreeTable.of_boosting(boosting(values, values[:, 3] % 2 == 0, categorical_features=[3]))
