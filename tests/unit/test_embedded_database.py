"""A SQLite file that is no longer in its place: SQLite itself would write on into what nobody finds again."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from services.domain.errors import FileLostError
from services.runtime.embedded_database import EmbeddedDatabase


def opened(path: Path) -> EmbeddedDatabase:
    return EmbeddedDatabase(path, "CREATE TABLE notes (text)", 1, subject="the notes", setting="NOTES_PATH")


@pytest.fixture
def database(tmp_path: Path) -> Iterator[EmbeddedDatabase]:
    database = opened(tmp_path / "notes.db")
    write(database)
    yield database
    database.close()


def write(database: EmbeddedDatabase) -> None:
    with database.transaction() as connection:
        connection.execute("INSERT INTO notes VALUES ('kept')")


def read(database: EmbeddedDatabase) -> None:
    with database.reading() as connection:
        connection.execute("SELECT * FROM notes").fetchall()


def delete(path: Path) -> None:
    for file in path.parent.glob(f"{path.name}*"):
        file.unlink()


def replace(path: Path) -> None:
    copy = shutil.copy(path, path.with_suffix(".copy"))
    Path(copy).replace(path)


@pytest.mark.parametrize("lose", [delete, replace])
@pytest.mark.parametrize("use", [write, read, EmbeddedDatabase.check_writable])
def test_a_file_that_is_no_longer_there_is_told_by_every_use(
    database: EmbeddedDatabase, use: Callable[[EmbeddedDatabase], None], lose: Callable[[Path], None]
) -> None:
    use(database)
    lose(database.path)
    left = sorted(database.path.parent.iterdir())
    for _ in range(2):
        with pytest.raises(FileLostError, match=r"the notes: .*notes\.db was deleted or replaced while in use"):
            use(database)
    assert sorted(database.path.parent.iterdir()) == left, "nothing is made in its place"


def test_the_next_start_makes_a_new_file(database: EmbeddedDatabase) -> None:
    delete(database.path)
    new = opened(database.path)
    write(new)
    with pytest.raises(FileLostError):
        write(database)
    database.close()
    read(new)
    write(new)
    new.close()
