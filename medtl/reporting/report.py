"""Turn findings, refusals and a model card into a folder of linked pages, one study in memory at a time."""

import hashlib
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from medtl.errors import OutputError
from medtl.imaging.storage import write_text
from medtl.reporting.charts import history_chart
from medtl.reporting.figures import (
    OVERLAY_OPACITY,
    encode_colour_bar,
    encode_slices,
    encode_thumbnail,
    frame_of,
    peak_slice,
)
from medtl.reporting.findings import Bounds, ModelCard, Refusal, StudyFinding, as_names, check_finding
from medtl.reporting.html import render_page

log = logging.getLogger(__name__)

SAFE_NAME = re.compile(r"[A-Za-z0-9_-]{1,80}")
KEY_METRICS = ("auroc", "sensitivity", "specificity", "balanced_accuracy", "accuracy")
KEY_COUNT = 3
# Stands in a study's page until all studies are known. No value can hold it: a "<" in a value is escaped.
NEIGHBOURS = "<!-- neighbours -->"


@dataclass(frozen=True)
class Entry:
    """What the list keeps of a study once its page is written.

    score is the probability that the list shows; margin is how far the decision is from a tie, 0 to 1.
    """

    sample_id: str
    page: str
    thumbnail: str
    predicted: tuple[str, ...]
    label: tuple[str, ...] | None
    score: float
    margin: float
    order: float

    @property
    def differs(self) -> bool:
        """Whether the label is known and another one."""
        return self.label is not None and set(self.label) != set(self.predicted)


@dataclass(frozen=True)
class WrittenReport:
    """A report on disk: its index, how many studies have a page, how many inputs it lists as refused."""

    index: Path
    studies: int
    refused: int


def write_report(
    out: Path, findings: Iterable[StudyFinding], refusals: Sequence[Refusal], card: ModelCard
) -> WrittenReport:
    """Write index.html, model.html and studies/*.html below `out`; no page of an earlier report stays.

    Findings are consumed once, one at a time; refusals are read afterwards, so a generator of findings may
    add to them. A finding that cannot be shown as it is, or that repeats a sample id, is logged and listed
    among the refused. Raises OutputError output-unwritable.
    """
    entries, refused = _write_studies(out / "studies", findings, card)
    entries.sort(key=lambda entry: (entry.order, -entry.score, entry.sample_id))
    _link_neighbours(out / "studies", entries)
    write_model_page(out, card, back=("index.html", "All studies"))
    listed = [*refusals, *refused]
    index = _write_index(out, entries, listed, card)
    _remove_stale(out / "studies", {out / entry.page for entry in entries})
    return WrittenReport(index, len(entries), len(listed))


def write_model_page(out: Path, card: ModelCard, *, back: tuple[str, str]) -> Path:
    """Write model.html below `out`: the card, its metrics, and how training went.

    back: address and name of the page that leads here. Raises OutputError output-unwritable.
    """
    page = render_page(
        "model.html",
        card=card,
        back=back,
        loss=history_chart(card.history, {"train_loss": "training", "val_loss": "validation"}, "loss"),
        auroc=history_chart(card.history, {"val_auroc": "validation"}, "validation AUROC"),
    )
    return _write(out / "model.html", page)


def key_metrics(metrics: Mapping[str, Bounds]) -> dict[str, Bounds]:
    """Return the few metrics that a reader wants first."""
    return {key: metrics[key] for key in [key for key in KEY_METRICS if key in metrics][:KEY_COUNT]}


def page_name(sample_id: str, taken: Iterable[str] = ()) -> str:
    """Return a file name that stays in its folder; a hash where the id is unsafe or taken."""
    if SAFE_NAME.fullmatch(sample_id) and sample_id.casefold() not in taken:
        return f"{sample_id}.html"
    return f"h-{hashlib.blake2b(sample_id.encode(errors='surrogatepass'), digest_size=10).hexdigest()}.html"


