"""What a model's two files say of held-out rows, and what follows: calibration, threshold, first figures."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from services.domain.feature_definitions import FEATURE_NAMES
from services.domain.model import Calibration, log_odds, logistic, surprise
from services.domain.typology import OBSERVABLE
from services.training import calibrate, dataset, networks
from services.training.dataset import Part, Rows
from services.training.figures import STRONG, average_precision, event_recall, judged
from services.training.fit import ALERTS_PER_SYMBOL_DAY, Exported, Training, strength_weight
from services.training.injection import MANIPULATED, TOUCHED
from services.training.sources import Source

BUDGET_SHARE = 0.9
"""Share of the alert budget that the threshold uses up on validation bars: later times are never quite like them."""


class Outputs:
    """What the two files say of rows: raw errors, probabilities, likeliest typologies; and the bars' length."""

    def __init__(self, features: NDArray[np.float32], autoencoder: bytes, classifier: bytes) -> None:
        self.errors = networks.run_tflite(autoencoder, features)[:, 0]
        raw = networks.run_tflite(classifier, features)
        self.probability = raw[:, 0]
        self.typology = np.array([int(t) for t in OBSERVABLE])[np.argmax(raw[:, 1:], axis=1)]
        self.length = features[:, FEATURE_NAMES.index("bar_length")].astype(np.float64)

    def margin(self, calibration: Calibration, *, autoencoder: bool = True, classifier: bool = True) -> calibrate.Array:
        """The ensemble's log-odds, or those of one half alone."""
        return calibration.margin(
            calibration.percentile(self.errors) if autoencoder else None,
            self.probability if classifier else None,
            self.length,
        )


@dataclass(frozen=True, slots=True)
class Held:
    """A source's held-out rows of one side, untouched and injected, with what the files say of them."""

    untouched: Rows
    plain: Outputs
    touched: Rows
    marked: Outputs


@dataclass(frozen=True, slots=True)
class Unseen:
    """Untouched rows that a threshold is set on, and what networks that have not seen their tickers say of them."""

    rows: Rows
    outputs: Outputs


def unseen(training: Training, source: Source, exported: Exported) -> list[Unseen]:
    """Untouched bars as each kind of feed gives them, judged by networks that have not seen their tickers.

    They are the validation side's; where that is too short for the budget (`Training.folded`) all before the test
    period, of all but its tickers, by members that have left out their fold.
    """
    members = exported.members.get(source.interval_seconds, ())
    pool = dataset.before_test(source.history) if members else source.sides[Part.VALIDATION]
    fold = {bars.symbol: number % len(members) for number, bars in enumerate(source.sides[Part.TRAIN]) if members}
    folds = np.array([fold.get(bars.symbol, -1) for bars in pool])
    found = []
    for rows in training.feeds(source, pool):
        outputs = Outputs(rows.features, exported.autoencoder, exported.classifier)
        for k, member in enumerate(members):
            own = folds[rows.series] == k
            if own.any():
                outputs.probability[own] = networks.run_tflite(member, rows.features[own])[:, 0]
        found.append(Unseen(rows, outputs))
    return found


