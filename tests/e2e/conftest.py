"""The mesh of the end-to-end tests."""

import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.processes import REPOSITORY, Mesh
from tests.servers.process import INSTALLED, installed


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
        yield made
    finally:
        made.stop()


@pytest.fixture(scope="session")
def code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dispatch Lambda's zip, made for the Python and the machine that the stand-ins run it on."""
    python = installed(INSTALLED / "ministack" / "bin" / "python")
    command = [str(python), "-c", "import sys; print('.'.join(map(str, sys.version_info[:2])))"]
    version = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    architecture = {"x86_64": "x86_64", "aarch64": "arm64", "arm64": "arm64"}[platform.machine()]
    output = tmp_path_factory.mktemp("lambda") / "dispatch.zip"
    make = [sys.executable, "deploy/lambda_zip.py", "--python", version, "--architecture", architecture]
    subprocess.run([*make, "--output", str(output)], check=True, cwd=REPOSITORY)
    return output
