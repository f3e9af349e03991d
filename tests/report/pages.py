"""What a browser would make of a page: its tags, and what its policy would block."""

import base64
import hashlib
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

CAUTION = "Research use only. Not for diagnosis."


@dataclass
class Page(HTMLParser):
    """A parsed page. tags: each with its attribute names, in order; blocks: the text of
    style, script and data."""

    text: str
    tags: list[tuple[str, tuple[str, ...]]] = field(default_factory=list)
    attributes: list[dict[str, str]] = field(default_factory=list)
    blocks: dict[str, str] = field(default_factory=dict)
    words: str = ""

    def __post_init__(self) -> None:
        super().__init__()
        self.open = ""
        self.feed(self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open = "data" if dict(attrs).get("type") == "application/json" else tag
        self.tags.append((tag, tuple(name for name, _ in attrs)))
        self.attributes.append({name: value or "" for name, value in attrs} | {"tag": tag})

    def handle_endtag(self, tag: str) -> None:
        self.open = ""

    def handle_data(self, data: str) -> None:
        if self.open in ("style", "script", "data"):
            self.blocks[self.open] = self.blocks.get(self.open, "") + data
        else:
            self.words += data

    def values(self, tag: str, name: str) -> list[str]:
        """Return what each tag of a kind has for an attribute."""
        return [found[name] for found in self.attributes if found["tag"] == tag and name in found]


def read_pages(folder: Path) -> dict[str, Page]:
    """Parse every page below a folder."""
    files = sorted(folder.rglob("*.html"))
    return {path.relative_to(folder).as_posix(): Page(path.read_text(encoding="utf-8")) for path in files}


def check_page(page: Page, path: Path) -> None:
    """Assert what holds for each page: cautioned, self-contained, nothing blocked, no dead link."""
    assert CAUTION in page.words and CAUTION in page.blocks["style"]
    assert "http:" not in page.text and "https:" not in page.text
    policy = next(found["content"] for found in page.attributes if "http-equiv" in found)
    for kind, block in page.blocks.items():
        if kind == "data":
            continue
        digest = base64.b64encode(hashlib.sha256(block.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    for _, names in page.tags:
        assert "style" not in names and not any(name.startswith("on") for name in names)
    for source in page.values("img", "src"):
        assert source.startswith("data:image/") or (path.parent / source).is_file(), source
    assert all(source.startswith("data:image/") for source in page.values("source", "srcset"))
    for link in page.values("a", "href"):
        assert link == "#main" or (path.parent / link).is_file(), link
