"""Fitted tree ensembles of scikit-learn as TFLite float32 files.

All trees are walked at once, level by level: each tree's node is a row of one table, and a step looks up the node's
column and threshold and goes on to its left child or the one after it. Leaves lead to themselves, so after as many
steps as a tree has levels it is at its leaf, and is walked no further. This is the tree traversal strategy of Nakandala
et al. 2020 (Hummingbird, OSDI), whose other one, matrix products over all nodes, is for shallow trees.

Exact: scikit-learn compares float32 values with float64 thresholds, x <= t. The same holds of the largest float32 that
is no larger than t, so every row ends in the same leaf; only the sums over trees are rounded to float32. A NaN takes
the side that the node keeps for missing values, as in scikit-learn; an infinity is compared as the number that it is,
also in forests, where scikit-learn refuses it.
"""

import contextlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.training.networks import tensorflow

Combine = Callable[[Any], Any]
"""Makes the file's outputs, (n, outputs), of the ensembles' values, (n, ensembles), both tensors."""


@dataclass(frozen=True, slots=True)
class TreeTable:
    """One ensemble's trees as a table of N nodes; its value of a row is `base` + `scale` x the sum of the T leaves.

    `column` int32 (N,), the input that a node compares; `threshold` float32 (N,), NaN where nothing is larger and at
    a leaf; `left` int32 (N,), the left child, before the right one, or a leaf itself; `missing_right` bool (N,), where
    a NaN goes; `leaf` float32 (N,), a leaf's value; `roots` int32 (T,); `levels` int64 (T,), each tree's deepest
    leaf's distance from its root.
    """

    column: NDArray[np.int32]
    threshold: NDArray[np.float32]
    left: NDArray[np.int32]
    missing_right: NDArray[np.bool_]
    leaf: NDArray[np.float32]
    roots: NDArray[np.int32]
    levels: NDArray[np.int64]
    scale: float = 1.0
    base: float = 0.0

    @classmethod
    def of_forest(cls, model: Any, columns: NDArray[np.int64] | None = None) -> "TreeTable":
        """The share of the second class that a forest of two classes gives: column 1 of its `predict_proba`.

        Args:
            model: A fitted ExtraTreesClassifier or RandomForestClassifier.
            columns: int64 (F,), where in the file's input each of the model's F features lies. None: as in the model.
        """
        if len(model.classes_) != 2:
            raise ValueError(f"the forest tells {len(model.classes_)} classes apart, not two")
        trees = []
        for estimator in model.estimators_:
            tree = estimator.tree_
            shares = tree.value[:, 0, :]
            trees.append(
                _Tree(
                    tree.feature,
                    tree.threshold,
                    tree.children_left,
                    tree.children_right,
                    tree.missing_go_to_left.astype(bool),
                    shares[:, 1] / shares.sum(axis=1),
                )
            )
        return cls._of(trees, columns, scale=1.0 / len(trees))

    @classmethod
    def of_boosting(cls, model: Any, columns: NDArray[np.int64] | None = None) -> "TreeTable":
        """The log-odds that a boosted model of two classes gives: its `decision_function`.

        Args:
            model: A fitted HistGradientBoostingClassifier without categorical features.
            columns: int64 (F,), where in the file's input each of the model's F features lies. None: as in the model.
        """
        if len(model.classes_) != 2:
            raise ValueError(f"the model tells {len(model.classes_)} classes apart, not two")
        trees = []
        for (predictor,) in model._predictors:
            nodes = predictor.nodes
            if nodes["is_categorical"].any():
                raise ValueError("the model splits by categories")
            inner = nodes["is_leaf"] == 0
            trees.append(
                _Tree(
                    nodes["feature_idx"],
                    nodes["num_threshold"],
                    np.where(inner, nodes["left"].astype(np.int64), -1),
                    np.where(inner, nodes["right"].astype(np.int64), -1),
                    nodes["missing_go_to_left"].astype(bool),
                    nodes["value"],
                )
            )
        return cls._of(trees, columns, base=float(np.ravel(model._baseline_prediction)[0]))

    @classmethod
    def _of(
        cls, trees: Sequence["_Tree"], columns: NDArray[np.int64] | None, *, scale: float = 1.0, base: float = 0.0
    ) -> "TreeTable":
        placed = [tree.siblings_together() for tree in trees]
        starts = np.cumsum([0, *(len(tree.leaf) for tree, _ in placed)])
        inner = np.concatenate([tree.left >= 0 for tree, _ in placed])
        column = np.where(inner, np.concatenate([tree.column for tree, _ in placed]), 0)
        left = np.concatenate([tree.left + start for (tree, _), start in zip(placed, starts[:-1], strict=True)])
        return cls(
            column=(column if columns is None else columns[column]).astype(np.int32),
            threshold=np.where(
                inner, _below(np.concatenate([tree.threshold for tree, _ in placed])), np.float32(np.nan)
            ),
            left=np.where(inner, left, np.arange(len(inner))).astype(np.int32),
            missing_right=inner & ~np.concatenate([tree.missing_left for tree, _ in placed]),
            leaf=np.concatenate([tree.leaf for tree, _ in placed]).astype(np.float32),
            roots=starts[:-1].astype(np.int32),
            levels=np.array([levels for _, levels in placed]),
            scale=scale,
            base=base,
        )


