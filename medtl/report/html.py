"""Templates and plain values -> whole pages under a Content-Security-Policy, on disk."""

import base64
import hashlib
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from medtl.core import __version__
from medtl.core.files import write_text
from medtl.report import formatting
from medtl.report.findings import is_defined


def render_page(template: str, *, script: str | None = None, pictures: bool = False, **values: Any) -> str:
    """Render a template with inline style and script, which the policy allows by their hashes.

    pictures: the page shows picture files that lie beside it. Every value is escaped. An undefined name
    raises jinja2.UndefinedError, which is a bug in medtl.
    """
    style = _source("page.css")
    code = _source(script) if script else ""
    policy = content_policy(style, code, pictures=pictures)
    page = _environment().get_template(template)
    return page.render(style=Markup(style), script=Markup(code), policy=policy, **values)


def write_page(path: Path, *, template: str = "", **values: Any) -> Path:
    """Write a page, by default from the template of its name, and return its path.

    values: as for render_page. Raises OutputError output-unwritable.
    """
    page = render_page(template or path.name, **values)
    # A lone surrogate, from an undecodable file name, has no UTF-8: it is shown as "?".
    write_text(path, page.encode("utf-8", "replace").decode("utf-8"))
    return path


def content_policy(style: str, script: str, *, pictures: bool = False) -> str:
    """Return a policy that allows these two blocks and picture files, if any, and nothing else.

    Browsers disagree on whether 'self' covers a page opened from disk, so the scheme is listed as well.
    Source: W3C Content Security Policy Level 3, section 2.3.1 (hash sources).
    """
    style_hash, script_hash = (
        f"'sha256-{base64.b64encode(hashlib.sha256(block.encode()).digest()).decode()}'"
        for block in (style, script)
    )
    images = "data: 'self' file:" if pictures else "data:"
    scripts = script_hash if script else "'none'"
    return (
        f"default-src 'none'; img-src {images}; style-src {style_hash}; script-src {scripts}; "
        "base-uri 'none'; form-action 'none'"
    )


@cache
def _source(name: str) -> str:
    """Return a style sheet or script with the line ends that browsers hash."""
    text = (files("medtl.report") / "templates" / name).read_text(encoding="utf-8")
    return text.replace("\r\n", "\n")


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("medtl.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {"version": __version__, "metric_name": formatting.metric_name}
    environment.tests["shown"] = is_defined
    # A filter is a function of formatting.py without its "_text": {{ bounds | interval }}.
    texts = {name: text for name, text in vars(formatting).items() if name.endswith("_text")}
    environment.filters |= {name.removesuffix("_text"): text for name, text in texts.items()}
    environment.filters["percent"] = lambda share: f"{100 * share:.1f}%"
    return environment
