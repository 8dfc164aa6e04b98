"""What is measured of a model version: on held-out equities, on the labelled pumps, on the old system's task."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from services.archive import version_folder
from services.archive.bars import Bars
from services.domain import reasons, session_profile
from services.domain.errors import ModelUnusableError
from services.domain.feature_definitions import FEATURE_NAMES
from services.domain.model import ModelMetadata, log_odds, logistic
from services.domain.typology import OBSERVABLE, Typology
from services.training import calibrate, dataset, figures
from services.training.dataset import Part, Rows
from services.training.figures import STRONG
from services.training.fit import ALERTS_PER_SYMBOL_DAY, Training, strength_weight
from services.training.held_out import (
    BUDGET_SHARE,
    Held,
    Outputs,
    calibrated,
    held_out,
    injection_seed,
    unseen,
)
from services.training.injection import MANIPULATED
from services.training.sources import Source

Array = NDArray[np.float64]
Figures = dict[str, Any]

KNOWN_DAYS = (
    ("2015-08-24", "market opens in free fall"),
    ("2018-02-05", "volatility products collapse"),
    ("2020-03-16", "the worst day of March 2020"),
    ("2020-06-15", "an ordinary day, for comparison"),
)
BUDGETS = (1.0, 5.0, 25.0, 100.0)
"""Alerts per 500 symbol-days that the recall is shown for."""

LEFT_OUT = Typology.MOMENTUM_IGNITION
_RULE_TICKERS = 50
_PROBE_ROWS = 4_000
_PROBE_INJECTIONS = 8


@dataclass(frozen=True, slots=True)
class Version:
    """A version's files."""

    metadata: ModelMetadata
    autoencoder: bytes
    classifier: bytes

    @property
    def line(self) -> float:
        """The threshold's log-odds."""
        return float(np.log(self.metadata.threshold / (1.0 - self.metadata.threshold)))

    def margin(self, features: NDArray[np.float32]) -> Array:
        """The ensemble's log-odds of rows."""
        return Outputs(features, self.autoencoder, self.classifier).margin(self.metadata.calibration)


def load(folder: Path) -> Version:
    """The version in a folder, checked as a scorer does. Raises: ModelUnusableError, also when a half is missing."""
    files = version_folder.read(folder)
    if files.autoencoder is None or files.classifier is None:
        raise ModelUnusableError(str(folder), "lacks its autoencoder or its classifier: only both are measured")
    return Version(files.metadata, files.autoencoder, files.classifier)


def z_score_rule(rows: Rows) -> Array:
    """The plain rule: the larger of the price change and the volume in robust deviations."""
    names = ("return_z", "volume_z")
    z = [rows.features[:, FEATURE_NAMES.index(name)].astype(np.float64) for name in names]
    larger: Array = np.maximum(np.abs(z[0]), z[1])
    return larger


def fixed_weights(outputs: Outputs, version: Version) -> Array:
    """The old system's ensemble: 0.6 x autoencoder percentile + 0.4 x classifier probability."""
    mixed: Array = 0.6 * version.metadata.calibration.percentile(outputs.errors) + 0.4 * outputs.probability
    return mixed


def boosted_trees(training: Training, source: Source, normal: Rows, *, passes: int = 4, rows: int = 250_000) -> Any:
    """Gradient-boosted trees on the same features, labels and weights."""
    from sklearn.ensemble import HistGradientBoostingClassifier  # type: ignore[import-untyped, unused-ignore]

    rng = np.random.default_rng(training.seed)
    near = dataset.concatenate(
        [
            dataset.injected(
                source.sides[Part.TRAIN], training.seed * 1_000 + k, only_near=12, benchmark=source.benchmark
            )
            for k in range(passes)
        ]
    )
    positive = int((near.label == MANIPULATED).sum())
    sample = dataset.concatenate([near, normal.where(rng.permutation(len(normal))[: 3 * positive])])
    sample = sample.where(~dataset.unjudged(sample))
    sample = sample.where(rng.permutation(len(sample))[:rows])
    model = HistGradientBoostingClassifier(max_iter=150, max_leaf_nodes=31, l2_regularization=1.0, random_state=1)
    return model.fit(sample.features, sample.label == MANIPULATED, sample_weight=strength_weight(sample))


