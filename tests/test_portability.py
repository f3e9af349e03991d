"""Windows and macOS: nothing that only Linux has is needed, and no file in use is renamed or removed."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli import jobs
from tests.elsewhere import FUNCTIONS, MODULES, work

ROOT = Path(__file__).parents[1]
# Functions of os, and modules, that a file may use: each is guarded there.
GUARDED = {
    "medtl/core/parallel.py": {"fork"},
    "medtl/training/feature_cache/store.py": {"posix_fallocate"},
}
ONLY_LINUX = {
    *(*FUNCTIONS, *MODULES, "uname", "getppid", "fchmod", "getuid", "geteuid"),
    *("SIGKILL", "SIGHUP", "SIGALRM", "pause", "preexec_fn"),
}


def write_studies(folder: Path) -> None:
    """Write radiographs as DICOM, one a patient, and their labels."""
    rows = []
    for row in range(12):
        jobs.write_radiograph(folder / f"{row:02d}.dcm", row, row % 2, PatientID=f"P{row}")
        rows.append({"path": f"{row:02d}.dcm", "label": ("normal", "lesion")[row % 2]})
    jobs.write_labels(folder, rows)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere every test shows it")
def test_the_main_commands_need_nothing_of_linux_and_come_to_the_same_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = []
    for place in ("elsewhere", "here"):
        folder = tmp_path / place
        write_studies(folder / "studies")
        home = {"MEDTL_HOME": str(folder / "home"), "OMP_NUM_THREADS": "1"}
        if place == "elsewhere":
            done = subprocess.run(
                [sys.executable, "-m", "tests.elsewhere", str(folder)],
                cwd=ROOT,
                env={**os.environ, **home},
                capture_output=True,
                text=True,
            )
            assert done.returncode == 0, done.stdout + done.stderr
            results.append(json.loads(done.stdout.splitlines()[-1]))
        else:
            monkeypatch.setenv("MEDTL_HOME", home["MEDTL_HOME"])
            with jobs.tiny_backbones_registered():
                results.append(work(folder))
    assert results[0]["codes"] == [0, 0, 0, 0, 130, 0, 0, 0, 0]
    assert results[0] == results[1]
    scores = [(tmp_path / place / "scores/scores.csv").read_bytes() for place in ("elsewhere", "here")]
    assert scores[0] == scores[1] and scores[0].count(b"\n") == 13


@pytest.mark.parametrize("path", sorted((ROOT / "medtl").rglob("*.py")), ids=lambda path: path.stem)
def test_a_module_names_nothing_that_only_linux_has(path: Path) -> None:
    named = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            named |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            named |= {node.module or ""}
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            named |= {node.attr} if node.value.id in ("os", "signal") else set()
        elif isinstance(node, ast.keyword):
            named |= {node.arg or ""}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            named |= {"/proc"} if node.value.startswith("/proc") else set()
    guarded = GUARDED.get(path.relative_to(ROOT).as_posix(), set())
    assert not named & {*ONLY_LINUX, "/proc"} - guarded