def calibrated(held: Sequence[Held], feeds: Sequence[Sequence[Unseen]]) -> tuple[Calibration, float, float]:
    """Calibration, threshold and the autoencoder's weight, from each source's validation rows, longest bars first.

    The threshold keeps the alert budget on the longest bars; offsets keep it on the others, and for the halves alone.
    `feeds` has the rows that it is kept on, for each source: on each kind of feed by itself.
    """
    judged = [h.touched.label != TOUCHED for h in held]
    fit = calibrate.fit(
        np.concatenate([h.plain.errors for h in held]),
        np.concatenate([h.marked.errors[j] for h, j in zip(held, judged, strict=True)]),
        np.concatenate([h.marked.probability[j] for h, j in zip(held, judged, strict=True)]),
        np.concatenate([h.touched.label[j] == MANIPULATED for h, j in zip(held, judged, strict=True)]),
        np.concatenate([strength_weight(h.touched)[j] for h, j in zip(held, judged, strict=True)]),
    )
    budget = BUDGET_SHARE * ALERTS_PER_SYMBOL_DAY
    halves = {"both": (True, True), "autoencoder_alone": (True, False), "classifier_alone": (False, True)}
    lines = {
        name: [
            max(
                calibrate.budget_margin(u.rows, u.outputs.margin(fit, autoencoder=ae, classifier=cl), budget)
                for u in kinds
            )
            for kinds in feeds
        ]
        for name, (ae, cl) in halves.items()
    }
    # Outside these bounds the threshold would be 0 or 1 to the eye.
    line = float(np.clip(lines["both"][0], -6.0, 8.0))
    order = np.argsort([float(h.plain.length[0]) for h in held])
    shifted = {
        name: replace(getattr(fit, name), offsets=tuple(float(lines[name][i] - line) for i in order)) for name in halves
    }
    spread = (
        fit.both.autoencoder * float(np.std(surprise(fit.percentile(held[0].plain.errors)))),
        fit.both.classifier * float(np.std(log_odds(held[0].plain.probability))),
    )
    calibration = replace(fit, length_knots=tuple(float(held[i].plain.length[0]) for i in order), **shifted)
    return calibration, float(logistic(np.array([line]))[0]), spread[0] / max(sum(spread), 1e-12)


def measured(calibration: Calibration, threshold: float, held: Sequence[Held]) -> dict[str, float]:
    """Figures on each source's test rows, of tickers and times that nothing was fitted on."""
    line = float(np.log(threshold / (1.0 - threshold)))
    figures: dict[str, float] = {}
    for h in held:
        margins, marks = h.plain.margin(calibration), h.marked.margin(calibration)
        manipulated = h.touched.label == MANIPULATED
        strong = judged(h.touched, STRONG)
        hit = manipulated & (marks >= line)
        days = calibrate.symbol_days(h.untouched)
        right = h.marked.typology[hit] == h.touched.typology[hit]
        found = {
            "alerts_per_500_symbol_days": 500.0 * calibrate.count_alerts(h.untouched, margins >= line) / days,
            "average_precision_strength_4_up": average_precision(manipulated[strong], marks[strong]),
            "event_recall_strength_4_up": event_recall(h.touched, marks >= line, STRONG),
            "event_recall_all": event_recall(h.touched, marks >= line),
            "typology_accuracy_of_detected": float(right.mean()) if len(right) else 0.0,
            "untouched_bars": float(len(h.untouched)),
            "events": float(len(np.unique(h.touched.event[h.touched.event >= 0]))),
        }
        seconds = round(60.0 * float(np.exp(h.plain.length[0])))
        figures |= {f"test_{seconds}s_{name}": value for name, value in found.items()}
    return figures


def quantisation(exported: Exported, calibration: Calibration, test: Held) -> dict[str, float]:
    """What int8 weights cost: sizes, and the difference of scores and figures on test rows of the longest bars."""
    small = Outputs(test.touched.features, exported.autoencoder_quantised, exported.classifier_quantised)
    strong = judged(test.touched, STRONG)
    label = test.touched.label[strong] == MANIPULATED
    exact, rough = test.marked.margin(calibration), small.margin(calibration)
    return {
        "float32_bytes": float(len(exported.autoencoder) + len(exported.classifier)),
        "quantised_bytes": float(len(exported.autoencoder_quantised) + len(exported.classifier_quantised)),
        "quantised_mean_score_difference": float(np.abs(logistic(exact) - logistic(rough)).mean()),
        "quantised_average_precision_loss": average_precision(label, exact[strong])
        - average_precision(label, rough[strong]),
    }


def injection_seed(training: Training, part: Part) -> int:
    """The seed of the injection into a held-out side: none that training injects by."""
    return training.seed * 1_000 + (900 if part is Part.VALIDATION else 901)


def held_out(training: Training, source: Source, part: Part, autoencoder: bytes, classifier: bytes) -> Held:
    """A source's held-out rows of one side and what the files say of them."""
    untouched = training.rows(source, part)
    touched = training.rows(source, part, seed=injection_seed(training, part))
    return Held(
        untouched,
        Outputs(untouched.features, autoencoder, classifier),
        touched,
        Outputs(touched.features, autoencoder, classifier),
    )