def _write_studies(
    folder: Path, findings: Iterable[StudyFinding], card: ModelCard
) -> tuple[list[Entry], list[Refusal]]:
    entries: dict[str, Entry] = {}
    taken: set[str] = set()
    refused: list[Refusal] = []
    for finding in findings:
        try:
            _check(finding, card, entries)
        except OutputError as error:
            log.warning("not shown: %s", error)
            refused.append(Refusal(finding.sample_id, error.code, error.reason, error.fix))
            continue
        name = page_name(finding.sample_id, taken)
        taken.add(Path(name).stem.casefold())
        entries[finding.sample_id] = _write_study(folder, name, finding, card)
    return list(entries.values()), refused


def _check(finding: StudyFinding, card: ModelCard, entries: dict[str, Entry]) -> None:
    if finding.sample_id in entries:
        raise OutputError(
            "finding-repeated", "a study of this id is in the report already", where=finding.sample_id
        )
    check_finding(finding, card)


def _write_study(folder: Path, name: str, finding: StudyFinding, card: ModelCard) -> Entry:
    slices = encode_slices(finding.image, finding.heatmap)
    start = peak_slice(finding.heatmap, len(slices))
    page = render_page(
        "study.html",
        script="study.js",
        finding=finding,
        card=card,
        slices=slices,
        start=start,
        frame=frame_of(finding.image, finding.spacing_mm),
        colour_bar=encode_colour_bar(),
        opacity=OVERLAY_OPACITY,
    )
    _write(folder / name, page)
    return _entry(name, finding, card, start)


def _entry(name: str, finding: StudyFinding, card: ModelCard, start: int) -> Entry:
    values = list(finding.probabilities.values())
    return Entry(
        sample_id=finding.sample_id,
        page=f"studies/{name}",
        thumbnail=_thumbnail(finding, start),
        predicted=as_names(finding.predicted),
        label=None if finding.label is None else as_names(finding.label),
        score=values[-1] if card.kind == "binary" else max(values),
        margin=_margin(values, card),
        order=finding.order,
    )


def _thumbnail(finding: StudyFinding, start: int) -> str:
    plane = start if finding.image.ndim == 3 else ...
    heatmap = None if finding.heatmap is None else finding.heatmap[plane]
    return encode_thumbnail(finding.image[plane], heatmap, finding.spacing_mm)


def _margin(values: Sequence[float], card: ModelCard) -> float:
    """Return the lead of the first class over the second, or for independent classes the least sure one's."""
    if card.kind == "multilabel":
        return min(abs(2 * value - 1) for value in values)
    second, first = sorted(values)[-2:]
    return first - second


def _link_neighbours(folder: Path, entries: Sequence[Entry]) -> None:
    for place, entry in enumerate(entries):
        links = render_page(
            "neighbours.html",
            previous=entries[place - 1] if place else None,
            following=entries[place + 1] if place + 1 < len(entries) else None,
            place=place + 1,
            count=len(entries),
        )
        path = folder.parent / entry.page
        write_text(path, path.read_text(encoding="utf-8").replace(NEIGHBOURS, links, 1))


def _write_index(out: Path, entries: Sequence[Entry], refusals: Sequence[Refusal], card: ModelCard) -> Path:
    page = render_page(
        "index.html",
        script="index.js",
        card=card,
        entries=entries,
        refusals=refusals,
        key_metrics=key_metrics(card.metrics),
        given_order=len({entry.order for entry in entries}) > 1,
        labelled=any(entry.label is not None for entry in entries),
    )
    return _write(out / "index.html", page)


def _remove_stale(folder: Path, written: Iterable[Path]) -> None:
    """Delete pages of studies that an earlier report left, and nothing that page_name would not name."""
    # By inode: a file system may hold a page that was just written under a name of another case.
    kept = {path.stat().st_ino for path in written}
    for path in folder.glob("*.html"):
        if SAFE_NAME.fullmatch(path.stem) and path.is_file() and path.stat().st_ino not in kept:
            _remove(path)


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        reason = f"a page of an earlier report stays: {error.strerror or error}"
        raise OutputError("output-unwritable", reason, where=path, fix="delete it") from error


def _write(path: Path, page: str) -> Path:
    # A lone surrogate, as in an undecodable file name, has no UTF-8: shown as "?".
    write_text(path, page.encode("utf-8", "replace").decode("utf-8"))
    return path
