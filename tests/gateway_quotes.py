"""Scored quotes for the gateway's tests."""

from datetime import UTC, datetime, timedelta

from services.domain.alert import SYSTEM_ACTOR, Alert, AlertChangeKind, AlertEvent, add_detection, open_alert
from services.domain.quote import Quote
from services.domain.score import Quality, Reason, Score, ScoredQuote
from services.domain.typology import Typology
from services.gateway.ports import AlertWrite

START = datetime(2024, 3, 14, 14, 30, tzinfo=UTC)
NOW = datetime(2024, 3, 18, 12, 0, 0, 123456, tzinfo=UTC)
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
REASON = Reason("return_1", 0.31, -0.02, 0.02, 0.4, "price change 31 %, usually -2 % to 2 %")


def scored(
    minute: int,
    ensemble: float = 0.2,
    *,
    symbol: str = "AAPL",
    tape: str = "live",
    source: str = "test",
    revision: int = 0,
    typology: Typology | None = None,
    traceparent: str = f"00-{TRACE_ID}-b7ad6b7169203331-01",
    quality: tuple[Quality, ...] = (Quality.UNADJUSTED,),
) -> ScoredQuote:
    """The bar of that minute; a detection when a typology is given."""
    quote = Quote(
        symbol=symbol,
        event_time=START + timedelta(minutes=minute),
        open=10.0,
        high=11.1,
        low=9.9,
        close=10.1 + minute * 1e-9,
        volume=1_234.5,
        tape=tape,
        source=source,
        revision=revision,
        previous_close=10.05,
        currency="USD",
        trades=7,
        buy_volume=600.25,
        benchmark_return=-0.001,
        benchmark_volume_ratio=1.25,
        peer_return=0.002,
        peer_volume_ratio=0.8,
        ingest_time=START + timedelta(minutes=minute, microseconds=1),
        batch_id="batch-1",
        traceparent=traceparent,
    )
    score = Score(
        quote_id=quote.quote_id,
        ensemble=ensemble,
        threshold=0.8,
        detection=typology is not None,
        model_version="m1",
        feature_hash="f1",
        score_time=START + timedelta(minutes=minute, seconds=1),
        autoencoder_percentile=0.5,
        typology=typology or Typology.UNSPECIFIED,
        typology_confidence=0.7 if typology else 0.0,
        reasons=(REASON,) if typology else (),
        quality=quality,
        history_quotes=20,
    )
    return ScoredQuote(quote, score)


def spike(minute: int, ensemble: float = 0.9, *, symbol: str = "AAPL", tape: str = "live") -> ScoredQuote:
    """A detection of a price spike."""
    return scored(minute, ensemble, symbol=symbol, tape=tape, typology=Typology.PRICE_SPIKE)


def audit(alert: Alert, before: Alert | None, kind: AlertChangeKind, actor: str = SYSTEM_ACTOR) -> AlertEvent:
    """The audit event of a write."""
    return AlertEvent(
        sequence=0,
        alert_id=alert.alert_id,
        kind=kind,
        actor=actor,
        from_state=before.state if before else None,
        to_state=alert.state,
        disposition=alert.disposition,
        assignee=alert.assignee,
        comment="because",
        quote_id=alert.peak_quote_id,
        event_time=NOW,
    )


def opening(item: ScoredQuote, latest: Alert | None = None) -> AlertWrite:
    """The write that opens an alert while `latest` is the series' latest one."""
    alert = open_alert(item, NOW)
    return AlertWrite(alert, latest, audit(alert, None, AlertChangeKind.OPENED))


def adding(item: ScoredQuote, latest: Alert) -> AlertWrite:
    """The write that counts a further detection."""
    alert = add_detection(latest, item, NOW)
    return AlertWrite(alert, latest, audit(alert, latest, AlertChangeKind.DETECTION_ADDED))
