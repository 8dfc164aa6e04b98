"""The mesh of the end-to-end tests."""

import os
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from services.domain.quote import CANARY_TAPE
from tests.e2e.processes import AAPL_BARS, Mesh


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[Mesh]:
    """A mesh that is not started."""
    made = Mesh(tmp_path / "mesh")
    try:
        yield made
    finally:
        made.stop()


@pytest.fixture(scope="session")
def running_mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """One mesh for all tests that only talk to it, with AAPL's bars already played on a tape."""
    made = Mesh(tmp_path_factory.mktemp("running") / "mesh")
    try:
        made.start("up", "--source", "replay", "--symbols", "AAPL")
        made.wait_serving()
        made.wait_for(lambda: played(made, "AAPL") == AAPL_BARS, 150, "AAPL's bars")
        yield made
    finally:
        made.stop()


def played(mesh: Mesh, symbol: str) -> int:
    """How many bars of the symbol are recorded, the canaries' apart."""
    with closing(sqlite3.connect(f"file:{mesh.folder / 'store.db'}?mode=ro", uri=True)) as store:
        return int(
            store.execute(
                "SELECT count(*) FROM quotes WHERE symbol = ? AND tape <> ?", (symbol, CANARY_TAPE)
            ).fetchone()[0]
        )


@pytest.fixture
def fast_folder(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where the machine has one: DynamoDB Local flushes each transaction to disk."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)