def compare(validation: Held, test: Held, name: str, scores: Sequence[Array], line: float | None = None) -> Figures:
    """A model's figures on test rows; its threshold is set by the alert budget on validation rows unless given.

    Args:
        validation: Where the threshold is set.
        test: What is measured.
        name: Of the model.
        scores: Of validation untouched, test untouched and test injected rows.
        line: A fixed threshold.
    """
    budget = BUDGET_SHARE * ALERTS_PER_SYMBOL_DAY
    if line is None:
        line = calibrate.budget_margin(validation.untouched, scores[0], budget)
    rows, score = test.touched, scores[2]
    strong = figures.judged(rows, STRONG)
    everything = figures.judged(rows)
    label = rows.label == MANIPULATED
    chosen = rows.where(strong)
    chosen_score = score[strong]

    def recall_of(drawn: NDArray[np.int64]) -> float:
        return figures.event_recall(rows.where(drawn), score[drawn] >= line, STRONG)

    return {
        "model": name,
        "average_precision": figures.average_precision(label[strong], chosen_score),
        "average_precision_interval": figures.interval(
            chosen,
            lambda drawn: figures.average_precision(chosen.label[drawn] == MANIPULATED, chosen_score[drawn]),
        ),
        "average_precision_all": figures.average_precision(label[everything], score[everything]),
        "recall": figures.event_recall(rows, score >= line, STRONG),
        "recall_interval": figures.interval(rows, recall_of, draws=60),
        "bar_recall": float((score[label & strong] >= line).mean()),
        "precision_at_recall_0.99": figures.precision_at_recall(label[strong], chosen_score, 0.99),
        "precision_at_recall_0.90": figures.precision_at_recall(label[strong], chosen_score, 0.90),
        "alerts_per_500_symbol_days": 500.0
        * calibrate.count_alerts(test.untouched, scores[1] >= line)
        / calibrate.symbol_days(test.untouched),
    }


def equities(training: Training, source: Source, version: Version) -> tuple[Figures, Held]:
    """All figures of one source's test side, and its rows."""
    files = (version.autoencoder, version.classifier)
    validation = held_out(training, source, Part.VALIDATION, *files)
    test = held_out(training, source, Part.TEST, *files)
    normal = training.rows(source, Part.TRAIN)
    calibration = version.metadata.calibration
    outputs = (validation.plain, test.plain, test.marked)
    rows = (validation.untouched, test.untouched, test.touched)
    trees = boosted_trees(training, source, normal)
    table = [
        compare(
            validation, test, "ensemble, shipped threshold", [o.margin(calibration) for o in outputs], version.line
        ),
        compare(validation, test, "classifier alone", [o.margin(calibration, autoencoder=False) for o in outputs]),
        compare(validation, test, "autoencoder alone", [o.margin(calibration, classifier=False) for o in outputs]),
        compare(validation, test, "fixed weights 0.6 / 0.4", [fixed_weights(o, version) for o in outputs]),
        compare(
            validation,
            test,
            "gradient-boosted trees",
            [log_odds(trees.predict_proba(r.features)[:, 1]) for r in rows],
        ),
        compare(validation, test, "z-score rule", [z_score_rule(r) for r in rows]),
    ]
    feeds: list[tuple[bool, Literal["peers", "benchmark"], str]] = [
        (bool(source.benchmark.peers), "peers", "ensemble, feed without peers"),
        (bool(np.isfinite(source.benchmark.simple_return).any()), "benchmark", "ensemble, feed without a benchmark"),
    ]
    for known, without, name in feeds:
        if known:
            blind = [
                training.rows(source, Part.TEST, seed=seed, without=without)
                for seed in (None, injection_seed(training, Part.TEST))
            ]
            scores = [outputs[0].margin(calibration), *(version.margin(rows.features) for rows in blind)]
            table.append(compare(validation, test, name, scores, version.line))
    margin = test.marked.margin(calibration)
    alone = test.marked.margin(calibration, autoencoder=False)
    strong = figures.judged(test.touched, STRONG)
    chosen = test.touched.where(strong)
    label = chosen.label == MANIPULATED
    both, half = margin[strong], alone[strong]

    def gain(drawn: NDArray[np.int64]) -> float:
        return figures.average_precision(label[drawn], both[drawn]) - figures.average_precision(
            label[drawn], half[drawn]
        )

    detected = margin >= version.line
    hit = (test.touched.label == MANIPULATED) & detected
    found: Figures = {
        "interval_seconds": source.interval_seconds,
        "tickers": len(source.sides[Part.TEST]),
        "first": str(test.untouched.time.min().astype("datetime64[D]")),
        "last": str(test.untouched.time.max().astype("datetime64[D]")),
        "bars": len(test.untouched),
        "models": table,
        "ensemble_gain": gain(np.arange(len(label))),
        "ensemble_gain_interval": figures.interval(chosen, gain, draws=60),
        "recall": [{"typology": name, "cells": cells} for name, cells in figures.recall_table(test.touched, detected)],
        "budgets": recall_over_budget(test, margin, version),
        "hours": hours(source, chosen, both),
        "typology_accuracy": float((test.marked.typology[hit] == test.touched.typology[hit]).mean()),
        "explanations": explanations(version, test),
        "probe": probe(source, training.seed),
    }
    return found, test


