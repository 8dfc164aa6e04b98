"""The labelled pump-and-dumps: what is measured on them."""

import time
import zlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.training.figures import average_precision
from services.training.networks import run_tflite
from services.training.pumps import models, protocol, recordings
from services.training.pumps.models import Feed
from services.training.pumps.recordings import Pumps

_TIMED = 1_000


def measure(folder: Path) -> dict[str, Any]:
    """The published forest and the ensembles of trees, five folds by event, at 25 s and at 5 s.

    Args:
        folder: Where EVENTS_FILE and FEATURES_FILE of `recordings` are.
    """
    known = recordings.read(folder)
    models_found = [
        measured("published forest on its 12 features", known, models.forest(known)),
        measured("trees", known, models.trees(known)),
        measured("trees, what quotes carry", known, models.mesh_features(known)),
        measured("trees, what quotes carry, and days", known, models.trees(known, Feed.QUOTES)),
        measured("trees, price and volume only", known, models.trees(known, Feed.BARS)),
    ]
    found = summary(known, models_found)
    del known
    finest = recordings.read_finest(folder)
    found["finest"] = measured("trees, *days* and *course*", finest, models.trees(finest, minutes=False))
    return found


def measured(name: str, pumps: Pumps, model: models.Model) -> dict[str, Any]:
    """One model's figures under the protocol, of its TFLite files, and what the last of them costs."""
    files: list[bytes] = []

    def publish(chosen: protocol.Chosen) -> protocol.Scorer:
        files.append(models.tflite(chosen, len(model.names)))
        return lambda rows: run_tflite(files[-1], model.inputs[rows])

    found = described(name, pumps, protocol.judge(pumps, model.parts, model.choice, publish))
    begin = time.process_time()
    run_tflite(files[-1], model.inputs[:_TIMED], batch=1)
    seconds = time.process_time() - begin
    return found | {"file_bytes": len(files[-1]), "milliseconds_a_chunk": 1_000.0 * seconds / _TIMED}


def described(name: str, pumps: Pumps, verdicts: protocol.Verdicts) -> dict[str, Any]:
    """The figures of verdicts, with the curves that the plots need."""
    measured, delays = protocol.figures(pumps, verdicts)
    order = np.lexsort((pumps.label, -verdicts.score))
    hits = pumps.label[order]
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    seen = np.array([zlib.crc32(event.encode()) % 2 == 0 for event in pumps.names])
    return {
        "model": name,
        "events": len(pumps.names),
        "chunks": len(pumps.label),
        "days": pumps.symbol_days,
        **asdict(measured),
        "delays": [float(delay) for delay in delays if np.isfinite(delay)],
        "precision_by_hit": [round(float(value), 4) for value in precision[hits]],
        "errors": protocol.errors(pumps, verdicts),
        "seen": _half(pumps, verdicts, delays, seen),
        "unseen": _half(pumps, verdicts, delays, ~seen),
    }


def summary(pumps: Pumps, found: list[dict[str, Any]]) -> dict[str, Any]:
    """What the section says of the chunks, and of the events whose errors were looked at and the others."""
    return {
        "chunks": len(pumps.label),
        "events": len(pumps.names),
        "days": pumps.symbol_days,
        "models": found,
        "seen": found[1]["seen"],
        "unseen": found[1]["unseen"],
    }


def _half(
    pumps: Pumps, verdicts: protocol.Verdicts, delays: NDArray[np.float64], chosen: NDArray[np.bool_]
) -> dict[str, Any]:
    rows = chosen[pumps.event]
    return {
        "events": int(chosen.sum()),
        "average_precision": average_precision(pumps.label[rows], verdicts.score[rows]),
        "detected_within_120_s": float(np.mean(delays[chosen] <= protocol.DETECT_WITHIN_SECONDS)),
    }
