"""Findings, refusals and a model card -> a folder of linked pages, one study in memory at a time."""

import hashlib
import logging
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medtl.core.files import write_text, writing
from medtl.errors import OutputError
from medtl.report.charts import freezing_chart, history_chart
from medtl.report.findings import Bounds, MapCheck, ModelCard, Refusal, StudyFinding, check_finding
from medtl.report.formatting import set_text
from medtl.report.html import render_page, write_page
from medtl.report.pictures import (
    OVERLAY_OPACITY,
    STAGE_SIDE,
    THUMBNAIL_SIDE,
    as_stack,
    encode_colour_bar,
    write_picture,
)
from medtl.report.viewer import lay_out, pack_study, start_voxel

log = logging.getLogger(__name__)

# Names of pages have one case: some file systems take "a" and "A" for one file.
PAGE_NAME = re.compile(r"[a-z0-9_-]{1,80}\.html")
PICTURE_NAME = re.compile(r"[0-9a-f]{20}\.jpg")
# Placeholders in a page until all studies are known. No value contains them: its "<" would be escaped.
NEIGHBOURS, CHECKS = "<!-- neighbours -->", "<!-- checks -->"
# Why a study deserves a review, worst first.
REASONS = {
    "differs": "disagrees with the label",
    "ood": "unlike the training images",
    "unusual": "unusual image",
    "undecided": "undecided",
}
KEY_METRICS = ("auroc", "sensitivity", "specificity", "balanced_accuracy", "accuracy")
UNCHECKED = MapCheck("unchecked", "The reliability of these maps was not checked.")


@dataclass(frozen=True)
class WrittenReport:
    """A report on disk: its index, the number of studies with a page and of inputs that were refused."""

    index: Path
    studies: int
    refused: int


# A study in the list, once its page is written: what _write_study returns.
Entry = dict[str, Any]


def write_report(
    out: Path,
    findings: Iterable[StudyFinding],
    refusals: Sequence[Refusal],
    card: ModelCard,
    checks: Mapping[str, MapCheck] | None = None,
) -> WrittenReport:
    """Write index.html, model.html, studies/*.html and images/*.jpg below `out`, instead of earlier ones.

    Findings are consumed once, one at a time; refusals, and checks of the maps by method, are read
    afterwards, so a generator of findings may add to them. A finding that cannot be shown correctly, or that
    repeats a sample id, is logged and listed as refused. Raises OutputError output-unwritable.
    """
    entries, refused = _write_studies(out, findings, card)
    entries.sort(key=_badness)
    listed = [*refusals, *refused]
    methods = dict.fromkeys(method for entry in entries for method in entry["methods"])
    verdicts = {method: (checks or {}).get(method, UNCHECKED) for method in methods}
    _complete(out, entries, verdicts)
    write_model_page(out, card, back=("index.html", "All studies"))
    index = _write_index(out, entries, listed, card, verdicts)
    remove_stale(out / "studies", PAGE_NAME, [Path(entry["page"]).name for entry in entries])
    remove_stale(out / "images", PICTURE_NAME, [name for entry in entries for name in entry["pictures"]])
    return WrittenReport(index, len(entries), len(listed))


def _write_studies(
    out: Path, findings: Iterable[StudyFinding], card: ModelCard
) -> tuple[list[Entry], list[Refusal]]:
    entries: dict[str, Entry] = {}
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
        else:
            entries[finding.sample_id] = _write_study(out, finding, card)
    return list(entries.values()), refused


def _write_study(out: Path, finding: StudyFinding, card: ModelCard) -> Entry:
    """Write the page of a study below out/studies, and its pictures below out/images.

    Returns its entry in the list. score: the probability shown there; margin: how far the decision is from a
    tie, 0 to 1. reasons: the keys of REASONS that apply, worst first. prediction_set: in words, "" if there
    is none. methods: of its maps. pictures: the names of its picture files, the thumbnail first.
    """
    values = list(finding.probabilities.values())
    entry: Entry = {
        "sample_id": finding.sample_id,
        "page": f"studies/{page_name(finding.sample_id)}",
        "pictures": _write_pictures(out / "images", finding),
        "methods": tuple(finding.maps),
        "predicted": finding.predicted,
        "label": finding.label,
        "prediction_set": set_text(finding.prediction_set, card.kind),
        "ood": finding.ood,
        "reasons": _reasons(finding, card),
        "score": values[-1] if card.kind == "binary" else max(values),
        "margin": _margin(values, card),
        "source": finding.identifiers.get("source", ""),
    }
    write_page(
        out / entry["page"],
        template="study.html",
        script="study.js",
        pictures=True,
        finding=finding,
        entry=entry,
        card=card,
        planes=lay_out(finding),
        pixels=pack_study(finding),
        colour_bar=encode_colour_bar(),
        opacity=OVERLAY_OPACITY,
    )
    return entry


