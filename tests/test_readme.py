"""The README and its guides mention what there is, and nothing that there is not."""

import re
from functools import partial
from pathlib import Path
from typing import Any

import click
import pytest

import medtl
from medtl.cli import COMMANDS, main
from tests.cli.jobs import SETTINGS, tiny_backbones_registered, write_images

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]

page = pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_is_mentioned(name: str) -> None:
    assert re.search(rf"\bmedtl {name}\b", README)


@page
def test_only_commands_that_exist_are_mentioned(page: Path) -> None:
    """Lines of code blocks and inline code that call medtl name a command of it."""
    text = page.read_text(encoding="utf-8")
    called = re.findall(r"(?:^|`)(?:\$ )?medtl ([a-z]+)", text, flags=re.MULTILINE)
    assert set(called) <= set(COMMANDS)
    assert called or page.name != "README.md"


@page
def test_options_that_are_shown_exist(page: Path) -> None:
    known = {"--help", "--version", "--debug"} | options(main)
    text = page.read_text(encoding="utf-8")
    for line in re.findall(r"^\s*(?:\$ )?medtl [a-z].*$", text, flags=re.MULTILINE):
        for option in re.findall(r"(?<![\w-])--[a-z-]+", line):
            assert option in known, line


def options(command: click.Command) -> set[str]:
    """Return the options of a command, and of those below it."""
    own = {name for param in command.params for name in (*param.opts, *param.secondary_opts)}
    if not isinstance(command, click.Group):
        return own
    context = click.Context(command)
    below = (command.get_command(context, name) for name in command.list_commands(context))
    return own.union(*(options(one) for one in below if one))


@page
def test_paths_that_are_linked_exist(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#:\s]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / link).exists(), link


@pytest.mark.parametrize(
    "page", [*PAGES, *sorted((ROOT / "docs" / "decisions").glob("*.md"))], ids=lambda path: path.name
)
def test_files_that_are_named_exist(page: Path) -> None:
    """Paths in code quotes are of the repository, or of the package."""
    for name in re.findall(
        r"`((?:[a-z_]+/)+[a-z0-9_]+\.py|tests/[a-z_/]+)`", page.read_text(encoding="utf-8")
    ):
        assert (ROOT / name).exists() or (ROOT / "medtl" / name).exists(), name


@pytest.mark.parametrize("page", PAGES[2:], ids=lambda path: path.name)
def test_each_guide_can_be_reached_from_the_readme(page: Path) -> None:
    assert f"](docs/{page.name})" in README


def test_use_is_limited_in_plain_words() -> None:
    assert re.search(r"research use|not for diagnosis|not a medical device", README, flags=re.IGNORECASE)


def test_the_api_reference_has_every_public_name() -> None:
    reference = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    missing = {name for name in medtl.__all__ if not re.search(rf"\b{name}\b", reference)}
    assert missing <= {"__version__"}
    named = set(re.findall(r"^::: medtl\.(\w+)$", reference, flags=re.MULTILINE))
    assert named <= set(medtl.__all__)


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "docs" / "api.md"], ids=lambda path: path.name)
def test_the_python_example_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a tiny network and tiny images; all else is as it is shown."""
    example = re.search(
        r"```python\n(import medtl\n.+?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL
    )
    folder = write_images(tmp_path / "FOLDER")
    (folder / "labels.csv").rename(tmp_path / "labels.csv")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(medtl, "train", partial(medtl.train, overrides=SETTINGS))
    names: dict[str, Any] = {}
    with tiny_backbones_registered():
        exec(example[1], names)
    assert [row.status for row in names["predictions"]] == ["scored"] * 24
