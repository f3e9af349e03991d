"""The README mentions what there is, and nothing that there is not."""

import re
from pathlib import Path

import click
import pytest

from medtl.cli import main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", main.commands)
def test_each_command_is_mentioned(name: str) -> None:
    assert re.search(rf"\bmedtl {name}\b", README)


def test_only_commands_that_exist_are_mentioned() -> None:
    """Lines of code blocks and inline code that call medtl name a command of it."""
    called = re.findall(r"(?:^|`)(?:\$ )?medtl ([a-z]+)", README, flags=re.MULTILINE)
    assert called
    assert set(called) <= set(main.commands)


def test_options_that_are_shown_exist() -> None:
    known = {"--help", "--version", "--debug"} | options(main)
    for line in re.findall(r"^\s*(?:\$ )?medtl [a-z].*$", README, flags=re.MULTILINE):
        for option in re.findall(r"(?<![\w-])--[a-z-]+", line):
            assert option in known, line


def options(command: click.Command) -> set[str]:
    """Return the options of a command, and of those below it."""
    below = command.commands.values() if isinstance(command, click.Group) else ()
    own = {name for param in command.params for name in param.opts}
    return own.union(*map(options, below))


def test_paths_that_are_linked_exist() -> None:
    links = re.findall(r"\]\(([^)#:\s]+)\)", README)
    assert links
    for link in links:
        assert (ROOT / link).exists(), link


def test_use_is_limited_in_plain_words() -> None:
    assert re.search(r"research use|not for diagnosis|not a medical device", README, flags=re.IGNORECASE)
