"""Typed Python client of Tapewatch."""

from tapewatch_client.client import Client
from tapewatch_client.generated.tapewatch.dispatch.v1 import DispatchMode
from tapewatch_client.generated.tapewatch.gateway.v1 import (
    Alert,
    AlertChange,
    AlertChangeKind,
    AlertFilter,
    AlertState,
    Disposition,
    GetEvidenceResponse,
    RecordedQuote,
)
from tapewatch_client.generated.tapewatch.ingest.v1 import Coverage, PublishResult, Replay
from tapewatch_client.generated.tapewatch.market.v1 import Quote, Series
from tapewatch_client.generated.tapewatch.scorer.v1 import (
    Block,
    BlockResult,
    Model,
    Reason,
    Score,
    ScoredBlock,
    ScoreResult,
    Typology,
)

__all__ = [
    "Alert",
    "AlertChange",
    "AlertChangeKind",
    "AlertFilter",
    "AlertState",
    "Block",
    "BlockResult",
    "Client",
    "Coverage",
    "DispatchMode",
    "Disposition",
    "GetEvidenceResponse",
    "Model",
    "PublishResult",
    "Quote",
    "Reason",
    "RecordedQuote",
    "Replay",
    "Score",
    "ScoreResult",
    "ScoredBlock",
    "Series",
    "Typology",
]
