"""Files that belong together: all are written before the first of them takes its name."""

import errno
import os
import uuid
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType


class StagedFiles(AbstractContextManager["StagedFiles"]):
    """Collects files; at the end of its block they replace what is there, and when the block fails none does."""

    def __init__(self) -> None:
        self._staged: list[tuple[Path, Path]] = []

    def add(self, target: Path) -> Path:
        """Where to write what is to become `target`, in the same folder and with its ending.

        Raises: OSError when the folder cannot be made or written, or the target is a folder, or was given before.
        """
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(target))
        if target.absolute() in (other.absolute() for _, other in self._staged):
            raise FileExistsError(errno.EEXIST, "is asked for twice", str(target))
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = target.with_name(f".{target.stem}.{uuid.uuid4().hex}{target.suffix}")
        scratch.touch()
        self._staged.append((scratch, target))
        return scratch

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for scratch, target in self._staged:
            if error is None:
                scratch.replace(target)
            else:
                scratch.unlink(missing_ok=True)
