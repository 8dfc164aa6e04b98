"""What a user can mend ends `tapewatch` in one sentence, and Ctrl-C ends it in silence, whenever it comes."""

import os
import re
import signal
import socket
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from services.cli.dependencies import PACKAGES
from services.cli.mesh import Mesh, MeshFailedError
from services.cli.settings import MeshSettings
from services.gateway.settings import GatewaySettings
from services.scorer.registry import ModelRegistry
from tests.servers.process import REPOSITORY

TAPEWATCH = (sys.executable, "-m", "services.cli.main")


def tapewatch(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "COLUMNS": "200", **environment}
    return subprocess.run([*TAPEWATCH, *arguments], env=environment, capture_output=True, text=True, timeout=240)


def without(folder: Path, module: str) -> str:
    """A PYTHONPATH with which the module is as if it were not installed."""
    (folder / module).mkdir(parents=True)
    missing = f"raise ModuleNotFoundError(\"No module named '{module}'\", name='{module}')\n"
    (folder / module / "__init__.py").write_text(missing)
    return os.pathsep.join([str(folder), *sys.path])


def test_every_declared_dependency_has_its_sentence() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    extras = ("yahoo", "calendar", "aws", "lake", "plot", "train")
    declared = {("", entry) for entry in project["dependencies"]}
    declared |= {(extra, entry) for extra in extras for entry in project["optional-dependencies"][extra]}
    names = {(re.split(r"[<>=~!\[]", entry)[0], extra) for extra, entry in declared}
    known = set(PACKAGES.values())
    assert {name for name, _ in names} == {name for name, _ in known}
    assert known <= names


@pytest.mark.parametrize(
    ("module", "arguments", "words"),
    [
        ("pyarrow", ("gateway", "serve"), "tapewatch gateway serve needs pyarrow: pip install -e .\n"),
        ("rich", ("doctor",), "tapewatch doctor needs rich: pip install -e .\n"),
        (
            "bokeh_sampledata",
            ("run",),
            "tapewatch: the bundled tape needs bokeh-sampledata: install it with pip install -e .\n",
        ),
    ],
)
def test_a_missing_package_is_named_with_what_installs_it(
    tmp_path: Path, module: str, arguments: tuple[str, ...], words: str
) -> None:
    folder = str(tmp_path / "mesh")
    done = tapewatch(*arguments, PYTHONPATH=without(tmp_path / "hidden", module), TAPEWATCH_DIR=folder)
    assert (done.returncode, done.stderr) == (2, words)


def test_doctor_finds_a_missing_package_and_the_rest(tmp_path: Path) -> None:
    hidden = without(tmp_path / "hidden", "numpy")
    done = tapewatch("doctor", PYTHONPATH=hidden, TAPEWATCH_DIR=str(tmp_path / "mesh"))
    assert done.returncode == 1
    rows = {line.split("│")[1].strip(): line for line in done.stdout.splitlines() if line.count("│") == 4}
    assert "needs numpy: pip install -e ." in rows["model"]
    assert " ok " in rows["queue"]


