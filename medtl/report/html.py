"""Turn templates and plain values into whole pages under a Content-Security-Policy, and write them."""

import base64
import hashlib
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from medtl import __version__
from medtl.core.files import write_text
from medtl.report.findings import as_names
from medtl.report.formatting import (
    doubt_text,
    duration_text,
    interval_text,
    is_defined,
    metric_name,
    number_text,
    p_text,
    probability_text,
    range_text,
    signed_text,
)


def render_page(template: str, *, script: str | None = None, pictures: bool = False, **values: Any) -> str:
    """Render a template with the style sheet, and a script if one is named, inline and allowed by their hash.

    pictures: the page shows picture files that lie beside it. Every value is escaped. An undefined name
    raises jinja2.UndefinedError: a fault of medtl itself.
    """
    style = _source("page.css")
    code = _source(script) if script else ""
    policy = content_policy(style, code, pictures=pictures)
    return (
        _environment()
        .get_template(template)
        .render(style=Markup(style), script=Markup(code), policy=policy, **values)
    )


def write_page(path: Path, page: str) -> Path:
    """Write a page and return its path. Raises OutputError output-unwritable."""
    # A lone surrogate, as in an undecodable file name, has no UTF-8: shown as "?".
    write_text(path, page.encode("utf-8", "replace").decode("utf-8"))
    return path


def content_policy(style: str, script: str, *, pictures: bool = False) -> str:
    """Return the policy: nothing runs but these two blocks, nothing is loaded but picture files if any.

    Browsers differ in whether 'self' means a page that was opened from disk, so its scheme is named, too.
    Source: W3C Content Security Policy Level 3, section 2.3.1 (hash sources).
    """
    return "; ".join(
        (
            "default-src 'none'",
            "img-src data: 'self' file:" if pictures else "img-src data:",
            f"style-src '{_digest(style)}'",
            f"script-src '{_digest(script)}'" if script else "script-src 'none'",
            "base-uri 'none'",
            "form-action 'none'",
        )
    )


def _digest(block: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(block.encode()).digest()).decode()


@cache
def _source(name: str) -> str:
    """Return a style sheet or script as it stands in the page, with the line ends that browsers hash."""
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
    environment.globals["version"] = __version__
    environment.globals["metric_name"] = metric_name
    environment.tests["shown"] = is_defined
    environment.filters.update(
        doubt=doubt_text,
        duration=duration_text,
        interval=interval_text,
        names=as_names,
        number=number_text,
        chance=p_text,
        probability=probability_text,
        range=range_text,
        signed=signed_text,
        percent=lambda share: f"{100 * share:.1f}%",
    )
    return environment
