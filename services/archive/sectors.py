"""Sectors by symbol: a CSV file with the columns `symbol` and `sector`."""

import csv
from pathlib import Path

from services.archive.errors import unreadable
from services.domain.errors import shown

_COLUMNS = ("symbol", "sector")


def read_sectors(path: Path) -> dict[str, str]:
    """The sector of each symbol; both are read in upper case, rows without a sector are left out.

    Raises: InvalidRequestError naming the file and what is wrong with it, or the row.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise unreadable(path, f"cannot be read as a CSV file of sectors ({error})") from error
    rows = csv.DictReader(text.splitlines())
    names = {(name or "").strip().lower(): name for name in rows.fieldnames or ()}
    if missing := [name for name in _COLUMNS if name not in names]:
        there = ", ".join(filter(None, names)) or "nothing"
        raise unreadable(path, f"lacks the column {' and '.join(missing)}; its first line has {there}")
    sectors: dict[str, str] = {}
    for row in rows:
        symbol, sector = ((row[names[name]] or "").strip().upper() for name in _COLUMNS)
        if not symbol:
            raise unreadable(path, f"has no symbol in line {rows.line_num}")
        if sectors.setdefault(symbol, sector) != sector:
            raise unreadable(path, f"names a second sector of {symbol} in line {rows.line_num}: {shown(sector)}")
    found = {symbol: sector for symbol, sector in sectors.items() if sector}
    if not found:
        raise unreadable(path, "names no symbol's sector")
    return found
