"""Turn the repository into a site: README is its start page, links out of docs/ become plain text."""

import re
from pathlib import Path
from typing import Any

import griffe
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
# Files beside docs/ that are pages of the site, too.
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
# Lines of a docstring from >>> to the next blank one.
DOCTEST = re.compile(r"^>>> .*(?:\n.+)*", re.MULTILINE)
PUBLIC = re.compile(r"^::: medtl\.(\w+)$", re.MULTILINE)
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)\s#:]+)(#[^)\s]+)?\)")


def on_config(config: Any) -> Any:
    """List the decisions."""
    decisions = sorted(path.name for path in (ROOT / "docs" / "decisions").glob("*.md"))
    config["nav"][-1]["Decisions"] = [f"decisions/{name}" for name in decisions]
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that lie beside docs/."""
    for source, page in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=text.replace("](docs/", "](")))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Point links at pages of the site; of links to other files keep the text."""
    folder = Path(page.file.src_uri).parent

    def relink(match: re.Match[str]) -> str:
        text, target, anchor = match[1], match[2], match[3] or ""
        target = PAGES.get(target.removeprefix("../"), target)
        known = files.get_file_from_path((folder / target).as_posix())
        return f"[{text}]({target}{anchor})" if known else f"`{text}`" if "/" in text else text

    return PUBLIC.sub(at_home, LINK.sub(relink, markdown))


def at_home(match: re.Match[str]) -> str:
    """Document a public name, which medtl loads lazily, from the module that defines it."""
    import medtl

    name = match[1]
    return f"::: {medtl._HOMES[name]}.{name}\n    options:\n      heading: medtl.{name}\n"


class Doctests(griffe.Extension):
    """Show the examples of docstrings as code, not as quotations."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Put fences around the examples of an object."""
        if obj.docstring:
            shown = obj.docstring.value.replace("  # doctest: +SKIP", "")
            obj.docstring.value = DOCTEST.sub(lambda match: f"```pycon\n{match[0]}\n```", shown)
