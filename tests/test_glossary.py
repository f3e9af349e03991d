"""What users read is written in the field's own words: docs/glossary.md lists the words to avoid."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

import medtl
from medtl.cli import main
from medtl.errors import CODES

ROOT = Path(__file__).parents[1]
PACKAGE = Path(medtl.__file__).parent
GLOSSARY = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
DEFINITIONS, AVOIDED = GLOSSARY.split("## Words we avoid")
TERMS = re.findall(r"^\| (?!word|---)(.+?) \| (.+) \|$", DEFINITIONS, flags=re.MULTILINE)
# The avoided words, in backticks in the last column.
BANNED = re.findall(r"`([^`]+)`", " ".join(re.findall(r"\| ([^|]+) \|$", AVOIDED, flags=re.MULTILINE)))
PATTERN = re.compile(r"(?<![\w-])(?:" + "|".join(map(re.escape, BANNED)) + r")(?![\w-])", re.IGNORECASE)
# A phrase in which an avoided word is right, with the reason.
ALLOWED = (
    "Real World Value",  # the name of a DICOM attribute
    "rename column judge to model_key",  # a journal of 0.1.0 is opened
    "--anew",  # the option of 0.1.0, in the line that names its successor
)
Text = tuple[str, str]  # where it stands, and what it says


def help_texts(command: click.Command, name: str) -> Iterator[Text]:
    yield name, command.help or ""
    for option in command.params:
        yield f"{name} {option.name}", getattr(option, "help", None) or ""
    if isinstance(command, click.Group):
        context = click.Context(command)
        for below in command.list_commands(context):
            found = command.get_command(context, below)
            assert found is not None
            yield from help_texts(found, f"{name} {below}")


def messages() -> Iterator[Text]:
    """Yield every string of the package that holds a space and is no docstring: errors, log lines, pages."""
    for path in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            value = getattr(node, "value", None) if isinstance(node, ast.Constant) else None
            if isinstance(value, str) and " " in value.strip() and id(node) not in docstrings:
                yield f"{path.relative_to(ROOT)}:{node.lineno}", value


def source() -> Iterator[Text]:
    """Yield the docstrings and comments of the package: docs/api.md shows some, and colleagues read all."""
    for path in sorted(PACKAGE.rglob("*.py")):
        text, place = path.read_text(encoding="utf-8"), path.relative_to(ROOT)
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                yield f"{place}:{getattr(node, 'lineno', 1)}", ast.get_docstring(node) or ""
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.COMMENT:
                yield f"{place}:{token.start[0]}", token.string


def guides() -> Iterator[Text]:
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))):
        text = DEFINITIONS if path.name == "glossary.md" else path.read_text(encoding="utf-8")
        for number, line in enumerate(text.splitlines(), 1):
            yield f"{path.relative_to(ROOT)}:{number}", line


def templates() -> Iterator[Text]:
    """Yield what pages show: templates without their tags, names of variables and style."""
    for path in sorted((PACKAGE / "report" / "templates").glob("*.html")):
        shown = re.sub(
            r"\{%.*?%\}|\{\{.*?\}\}|\{#.*?#\}|<[^>]*>", " ", path.read_text(encoding="utf-8"), flags=re.S
        )
        yield path.name, shown


SURFACES = {
    "help": lambda: help_texts(main, "medtl"),
    "codes": CODES.items,
    "messages": messages,
    "source": source,
    "guides": guides,
    "templates": templates,
}


@pytest.mark.parametrize("surface", SURFACES)
def test_no_avoided_word_is_shown_to_users(surface: str) -> None:
    texts = [(place, " ".join(text.split())) for place, text in SURFACES[surface]()]
    assert len(texts) > 10
    found = [
        f"{place}: {match[0]!r} in {text[max(match.start() - 40, 0) : match.end() + 40]!r}"
        for place, text in texts
        for match in PATTERN.finditer(text)
        if not any(allowed in text for allowed in ALLOWED)
    ]
    assert not found, "\n".join(found)


def test_the_glossary_defines_at_least_forty_terms_once_each_and_in_order() -> None:
    names = [term.split(",")[0].lower() for term, _ in TERMS]
    assert len(names) >= 40 and len(set(names)) == len(names)
    assert names == sorted(names)
    assert all(meaning.endswith(".") for _, meaning in TERMS)


def test_no_definition_uses_an_avoided_word() -> None:
    assert len(BANNED) > 40
    assert not [meaning for _, meaning in TERMS if PATTERN.search(meaning)]


@pytest.mark.parametrize("word", ["judged", "Judging", "goes on", "lower the rate", "is told"])
def test_avoided_words_are_noticed(word: str) -> None:
    assert PATTERN.search(f"What {word} here.")


@pytest.mark.parametrize("word", ["prejudge", "judged_on", "thaw-depth", "agoes on"])
def test_longer_words_are_not_mistaken_for_avoided_ones(word: str) -> None:
    assert not PATTERN.search(word)
