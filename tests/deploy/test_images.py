"""The images without a Docker engine: their install step run for real, what they start, and the compose file."""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import dotenv
import pytest
import yaml

from deploy.certificates import write_env_files
from deploy.network import PORTS
from deploy.settings import REPOSITORY, read
from services.cli.settings_table import table
from services.runtime.secret_files import FILES
from tests.servers.process import free_port

DOCKERFILE = (REPOSITORY / "deploy" / "Dockerfile").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load((REPOSITORY / "deploy" / "compose.yaml").read_text())


def stages() -> dict[str, str]:
    """The Dockerfile's stages by name."""
    parts = re.split(r"^FROM \S+ AS (\w+)$", DOCKERFILE, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def context_files() -> list[Path]:
    """What .dockerignore lets into the build, relative to the repository."""
    lines = (REPOSITORY / ".dockerignore").read_text().splitlines()
    allowed = [REPOSITORY / line[1:] for line in lines if line.startswith("!")]
    files = [f for path in allowed for f in ([path] if path.is_file() else path.rglob("*")) if f.is_file()]
    return [file.relative_to(REPOSITORY) for file in files if "__pycache__" not in file.parts]


def test_each_service_has_a_target_with_its_port_health_check_and_command() -> None:
    targets = stages()
    assert set(targets) == {"build", "runtime", *PORTS}
    for service, port in PORTS.items():
        assert f"EXPOSE {port}" in targets[service]
        assert f'CMD ["tapewatch", "health", "localhost:{port}"]' in targets[service]
        assert f'CMD ["tapewatch", "{service}", "serve"]' in targets[service]
    assert "USER 10001:10001" in targets["runtime"]


def test_images_are_pinned_by_version() -> None:
    for file in (REPOSITORY / "deploy").rglob("Dockerfile"):
        for image in re.findall(r"^FROM (\S+)", file.read_text(), re.MULTILINE):
            name, _, tag = image.partition(":")
            assert re.match(r"v?\d+\.\d+\.\d+", tag) or name in stages(), image


@pytest.mark.parametrize("file", ["deploy/Dockerfile", "deploy/collector/Dockerfile"])
def test_hadolint_has_nothing_to_say(file: str) -> None:
    done = subprocess.run(
        [str(Path(sys.executable).with_name("hadolint")), file], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_make_and_ci_install_by_the_same_script() -> None:
    recipes = (REPOSITORY / "Makefile").read_text()
    assert len(re.findall(r"^\tsh deploy/install\.sh \$\(VENV\)", recipes, re.MULTILINE)) == 2
    assert "deploy/install.sh /opt/tapewatch" in stages()["build"]


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_build_stage_installs_a_mesh_that_serves(tmp_path: Path) -> None:
    """The RUN line as it stands, in a copy of what the build would see, into a folder of its own."""
    source, target = tmp_path / "src", tmp_path / "opt"
    for file in context_files():
        (source / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(REPOSITORY / file, source / file)
    (step,) = re.findall(r"^RUN (.*install\.sh.*)$", stages()["build"], re.MULTILINE)
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    # The interpreter that is here, and pip's cache, which an image has not.
    step = step.replace("PYTHON=python3 ", f"PYTHON={sys.executable} ").replace("PIP_NO_CACHE_DIR=1 ", "")
    done = subprocess.run(
        step.replace("/opt/tapewatch", str(target)), shell=True, cwd=source, env=environment,
        capture_output=True, text=True, timeout=350,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    shutil.rmtree(source)  # the image that runs has only the virtual environment
    tapewatch = str(target / "bin" / "tapewatch")
    port = free_port()
    environment |= {"TAPEWATCH_DIR": str(tmp_path), "GRPC_PORT": str(port), "STORE_PATH": str(tmp_path / "store.db"),
                    "LAKE_URI": str(tmp_path / "lake")}  # fmt: skip
    serving = subprocess.Popen([tapewatch, "gateway", "serve"], env=environment, cwd=tmp_path)
    try:
        for _ in range(30):
            health = [tapewatch, "health", f"localhost:{port}", "--timeout", "2"]
            checked = subprocess.run(health, env=environment, cwd=tmp_path, capture_output=True, text=True)
            if checked.returncode == 0:
                break
        assert checked.returncode == 0, checked.stdout + checked.stderr
    finally:
        serving.send_signal(signal.SIGTERM)
        assert serving.wait(30) == 0
    load = (
        "from services.scorer.main import make_loader; from services.scorer.settings import ScorerSettings; "
        "make_loader(ScorerSettings()).load('')"
    )
    python = str(target / "bin" / "python")
    for script in (load, "import amazondax, boto3, exchange_calendars, yfinance"):
        assert subprocess.run([python, "-c", script], env=environment, cwd=tmp_path, timeout=60).returncode == 0, script


def test_compose_starts_every_service_with_settings_that_exist() -> None:
    known = set(re.findall(r"^\| `([A-Z_]+)`", table(), re.MULTILINE))
    assert set(COMPOSE["services"]) == set(PORTS)
    for name, service in COMPOSE["services"].items():
        assert set(service["environment"]) <= known
        assert service["build"]["target"] == name
        assert service["command"][-1] == f"tapewatch secret-files && exec tapewatch {name} serve"
        assert service["read_only"] is True
        assert service["networks"]["mesh"]["aliases"] == [f"{name}.tapewatch.internal"]
        assert service["environment"]["GRPC_HOST"] == "0.0.0.0"
        assert {"TLS_CLIENT_CA_FILE", *FILES} <= set(service["environment"])


def test_the_env_files_hold_the_pems_for_compose(tmp_path: Path) -> None:
    written = write_env_files(tmp_path / "compose", read())
    names = {path.stem for path in written}
    assert {Path(service["env_file"]).stem for service in COMPOSE["services"].values()} < names
    tokens = set()
    for path in written:
        assert path.stat().st_mode & 0o777 == 0o600
        values = dotenv.dotenv_values(path)
        tokens.add(values["AUTH_TOKEN"])
        for variable in FILES.values():
            pem = values[variable] or ""
            assert pem.startswith("-----BEGIN")
            assert pem.endswith("-----\n")
            assert pem.count("\n") > 3
    assert len(tokens) == 1
