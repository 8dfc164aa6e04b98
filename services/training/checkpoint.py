"""Networks of a run that is not finished: a run that is stopped goes on behind the last epoch of the last one."""

import shutil
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np


class Checkpoint:
    """States of networks by name, in a folder of the run's own; without a folder nothing is kept.

    A state is all variables of Keras that the next step depends on: the weights, the optimiser's, the random seeds.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    @classmethod
    def of_run(cls, output: Path, fingerprint: str) -> "Checkpoint":
        """The checkpoint of the run with this fingerprint: other data, options or code never meet its networks."""
        return cls(output / f".unfinished-{fingerprint[:16]}")

    def restore(self, name: str, state: Sequence[Any]) -> bool:
        """Gives the variables what was kept of them. Whether there was anything; what is damaged counts as nothing."""
        if self._folder is None or not (path := self._folder / f"{name}.npz").exists():
            return False
        try:
            with np.load(path, allow_pickle=False) as kept:
                values = [kept[f"{i:03d}"] for i in range(len(kept.files))]
        except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
            return False
        if [value.shape for value in values] != [tuple(variable.shape) for variable in state]:
            return False
        for variable, value in zip(state, values, strict=True):
            variable.assign(value)
        return True

    def save(self, name: str, state: Sequence[Any]) -> None:
        """Keeps what the variables are now."""
        if self._folder is None:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        scratch = self._folder / f".{name}.tmp.npz"
        np.savez(scratch, **{f"{i:03d}": np.asarray(variable) for i, variable in enumerate(state)})  # type: ignore[arg-type]
        scratch.replace(self._folder / f"{name}.npz")

    def discard(self) -> None:
        """Forgets everything: the run is finished."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
