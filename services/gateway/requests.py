"""Checks of the gateway's requests, and resume tokens: everything malformed names its field."""

import base64
import math
from datetime import datetime
from enum import IntEnum
from typing import TypeVar

from google.protobuf.message import Message

from services.domain.alert import SYSTEM_ACTOR, AlertState, Disposition
from services.domain.errors import FieldViolation, InvalidQuoteError, InvalidRequestError, ResumeTokenInvalidError
from services.domain.quote import violations
from services.domain.score import Quality, Score, ScoredQuote
from services.domain.typology import Typology
from services.gateway.ports import AlertQuery
from services.gateway.service import Triage
from services.wire.checks import (
    ID_CHARACTERS_LIMIT,
    ITEMS_LIMIT,
    NAME_CHARACTERS_LIMIT,
    TOKEN_CHARACTERS_LIMIT,
    check_filter,
    check_names,
    invalid,
    length_violations,
    time_of,
)
from services.wire.detection import scored_from_proto
from tapewatch.gateway.v1 import alert_service_pb2 as pb
from tapewatch.gateway.v1 import detection_service_pb2

REASONS_LIMIT = 16
REASON_CHARACTERS_LIMIT = 1_000

_UPDATABLE = ("state", "disposition", "assignee")
_STATES = {state.value for state in AlertState}
_DISPOSITIONS = {disposition.value for disposition in Disposition}
_Enum = TypeVar("_Enum", bound=IntEnum)


def time_range(request: Message) -> tuple[datetime | None, datetime | None]:
    """The request's start_time and end_time. Raises: InvalidRequestError when nothing can lie between them."""
    start, end = time_of(request, "start_time"), time_of(request, "end_time")
    if start is not None and end is not None and end <= start:
        raise invalid("end_time", "does not lie after start_time")
    return start, end


def resume_token(store_id: str, sequence: int) -> str:
    """The token after which a watcher has been told everything up to `sequence`."""
    return base64.urlsafe_b64encode(f"{store_id}:{sequence}".encode()).decode()


def resume_sequence(token: str, store_id: str, last: int) -> int:
    """The token's sequence.

    Raises: InvalidRequestError when it is no token; ResumeTokenInvalidError when it is another store's, or ahead.
    """
    check_names({"resume_token": token}, TOKEN_CHARACTERS_LIMIT)
    try:
        owner, _, number = base64.urlsafe_b64decode(token.encode()).decode().partition(":")
        sequence = int(number)
    except ValueError as error:
        raise invalid("resume_token", "is not a token of this service") from error
    if owner != store_id:
        raise ResumeTokenInvalidError("it belongs to another store; watch again without it")
    if not 0 <= sequence <= last:
        raise ResumeTokenInvalidError("it lies beyond the change log; watch again without it")
    return sequence


def _member(kind: type[_Enum], value: int, field: str) -> _Enum:
    try:
        return kind(value)
    except ValueError as error:
        raise invalid(field, f"{value} is not one of {', '.join(member.name for member in kind)}") from error


def typology_of(value: int, field: str) -> Typology:
    """The typology. Raises: InvalidRequestError when it is not one."""
    return _member(Typology, value, field)


def alert_query(message: pb.AlertFilter) -> AlertQuery:
    """The filter. Raises: InvalidRequestError when a part of it can match nothing."""
    for field in ("symbols", "typologies", "states"):
        if (count := len(getattr(message, field))) > ITEMS_LIMIT:
            raise invalid(f"filter.{field}", f"has {count:,} entries; {ITEMS_LIMIT:,} at most are allowed")
    check_filter(tape=message.tape, symbols=message.symbols, prefix="filter.")
    if not 0.0 <= message.min_peak_score <= 1.0:
        raise invalid("filter.min_peak_score", f"{message.min_peak_score} is not within 0 to 1")
    typologies = tuple(typology_of(v, f"filter.typologies[{i}]") for i, v in enumerate(message.typologies))
    if Typology.UNSPECIFIED in typologies:
        raise invalid("filter.typologies", "UNSPECIFIED matches no alert; leave the list empty for all")
    return AlertQuery(
        tape=message.tape,
        symbols=tuple(message.symbols),
        typologies=typologies,
        states=tuple(_member(AlertState, v, f"filter.states[{i}]") for i, v in enumerate(message.states)),
        min_peak_score=message.min_peak_score,
    )


