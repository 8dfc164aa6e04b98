"""The run that a folder holds, kept so that a stopped run goes on."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path


@dataclass(slots=True)
class RunState:
    """Which tape a run plays, from where, and whether it is finished. `seconds` is the time that it took so far."""

    tape: str
    location: str
    symbols: list[str]
    seconds: float = 0.0
    finished: bool = False

    @classmethod
    def load_or_new(
        cls, path: Path, location: str, symbols: Sequence[str], prefix: str = "run"
    ) -> "tuple[RunState, bool]":
        """The unfinished run of this source in the file, or a new one; and whether it goes on."""
        if path.exists():
            state = cls(**json.loads(path.read_text()))
            if not state.finished and (state.location, state.symbols) == (location, list(symbols)):
                return state, True
        tape = f"{prefix}-{datetime.now(UTC):%Y%m%d-%H%M%S-%f}"[:-3]
        return cls(tape, location, list(symbols)), False

    def save(self, path: Path) -> None:
        """Write the file in one step."""
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_suffix(".tmp")
        scratch.write_text(json.dumps(asdict(self)))
        scratch.replace(path)
