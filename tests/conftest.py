"""What every ring of tests shares: in CI, a skip of what must run is a failure."""

import os
from collections.abc import Generator

import pytest

MUST_RUN = ("tests/e2e/", "tests/contract/", "tests/integration/")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if os.environ.get("TAPEWATCH_REQUIRE_ALL_TESTS") and report.skipped and item.nodeid.startswith(MUST_RUN):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped, and this run requires it: {report.longrepr}"
    return report
