"""How the entry point names what was called, and what is missing."""

import subprocess
import sys

import pytest

from services.cli import main
from services.cli.commands import app
from services.cli.dependencies import missing_package
from tests.servers.process import REPOSITORY


def test_the_groups_are_those_of_the_command() -> None:
    assert set(main._GROUPS) == {group.name for group in app.registered_groups}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "tapewatch"),
        (["--help"], "tapewatch"),
        (["run", "--from", "x.csv"], "tapewatch run"),
        (["gateway", "serve"], "tapewatch gateway serve"),
        (["gateway", "--help"], "tapewatch gateway"),
        (["health", "127.0.0.1:1"], "tapewatch health"),
    ],
)
def test_a_call_is_named_without_its_options(arguments: list[str], words: str) -> None:
    assert main._command(arguments) == words


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("pyarrow.csv", "needs pyarrow: pip install -e ."),
        ("google.rpc.status_pb2", "needs googleapis-common-protos: pip install -e ."),
        ("opentelemetry.sdk.trace", "needs opentelemetry-sdk: pip install -e ."),
        ("boto3", "needs boto3: pip install -e '.[aws]'"),
        ("services.cli.nothing", None),
        ("tapewatch.market.v1", None),
        ("", None),
    ],
)
def test_only_declared_packages_are_missing_ones(module: str, words: str | None) -> None:
    assert missing_package(module) == words


def test_the_entry_point_loads_nothing_before_it_can_see_to_an_interrupt() -> None:
    """Ctrl-C while a module loads that comes before `main` would end in Python's own traceback."""
    loaded = "import sys; before = set(sys.modules); import services.cli.main; print(*(set(sys.modules) - before))"
    bare = [sys.executable, "-S", "-c", f"import sys; sys.path.insert(0, {str(REPOSITORY)!r}); {loaded}"]
    done = subprocess.run(bare, capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == {"services", "services.cli", "services.cli.main"}


def test_a_fault_of_ours_keeps_its_traceback() -> None:
    assert main._sentences(ValueError("ours"), "tapewatch run") == []
    assert main._sentences(ModuleNotFoundError(name="services.nothing"), "tapewatch run") == []
    assert main._sentences(OSError(17, "File exists", "/x"), "tapewatch run") == ["tapewatch: /x: File exists"]
