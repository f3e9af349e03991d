"""The front door: help, speed, and what medtl says of its backbones and recipes."""

import json
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import click
import pytest
import yaml

from medtl import __version__
from medtl.cli import COMMANDS, main
from tests.cli import jobs
from tests.waiting import slowness

ORDER = (
    "demo",
    "inspect",
    "prepare",
    "train",
    "tune",
    "evaluate",
    "compare",
    "score",
    "explain",
    "report",
    "results",
    "pacs",
    "export",
    "backbones",
    "weights",
    "config",
)
HEAVY = ("torch", "monai", "numpy", "pydicom", "pandas", "timm")
BACKBONE_KEYS = {"name", "family", "spatial_dims", "parameters", "layer_groups", "input_size", "weights"}


def run_python(code: str) -> str:
    """Run code in a fresh interpreter and return what it printed."""
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=jobs.ROOT, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("arguments", [("--help",), ("train", "--help"), ("inspect", "--help")], ids=" ".join)
def test_help_takes_less_than_half_a_second_of_a_processor(arguments: tuple[str, ...]) -> None:
    code = (
        "import time; from medtl.cli import main\n"
        f"main({list(arguments)}, standalone_mode=False); print(time.process_time())"
    )
    assert min(float(run_python(code).splitlines()[-1]) for _ in range(3)) < 0.5 * slowness(time.process_time)


def test_the_front_door_loads_nothing_heavy() -> None:
    loaded = run_python(
        "import sys, medtl, medtl.imaging, medtl.cli; "
        "medtl.cli.main(['train', '--help'], standalone_mode=False); "
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    assert loaded.splitlines()[-1] == "[]"


def test_the_commands_stand_in_the_order_of_use() -> None:
    assert tuple(main.list_commands(click.Context(main))) == ORDER


@pytest.mark.parametrize("name", ORDER)
def test_each_command_has_help(name: str) -> None:
    result = jobs.medtl(name, "--help")
    assert result.exit_code == 0 and result.stdout.startswith("Usage: ")
    command = main.get_command(click.Context(main), name)
    assert command is not None
    assert command.help
    for option in command.params:
        if isinstance(option, click.Option):
            assert option.opts[0] in result.stdout


def test_a_command_is_one_line_in_the_list(monkeypatch: pytest.MonkeyPatch) -> None:
    toy = ModuleType("toy")
    toy.toy = click.Command("toy", callback=lambda: click.echo("played"), help="Play.")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "toy", toy)
    monkeypatch.setitem(COMMANDS, "toy", "toy")
    assert jobs.medtl("toy").stdout == "played\n"
    assert jobs.medtl("--help").stdout.splitlines()[-1].split() == ["toy", "Play."]


@pytest.mark.parametrize(
    "arguments",
    [
        ("train", "--modality", "xray"),
        ("tune", "--modality", "xray", "--out", "OUT"),
        ("evaluate", "RUN", "--data", "FOLDER", "--out", "OUT"),
        ("score", "RUN", "FOLDER", "--out", "OUT"),
        ("explain", "RUN", "FOLDER", "--out", "OUT"),
        ("report", "RUN", "FOLDER", "--out", "OUT"),
        ("prepare", "FOLDER", "--modality", "xray", "--out", "OUT"),
        ("inspect", "FOLDER"),
        ("demo",),
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_command_prints_its_first_line_before_it_loads_what_is_heavy(arguments: tuple[str, ...]) -> None:
    code = f"""
import sys
class Heavy:
    def find_spec(self, name, *_):
        if name.partition(".")[0] in {HEAVY}:
            raise SystemExit("then " + name)
sys.meta_path.insert(0, Heavy())
from medtl.cli import COMMANDS
from medtl.cli import main
main({list(arguments)})
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=jobs.ROOT, capture_output=True, text=True, check=False)
    first, then = done.stderr.splitlines()
    assert first.startswith(f"medtl {arguments[0]}") and then.startswith("then ")


def test_version() -> None:
    assert jobs.medtl("--version").stdout.strip().endswith(__version__)


def test_the_module_runs_as_the_command_does() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "medtl", "score"], cwd=jobs.ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "Missing argument" in done.stderr and done.stdout == ""


def test_backbones_as_json() -> None:
    rows = json.loads(jobs.medtl("backbones", "--json").stdout)
    assert all(row.keys() >= BACKBONE_KEYS for row in rows)
    names = [row["name"] for row in rows]
    assert len(set(names)) == len(names) >= 5
    for row in rows:
        assert row["spatial_dims"] in (2, 3) and row["parameters"] > 0
        assert len(row["layer_groups"]) == len(set(row["layer_groups"])) > 1
        for weights in row["weights"]:
            assert weights["licence"] and weights["source"]


def test_backbones_as_a_table_names_each_one() -> None:
    rows = json.loads(jobs.medtl("backbones", "--json").stdout)
    table = jobs.medtl("backbones").stdout
    assert all(row["name"] in table for row in rows)


@pytest.mark.parametrize("modality", ["xray", "mri"])
def test_a_recipe_that_is_shown_is_the_same_recipe_again(modality: str, tmp_path: Path) -> None:
    shown = jobs.medtl("config", "show", "--modality", modality).stdout
    values = yaml.safe_load(shown)
    assert values["modality"] == modality
    assert {"task", "split", "preprocessing", "augmentation", "backbone", "schedule", "fit"} <= values.keys()
    (tmp_path / "recipe.yaml").write_text(shown)
    assert jobs.medtl("config", "show", "--config", tmp_path / "recipe.yaml").stdout == shown


def test_overrides_are_shown() -> None:
    shown = jobs.medtl("config", "show", "--modality", "xray", "--set", "schedule.learning_rate=1e-4").stdout
    assert yaml.safe_load(shown)["schedule"]["learning_rate"] == 1e-4


def test_every_shipped_recipe_is_valid() -> None:
    recipes = sorted((jobs.ROOT / "configs").glob("*.yaml"))
    assert len(recipes) >= 4
    for recipe in recipes:
        assert jobs.medtl("config", "show", "--config", recipe).exit_code == 0
        assert recipe.read_text().startswith("# medtl train ")


def test_the_schema_describes_every_section() -> None:
    schema = json.loads(jobs.medtl("config", "schema").stdout)
    assert schema["additionalProperties"] is False
    assert {"modality", "task", "split", "preprocessing", "schedule", "fit"} <= schema["properties"].keys()


@pytest.mark.parametrize(("number", "code"), [((), 130), ((15,), 143)])
def test_a_stop_that_no_command_answers_is_a_line(
    number: tuple[int, ...], code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt(*number)

    monkeypatch.setattr("medtl.workflows.inspect.inspect_folder", stop)
    result = jobs.medtl("inspect", tmp_path)
    assert jobs.fault(result, code) == "interrupted" and "same command" in result.stderr
