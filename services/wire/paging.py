"""Pages: sizes and tokens, which hold good only for a request with the same conditions."""

import base64
import hashlib
import json

from google.protobuf.message import Message

from services.wire.checks import TOKEN_CHARACTERS_LIMIT, check_names, invalid


def page_size(asked: int, default: int, most: int, field: str = "page_size") -> int:
    """The page size to use. Raises: InvalidRequestError when it is out of range."""
    if not 0 <= asked <= most:
        raise invalid(field, f"is {asked:,}; 1 to {most:,} are allowed, or 0 for {default:,}")
    return asked or default


def _fingerprint(request: Message, position: str) -> str:
    """Names the request's conditions (everything but the page) and the position, so that neither can be exchanged."""
    bare = type(request)()
    bare.CopyFrom(request)
    for field in ("page_token", "page_size"):
        bare.ClearField(field)
    return hashlib.sha256(bare.SerializeToString(deterministic=True) + position.encode()).hexdigest()[:16]


def page_token(request: Message, position: tuple[int | str, ...] | None) -> str:
    """The token of the page after `position`; empty when there is none."""
    if position is None:
        return ""
    encoded = json.dumps(position, separators=(",", ":"))
    return base64.urlsafe_b64encode(f"{_fingerprint(request, encoded)}{encoded}".encode()).decode()


def page_position(request: Message) -> tuple[int | str, ...] | None:
    """Where the request's page begins. Raises: InvalidRequestError when the token is not one of this request's."""
    token: str = request.page_token  # type: ignore[attr-defined]
    if not token:
        return None
    check_names({"page_token": token}, TOKEN_CHARACTERS_LIMIT)
    try:
        text = base64.urlsafe_b64decode(token.encode()).decode()
    except ValueError as error:
        raise invalid("page_token", "is not a token of this service") from error
    if text[:16] != _fingerprint(request, text[16:]):
        raise invalid("page_token", "is not one of a request with these conditions")
    return tuple(json.loads(text[16:]))
