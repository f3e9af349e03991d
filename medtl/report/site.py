"""Findings, refusals and a model card -> a folder of linked pages, one study in memory at a time."""

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medtl.core.files import write_text
from medtl.errors import OutputError
from medtl.report.charts import freezing_chart, history_chart
from medtl.report.findings import Bounds, MapCheck, ModelCard, Refusal, StudyFinding, check_finding
from medtl.report.html import render_page, write_page
from medtl.report.study_page import (
    CHECKS,
    NEIGHBOURS,
    PICTURE_NAME,
    REASONS,
    SAFE_NAME,
    StudyEntry,
    page_name,
    write_study,
)

log = logging.getLogger(__name__)

KEY_METRICS = ("auroc", "sensitivity", "specificity", "balanced_accuracy", "accuracy")
KEY_COUNT = 3
UNCHECKED = MapCheck("unchecked", "The reliability of these maps was not checked.")


@dataclass(frozen=True)
class WrittenReport:
    """A report on disk: its index, the number of studies with a page and of inputs that were refused."""

    index: Path
    studies: int
    refused: int


def write_report(
    out: Path,
    findings: Iterable[StudyFinding],
    refusals: Sequence[Refusal],
    card: ModelCard,
    checks: Mapping[str, MapCheck] | None = None,
) -> WrittenReport:
    """Write index.html, model.html, studies/*.html and images/*.jpg below `out`, in place of earlier ones.

    Findings are consumed once, one at a time; refusals, and checks of the maps by method, are read
    afterwards, so a generator of findings may add to them. A finding that cannot be shown correctly, or that
    repeats a sample id, is logged and listed as refused. Raises OutputError output-unwritable.
    """
    entries, refused = _write_studies(out, findings, card)
    entries.sort(key=lambda entry: (entry.order, *entry.badness, -entry.score, entry.sample_id))
    _complete(out, entries, checks or {})
    write_model_page(out, card, back=("index.html", "All studies"))
    listed = [*refusals, *refused]
    index = _write_index(out, entries, listed, card, checks or {})
    _remove_stale(out / "studies", "*.html", SAFE_NAME, {out / entry.page for entry in entries})
    remove_stale_pictures(out, [name for entry in entries for name in entry.pictures])
    return WrittenReport(index, len(entries), len(listed))


def write_model_page(out: Path, card: ModelCard, *, back: tuple[str, str]) -> Path:
    """Write model.html below `out`: the card, its metrics, and how training went.

    back: address and name of the page that links here. Raises OutputError output-unwritable.
    """
    page = render_page("model.html", card=card, back=back, **training_charts(card))
    return write_page(out / "model.html", page)


def training_charts(card: ModelCard) -> dict[str, Any]:
    """Return the curves that training.html shows."""
    return {
        "loss": history_chart(card.history, {"train_loss": "training", "val_loss": "validation"}, "loss"),
        "auroc": history_chart(card.history, {"val_auroc": "validation"}, "validation AUROC"),
        "freezing": freezing_chart(card.groups, card.stages),
    }


def key_metrics(metrics: Mapping[str, Bounds]) -> dict[str, Bounds]:
    """Return the few metrics to show first."""
    return {key: metrics[key] for key in [key for key in KEY_METRICS if key in metrics][:KEY_COUNT]}


def _write_studies(
    out: Path, findings: Iterable[StudyFinding], card: ModelCard
) -> tuple[list[StudyEntry], list[Refusal]]:
    entries: dict[str, StudyEntry] = {}
    taken: set[str] = set()
    refused: list[Refusal] = []
    for finding in findings:
        try:
            if finding.sample_id in entries:
                reason = "the report already has a study with this id"
                raise OutputError("finding-repeated", reason, where=finding.sample_id)
            check_finding(finding, card)
        except OutputError as error:
            log.warning("not shown: %s", error)
            refused.append(Refusal(finding.sample_id, error.code, error.reason, error.fix))
            continue
        name = page_name(finding.sample_id, taken)
        taken.add(Path(name).stem.casefold())
        entries[finding.sample_id] = write_study(out, name, finding, card)
    return list(entries.values()), refused


def _complete(out: Path, entries: Sequence[StudyEntry], checks: Mapping[str, MapCheck]) -> None:
    """Fill in the placeholders of each page: its neighbours, and the checks of its maps."""
    for place, entry in enumerate(entries):
        links = render_page(
            "neighbours.html",
            previous=entries[place - 1] if place else None,
            following=entries[place + 1] if place + 1 < len(entries) else None,
            place=place + 1,
            count=len(entries),
        )
        shown = {method: checks.get(method, UNCHECKED) for method in entry.methods}
        path = out / entry.page
        text = path.read_text(encoding="utf-8").replace(NEIGHBOURS, links, 1)
        write_text(path, text.replace(CHECKS, render_page("checks.html", checks=shown), 1))


def _write_index(
    out: Path,
    entries: Sequence[StudyEntry],
    refusals: Sequence[Refusal],
    card: ModelCard,
    checks: Mapping[str, MapCheck],
) -> Path:
    reasons = {reason for entry in entries for reason in entry.reasons}
    page = render_page(
        "index.html",
        script="index.js",
        pictures=True,
        card=card,
        entries=entries,
        refusals=refusals,
        key_metrics=key_metrics(card.metrics),
        checks={name: checks.get(name, UNCHECKED) for entry in entries for name in entry.methods},
        given_order=len({entry.order for entry in entries}) > 1,
        labelled=any(entry.label is not None for entry in entries),
        ood_checked=any(entry.ood for entry in entries),
        identified=any(entry.source for entry in entries),
        words=REASONS,
        reasons=[key for key in REASONS if key in reasons],
    )
    return write_page(out / "index.html", page)


def remove_stale_pictures(out: Path, written: Iterable[str]) -> None:
    """Delete the pictures that an earlier report left below `out`."""
    _remove_stale(out / "images", "*.jpg", PICTURE_NAME, {out / "images" / name for name in written if name})


def _remove_stale(folder: Path, pattern: str, named: re.Pattern[str], written: Iterable[Path]) -> None:
    """Delete what an earlier report left, but only files with names that medtl gives."""
    # By inode: some file systems ignore case, so a page just written may be listed under another name.
    kept = {path.stat().st_ino for path in written}
    for path in folder.glob(pattern):
        name = path.name if named is PICTURE_NAME else path.stem
        if named.fullmatch(name) and path.is_file() and path.stat().st_ino not in kept:
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                reason = f"a file of an earlier report cannot be deleted: {error.strerror or error}"
                raise OutputError("output-unwritable", reason, where=path, fix="delete it") from error
