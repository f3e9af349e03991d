"""Turn one finding into its page, its pictures, and the entry that the list keeps of it."""

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
from medtl.report.pictures import OVERLAY_OPACITY, STAGE_SIDE, THUMBNAIL_SIDE, draw_picture, encode_colour_bar
from medtl.report.viewer import as_stack, lay_out, pack_study, peak_voxel

SAFE_NAME = re.compile(r"[A-Za-z0-9_-]{1,80}")
PICTURE_NAME = re.compile(r"[0-9a-f]{20}\.jpg")
# Stand in a study's page until all studies are known. No value can hold them: a "<" in a value is escaped.
NEIGHBOURS, CHECKS = "<!-- neighbours -->", "<!-- checks -->"
# Why a study should be looked at by a person, worst first.
REASONS = {
    "differs": "differs from its label",
    "ood": "may be no image for this model",
    "odd": "odd image",
    "undecided": "undecided",
}


@dataclass(frozen=True)
class Entry:
    """What the list keeps of a study once its page is written.

    score is the probability that the list shows; margin is how far the decision is from a tie, 0 to 1.
    reasons: keys of REASONS that hold, worst first. prediction_set: in words, "" where there is
    none. methods: of its maps. pictures: the names of its picture files, the list's first.
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
        """Whether the label is known and another one."""
        return "differs" in self.reasons

    @property
    def badness(self) -> tuple[int, float]:
        """Sorts worst first: wrong and sure of it before wrong, then other reasons, then close decisions."""
        worst = list(REASONS).index(self.reasons[0]) if self.reasons else len(REASONS)
        return worst, -self.margin if self.differs else self.margin


def page_name(sample_id: str, taken: Iterable[str] = ()) -> str:
    """Return a file name that stays in its folder; a hash where the id is unsafe or taken."""
    if SAFE_NAME.fullmatch(sample_id) and sample_id.casefold() not in taken:
        return f"{sample_id}.html"
    return f"h-{hashlib.blake2b(sample_id.encode(errors='surrogatepass'), digest_size=10).hexdigest()}.html"


def write_study(out: Path, name: str, finding: StudyFinding, card: ModelCard) -> Entry:
    """Write the page `name` of a study below out/studies, and its pictures below out/images.

    Raises OutputError output-unwritable.
    """
    pictures = _write_pictures(out / "images", finding)
    entry = _entry(name, pictures, finding, card)
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
    """Write a thumbnail, and a picture of each map (of the image where there is none); return their names.

    A volume's are of the slice that its page opens with.
    """
    place = peak_voxel(finding)[0]
    low, high = finding.window
    grey = np.clip((as_stack(finding.image)[place] - low) / (high - low), 0, 1)
    spacing = finding.spacing_mm
    heatmaps = [as_stack(found.heatmap)[place] for found in finding.maps] or [None]
    return (
        write_picture(folder, draw_picture(grey, heatmaps[0], spacing, THUMBNAIL_SIDE)),
        *(write_picture(folder, draw_picture(grey, heatmap, spacing, STAGE_SIDE)) for heatmap in heatmaps),
    )


def write_picture(folder: Path, content: bytes) -> str:
    """Write a picture under the hash of its content, which names no patient."""
    name = f"{hashlib.blake2b(content, digest_size=10).hexdigest()}.jpg"
    with replacing(folder / name) as temporary:
        temporary.write_bytes(content)
    return name


def _entry(name: str, pictures: tuple[str, ...], finding: StudyFinding, card: ModelCard) -> Entry:
    values = list(finding.probabilities.values())
    return Entry(
        sample_id=finding.sample_id,
        page=f"studies/{name}",
        pictures=pictures,
        methods=tuple(found.method for found in finding.maps),
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


def _reasons(finding: StudyFinding, card: ModelCard) -> tuple[str, ...]:
    """Return why a person should look at a study: keys of REASONS, worst first."""
    names = finding.prediction_set or ()
    unsure = any(name.endswith("?") for name in names) if card.kind == "multilabel" else len(names) > 1
    holds = {
        "differs": finding.label is not None and {*as_names(finding.label)} != {*as_names(finding.predicted)},
        "ood": finding.ood not in ("", "ok"),
        "odd": bool(finding.warning),
        "undecided": unsure,
    }
    return tuple(key for key in REASONS if holds[key])


def _margin(values: Sequence[float], card: ModelCard) -> float:
    """Return the lead of the first class over the second, or for independent classes the least sure one's."""
    if card.kind == "multilabel":
        return min(abs(2 * value - 1) for value in values)
    second, first = sorted(values)[-2:]
    return first - second
