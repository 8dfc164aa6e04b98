"""A threshold that was set by an alert budget, with where it comes from: a file that `tapewatch calibrate` writes."""

import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from services.domain.quote import format_time

PER_DAY = "day"
PER_500_SYMBOL_DAYS = "500-symbol-day"
BUDGET_UNITS = (PER_DAY, PER_500_SYMBOL_DAYS)
SYMBOLS_OF_A_BUDGET = 500


def threshold_file(model_version: str) -> str:
    """The name of a version's file: one for each, as their scores are on different scales.

    >>> threshold_file("tw-1")
    'threshold-tw-1.json'
    """
    return f"threshold-{model_version}.json"


@dataclass(frozen=True, slots=True)
class ThresholdCalibration:
    """One model version's threshold on the ensemble, and its provenance.

    `budget` and `expected_alerts` are in `budget_unit`, one of BUDGET_UNITS. `source` says where the scores were read
    that it was set from, `tape` which ones; there were `quotes` of them on `symbol_days` symbol-days.
    """

    model_version: str
    threshold: float
    trained_threshold: float
    budget: float
    budget_unit: str
    expected_alerts: float
    source: str
    tape: str
    quotes: int
    symbol_days: int
    create_time: datetime

    def to_json(self) -> str:
        """The file's text."""
        return json.dumps({**asdict(self), "create_time": format_time(self.create_time)}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "ThresholdCalibration":
        """The calibration in a file's text. Raises: ValueError with what is wrong with it, in words."""
        try:
            document: dict[str, Any] = json.loads(text)
            found = cls(
                model_version=str(document["model_version"]),
                threshold=float(document["threshold"]),
                trained_threshold=float(document["trained_threshold"]),
                budget=float(document["budget"]),
                budget_unit=str(document["budget_unit"]),
                expected_alerts=float(document["expected_alerts"]),
                source=str(document["source"]),
                tape=str(document["tape"]),
                quotes=int(document["quotes"]),
                symbol_days=int(document["symbol_days"]),
                create_time=datetime.fromisoformat(document["create_time"]).astimezone(UTC),
            )
        except json.JSONDecodeError as error:
            raise ValueError(f"is not JSON: {error}") from error
        except KeyError as error:
            raise ValueError(f"lacks {error.args[0]!r}") from error
        except (TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"holds a value of the wrong type: {error}") from error
        if not 0.0 < found.threshold < 1.0:
            raise ValueError(f"has threshold {found.threshold}, which is not between 0 and 1")
        if found.budget_unit not in BUDGET_UNITS:
            raise ValueError(f"has budget_unit {found.budget_unit!r}; {' and '.join(BUDGET_UNITS)} are known")
        return found
