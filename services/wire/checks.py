"""Checks that requests of several services share."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from google.protobuf.message import Message

from services.domain.errors import FieldViolation, InvalidRequestError
from services.domain.quote import name_violations
from services.wire.time import duration_from_proto, optional_timestamp

ITEMS_LIMIT = 1_000
NAME_CHARACTERS_LIMIT = 200
ID_CHARACTERS_LIMIT = 500
"""Of a resource's id; a quote_id joins several names."""

TOKEN_CHARACTERS_LIMIT = 4_096
"""Of a page or resume token."""

HEARTBEAT_SECONDS = 15.0
HEARTBEAT_RANGE_SECONDS = (1.0, 300.0)


def check_count(field: str, items: Sequence[Any], *, least: int = 1) -> None:
    """Raises: InvalidRequestError, naming the field, unless it has `least` to ITEMS_LIMIT items."""
    if not least <= len(items) <= ITEMS_LIMIT:
        description = f"has {len(items):,} items; {least} to {ITEMS_LIMIT:,} are allowed"
        raise InvalidRequestError([FieldViolation(field, description)])


def invalid(field: str, description: str) -> InvalidRequestError:
    """The error for one wrong field."""
    return InvalidRequestError([FieldViolation(field, description)])


def time_of(message: Message, field: str) -> datetime | None:
    """The request's optional time. Raises: InvalidRequestError outside years 1 to 9999."""
    try:
        return optional_timestamp(message, field)
    except (OverflowError, ValueError) as error:
        raise invalid(field, "lies outside years 1 to 9999") from error


def length_violations(limit: int, fields: Mapping[str, str]) -> list[FieldViolation]:
    """One violation for each field, by its path, whose text is longer than `limit`."""
    text = f"is longer than {limit} characters"
    return [FieldViolation(field, text) for field, value in fields.items() if len(value) > limit]


def check_names(fields: Mapping[str, str], limit: int = NAME_CHARACTERS_LIMIT) -> None:
    """Raises: InvalidRequestError naming each field, by its path, whose text is longer than `limit`."""
    if wrong := length_violations(limit, fields):
        raise InvalidRequestError(wrong)


def check_filter(
    *, tape: str = "", source: str = "", symbol: str = "", symbols: Sequence[str] = (), prefix: str = ""
) -> None:
    """Refuse a filter that can match nothing: names that no tape, source or symbol has. Empty ones match everything.

    Raises: InvalidRequestError naming each field, with `prefix` before it.
    """
    check_count(f"{prefix}symbols", symbols, least=0)
    given = {name: value for name, value in (("tape", tape), ("source", source), ("symbol", symbol)) if value}
    wrong = [FieldViolation(f"{prefix}{v.field}", v.description) for v in name_violations(**given)]
    for i, each in enumerate(symbols):
        wrong += [FieldViolation(f"{prefix}symbols[{i}]", v.description) for v in name_violations(symbol=each)]
    if wrong:
        raise InvalidRequestError(wrong)


def check_id(field: str, value: str) -> str:
    """The id. Raises: InvalidRequestError when it is empty or too long to be one."""
    if not value.strip():
        raise invalid(field, "is required")
    check_names({field: value}, ID_CHARACTERS_LIMIT)
    return value


def heartbeat_seconds(request: Message) -> float:
    """The time between heartbeats. Raises: InvalidRequestError when it is out of range."""
    if not request.HasField("heartbeat_interval"):
        return HEARTBEAT_SECONDS
    seconds = duration_from_proto(request.heartbeat_interval)  # type: ignore[attr-defined]
    low, high = HEARTBEAT_RANGE_SECONDS
    if not low <= seconds <= high:
        raise invalid("heartbeat_interval", f"is {seconds:g} s; {low:g} to {high:g} s are allowed")
    return seconds
