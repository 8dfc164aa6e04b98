"""Every deployment that is checked, synthesized once."""

from collections.abc import Callable
from pathlib import Path

import pytest

from deploy.app import build
from deploy.settings import read
from tests.deploy.assemblies import VARIANTS, Assembly

Synthesize = Callable[[str], Assembly]


@pytest.fixture(scope="session")
def synthesized(tmp_path_factory: pytest.TempPathFactory, code: Path) -> Synthesize:
    """An assembly by the name of its variant; `synthesized("small")`. cdk-nag has passed it."""
    made: dict[str, Assembly] = {}

    def synthesize(variant: str) -> Assembly:
        if variant not in made:
            application = build(read(**VARIANTS[variant]), code, tmp_path_factory.mktemp(variant))
            application.app.synth()  # fails when cdk-nag finds what is not acknowledged
            made[variant] = Assembly(Path(application.app.outdir), application.prefix)
        return made[variant]

    return synthesize
