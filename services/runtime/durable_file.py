"""Files that are there whole or not at all, also after a power loss."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

WRITING = ".writing"
"""How the name of a file ends that is not whole yet."""


@contextmanager
def replacing(target: Path) -> Iterator[BinaryIO]:
    """A file to write to, which takes the target's name and is on disk when the block has ended.

    A writer that is killed leaves `<name>.<random>.writing` behind. Raises: OSError.
    """
    scratch = target.with_name(f"{target.name}.{uuid.uuid4().hex}{WRITING}")
    with scratch.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    scratch.replace(target)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
