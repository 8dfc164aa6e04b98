"""Sectors by symbol: a CSV file with the columns `symbol` and `sector`."""

import csv
from pathlib import Path

from services.domain.errors import FieldViolation, InvalidRequestError, shown

_COLUMNS = ("symbol", "sector")


def read_sectors(path: Path) -> dict[str, str]:
    """The sector of each symbol; both are read in upper case, rows without a sector are left out.

    Raises: InvalidRequestError naming the file and what is wrong with it, or the row.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise _unusable(path, f"cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise _unusable(path, "is no text in UTF-8") from error
    try:
        first, *lines = list(csv.reader(text.splitlines())) or [[]]
    except csv.Error as error:
        raise _unusable(path, f"is no CSV file ({error})") from error
    names = [name.strip().lower() for name in first]
    if missing := [name for name in _COLUMNS if name not in names]:
        there = ", ".join(filter(None, names)) or "nothing"
        raise _unusable(path, f"lacks the column {' and '.join(missing)}; its first line has {there}")
    if twice := [name for name in _COLUMNS if names.count(name) > 1]:
        raise _unusable(path, f"has the column {twice[0]} twice")
    places = [names.index(name) for name in _COLUMNS]
    sectors: dict[str, str] = {}
    for number, line in enumerate(lines, start=2):
        if not any(line):
            continue
        symbol, sector = ((line[place] if place < len(line) else "").strip().upper() for place in places)
        if not symbol:
            raise _unusable(path, f"has no symbol in line {number}")
        if sector and sectors.setdefault(symbol, sector) != sector:
            raise _unusable(path, f"names a second sector of {symbol} in line {number}: {shown(sector)}")
    if not sectors:
        raise _unusable(path, "names no symbol's sector")
    return sectors


def _unusable(path: Path, why: str) -> InvalidRequestError:
    return InvalidRequestError([FieldViolation("sectors", f"{path} {why}")])
