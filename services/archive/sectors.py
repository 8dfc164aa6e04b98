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
    rows = csv.DictReader(text.splitlines())
    names = {(name or "").strip().lower(): name for name in rows.fieldnames or ()}
    if missing := [name for name in _COLUMNS if name not in names]:
        there = ", ".join(filter(None, names)) or "nothing"
        raise _unusable(path, f"lacks the column {' and '.join(missing)}; its first line has {there}")
    sectors: dict[str, str] = {}
    for row in rows:
        symbol, sector = ((row[names[name]] or "").strip().upper() for name in _COLUMNS)
        if not symbol:
            raise _unusable(path, f"has no symbol in line {rows.line_num}")
        if sectors.setdefault(symbol, sector) != sector:
            raise _unusable(path, f"names a second sector of {symbol} in line {rows.line_num}: {shown(sector)}")
    found = {symbol: sector for symbol, sector in sectors.items() if sector}
    if not found:
        raise _unusable(path, "names no symbol's sector")
    return found


def _unusable(path: Path, why: str) -> InvalidRequestError:
    return InvalidRequestError([FieldViolation("sectors", f"{path} {why}")])