def hours(source: Source, chosen: Rows, margin: Array) -> Figures:
    """PR-AUC of short bars within US sessions and outside them; empty for longer bars."""
    if source.interval_seconds > session_profile.LONGEST_INTERVAL_SECONDS:
        return {}
    seconds = chosen.time.astype("datetime64[us]").astype(np.int64) / 1e6
    within = session_profile.steps(seconds) >= 0
    label = chosen.label == MANIPULATED
    return {
        name: {
            "bars": int(part.sum()),
            "manipulated": int(label[part].sum()),
            "average_precision": figures.average_precision(label[part], margin[part]),
        }
        for name, part in (("within US sessions", within), ("outside them", ~within))
    }


def recall_over_budget(test: Held, margin: Array, version: Version) -> list[Figures]:
    """Event recall at thresholds that other budgets would set on the test bars themselves: what calibrating buys.

    NaN where the bars are too few for one alert within the budget.
    """
    plain = test.plain.margin(version.metadata.calibration)
    days = calibrate.symbol_days(test.untouched)
    found = []
    for budget in BUDGETS:
        recall = float("nan")
        if budget / 500.0 * days >= 1.0:
            line = calibrate.budget_margin(test.untouched, plain, budget / 500.0)
            recall = figures.event_recall(test.touched, margin >= line, STRONG)
        found.append({"alerts_per_500_symbol_days": budget, "recall": recall})
    return found


def explanations(version: Version, test: Held, most: int = 400) -> Figures:
    """Whether flattening the named features lowers the score more than flattening three random ones."""
    rng = np.random.default_rng(7)
    features = np.concatenate([test.untouched.features, test.touched.features])
    margins = np.concatenate([h.margin(version.metadata.calibration) for h in (test.plain, test.marked)])
    alerts = rng.permutation(np.flatnonzero(margins >= version.line))[:most]
    length = features[:1, FEATURE_NAMES.index("bar_length")].astype(np.float64)
    usual = version.metadata.usual[int(version.metadata.nearest(length)[0])].features
    median = np.array([u.median for u in usual], dtype=np.float32)
    picked = reasons.occlude(features[alerts], version.margin, usual)
    named, random = features[alerts].copy(), features[alerts].copy()
    for i, columns in enumerate(picked):
        named[i, columns] = median[columns]
        others = rng.choice(len(usual), 3, replace=False)
        random[i, others] = median[others]
    better = version.margin(named) < version.margin(random)
    return {"alerts": len(alerts), "share_better": float(better.mean())}


