"""How reading an archive fails: the caller named a file or folder that cannot be used."""

from services.domain.errors import FieldViolation, InvalidRequestError


def unreadable(path: object, detail: str) -> InvalidRequestError:
    """The error for a file or folder that cannot be used at all; `detail` names the row where there is one."""
    return InvalidRequestError([FieldViolation("location", f"{path} {detail}")])
