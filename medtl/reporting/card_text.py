"""Turn a model card into Markdown, as it lies beside an exported model."""

from collections.abc import Iterator, Mapping

from medtl.reporting.findings import ModelCard
from medtl.reporting.words import interval_text, metric_name


def card_text(card: ModelCard, use: str, preparation: list[str]) -> str:
    """Return the card as Markdown: use, task, numbers with intervals, origin, preparation, limits."""
    return "\n".join(_lines(card, use, preparation)) + "\n"


def _lines(card: ModelCard, use: str, preparation: list[str]) -> Iterator[str]:
    yield f"# {plain(card.title)}"
    yield f"\n**{use}**\n"
    yield f"A {card.kind} classifier of {', '.join(map(plain, card.classes))}, trained with medtl.\n"
    yield "## Numbers on the validation split\n"
    if card.metrics:
        yield from _table(
            {metric_name(key).name: interval_text(bounds) for key, bounds in card.metrics.items()}
        )
    else:
        yield "None are kept."
    for title, rows in card.sections.items():
        yield f"\n## {plain(title)}\n"
        yield from _table(rows)
    yield "\n## How an image is prepared\n"
    yield from (f"{number}. {plain(step)}" for number, step in enumerate(preparation, start=1))
    yield "\n## Limits\n"
    yield from (f"- {plain(limit)}" for limit in card.limits)
    yield f"\n## To cite\n\n{plain(card.citation)}"


def _table(rows: Mapping[str, str]) -> Iterator[str]:
    yield "| | |"
    yield "| --- | --- |"
    yield from (f"| {plain(name)} | {plain(text)} |" for name, text in rows.items())


def plain(text: str) -> str:
    """Return text that Markdown and HTML show as it is, on one line."""
    escaped = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    return "".join(f"\\{letter}" if letter in "\\`*[]|#" else letter for letter in escaped)
