import base64
import hashlib
import re
import subprocess
import sys

import pytest
from jinja2 import UndefinedError

from medtl.report import html
from medtl.report.html import content_policy, render_page

Colours = dict[str, str]


def theme(dark: bool) -> Colours:
    """Return the colour variables of a theme of the style sheet."""
    style = html._source("page.css")
    blocks = re.findall(r":root \{(.*?)\}", style, re.DOTALL)[: 1 + dark]
    return {name: value for block in blocks for name, value in re.findall(r"--([\w-]+): (#\w{6});", block)}


def contrast(one: str, other: str) -> float:
    """Return the contrast ratio of two colours (WCAG 2.2, section 1.4.3)."""
    lighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def luminance(colour: str) -> float:
    shares = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize(
    ("ink", "ground", "least"),
    [
        *((ink, ground, 4.5) for ink in ("ink", "muted", "accent") for ground in ("paper", "card")),
        ("caution-ink", "caution", 4.5),
        ("differs-ink", "differs", 4.5),
        ("ink", "track", 4.5),
        ("fill", "card", 3.0),
        ("fill", "track", 3.0),
        ("focus", "paper", 3.0),
    ],
)
def test_colours_are_readable(dark, ink, ground, least):
    colours = theme(dark)
    assert contrast(colours[ink], colours[ground]) >= least


def test_the_two_themes_differ():
    assert theme(dark=True).keys() == theme(dark=False).keys()
    assert not set(theme(dark=True).values()) & set(theme(dark=False).values())


def test_policy_allows_only_the_two_blocks():
    digest = base64.b64encode(hashlib.sha256(b"p {}").digest()).decode()
    policy = content_policy("p {}", "")
    assert f"style-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy and "script-src 'none'" in policy
    assert "unsafe" not in policy + content_policy("p {}", "let a;")


def test_picture_files_are_allowed_only_where_a_page_has_them():
    assert "img-src data:;" in content_policy("p {}", "")
    assert "img-src data: 'self' file:;" in content_policy("p {}", "", pictures=True)


@pytest.mark.parametrize("name", ["page.css", "index.js", "study.js"])
def test_inline_blocks_cannot_end_early_nor_ask_a_network(name):
    source = html._source(name)
    assert "</" not in source and "<!--" not in source
    assert "://" not in source and "url(" not in source and "@import" not in source and "fetch" not in source


def test_missing_value_is_a_fault_not_a_gap():
    with pytest.raises(UndefinedError):
        render_page("index.html")


def test_reporting_needs_no_torch():
    code = "import sys, medtl.report.site, medtl.report.evaluation_page; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
