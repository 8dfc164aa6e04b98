"""`tapewatch watch` says that it waits, once for each loss, and that the gateway is back."""

import os
import subprocess
import sys
from pathlib import Path

from tests.servers.process import free_ports

TAPEWATCH = (sys.executable, "-m", "services.cli.main")


def test_losses_and_returns_are_told_on_stderr(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    address = f"127.0.0.1:{port}"
    environment = {**os.environ, "GRPC_PORT": str(port), "STORE_PATH": str(tmp_path / "store.db"), "LAKE_URI": "none"}
    watching = subprocess.Popen(
        [*TAPEWATCH, "watch", "--gateway", address], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    started = [watching]
    try:
        assert watching.stderr is not None
        for _ in range(2):
            assert watching.stderr.readline() == f"waiting for gateway at {address}\n"
            gateway = subprocess.Popen(
                [*TAPEWATCH, "gateway", "serve"], env=environment, stderr=subprocess.DEVNULL, text=True
            )
            started.append(gateway)
            assert watching.stderr.readline() == f"gateway at {address} answers\n"
            gateway.kill()
            gateway.wait(timeout=30)
    finally:
        for process in started:
            process.kill()
            process.wait(timeout=30)
