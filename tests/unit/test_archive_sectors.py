"""The file of sectors: what counts in it, and what is refused by line."""

from pathlib import Path

import pytest

from services.archive.sectors import read_sectors
from services.domain.errors import InvalidRequestError


def write(folder: Path, text: str) -> Path:
    path = folder / "sectors.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_symbols_and_sectors_in_any_order_of_columns(tmp_path: Path) -> None:
    text = "\ufeffName,Sector,Symbol\nApple,xlk,aapl\nNo one,,ZZZ\n\nMicrosoft,XLK,MSFT\nApple,XLK,AAPL\nApple,,AAPL\n"
    assert read_sectors(write(tmp_path, text)) == {"AAPL": "XLK", "MSFT": "XLK"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "lacks the column symbol and sector; its first line has nothing"),
        ("symbol,industry\nAAPL,Computers\n", "lacks the column sector; its first line has symbol, industry"),
        ("symbol,sector\nAAPL,XLK\n,XLF\n", "has no symbol in line 3"),
        ("symbol,sector\nAAPL,XLK\nAAPL,XLF\n", "names a second sector of AAPL in line 3: 'XLF'"),
        ("symbol,sector,symbol\nAAPL,XLK,MSFT\n", "has the column symbol twice"),
        (f"symbol,sector\nAAPL,{'X' * 200_000}\n", "is no CSV file (field larger than field limit (131072))"),
        ("symbol,sector\nAAPL,\n", "names no symbol's sector"),
        ("symbol,sector\n", "names no symbol's sector"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        read_sectors(write(tmp_path, text))
    (violation,) = refused.value.violations
    assert violation.description == f"{tmp_path / 'sectors.csv'} {said}"


@pytest.mark.parametrize(
    ("content", "said"), [(None, "cannot be read: No such file"), (b"\xff\xfe", "no text in UTF-8")]
)
def test_a_file_that_cannot_be_read(tmp_path: Path, content: bytes | None, said: str) -> None:
    path = tmp_path / "sectors.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InvalidRequestError, match=said):
        read_sectors(path)
