"""What the CDK stands on: read even where it is missing, so that a run says what it leaves out."""

import re
import shutil
import subprocess

import pytest


def test_node_is_one_that_the_cdk_runs_on() -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("no Node.js here: the tests of the deployment are left out")
    version = subprocess.run([node, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.match(r"v(\d+)\.", version)
    assert found is not None, version
    assert int(found[1]) >= 20, f"the CDK needs Node.js 20 or newer, not {version}"
