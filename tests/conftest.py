"""What every ring of tests shares: stand-ins of AWS, and spans; in CI, a skip of what must run is a failure."""

import functools
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Generator, Iterator
from pathlib import Path

import botocore.session
import hypothesis
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from tests.servers import stand_ins
from tests.servers.process import INSTALLED, REPOSITORY, Server, installed
from tests.servers.stand_ins import Jaeger

# A runner may start this as a background job, with SIGINT ignored: the commands under test are to see Ctrl-C.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Each new session would read its services' descriptions again, megabytes of JSON: hundreds of tests open one.
botocore.session.create_loader = functools.cache(botocore.session.create_loader)

# How long a machine takes for an example is no property of what is tested.
hypothesis.settings.register_profile(
    "tapewatch", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("tapewatch")

MUST_RUN = ("tests/e2e/", "tests/contract/", "tests/integration/", "tests/deploy/", "tests/unit/test_queue_sqs")


def _refuse_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Make a skip of what must run a failure, of one test or of a whole module."""
    required = os.environ.get("TAPEWATCH_REQUIRE_ALL_TESTS") and report.nodeid.startswith(MUST_RUN)
    if required and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"{report.nodeid} was skipped, and this run requires it: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    _refuse_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _refuse_skip(report)
    return report


def _running(server: Server) -> Iterator[Server]:
    try:
        yield server.start()
    finally:
        server.stop()


@pytest.fixture(scope="session")
def ministack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    yield from _running(stand_ins.ministack(tmp_path_factory.mktemp("ministack")))


@pytest.fixture(scope="session")
def strict_ministack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    yield from _running(stand_ins.ministack(tmp_path_factory.mktemp("strict-ministack"), strict=True))


@pytest.fixture(scope="session")
def elasticmq(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    yield from _running(stand_ins.elasticmq(tmp_path_factory.mktemp("elasticmq")))


@pytest.fixture(scope="session")
def dynamodb_local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    yield from _running(stand_ins.dynamodb_local(tmp_path_factory.mktemp("dynamodb-local")))


@pytest.fixture(scope="session")
def versitygw(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    yield from _running(stand_ins.versitygw(tmp_path_factory.mktemp("versitygw")))


@pytest.fixture(scope="session")
def jaeger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Jaeger]:
    server = stand_ins.jaeger(tmp_path_factory.mktemp("jaeger"))
    for _ in _running(server):
        yield server


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    """What the process's provider ends. A process has one provider for good, so each test adds its own processor."""
    if not isinstance(trace.get_tracer_provider(), TracerProvider):
        trace.set_tracer_provider(TracerProvider())
    provider = trace.get_tracer_provider()
    assert isinstance(provider, TracerProvider)
    kept = InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(kept))
    yield kept
    kept.shutdown()


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