def triage(request: pb.UpdateAlertRequest) -> Triage:
    """The step that is asked for. Raises: InvalidRequestError with every wrong field."""
    alert, paths = request.alert, set(request.update_mask.paths)
    wrong = [
        FieldViolation(field, "is required")
        for field, value in (("alert.alert_id", alert.alert_id), ("alert.etag", alert.etag), ("actor", request.actor))
        if not value.strip()
    ]
    if request.actor == SYSTEM_ACTOR:
        wrong.append(FieldViolation("actor", f"{SYSTEM_ACTOR!r} is the gateway itself"))
    wrong += length_violations(ID_CHARACTERS_LIMIT, {"alert.alert_id": alert.alert_id, "alert.etag": alert.etag})
    wrong += length_violations(NAME_CHARACTERS_LIMIT, {"actor": request.actor, "alert.assignee": alert.assignee})
    if unknown := sorted(paths.difference(_UPDATABLE)):
        allowed = ", ".join(_UPDATABLE)
        wrong.append(FieldViolation("update_mask", f"names {', '.join(unknown)}; {allowed} are allowed"))
    elif not paths and not request.comment.strip():
        wrong.append(FieldViolation("update_mask", "is required unless a comment is made"))
    if "state" in paths and alert.state not in _STATES:
        wrong.append(FieldViolation("alert.state", f"{alert.state} is not a state"))
    if "disposition" in paths and alert.disposition not in _DISPOSITIONS:
        wrong.append(FieldViolation("alert.disposition", f"{alert.disposition} is not a disposition"))
    if wrong:
        raise InvalidRequestError(wrong)
    return Triage(
        alert_id=alert.alert_id,
        etag=alert.etag,
        actor=request.actor,
        comment=request.comment,
        state=AlertState(alert.state) if "state" in paths else None,
        disposition=Disposition(alert.disposition) if "disposition" in paths else None,
        assignee=alert.assignee if "assignee" in paths else None,
    )


def scored_quote(message: detection_service_pb2.ScoredQuote, now: datetime) -> ScoredQuote:
    """A quote with its score, fit to be kept. Raises: InvalidQuoteError with every wrong field."""
    item = scored_from_proto(message)
    wrong = [FieldViolation(f"quote.{v.field}", v.description) for v in violations(item.quote, now)]
    wrong += [FieldViolation(f"score.{field}", description) for field, description in _wrong(item.score)]
    if wrong:
        raise InvalidQuoteError(wrong, quote_id=item.quote.quote_id)
    return item


def _wrong(score: Score) -> list[tuple[str, str]]:
    wrong = []
    for field in ("ensemble", "autoencoder_percentile", "classifier_probability", "typology_confidence"):
        value = getattr(score, field)
        if value is not None and not 0.0 <= value <= 1.0:
            wrong.append((field, f"{value} is not within 0 to 1"))
    if not math.isfinite(score.threshold):
        wrong.append(("threshold", f"{score.threshold} is not finite"))
    if not score.model_version:
        wrong.append(("model_version", "is required"))
    lengths = length_violations(
        NAME_CHARACTERS_LIMIT, {"model_version": score.model_version, "feature_hash": score.feature_hash}
    )
    if len(score.reasons) > REASONS_LIMIT:
        wrong.append(("reasons", f"has {len(score.reasons):,} entries; {REASONS_LIMIT} at most are allowed"))
    else:
        for i, reason in enumerate(score.reasons):
            texts = {f"reasons[{i}].feature": reason.feature, f"reasons[{i}].text": reason.text}
            lengths += length_violations(REASON_CHARACTERS_LIMIT, texts)
    wrong += [(violation.field, violation.description) for violation in lengths]
    if score.detection:
        if score.typology is Typology.UNSPECIFIED:
            wrong.append(("typology", "a detection has one"))
        if Quality.WARMING_UP in score.quality:
            wrong.append(("detection", "a score with too little history is none"))
    elif score.typology is not Typology.UNSPECIFIED:
        wrong.append(("typology", "only a detection has one"))
    return wrong
