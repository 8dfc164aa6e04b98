"""When an exchange is open: its days, its hours, its holidays and its early closes."""

import logging
from datetime import date, datetime, timedelta
from functools import lru_cache
from typing import Any

from services.domain.errors import NotConfiguredError

_AROUND = timedelta(days=21)
"""Longer than exchanges are closed in a row: there must be sessions before and after a moment to judge it."""

_log = logging.getLogger(__name__)


class AlwaysOpen:
    """A `Market` of which nothing is known."""

    def is_open(self, _moment: datetime) -> bool:
        """True."""
        return True


class ExchangeCalendar:
    """A `Market` by the package exchange_calendars.

    Most of its calendars are rules, which hold for years to come; a closure on short notice it learns by a new release.
    A few are lists that end: after its last day such a market counts as open.

    Args:
        name: The exchange's market identifier code (ISO 10383), such as XNYS, or another name that the package knows.

    Raises: NotConfiguredError for a name that it does not know, and when it is not installed.
    """

    def __init__(self, name: str) -> None:
        try:
            import exchange_calendars
        except ImportError as error:
            raise NotConfiguredError(
                f"the calendar of {name} needs exchange-calendars",
                "install it (pip install -e '.[calendar]'), or empty MARKET_CALENDAR",
            ) from error
        if name not in exchange_calendars.get_calendar_names():
            raise NotConfiguredError(
                f"no exchange's calendar is named {name!r}", "set MARKET_CALENDAR to one such as XNYS, or empty it"
            )
        self._name = name
        self._get = exchange_calendars.get_calendar
        self._out_of_bounds = exchange_calendars.errors.MinuteOutOfBounds
        known = self._get(name)
        self._zone = known.tz
        last = known.bound_max()
        self._last = date.max if last is None else last.date()
        self._near = lru_cache(maxsize=1)(self._sessions_near)

    @property
    def timezone(self) -> str:
        """The exchange's time zone, by its name in the IANA database."""
        return str(self._zone)

    def is_open(self, moment: datetime) -> bool:
        """Whether it trades in that minute. The first call of a day takes a moment."""
        near = self._near(moment.astimezone(self._zone).date())
        if near is None:
            return True
        try:
            return bool(near.is_open_on_minute(moment.replace(second=0, microsecond=0)))
        except self._out_of_bounds:  # after the last session that it knows of
            return False

    def _sessions_near(self, day: date) -> Any:
        """The calendar of the weeks before and after; None after the last day that it knows."""
        if day > self._last:
            _log.warning("the calendar of %s ends with %s: it counts as open every day", self._name, self._last)
            return None
        return self._get(self._name, start=day - _AROUND, end=min(day + _AROUND, self._last))


def open_market(name: str) -> AlwaysOpen | ExchangeCalendar:
    """The market of that name; empty names none. Raises: NotConfiguredError as `ExchangeCalendar`."""
    return ExchangeCalendar(name) if name else AlwaysOpen()
