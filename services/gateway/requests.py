"""Checks of the gateway's requests, page tokens and resume tokens: everything malformed names its field."""

import base64
import binascii
import hashlib
import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from google.protobuf.message import Message

from services.domain.alert import AlertState
from services.domain.errors import FieldViolation, InvalidRequestError, ResumeTokenInvalidError
from services.domain.typology import Typology
from services.gateway.ports import AlertQuery, Position
from services.wire.time import optional_timestamp
from tapewatch.gateway.v1 import alert_service_pb2 as pb

ITEMS_LIMIT = 1_000


def invalid(field: str, description: str) -> InvalidRequestError:
    """The error for one wrong field."""
    return InvalidRequestError([FieldViolation(field, description)])


def check_required(field: str, value: str) -> str:
    """The value. Raises: InvalidRequestError when it is empty."""
    if not value.strip():
        raise invalid(field, "is required")
    return value


def check_count(field: str, items: Sequence[Any]) -> None:
    """Raises: InvalidRequestError unless there are 1 to 1,000 items."""
    if not 1 <= len(items) <= ITEMS_LIMIT:
        raise invalid(field, f"has {len(items):,} items; 1 to {ITEMS_LIMIT:,} are allowed")


def page_size(asked: int, default: int, most: int, field: str = "page_size") -> int:
    """The page size to use. Raises: InvalidRequestError when it is out of range."""
    if not 0 <= asked <= most:
        raise invalid(field, f"is {asked:,}; 1 to {most:,} are allowed, or 0 for {default:,}")
    return asked or default


def time_of(message: Message, field: str) -> datetime | None:
    """The request's optional time. Raises: InvalidRequestError outside years 1 to 9999."""
    try:
        return optional_timestamp(message, field)
    except (OverflowError, ValueError) as error:
        raise invalid(field, "lies outside years 1 to 9999") from error


def _fingerprint(request: Message) -> str:
    """Names the request's conditions: everything but the page."""
    bare = type(request)()
    bare.CopyFrom(request)
    for field in ("page_token", "page_size"):
        bare.ClearField(field)
    return hashlib.sha256(bare.SerializeToString(deterministic=True)).hexdigest()[:16]


def page_token(request: Message, position: Position | None) -> str:
    """The token of the page after `position`; empty when there is none."""
    if position is None:
        return ""
    return base64.urlsafe_b64encode(json.dumps([_fingerprint(request), *position]).encode()).decode()


def page_position(request: Message) -> Position | None:
    """Where the request's page begins. Raises: InvalidRequestError when the token is not one of this request's."""
    token: str = request.page_token  # type: ignore[attr-defined]
    if not token:
        return None
    try:
        fingerprint, *position = json.loads(base64.urlsafe_b64decode(token.encode()))
    except (binascii.Error, ValueError, TypeError) as error:
        raise invalid("page_token", "is not a token of this service") from error
    if fingerprint != _fingerprint(request) or not all(isinstance(part, int | str) for part in position):
        raise invalid("page_token", "belongs to a request with other conditions")
    return tuple(position)


def resume_token(store_id: str, sequence: int) -> str:
    """The token after which a watcher has been told everything up to `sequence`."""
    return base64.urlsafe_b64encode(f"{store_id}:{sequence}".encode()).decode()


def resume_sequence(token: str, store_id: str, last: int) -> int:
    """The token's sequence.

    Raises: InvalidRequestError when it is no token; ResumeTokenInvalidError when it is another store's, or ahead.
    """
    try:
        owner, _, number = base64.urlsafe_b64decode(token.encode()).decode().partition(":")
        sequence = int(number)
    except (binascii.Error, ValueError) as error:
        raise invalid("resume_token", "is not a token of this service") from error
    if owner != store_id:
        raise ResumeTokenInvalidError("it belongs to another store; watch again without it")
    if not 0 <= sequence <= last:
        raise ResumeTokenInvalidError("it lies beyond the change log; watch again without it")
    return sequence


def typology_of(value: int, field: str) -> Typology:
    """The typology. Raises: InvalidRequestError when it is not one."""
    try:
        return Typology(value)
    except ValueError as error:
        raise invalid(field, f"{value} is not a typology") from error


def alert_query(message: pb.AlertFilter) -> AlertQuery:
    """The filter. Raises: InvalidRequestError."""
    states = []
    for i, value in enumerate(message.states):
        try:
            states.append(AlertState(value))
        except ValueError as error:
            raise invalid(f"filter.states[{i}]", f"{value} is not a state") from error
    if not 0.0 <= message.min_peak_score <= 1.0:
        raise invalid("filter.min_peak_score", f"{message.min_peak_score} is not within 0 to 1")
    return AlertQuery(
        tape=message.tape,
        symbols=tuple(message.symbols),
        typologies=tuple(typology_of(v, f"filter.typologies[{i}]") for i, v in enumerate(message.typologies)),
        states=tuple(states),
        min_peak_score=message.min_peak_score,
    )
