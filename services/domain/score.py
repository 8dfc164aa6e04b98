"""The scorer's judgement of one quote."""

from dataclasses import dataclass, field
from datetime import datetime
from enum import IntEnum

from services.domain.quote import Quote
from services.domain.typology import Typology

SCORE_TOLERANCE = 1e-6
"""Two scores of one quote within this are the same score: batch sizes may change the last bits."""


class Quality(IntEnum):
    """What limits a score; the numbers are the proto's."""

    WARMING_UP = 1
    FALLBACK = 2
    UNADJUSTED = 3
    PARTIAL_MODEL = 4


@dataclass(frozen=True, slots=True)
class Reason:
    """One feature's part in a score. `usual_low` and `usual_high` are its 5th and 95th percentile on normal bars."""

    feature: str
    value: float
    usual_low: float
    usual_high: float
    contribution: float
    text: str


@dataclass(frozen=True, slots=True)
class Score:
    """A judgement; `ensemble` in [0, 1], higher is more suspicious. See proto/tapewatch/scorer/v1/score.proto."""

    quote_id: str
    ensemble: float
    threshold: float
    detection: bool
    model_version: str
    feature_hash: str
    score_time: datetime
    autoencoder_percentile: float | None = None
    classifier_probability: float | None = None
    typology: Typology = Typology.UNSPECIFIED
    typology_confidence: float = 0.0
    reasons: tuple[Reason, ...] = ()
    quality: tuple[Quality, ...] = ()
    history_quotes: int = 0

    def same_as(self, other: "Score") -> bool:
        """Whether two scores of one quote agree within SCORE_TOLERANCE."""
        return abs(self.ensemble - other.ensemble) <= SCORE_TOLERANCE and self.detection == other.detection


@dataclass(frozen=True, slots=True)
class ScoredQuote:
    """A quote with its score."""

    quote: Quote
    score: Score


@dataclass(frozen=True, slots=True)
class RecordedQuote:
    """A scored quote as the gateway keeps it.

    `sequence` numbers the store's quotes in the order of recording, without gaps. `record_count` is how often a score
    was sent for the quote, `mismatch_count` how many of the later ones differed from the first.
    """

    scored: ScoredQuote
    record_time: datetime
    sequence: int
    record_count: int = 1
    mismatch_count: int = 0
    alert_id: str = field(default="")
