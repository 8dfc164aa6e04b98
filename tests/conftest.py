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
    required = os.environ.get("TAPEWATCH_REQUIRE_ALL_TESTS") and item.nodeid.startswith(MUST_RUN)
    if required and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped, and this run requires it: {report.longrepr}"
    return report
