"""When quotes must come: an exchange's days, holidays and early closes."""

import sys
from datetime import UTC, datetime

import pytest

from services.domain.errors import NotConfiguredError
from services.ingest.market_calendar import AlwaysOpen, ExchangeCalendar, open_market


@pytest.fixture(scope="module")
def new_york() -> ExchangeCalendar:
    return ExchangeCalendar("XNYS")


@pytest.mark.parametrize(
    ("moment", "opened"),
    [
        ("2026-11-25T14:29:59", False),
        ("2026-11-25T14:30:00", True),
        ("2026-11-25T20:59:59", True),
        ("2026-11-25T21:00:01", False),
        ("2026-11-26T16:00:00", False),  # Thanksgiving
        ("2026-11-27T17:59:00", True),
        ("2026-11-27T18:01:00", False),  # the early close after it
        ("2026-11-28T16:00:00", False),
        ("2026-07-02T13:31:00", True),  # summer time
        ("2026-07-03T16:00:00", False),  # Independence Day, observed
        ("2031-04-11T16:00:00", False),  # Good Friday
        ("2031-04-14T16:00:00", True),
    ],
)
def test_new_york(new_york: ExchangeCalendar, moment: str, opened: bool) -> None:
    assert new_york.is_open(datetime.fromisoformat(moment).replace(tzinfo=UTC)) is opened


def test_a_session_may_begin_the_day_before() -> None:
    futures = ExchangeCalendar("CMES")
    assert futures.timezone == "America/Chicago"
    assert futures.is_open(datetime(2026, 11, 23, 2, 0, tzinfo=UTC)), "Sunday evening in Chicago"


def test_after_its_last_day_a_market_counts_as_open(caplog: pytest.LogCaptureFixture) -> None:
    seoul = ExchangeCalendar("XKRX")
    christmas = datetime(2050, 12, 31, 16, tzinfo=UTC)  # a new day in Seoul, of a year that its list does not have
    assert all(seoul.is_open(christmas) for _ in range(3))
    assert caplog.messages == ["the calendar of XKRX ends with 2050-12-31: it counts as open every day"]
    assert not seoul.is_open(datetime(2050, 12, 25, 2, tzinfo=UTC))


def test_without_a_calendar_quotes_must_always_come() -> None:
    market = open_market("")
    assert isinstance(market, AlwaysOpen)
    assert market.is_open(datetime(2026, 11, 26, 3, tzinfo=UTC))


def test_what_cannot_be_used_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NotConfiguredError, match="no exchange's calendar is named 'NYSE!': set MARKET_CALENDAR to one"):
        open_market("NYSE!")
    monkeypatch.setitem(sys.modules, "exchange_calendars", None)
    with pytest.raises(NotConfiguredError, match="the calendar of XNYS needs exchange-calendars: install it"):
        open_market("XNYS")