@pytest.mark.parametrize("module", ["typer", "pydantic", "grpc"])
def test_ctrl_c_while_the_command_loads_leaves_no_traceback(tmp_path: Path, module: str) -> None:
    """The module takes so long to import that the interrupt always comes meanwhile."""
    (tmp_path / module).mkdir()
    (tmp_path / module / "__init__.py").write_text("import time\nprint('loading', flush=True)\ntime.sleep(60)\n")
    process = subprocess.Popen(
        [*TAPEWATCH, "watch", "--gateway", "127.0.0.1:1"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "loading\n"
    process.send_signal(signal.SIGINT)
    _, complaint = process.communicate(timeout=30)
    assert (process.returncode, complaint.strip()) == (130, "")


@pytest.mark.parametrize(
    ("arguments", "variable"),
    [
        (("dispatch", "serve"), "GATEWAY_ADDRESS"),
        (("dispatch", "serve"), "INGEST_ADDRESS"),
        (("scorer", "serve"), "GATEWAY_ADDRESS"),
        (("watch",), "GATEWAY_ADDRESS"),
    ],
)
def test_an_address_that_is_none_is_refused(arguments: tuple[str, ...], variable: str) -> None:
    done = tapewatch(*arguments, **{variable: "foo"})
    assert done.returncode == 2
    assert re.fullmatch(rf"tapewatch: {variable}='foo': must be host:port(, or none)?\n", done.stderr)


@pytest.mark.parametrize("address", ["foo", "127.0.0.1:", "127.0.0.1:70000", "a b:1"])
def test_an_address_argument_that_is_none_is_refused(address: str) -> None:
    for arguments in (("watch", "--gateway"), ("replay", "--ingest"), ("dispatch", "tasks", "--dispatch")):
        done = tapewatch(*arguments, address)
        assert done.returncode == 2
        assert f"{address!r} is not host:port" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("canary", "no-such-bird"), "no canary named no-such-bird; there are pump-and-dump"),
        (
            ("cost", "--region", "mars"),
            "'mars' is not in the price table, which has eu-central-1 and us-east-1; --prices FILE takes",
        ),
        (("cost", "--prices", "/no/such.json"), "/no/such.json"),
        (("cost", "--plot", "/no/such.nothing"), "/no/such.nothing ends in none of"),
        (("lake", "query", "SELECT 1", "--lake", "/no/such"), "/no/such does not exist"),
        (("calibrate", "--from", "/no/such"), "/no/such holds no parts of a lake"),
        (("train", "--data", "/no/such"), "'/no/such' does not exist"),
        (("train", "--labels", "/no/such"), "/no/such"),
        (("evaluate", "--only", "nothing"), "'nothing' is none of the sections"),
        (("evaluate", "--model", "/no/such"), "/no/such"),
    ],
)
def test_an_argument_that_names_nothing_is_a_wrong_argument(arguments: tuple[str, ...], words: str) -> None:
    done = tapewatch(*arguments)
    told = done.stdout + done.stderr
    assert words in " ".join(told.split())
    assert "Traceback" not in told
    assert done.returncode == 2


def test_a_file_for_a_folder_is_named(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("")
    for folder in (path, path / "mesh"):
        done = tapewatch("run", TAPEWATCH_DIR=str(folder))
        assert done.returncode == 2
        assert (
            done.stderr
            == f"tapewatch: TAPEWATCH_DIR={str(folder)!r}: {path} is a file: set TAPEWATCH_DIR to a folder\n"
        )


@pytest.mark.parametrize("variable", ["MODEL_VERSION", "SHADOW_MODEL_VERSION", "CANARY_MODEL_VERSION"])
def test_a_model_version_that_is_not_there_is_told_with_those_that_are(variable: str) -> None:
    done = tapewatch("scorer", "serve", GRPC_PORT="0", **{variable: "zz"})
    assert done.returncode == 2
    (sentence,) = [line for line in done.stderr.splitlines() if line.startswith("tapewatch")]
    assert "'zz'" in sentence
    assert ModelRegistry().names()[0] in sentence
    assert f"set {variable} to a version that is there" in sentence


def test_an_ipv6_address_needs_no_brackets() -> None:
    for host in ("::1", "[::1]"):
        assert GatewaySettings(grpc_host=host).grpc_host == "[::1]"
    assert GatewaySettings(grpc_host="localhost").grpc_host == "localhost"


@pytest.mark.parametrize("variable", ["GATEWAY_ADDRESS", "SCORER_ADDRESSES", "DISPATCH_ADDRESS", "INGEST_ADDRESS"])
async def test_a_busy_address_of_the_mesh_is_told_with_its_variable(
    tmp_path: Path, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        address = f"127.0.0.1:{busy.getsockname()[1]}"
        monkeypatch.setenv(variable, address)
        mesh = Mesh(MeshSettings(tapewatch_dir=tmp_path))
        mesh.processes = [process for process in mesh.processes if process.address == address]
        with pytest.raises(MeshFailedError) as caught:
            await mesh.start()
        assert caught.value.message.endswith(
            f": {address} is in use; stop what listens there, or set {variable} to another address"
        )


async def test_a_mesh_that_lost_the_race_for_a_port_names_the_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The port is taken between the mesh's look at it and the service's start."""

    async def free(_: Mesh, __: str) -> bool:
        return False

    monkeypatch.setattr(Mesh, "_occupied", free)
    with socket.create_server(("127.0.0.1", 0)) as busy:
        address = f"127.0.0.1:{busy.getsockname()[1]}"
        mesh = Mesh(MeshSettings(tapewatch_dir=tmp_path, gateway_address=address))
        mesh.processes = mesh.processes[:1]
        with pytest.raises(MeshFailedError) as caught:
            await mesh.start()
    assert "set GATEWAY_ADDRESS to another address" in caught.value.message
    assert "GRPC_PORT" not in caught.value.message
    assert str(tmp_path / "logs" / "gateway.log") in caught.value.message
