"""Every deployment that is checked, synthesized once."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from deploy.settings import read
from tests.deploy.assemblies import VARIANTS, Assembly

_NODE = shutil.which("node")
if _NODE is None and os.environ.get("TAPEWATCH_REQUIRE_ALL_TESTS"):
    raise pytest.UsageError("Node.js is not installed, which the CDK needs, and this run requires all tests")

collect_ignore_glob = [] if _NODE else ["test_[!n]*.py"]
"""Without Node.js the CDK cannot even be imported: these tests are left out then, which test_node.py says."""

Synthesize = Callable[[str], Assembly]


@pytest.fixture(scope="session")
def synthesized(tmp_path_factory: pytest.TempPathFactory, code: Path) -> Synthesize:
    """An assembly by the name of its variant; `synthesized("small")`. cdk-nag has passed it."""
    from deploy.app import build  # starts Node.js

    made: dict[str, Assembly] = {}

    def synthesize(variant: str) -> Assembly:
        if variant not in made:
            application = build(read(**VARIANTS[variant]), code, tmp_path_factory.mktemp(variant))
            application.app.synth()  # fails when cdk-nag finds what is not acknowledged
            made[variant] = Assembly(Path(application.app.outdir), application.prefix)
        return made[variant]

    return synthesize
