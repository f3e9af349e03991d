"""One finding -> its page, its pictures, and its entry in the list of studies."""

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medtl.core.files import replacing
from medtl.report.findings import ModelCard, StudyFinding, as_names
from medtl.report.formatting import set_text
from medtl.report.html import render_page, write_page
from medtl.report.pictures import (
    OVERLAY_OPACITY,
    STAGE_SIDE,
    THUMBNAIL_SIDE,
    as_stack,
    draw_picture,
    encode_colour_bar,
)
from medtl.report.viewer import lay_out, pack_study, start_voxel

SAFE_NAME = re.compile(r"[A-Za-z0-9_-]{1,80}")
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


@dataclass(frozen=True)
class StudyEntry:
    """A study in the list, once its page is written.

    score: the probability shown in the list; margin: how far the decision is from a tie, 0 to 1. reasons: the
    keys of REASONS that apply, worst first. prediction_set: in words, "" if there is none. methods: of its
    maps. pictures: the names of its picture files, the thumbnail first.
    """

    sample_id: str
    page: str
    pictures: tuple[str, ...]
    methods: tuple[str, ...]
    predicted: tuple[str, ...]
    label: tuple[str, ...] | None
    prediction_set: str
    ood: str
    reasons: tuple[str, ...]
    score: float
    margin: float
    order: float
    source: str = ""

    @property
    def differs(self) -> bool:
        """Whether the label is known and disagrees."""
        return "differs" in self.reasons

    @property
    def badness(self) -> tuple[int, float]:
        """Sort key, worst first: confident errors, other errors, other reasons, then close decisions."""
        worst = list(REASONS).index(self.reasons[0]) if self.reasons else len(REASONS)
        return worst, -self.margin if self.differs else self.margin


def page_name(sample_id: str, taken: Iterable[str] = ()) -> str:
    """Return a file name that stays in its folder; a hash if the id is unsafe or taken."""
    if SAFE_NAME.fullmatch(sample_id) and sample_id.casefold() not in taken:
        return f"{sample_id}.html"
    return f"h-{hashlib.blake2b(sample_id.encode(errors='surrogatepass'), digest_size=10).hexdigest()}.html"


def write_study(out: Path, name: str, finding: StudyFinding, card: ModelCard) -> StudyEntry:
    """Write the page `name` of a study below out/studies, and its pictures below out/images.

    Raises OutputError output-unwritable.
    """
    pictures = _write_pictures(out / "images", finding)
    values = list(finding.probabilities.values())
    entry = StudyEntry(
        sample_id=finding.sample_id,
        page=f"studies/{name}",
        pictures=pictures,
        methods=tuple(saliency.method for saliency in finding.maps),
        predicted=as_names(finding.predicted),
        label=None if finding.label is None else as_names(finding.label),
        prediction_set=set_text(finding.prediction_set, card.kind),
        ood=finding.ood,
        reasons=_reasons(finding, card),
        score=values[-1] if card.kind == "binary" else max(values),
        margin=_margin(values, card),
        order=finding.order,
        source=finding.identifiers.get("source", ""),
    )
    page = render_page(
        "study.html",
        script="study.js",
        pictures=True,
        finding=finding,
        entry=entry,
        card=card,
        planes=lay_out(finding),
        pixels=pack_study(finding),
        pictured=[f"../images/{picture}" for picture in pictures[1:]],
        colour_bar=encode_colour_bar(),
        opacity=OVERLAY_OPACITY,
    )
    write_page(out / "studies" / name, page)
    return entry


def _write_pictures(folder: Path, finding: StudyFinding) -> tuple[str, ...]:
    """Write a thumbnail and a picture of each map, or of the image if there is none; return their names.

    Those of a volume show the slice with which its page opens.
    """
    place = start_voxel(finding)[0]
    low, high = finding.window
    grey = np.clip((as_stack(finding.image)[place] - low) / (high - low), 0, 1)
    spacing = finding.spacing_mm
    heatmaps = [as_stack(saliency.heatmap)[place] for saliency in finding.maps] or [None]
    return (
        write_picture(folder, draw_picture(grey, heatmaps[0], spacing, THUMBNAIL_SIDE)),
        *(write_picture(folder, draw_picture(grey, heatmap, spacing, STAGE_SIDE)) for heatmap in heatmaps),
    )


def write_picture(folder: Path, content: bytes) -> str:
    """Write a picture under the hash of its content, which identifies no patient."""
    name = f"{hashlib.blake2b(content, digest_size=10).hexdigest()}.jpg"
    with replacing(folder / name) as temporary:
        temporary.write_bytes(content)
    return name


def _reasons(finding: StudyFinding, card: ModelCard) -> tuple[str, ...]:
    """Return why a study deserves a review: keys of REASONS, worst first."""
    members, multilabel = finding.prediction_set or (), card.kind == "multilabel"
    applies = {
        "differs": finding.label is not None and {*as_names(finding.label)} != {*as_names(finding.predicted)},
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
