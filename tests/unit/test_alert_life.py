"""An alert's life: which detections it takes, how it grows, and which steps an analyst may make."""

from datetime import timedelta

import pytest

from services.domain.alert import (
    MAX_COMMENT_CHARACTERS,
    Alert,
    AlertState,
    Disposition,
    add_detection,
    open_alert,
    takes,
    triage,
    window,
)
from services.domain.errors import IllegalTransitionError, InvalidRequestError
from services.domain.typology import Typology
from tests.gateway_quotes import NOW, scored, spike

LATER = NOW + timedelta(hours=1)
NEW = open_alert(spike(0), NOW)
STATES = list(AlertState)


def in_state(state: AlertState) -> Alert:
    if state is AlertState.NEW:
        return NEW
    disposition = Disposition.CONFIRMED if state is AlertState.CLOSED else None
    return triage(NEW, NOW, comment="because", state=state, disposition=disposition)


@pytest.mark.parametrize(("interval", "minutes"), [(1, 30), (60, 30), (360, 30), (3_600, 300), (86_400, 7_200)])
def test_window_is_five_bars_and_half_an_hour_at_least(interval: int, minutes: int) -> None:
    assert window(interval) == timedelta(minutes=minutes)


def test_takes_only_its_own_series_typology_and_window() -> None:
    assert takes(NEW, spike(30))
    assert takes(NEW, spike(-30))
    assert not takes(NEW, spike(31))
    assert not takes(NEW, spike(1, symbol="MSFT"))
    assert not takes(NEW, spike(1, tape="canary"))
    assert not takes(NEW, scored(1, 0.9, source="other", typology=Typology.PRICE_SPIKE))
    assert not takes(NEW, scored(1, 0.9, typology=Typology.RAMPING))


def test_closed_alert_takes_nothing() -> None:
    closed = triage(NEW, LATER, comment="no", state=AlertState.CLOSED, disposition=Disposition.DISMISSED)
    assert not takes(closed, spike(1))


def test_alert_id_follows_from_the_detection() -> None:
    assert open_alert(spike(0), LATER).alert_id == NEW.alert_id
    assert open_alert(spike(1), NOW).alert_id != NEW.alert_id


def test_grows_by_count_times_and_peak() -> None:
    grown = add_detection(NEW, spike(5, 0.99), LATER)
    assert (grown.detection_count, grown.peak_score, grown.version) == (2, 0.99, 2)
    assert (grown.first_event_time, grown.last_event_time) == (spike(0).quote.event_time, spike(5).quote.event_time)
    assert grown.peak_quote_id == spike(5).quote.quote_id
    assert grown.etag != NEW.etag
    lower = add_detection(grown, spike(6, 0.9), LATER)
    assert (lower.peak_score, lower.peak_quote_id) == (0.99, spike(5).quote.quote_id)


def test_summary_says_what_when_and_why_without_a_verdict() -> None:
    assert NEW.summary == (
        "AAPL 2024-03-14T14:30:00Z: price and volume consistent with price spike (score 0.900): "
        "price change 31 %, usually -2 % to 2 %"
    )


@pytest.mark.parametrize("to", STATES)
@pytest.mark.parametrize("at", STATES)
def test_states_only_rise(at: AlertState, to: AlertState) -> None:
    alert = in_state(at)
    disposition = Disposition.CONFIRMED if to is AlertState.CLOSED else None
    if at is AlertState.CLOSED or to < at:
        with pytest.raises(IllegalTransitionError):
            triage(alert, LATER, comment="because", state=to, disposition=disposition)
    else:
        after = triage(alert, LATER, comment="because", state=to, disposition=disposition)
        assert (after.state, after.update_time) == (to, LATER)


@pytest.mark.parametrize(
    ("comment", "disposition", "fields"),
    [
        ("", Disposition.CONFIRMED, {"comment"}),
        (" \n", Disposition.CONFIRMED, {"comment"}),
        ("why", None, {"alert.disposition"}),
        ("", None, {"comment", "alert.disposition"}),
        ("x" * (MAX_COMMENT_CHARACTERS + 1), Disposition.CONFIRMED, {"comment"}),
    ],
)
def test_closing_needs_disposition_and_comment(comment: str, disposition: Disposition | None, fields: set[str]) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        triage(NEW, LATER, comment=comment, state=AlertState.CLOSED, disposition=disposition)
    assert {violation.field for violation in caught.value.violations} == fields


def test_disposition_comes_with_closing_only() -> None:
    with pytest.raises(InvalidRequestError):
        triage(NEW, LATER, comment="why", disposition=Disposition.CONFIRMED)
    with pytest.raises(InvalidRequestError):
        triage(NEW, LATER, comment="why", state=AlertState.INVESTIGATING, disposition=Disposition.DISMISSED)


def test_closed_alert_can_be_commented_and_nothing_else() -> None:
    closed = triage(NEW, NOW, comment="no", state=AlertState.CLOSED, disposition=Disposition.DISMISSED)
    commented = triage(closed, LATER, comment="seen again elsewhere")
    assert (commented.version, commented.state) == (closed.version + 1, AlertState.CLOSED)
    with pytest.raises(IllegalTransitionError):
        triage(closed, LATER, comment="", assignee="ann")
    with pytest.raises(IllegalTransitionError):
        triage(closed, LATER, comment="", disposition=Disposition.CONFIRMED)
