"""What is committed as generated is what the protos give."""

import filecmp
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
GENERATED = ("gen/python", "clients/python/src/tapewatch_client/generated")


def files(root: Path) -> set[Path]:
    return {p.relative_to(root) for p in root.rglob("*") if p.is_file() and "__pycache__" not in p.parts}


@pytest.mark.slow
def test_nothing_drifted(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "proto/contracts.py", "generate", "--output", str(tmp_path)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    for folder in GENERATED:
        fresh, committed = tmp_path / folder, REPOSITORY / folder
        assert files(fresh) == files(committed), "run make proto"
        _, mismatched, errors = filecmp.cmpfiles(fresh, committed, map(str, files(fresh)), shallow=False)
        assert not mismatched + errors, f"run make proto: {mismatched + errors}"
