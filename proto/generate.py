"""Regenerate everything that is made from the protos: `python proto/generate.py [--output DIR]`."""

import argparse
import os
import shutil
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GOOGLE_RPC = ("status.proto", "error_details.proto", "code.proto")


def lay_googleapis() -> None:
    """Copy google/rpc/*.proto out of the installed googleapis-common-protos, where buf.yaml expects them."""
    target = ROOT / ".cache" / "googleapis" / "google" / "rpc"
    target.mkdir(parents=True, exist_ok=True)
    for name in GOOGLE_RPC:
        shutil.copyfile(str(files("google.rpc") / name), target / name)


def buf_environment() -> dict[str, str]:
    """The environment in which buf finds itself and its plugins: this interpreter's folder first."""
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def main() -> int:
    """Generate into the working tree, or below --output with the same layout."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=ROOT, help="folder to write below (default: the repository)")
    output = parser.parse_args().output
    lay_googleapis()
    command = ["buf", "generate", "--output", str(output)]
    return subprocess.run(command, cwd=ROOT, env=buf_environment()).returncode


if __name__ == "__main__":
    sys.exit(main())