def probe(source: Source, seed: int) -> Figures:
    """How well trees tell bars injected with strength 0 from untouched ones, on unseen tickers.

    A few hundred injected bars alone would leave the AUC to chance: injections with further seeds are added until there
    are enough.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier  # type: ignore[import-untyped, unused-ignore]

    side = [*source.sides[Part.VALIDATION], *source.sides[Part.TEST]]
    parts: list[Rows] = []
    while sum(map(len, parts)) < _PROBE_ROWS and len(parts) < _PROBE_INJECTIONS:
        number = seed * 1_000 + 950 + len(parts)
        parts.append(dataset.injected(side, number, strengths=(0.0,), only_near=0, benchmark=source.benchmark))
    nothing = dataset.concatenate(parts)
    plain = dataset.untouched(side, benchmark=source.benchmark)
    rng = np.random.default_rng(seed)
    plain = plain.where(rng.permutation(len(plain))[: 2 * len(nothing)])
    rows = dataset.concatenate([nothing, plain])
    label = np.concatenate([np.ones(len(nothing), bool), np.zeros(len(plain), bool)])
    fitted = rows.series % 2 == 0
    model = HistGradientBoostingClassifier(max_iter=100, random_state=1).fit(rows.features[fitted], label[fitted])
    auc = figures.area_under_roc(label[~fitted], model.predict_proba(rows.features[~fitted])[:, 1])
    return {"auc": auc, "injected": int(label[~fitted].sum()), "untouched": int((~label[~fitted]).sum())}


def known_days(source: Source, version: Version) -> Figures:
    """Share of the untrained tickers with a detection on known real days, and AMC in January 2021.

    Empty where no ticker is on the test side.
    """
    side = [bars for bars in source.history if dataset.part_of(bars.symbol) is Part.TEST]
    if not side:
        return {}
    rows = dataset.untouched(side, benchmark=source.benchmark)
    detected = version.margin(rows.features) >= version.line
    days = rows.time.astype("datetime64[D]")
    found: Figures = {
        "all": float(detected.mean()),
        "days": [
            {
                "day": day,
                "what": what,
                "tickers": int((days == np.datetime64(day)).sum()),
                "detections": int((detected & (days == np.datetime64(day))).sum()),
            }
            for day, what in KNOWN_DAYS
        ],
    }
    amc = [bars for bars in source.history if bars.symbol == "AMC"]
    if amc:
        own = dataset.untouched(amc, benchmark=source.benchmark)
        score = logistic(version.margin(own.features))
        month = own.time >= np.datetime64("2021-01-01")
        found["amc"] = {
            "side": dataset.part_of("AMC").value,
            "days": [
                {"day": str(day), "score": float(s)}
                for day, s in zip(own.time[month].astype("datetime64[D]"), score[month], strict=True)
                if s >= version.metadata.threshold
            ],
        }
    return found


def left_out(training: Training, version: Version) -> Figures:
    """Event recall by strength of a typology that a retrained model has never seen, at the same alert budget."""
    source = training.sources[0]
    one = Training(
        [source.location],
        seed=training.seed,
        epochs=training.epochs,
        passes=training.passes,
        members=training.members,
        sectors=training.sectors,
        progress=training.progress,
    )
    normal = one.rows(one.sources[0], Part.TRAIN)
    exported = one.networks([normal], tuple(t for t in OBSERVABLE if t is not LEFT_OUT))
    files = (exported.autoencoder, exported.classifier)
    validation = held_out(one, one.sources[0], Part.VALIDATION, *files)
    calibration, threshold, _ = calibrated([validation], [unseen(one, one.sources[0], exported)])
    test = held_out(one, one.sources[0], Part.TEST, *files)
    line = float(np.log(threshold / (1.0 - threshold)))
    own = dict(figures.recall_table(test.touched, test.marked.margin(calibration) >= line))
    shipped = dict(figures.recall_table(test.touched, version.margin(test.touched.features) >= version.line))
    return {"typology": LEFT_OUT.words, "without": own[LEFT_OUT.words], "with": shipped[LEFT_OUT.words]}


def old_task(history: Sequence[Bars], seed: int) -> Figures:
    """The old system's own task: how well its labelling rule is recovered, split as it was, and by ticker and time."""
    from sklearn.ensemble import HistGradientBoostingClassifier  # type: ignore[import-untyped, unused-ignore]

    rng = np.random.default_rng(seed)
    chosen = [history[i] for i in sorted(rng.permutation(len(history))[:_RULE_TICKERS])]
    rows = dataset.untouched(chosen)
    label = np.concatenate([rule(bars)[dataset.LEAD :] for bars in chosen])

    def fit_and_measure(train: NDArray[np.bool_], test: NDArray[np.bool_]) -> Figures:
        model = HistGradientBoostingClassifier(max_iter=200, random_state=1).fit(rows.features[train], label[train])
        score = model.predict_proba(rows.features[test])[:, 1]
        order = np.argsort(-score, kind="stable")
        hits = np.cumsum(label[test][order])
        f1 = 2.0 * hits / (np.arange(1, len(hits) + 1) + label[test].sum())
        return {
            "auc": figures.area_under_roc(label[test], score),
            "f1": float(f1.max()),
            "average_precision": figures.average_precision(label[test], score),
            "positives": int(label[test].sum()),
            "rows": int(test.sum()),
        }

    drawn = rng.random(len(rows))
    late = rows.time >= np.sort(rows.time)[int(0.6 * len(rows))]
    other = rows.series % 5 >= 3
    return {
        "random_rows": fit_and_measure(drawn < 0.70, drawn >= 0.85),
        "ticker_and_time": fit_and_measure(~late & ~other, late & other),
        "positive_share": float(label.mean()),
    }


def rule(bars: Bars) -> NDArray[np.bool_]:
    """The old system's labels: volume against its 20-bar mean, the return, and the place in the Bollinger band."""
    close, volume = bars.close, bars.volume

    def rolling(values: Array) -> Array:
        padded = np.concatenate([np.full(19, np.nan), values])
        return np.lib.stride_tricks.sliding_window_view(padded, 20)

    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = volume / rolling(volume).mean(axis=1)
        change = np.concatenate([[0.0], close[1:] / close[:-1] - 1.0])
        mean, deviation = rolling(close).mean(axis=1), rolling(close).std(axis=1, ddof=1)
        place = (close - (mean - 2 * deviation)) / (4 * deviation)
        first = ((ratio > 3) | (ratio < 0.1)) & (np.abs(change) > 0.05)
        second = (ratio > 5) & (np.abs(change) > 0.03) & (place > 0.95)
    labels: NDArray[np.bool_] = first | second
    return labels
