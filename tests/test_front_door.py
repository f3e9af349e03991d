"""import medtl: quick, complete, typed, and its examples run."""

import ast
import doctest
import inspect
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path

import pytest

import medtl
from tests.cli import jobs
from tests.waiting import slowness

# In this order: the first trains the run that the others use.
WITH_EXAMPLES = (
    *("train", "load_run", "Run", "evaluate", "score_folder", "explain_folder", "report_folder"),
    *(
        "report_training",
        "export",
        "prepare",
        "inspect_folder",
        "load_table",
        "load_config",
        "compare",
        "tune",
    ),
)


def test_the_import_is_quick_and_loads_nothing_heavy() -> None:
    code = (
        "import time, sys; before = time.process_time(); import medtl; "
        "print(time.process_time() - before, sorted({'torch', 'numpy', 'click'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=jobs.ROOT, capture_output=True, text=True, check=True)
    seconds, _, heavy = done.stdout.strip().partition(" ")
    assert float(seconds) < 0.3 * slowness(time.process_time) and heavy == "[]"


@pytest.mark.parametrize("name", medtl.__all__)
def test_each_public_name_is_found_and_described(name: str) -> None:
    value = getattr(medtl, name)
    assert name in dir(medtl)
    if callable(value):
        assert inspect.getdoc(value)


def test_type_checkers_see_the_same_names_in_the_same_places() -> None:
    tree = ast.parse(Path(medtl.__file__).read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {
        alias.name: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == medtl._HOMES
    assert sorted([*seen, "__version__"]) == sorted(medtl.__all__)
    assert (Path(medtl.__file__).parent / "py.typed").is_file()


def test_a_name_that_there_is_not_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        medtl.trian  # noqa: B018


def _load_tiny(load: Callable, modality: str, config: object = None, overrides: Sequence[str] = ()) -> object:
    return load(modality, config, (*overrides, *jobs.SETTINGS))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working folder in which medtl.train makes tiny runs; it has runs/other already."""
    with pytest.MonkeyPatch.context() as patch, jobs.tiny_backbones_registered():
        folder = tmp_path_factory.mktemp("place")
        patch.chdir(folder)
        patch.setenv("MEDTL_HOME", str(folder / "home"))
        patch.setenv("MEDTL_SALT", "test")
        load = medtl.load_config
        for module in ("medtl.workflows.train", "medtl.workflows.tune"):
            tiny = partial(_load_tiny, load)
            patch.setattr(import_module(module), "load_config", tiny)
        medtl.train("xray", out="runs/other", seed=1)
        yield folder


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_the_example_of_each_function_runs(
    name: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MEDTL_HOME", str(place / "home"))
    (example,) = doctest.DocTestFinder(recurse=False).find(getattr(medtl, name), name, globs={})
    assert example.examples
    assert doctest.DocTestRunner().run(example).failed == 0, capsys.readouterr().out