@dataclass(frozen=True, slots=True)
class _Tree:
    """One tree as scikit-learn keeps it, arrays of its nodes; a leaf's children are negative."""

    column: NDArray[Any]
    threshold: NDArray[Any]
    left: NDArray[Any]
    right: NDArray[Any]
    missing_left: NDArray[np.bool_]
    leaf: NDArray[Any]

    def siblings_together(self) -> tuple["_Tree", int]:
        """The same tree level by level, each right child behind its left one, and the number of levels below the root.

        One table of left children then says where both are.
        """
        order, level, levels = [np.zeros(1, np.int64)], np.zeros(1, np.int64), 0
        while len(parents := level[self.left[level] >= 0]):
            level = np.stack([self.left[parents], self.right[parents]], axis=1).ravel().astype(np.int64)
            order.append(level)
            levels += 1
        old = np.concatenate(order)
        new = np.empty(len(self.leaf), np.int64)
        new[old] = np.arange(len(old))
        left, right = (np.where(child[old] >= 0, new[child[old]], -1) for child in (self.left, self.right))
        tree = _Tree(self.column[old], self.threshold[old], left, right, self.missing_left[old], self.leaf[old])
        return tree, levels


def _below(threshold: NDArray[np.float64]) -> NDArray[np.float32]:
    """The largest float32 that is no larger than each float64; NaN, which nothing exceeds, for infinity.

    TFLite's converter writes an infinite constant as the largest finite number, which infinity exceeds.
    """
    with np.errstate(over="ignore"):
        near = threshold.astype(np.float32)
    found = np.where(near > threshold, np.nextafter(near, np.float32(-np.inf)), near)
    return np.where(np.isposinf(threshold), np.float32(np.nan), found).astype(np.float32)


def export(ensembles: Sequence[TreeTable], inputs: int, combine: Combine = lambda values: values) -> bytes:
    """A TFLite file, float32, from rows of (n, inputs) to what `combine` makes of the ensembles' values.

    Args:
        ensembles: Walked together, so that many small ones cost what one large one does.
        inputs: Width of a row.
        combine: Makes the outputs of the values.

    Raises: NotConfiguredError when TensorFlow is not installed.
    """
    tf = tensorflow()
    starts = np.cumsum([0, *(len(table.leaf) for table in ensembles)])
    column = tf.constant(np.concatenate([table.column for table in ensembles]))
    threshold = tf.constant(np.concatenate([table.threshold for table in ensembles]))
    left = tf.constant(np.concatenate([t.left + s for t, s in zip(ensembles, starts[:-1], strict=True)]), tf.int32)
    leaf = tf.constant(np.concatenate([table.leaf for table in ensembles]))
    roots = np.concatenate([t.roots + s for t, s in zip(ensembles, starts[:-1], strict=True)])
    levels = np.concatenate([table.levels for table in ensembles])
    deepest_first = np.argsort(-levels, kind="stable")
    first = tf.constant(roots[deepest_first], tf.int32)
    missing_right = np.concatenate([table.missing_right for table in ensembles])
    # Which ensemble a tree is of, as a matrix: the sums over trees are one product.
    share = np.zeros((len(roots), len(ensembles)), np.float32)
    share[np.arange(len(roots)), np.repeat(np.arange(len(ensembles)), [len(t.roots) for t in ensembles])] = 1.0
    share = (share * np.array([table.scale for table in ensembles], np.float32))[deepest_first]
    base = np.array([table.base for table in ensembles], np.float32)

    def outputs(features: Any) -> Any:
        node, at_leaf, walked = tf.zeros_like(features[:, :1], tf.int32) + first, [], len(roots)
        for level in range(levels.max()):
            deeper = int((levels > level).sum())
            if deeper < walked:
                at_leaf.append(node[:, deeper:])
                node, walked = node[:, :deeper], deeper
            value = tf.gather(features, tf.gather(column, node), batch_dims=1)
            right = value > tf.gather(threshold, node)
            if missing_right.any():
                # A NaN is larger than nothing, so it is on the left so far. (The converter takes not <= to mean >.)
                right |= tf.gather(missing_right, node) & (value != value)
            node = tf.gather(left, node) + tf.cast(right, tf.int32)
        leaves = tf.concat([node, *reversed(at_leaf)], axis=1)
        return combine(tf.matmul(tf.gather(leaf, leaves), share) + base)

    function = tf.function(outputs, input_signature=[tf.TensorSpec([None, inputs], tf.float32, name="features")])
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function.get_concrete_function()], function)
    with contextlib.redirect_stdout(io.StringIO()):  # the converter prints its captures
        content: bytes = converter.convert()
    return content
