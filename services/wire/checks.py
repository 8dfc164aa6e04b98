"""Checks that requests of several services share."""

from collections.abc import Sequence
from typing import Any

from services.domain.errors import FieldViolation, InvalidRequestError

ITEMS_LIMIT = 1_000


def check_count(field: str, items: Sequence[Any], *, least: int = 1) -> None:
    """Raises: InvalidRequestError, naming the field, unless it has `least` to ITEMS_LIMIT items."""
    if not least <= len(items) <= ITEMS_LIMIT:
        description = f"has {len(items):,} items; {least} to {ITEMS_LIMIT:,} are allowed"
        raise InvalidRequestError([FieldViolation(field, description)])
