"""Lint the protos and compare them with the released ones: `python proto/check.py [--release]`."""

import argparse
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from generate import ROOT, buf_environment, lay_googleapis

RELEASED = "proto/released.binpb"
"""What clients have in their hands: changes that would break them are refused. Rewritten with --release only."""


def main() -> int:
    """Exit code 0 when everything is clean."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--release", action="store_true", help=f"write {RELEASED} from the protos as they are")
    lay_googleapis()
    if parser.parse_args().release:
        steps = [["buf", "build", "proto", "--output", RELEASED]]
    else:
        steps = [
            ["buf", "lint"],
            ["buf", "format", "--diff", "--exit-code", "proto"],
            ["buf", "breaking", "proto", "--against", RELEASED],
        ]
    return max(subprocess.run(step, cwd=ROOT, env=buf_environment()).returncode for step in steps)


if __name__ == "__main__":
    sys.exit(main())
