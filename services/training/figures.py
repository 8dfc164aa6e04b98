"""The figures that models are compared by."""

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from services.domain.typology import OBSERVABLE
from services.training.dataset import Rows
from services.training.injection import MANIPULATED, NORMAL, STRENGTHS

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

STRONG = 4.0
"""Strength from which on the required figures count."""


def average_precision(label: Mask, score: Array) -> float:
    """Area under the precision-recall curve as the mean precision at each hit; ties count against the model."""
    order = np.lexsort((label, -score))
    hits = label[order]
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    return float(precision[hits].mean()) if hits.any() else float("nan")


def area_under_roc(label: Mask, score: Array) -> float:
    """Chance that a positive scores higher than a negative; ties count half."""
    values, rank, counts = np.unique(score, return_inverse=True, return_counts=True)
    del values
    middle = np.cumsum(counts) - (counts - 1) / 2.0
    positives = int(label.sum())
    negatives = len(label) - positives
    if not positives or not negatives:
        return float("nan")
    return float((middle[rank][label].sum() - positives * (positives + 1) / 2.0) / (positives * negatives))


def precision_at_recall(label: Mask, score: Array, recall: float) -> float:
    """Highest precision at which at least this share of the positives is found."""
    order = np.lexsort((label, -score))
    hits = np.cumsum(label[order])
    enough = hits >= recall * label.sum()
    precision = hits / np.arange(1, len(hits) + 1)
    return float(precision[enough].max()) if enough.any() else 0.0


def judged(rows: Rows, least: float = 0.0) -> Mask:
    """Normal rows, and manipulated ones of at least this strength."""
    mask: Mask = (rows.label == NORMAL) | ((rows.label == MANIPULATED) & (rows.strength >= least))
    return mask


def event_recall(rows: Rows, detected: Mask, least: float = 0.0) -> float:
    """Share of events of at least this strength with a detection among their touched bars."""
    chosen = (rows.event >= 0) & (rows.strength >= least)
    events = np.unique(rows.event[chosen & (rows.label == MANIPULATED)])
    found = np.unique(rows.event[chosen & detected])
    return float(np.isin(events, found).mean()) if len(events) else float("nan")


def recall_table(rows: Rows, detected: Mask) -> Iterator[tuple[str, list[tuple[float, int]]]]:
    """By typology, and last over all: event recall and number of events at each of STRENGTHS."""
    for name, mask in (
        *((t.words, rows.typology == int(t)) for t in OBSERVABLE),
        ("all", np.ones(len(rows), bool)),
    ):
        cells = []
        for strength in STRENGTHS:
            chosen = mask & (rows.strength == np.float32(strength)) & (rows.event >= 0)
            events = np.unique(rows.event[chosen & (rows.label == MANIPULATED)])
            found = np.isin(events, rows.event[chosen & detected])
            cells.append((float(found.mean()) if len(events) else float("nan"), len(events)))
        yield name, cells


def interval(rows: Rows, figure: Callable[[NDArray[np.int64]], float], draws: int = 200) -> tuple[float, float]:
    """95 % bootstrap interval of a figure of rows, drawn by ticker."""
    rng = np.random.default_rng(7)
    order = np.argsort(rows.series, kind="stable")
    tickers = np.split(order, np.flatnonzero(np.diff(rows.series[order])) + 1)
    values = []
    for _ in range(draws):
        drawn = rng.integers(0, len(tickers), len(tickers))
        values.append(figure(np.concatenate([tickers[i] for i in drawn])))
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return float(low), float(high)
