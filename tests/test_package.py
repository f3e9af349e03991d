"""The wheel: what an installed medtl needs is in it, and nothing that it does not."""

import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

from medtl import __version__
from tests.waiting import PATIENCE

ROOT = Path(__file__).parents[1]
NO_INDEX = ("No matching distribution", "Could not find a version", "ConnectionError", "connection")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """Build the wheel once."""
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", str(ROOT), "--no-deps", "--wheel-dir", str(out)]
    if find_spec("hatchling"):
        command.append("--no-build-isolation")
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)
    if done.returncode and not find_spec("hatchling") and any(word in done.stderr for word in NO_INDEX):
        pytest.skip("hatchling is not installed, and no package index can be reached to get it")
    assert done.returncode == 0, done.stderr[-2000:]
    (built,) = out.glob("*.whl")
    return zipfile.ZipFile(built)


def test_every_module_is_in_the_wheel(wheel: zipfile.ZipFile) -> None:
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "medtl").rglob("*.py")}
    assert len(modules) > 30
    assert modules <= set(wheel.namelist())


def test_type_checkers_find_the_types_in_the_wheel(wheel: zipfile.ZipFile) -> None:
    assert "medtl/py.typed" in wheel.namelist()


def test_recipes_are_in_the_wheel(wheel: zipfile.ZipFile) -> None:
    recipes = {f"medtl/configs/{path.name}" for path in (ROOT / "configs").glob("*.yaml")}
    assert "medtl/configs/xray.yaml" in recipes
    assert recipes <= set(wheel.namelist())


def test_templates_are_in_the_wheel(wheel: zipfile.ZipFile) -> None:
    folder = ROOT / "medtl/report/templates"
    templates = {path.relative_to(ROOT).as_posix() for path in folder.iterdir() if path.is_file()}
    assert len(templates) >= 8
    assert templates <= set(wheel.namelist())


def test_sample_data_are_in_the_wheel(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    for modality in ("xray", "mri"):
        assert f"medtl/sample_data/{modality}/labels.csv" in names
        assert any(name.startswith(f"medtl/sample_data/{modality}/images/") for name in names)
        assert any(name.startswith(f"medtl/sample_data/unlabelled/{modality}/") for name in names)
    assert "medtl/sample_data/unlabelled/answers.csv" in names


def test_nothing_else_is_in_the_wheel(wheel: zipfile.ZipFile) -> None:
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert tops == {"medtl", f"medtl-{__version__}.dist-info"}
    assert not [name for name in wheel.namelist() if "test" in name.lower() or "__pycache__" in name]


def test_the_command_is_declared(wheel: zipfile.ZipFile) -> None:
    entries = wheel.read(f"medtl-{__version__}.dist-info/entry_points.txt").decode()
    assert "medtl = medtl.cli:main" in entries
