"""What every ring of tests shares: the servers that stand in for AWS; in CI, a skip of what must run is a failure."""

import os
from collections.abc import Generator, Iterator

import pytest

from tests.servers import stand_ins
from tests.servers.process import Server

MUST_RUN = ("tests/e2e/", "tests/contract/", "tests/integration/")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    required = os.environ.get("TAPEWATCH_REQUIRE_ALL_TESTS") and item.nodeid.startswith(MUST_RUN)
    if required and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped, and this run requires it: {report.longrepr}"
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
def elasticmq(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    yield from _running(stand_ins.elasticmq(tmp_path_factory.mktemp("elasticmq")))


@pytest.fixture(scope="session")
def dynamodb_local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    yield from _running(stand_ins.dynamodb_local(tmp_path_factory.mktemp("dynamodb-local")))


@pytest.fixture(scope="session")
def versitygw(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    yield from _running(stand_ins.versitygw(tmp_path_factory.mktemp("versitygw")))
