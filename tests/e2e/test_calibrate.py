"""A run's own scores set its threshold, and the next scorer judges at it."""

import json

import pytest

from tests.e2e.processes import Mesh

pytestmark = [pytest.mark.slow, pytest.mark.timeout(200)]


def test_a_run_is_calibrated_and_the_next_one_judges_at_the_threshold(mesh: Mesh) -> None:
    first = mesh.command("run", "--symbols", "AAPL,MSFT")
    assert first.returncode == 0, first.stdout + first.stderr
    labels = mesh.folder / "labels.parquet"
    done = mesh.command("calibrate", "--budget", "1", "--export-labels", str(labels))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "← chosen" in done.stdout
    assert "0 labelled bars" in done.stdout
    (file,) = mesh.folder.glob("threshold-*.json")
    written = json.loads(file.read_text())
    assert file.name == f"threshold-{written['model_version']}.json"
    assert 0.5 < written["expected_alerts"] <= 1.0
    for name in ("threshold.png", "below_the_line.csv", "labels.parquet"):
        assert (mesh.folder / name).stat().st_size > 0
    shown = mesh.command("doctor").stdout
    assert f"threshold {written['threshold']:.3f} by tapewatch calibrate" in " ".join(shown.split())
    second = mesh.command("run", "--symbols", "AAPL,MSFT")
    assert second.returncode == 0, second.stdout + second.stderr
    alerts = int(second.stdout.rpartition("alerts=")[2].split()[0])
    assert alerts == pytest.approx(written["expected_alerts"] * written["symbol_days"] / 500, abs=2)
    nowhere = mesh.command("calibrate", "--from", str(mesh.folder / "nothing"))
    assert nowhere.returncode == 2
    assert "Traceback" not in nowhere.stdout + nowhere.stderr
    wrong = mesh.command("calibrate", "--unit", "week")
    assert wrong.returncode == 2