def page_name(sample_id: str) -> str:
    """Return a file name that stays in its folder: a hash if the id is unsafe."""
    if PAGE_NAME.fullmatch(f"{sample_id}.html"):
        return f"{sample_id}.html"
    return f"h-{hashlib.blake2b(sample_id.encode(errors='surrogatepass'), digest_size=10).hexdigest()}.html"


def _write_pictures(folder: Path, finding: StudyFinding) -> tuple[str, ...]:
    """Write a thumbnail and a picture of each map, or of the image if there is none; return their names.

    Those of a volume show the slice with which its page opens.
    """
    place = start_voxel(finding)[0]
    low, high = finding.window
    grey = np.clip((as_stack(finding.image)[place] - low) / (high - low), 0, 1)
    heatmaps = [as_stack(heatmap)[place] for heatmap in finding.maps.values()] or [None]
    sized = [(heatmaps[0], THUMBNAIL_SIDE), *((heatmap, STAGE_SIDE) for heatmap in heatmaps)]
    return tuple(write_picture(folder, grey, heatmap, finding.spacing_mm, side) for heatmap, side in sized)


def _reasons(finding: StudyFinding, card: ModelCard) -> tuple[str, ...]:
    """Return why a study deserves a review: keys of REASONS, worst first."""
    members, multilabel = finding.prediction_set or (), card.kind == "multilabel"
    applies = {
        "differs": finding.label is not None and {*finding.label} != {*finding.predicted},
        "ood": finding.ood not in ("", "ok"),
        "unusual": bool(finding.warning),
        "undecided": any(name.endswith("?") for name in members) if multilabel else len(members) > 1,
    }
    return tuple(key for key in REASONS if applies[key])


def _margin(values: Sequence[float], card: ModelCard) -> float:
    """Return the lead of the first class over the second; in multilabel the smallest distance from a tie."""
    if card.kind == "multilabel":
        return min(abs(2 * value - 1) for value in values)
    second, first = sorted(values)[-2:]
    return first - second


def _badness(entry: Entry) -> tuple[int, float, float, str]:
    """Sort key, worst first: confident errors, other errors, other reasons, then close decisions."""
    reasons, margin = entry["reasons"], entry["margin"]
    worst = list(REASONS).index(reasons[0]) if reasons else len(REASONS)
    return worst, -margin if "differs" in reasons else margin, -entry["score"], entry["sample_id"]


def _complete(out: Path, entries: Sequence[Entry], verdicts: Mapping[str, MapCheck]) -> None:
    """Fill in the placeholders of each page: its neighbours, and the verdicts on its maps."""
    around = [None, *entries, None]
    for place, entry in enumerate(entries, start=1):
        links = render_page(
            "neighbours.html",
            previous=around[place - 1],
            following=around[place + 1],
            place=place,
            count=len(entries),
        )
        checks = {method: verdicts[method] for method in entry["methods"]}
        text = (out / entry["page"]).read_text(encoding="utf-8")
        text = text.replace(NEIGHBOURS, links, 1)
        write_text(out / entry["page"], text.replace(CHECKS, render_page("checks.html", checks=checks), 1))


def _write_index(
    out: Path, entries: list[Entry], refusals: list[Refusal], card: ModelCard, verdicts: dict[str, MapCheck]
) -> Path:
    return write_page(
        out / "index.html",
        script="index.js",
        pictures=True,
        card=card,
        entries=entries,
        refusals=refusals,
        key_metrics=key_metrics(card.metrics),
        checks=verdicts,
        labelled=any(entry["label"] is not None for entry in entries),
        ood_checked=any(entry["ood"] for entry in entries),
        identified=any(entry["source"] for entry in entries),
        words=REASONS,
        reasons=[key for key in REASONS if any(key in entry["reasons"] for entry in entries)],
    )


def write_model_page(out: Path, card: ModelCard, *, back: tuple[str, str]) -> Path:
    """Write model.html below `out`: the card, its metrics, and how training went.

    back: address and name of the page that links here. Raises OutputError output-unwritable.
    """
    return write_page(out / "model.html", card=card, back=back, **training_charts(card))


def training_charts(card: ModelCard) -> dict[str, Any]:
    """Return the curves that training.html shows."""
    return {
        "loss": history_chart(card.history, {"train_loss": "training", "val_loss": "validation"}, "loss"),
        "auroc": history_chart(card.history, {"val_auroc": "validation"}, "validation AUROC"),
        "freezing": freezing_chart(card.groups, card.stages),
    }


def key_metrics(metrics: Mapping[str, Bounds]) -> dict[str, Bounds]:
    """Return the three metrics to show first."""
    return {key: metrics[key] for key in [key for key in KEY_METRICS if key in metrics][:3]}


def remove_stale(folder: Path, named: re.Pattern[str], written: Collection[str]) -> None:
    """Delete what an earlier report left in a folder, but only files with names that medtl gives."""
    for path in folder.glob("*"):
        if named.fullmatch(path.name) and path.name not in written and path.is_file():
            with writing(path):
                path.unlink(missing_ok=True)
