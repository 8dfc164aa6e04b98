"""The contracts' tool: `python proto/contracts.py generate|check|release`."""

import argparse
import os
import shutil
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GOOGLE_RPC = ("status.proto", "error_details.proto", "code.proto")
RELEASED = "proto/released.binpb"
"""What clients have in their hands: changes that would break them are refused. Rewritten by `release` only."""


def lay_googleapis() -> None:
    """Copy google/rpc/*.proto out of the installed googleapis-common-protos, where buf.yaml expects them."""
    target = ROOT / ".cache" / "googleapis" / "google" / "rpc"
    target.mkdir(parents=True, exist_ok=True)
    for name in GOOGLE_RPC:
        shutil.copyfile(str(files("google.rpc") / name), target / name)


def buf(*arguments: str) -> int:
    """Run buf with this interpreter's folder first on the PATH, where buf and its plugins are. The exit code."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    return subprocess.run(["buf", *arguments], cwd=ROOT, env=environment).returncode


def main() -> int:
    """Exit code 0 when everything went well."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    generate = commands.add_parser("generate", help="regenerate everything that is made from the protos")
    generate.add_argument("--output", default=str(ROOT), help="folder to write below (default: the repository)")
    commands.add_parser("check", help=f"lint, format and compare with {RELEASED}")
    commands.add_parser("release", help=f"write {RELEASED} from the protos as they are")
    arguments = parser.parse_args()
    lay_googleapis()
    if arguments.command == "generate":
        return buf("generate", "--output", arguments.output)
    if arguments.command == "release":
        return buf("build", "proto", "--output", RELEASED)
    return max(
        buf("lint"),
        buf("format", "--diff", "--exit-code", "proto"),
        buf("breaking", "proto", "--against", RELEASED),
    )


if __name__ == "__main__":
    sys.exit(main())
