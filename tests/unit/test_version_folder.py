"""A version's folder: checked when it is read, and whole whenever a writer is killed."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import pytest

from services.archive import version_folder
from services.domain.errors import NotConfiguredError
from services.domain.model import METADATA_FILE

KILLED = """
import os, pathlib, signal, sys
from services.archive import version_folder
from tests.unit.test_version_folder import Described

renames = 0
plain = pathlib.Path.rename

def rename(self, target):
    global renames
    renames += 1
    plain(self, target)
    if renames == 1:
        os.kill(os.getpid(), signal.SIGKILL)

pathlib.Path.rename = rename
pathlib.Path.replace = rename
folder, content = pathlib.Path(sys.argv[1]), sys.argv[2].encode()
version_folder.write(folder, Described("tw-1", content, note="new"), {"file": content})
"""


@dataclass(frozen=True)
class Described:
    """A version of one file."""

    version: str
    content: bytes
    note: str = ""

    def to_json(self) -> str:
        return json.dumps(
            {"version": self.version, "note": self.note, "checksums": {"file": sha256(self.content).hexdigest()}}
        )


def write(folder: Path, content: bytes, note: str = "") -> Path:
    return version_folder.write(folder, Described("tw-1", content, note), {"file": content})


def note(folder: Path) -> str:
    return str(json.loads((folder / "tw-1" / METADATA_FILE).read_text())["note"])


def test_the_same_files_again_replace_the_metadata_only(tmp_path: Path) -> None:
    file = write(tmp_path, b"one") / "file"
    before = os.stat(file)
    write(tmp_path, b"one", "later")
    assert os.stat(file) == before
    assert note(tmp_path) == "later"
    assert [path.name for path in tmp_path.iterdir()] == ["tw-1"]


def test_other_files_under_the_name_of_a_whole_version_are_refused_and_it_stays(tmp_path: Path) -> None:
    write(tmp_path, b"one", "first")
    with pytest.raises(NotConfiguredError, match="tw-1 holds other files"):
        write(tmp_path, b"other")
    assert note(tmp_path) == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["tw-1"]


def test_a_damaged_version_is_replaced(tmp_path: Path) -> None:
    (write(tmp_path, b"one") / "file").write_bytes(b"damaged")
    assert (write(tmp_path, b"one", "mended") / "file").read_bytes() == b"one"
    assert note(tmp_path) == "mended"
    (tmp_path / "tw-1" / METADATA_FILE).write_text("{")
    write(tmp_path, b"two", "mended again")
    assert note(tmp_path) == "mended again"
    assert [path.name for path in tmp_path.iterdir()] == ["tw-1"]


@pytest.mark.parametrize("content", ["one", "other"])
def test_a_writer_that_is_killed_at_its_first_rename_leaves_a_whole_version(tmp_path: Path, content: str) -> None:
    write(tmp_path, b"one", "first")
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), content], check=False, capture_output=True)
    assert killed.returncode in (-signal.SIGKILL, 1), killed.stderr
    assert (killed.returncode == 1) == (b"holds other files" in killed.stderr)
    document = json.loads((tmp_path / "tw-1" / METADATA_FILE).read_text())
    assert sha256((tmp_path / "tw-1" / "file").read_bytes()).hexdigest() == document["checksums"]["file"]
