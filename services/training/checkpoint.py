"""Fitted networks of a run that is not finished: a run that is stopped goes on behind the last one."""

import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np


class Checkpoint:
    """The weights of fitted networks by name, in a folder of the run's own; without a folder nothing is kept."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    @classmethod
    def of_run(cls, output: Path, fingerprint: str) -> "Checkpoint":
        """The checkpoint of the run with this fingerprint: other data, options or code never meet its networks."""
        return cls(output / f".unfinished-{fingerprint[:16]}")

    def restore(self, name: str, model: Any) -> bool:
        """Gives a Keras model its kept weights. Whether there were any; damaged ones count as none."""
        if self._folder is None or not (path := self._folder / f"{name}.npz").exists():
            return False
        try:
            with np.load(path, allow_pickle=False) as kept:
                weights = [kept[f"{i:03d}"] for i in range(len(kept.files))]
            model.set_weights(weights)
        except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
            return False
        return True

    def save(self, name: str, model: Any) -> None:
        """Keeps a fitted Keras model's weights."""
        if self._folder is None:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        scratch = self._folder / f".{name}.tmp.npz"
        np.savez(scratch, **{f"{i:03d}": weight for i, weight in enumerate(model.get_weights())})
        scratch.replace(self._folder / f"{name}.npz")

    def discard(self) -> None:
        """Forgets everything: the run is finished."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
