"""Makes the dispatch Lambda's zip: our modules that the handler needs, and their dependencies for Lambda's platform.

boto3 is left to Lambda's runtime, and is imported only when a dead letter is sent. numpy, pandas and TFLite have no
place in it: the function starts cold on someone's bill. Equal inputs give equal bytes.

    python deploy/lambda_zip.py --python 3.13 --architecture arm64
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
HANDLER = "services.dispatch.handler.lambda_handler"
PACKAGES = ("domain", "runtime", "queue", "wire", "pipeline", "dispatch")
REQUIREMENTS = (
    "googleapis-common-protos",
    "grpcio",
    "grpcio-health-checking",
    "grpcio-reflection",
    "grpcio-status",
    "opentelemetry-api",
    "opentelemetry-exporter-otlp-proto-grpc",
    "opentelemetry-instrumentation-grpc",
    "opentelemetry-sdk",
    "protobuf",
    "pydantic-settings",
)
FORBIDDEN = ("ai_edge_litert", "boto3", "botocore", "numpy", "pandas", "pyarrow", "tensorflow", "tflite_runtime")
LIMIT_BYTES = 250 * 1024 * 1024
"""What Lambda takes, unzipped."""

_MACHINES = {"x86_64": "x86_64", "arm64": "aarch64"}
_GLIBC = ("2_17", "2_28", "2_34")
_EPOCH = (1980, 1, 1, 0, 0, 0)
_NEEDLESS = ("bin", "__pycache__", "*.dist-info/RECORD", "*.dist-info/direct_url.json")


def _install(target: Path, python: str, architecture: str) -> None:
    platforms = [f"manylinux_{glibc}_{_MACHINES[architecture]}" for glibc in _GLIBC]
    platforms.append(f"manylinux2014_{_MACHINES[architecture]}")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"]
    command += ["--target", str(target), "--python-version", python, "--only-binary", ":all:"]
    command += [option for platform in platforms for option in ("--platform", platform)]
    subprocess.run([*command, "-c", str(REPOSITORY / "requirements" / "constraints.txt"), *REQUIREMENTS], check=True)


def _copy_ours(target: Path) -> None:
    ignore = shutil.ignore_patterns("__pycache__", "*.pyi")
    (target / "services").mkdir()
    shutil.copy(REPOSITORY / "services" / "__init__.py", target / "services")
    for package in PACKAGES:
        shutil.copytree(REPOSITORY / "services" / package, target / "services" / package, ignore=ignore)
    shutil.copytree(REPOSITORY / "gen" / "python" / "tapewatch", target / "tapewatch", ignore=ignore)


def _check(target: Path) -> None:
    if found := [name for name in FORBIDDEN if (target / name).exists()]:
        raise SystemExit(f"the Lambda zip must not hold {', '.join(found)}")
    size = sum(file.stat().st_size for file in target.rglob("*") if file.is_file())
    if size > LIMIT_BYTES:
        raise SystemExit(f"the Lambda zip holds {size:,} bytes; Lambda takes {LIMIT_BYTES:,}")


def _pack(target: Path, output: Path) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    scratch = output.with_suffix(".tmp")
    with zipfile.ZipFile(scratch, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for file in sorted(path for path in target.rglob("*") if path.is_file()):
            entry = zipfile.ZipInfo(file.relative_to(target).as_posix(), _EPOCH)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, file.read_bytes())
    scratch.replace(output)


def make(output: Path, python: str, architecture: str) -> None:
    """Make the zip. Exits with a sentence when it would hold what it must not."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder)
        _install(target, python, architecture)
        for pattern in _NEEDLESS:
            for path in target.rglob(pattern) if "/" not in pattern else target.glob(pattern):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        _copy_ours(target)
        _check(target)
        _pack(target, output)


def main() -> None:
    """Make the zip that the arguments ask for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", default="3.13", help="version of Lambda's Python runtime")
    parser.add_argument("--architecture", choices=sorted(_MACHINES), default="arm64")
    parser.add_argument("--output", type=Path, default=None)
    given = parser.parse_args()
    output = given.output or REPOSITORY / "dist" / f"dispatch-lambda-{given.architecture}.zip"
    make(output, given.python, given.architecture)
    print(f"{output}: {output.stat().st_size:,} bytes, handler {HANDLER}")


if __name__ == "__main__":
    main()
