"""Inspect a folder: series -> groups, refusals, warnings -> a contact sheet."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from medtl.core.files import PathLike
from medtl.core.parallel import in_order
from medtl.core.progress import SILENT, Watcher
from medtl.data.naming import refused_name, sample_key, source_name
from medtl.errors import CODES, ReadError
from medtl.imaging.image import Image, ImageWarning
from medtl.imaging.inspection import (
    BURNED_IN,
    Group,
    Inspection,
    Sizes,
    count_notes,
    group_inspections,
    inspect_header,
    inspect_image,
    size_text,
)
from medtl.imaging.reader import FORMATS, read_series, scan
from medtl.imaging.series import Series
from medtl.report.contact_sheet import (
    MOST_TILES,
    THUMBNAIL_SIDE,
    ContactSheet,
    Tile,
    make_thumbnail,
    write_contact_sheet,
)
from medtl.report.findings import Refusal

# Badges of tiles on the sheet, by the code of a warning or by a note.
BADGES = {"image-constant": "constant pixels", "image-raw": "raw values", BURNED_IN: "burned-in text"}
# Names that a line lists before it counts the others.
MOST_NAMED = 4
# Images in memory at once; compressed ones are decoded in processes of their own.
READ_AT_ONCE = min(4, os.cpu_count() or 1)


@dataclass(frozen=True)
class InputIssue:
    """Why an input is refused, or a warning about it; source is relative to the folder."""

    code: str
    source: str
    reason: str
    fix: str = ""


@dataclass(frozen=True)
class InspectOutcome:
    """What a folder contains. Counts by name have the most common first; page: the contact sheet, if any.

    studies, series and patients count what the files name; unidentified is how many images name no patient.
    """

    images: int
    volumes: int
    items: int
    studies: int
    series: int
    patients: int
    unidentified: int
    pixels_read: bool
    groups: tuple[Group, ...]
    refused: tuple[InputIssue, ...]
    refused_codes: dict[str, int]
    warnings: tuple[InputIssue, ...]
    notes: dict[str, int]
    skipped: dict[str, int]
    page: Path | None = None


class TilePicker:
    """Picks the tiles of a sheet: those with a problem, and others evenly from the whole folder."""

    def __init__(self, total: int, most: int = MOST_TILES) -> None:
        self.most = most
        self.step = max(1, -(-total // most))
        self.problems: dict[int, Tile] = {}
        self.others: dict[int, Tile] = {}

    def picks(self, number: int, inspection: Inspection) -> bool:
        """Return whether image `number` of the folder belongs on the sheet."""
        return len(self.problems) < self.most if _badges(inspection) else number % self.step == 0

    def add(self, number: int, tile: Tile) -> None:
        """Add a tile that is picked."""
        (self.problems if tile.problems else self.others)[number] = tile

    def tiles(self) -> list[Tile]:
        """Return the tiles, at most `most`, in the order of the folder."""
        chosen = list({**self.problems, **self.others}.items())[: self.most]
        return [tile for _, tile in sorted(chosen, key=lambda entry: entry[0])]


def inspect_folder(
    folder: PathLike, *, headers_only: bool = False, html: PathLike | None = None, watcher: Watcher = SILENT
) -> InspectOutcome:
    """Inspect every series of a folder; write a contact sheet to `html`, which needs pixels.

    headers_only: read no pixels, which is fast but finds fewer problems.
    Raises ReadError file-missing, folder-empty; OutputError output-unwritable.

    >>> import medtl
    >>> medtl.inspect_folder(medtl.sample_data("xray") / "images", headers_only=True).images
    120
    """
    folder = Path(folder)
    found = scan(folder, watcher=watcher)
    refused = [_issue(refused_name(error, folder), error) for error in found.refusals]
    picker = TilePicker(len(found.series))
    inspected: list[tuple[str, Inspection]] = []
    what = "reading headers" if headers_only else "reading pixels"
    with ThreadPoolExecutor(READ_AT_ONCE) as pool:
        results = in_order(lambda one: pool.submit(_inspect, one, headers_only), found.series, READ_AT_ONCE)
        for number, (series, result) in enumerate(zip(found.series, results, strict=True)):
            source = source_name(series, folder)
            if isinstance(result, ReadError):
                refused.append(_issue(source, result))
            else:
                inspection, image = result
                inspected.append((source, inspection))
                if html is not None and image is not None and picker.picks(number, inspection):
                    picker.add(number, _tile(source, inspection, image))
            watcher.progress(what, number + 1, len(found.series))
    outcome = _outcome(inspected, refused, dict(found.left_out), pixels_read=not headers_only)
    return (
        outcome if html is None else replace(outcome, page=_write_page(outcome, Path(html), picker.tiles()))
    )


def _issue(source: str, problem: ReadError | ImageWarning) -> InputIssue:
    return InputIssue(problem.code, source, problem.reason, getattr(problem, "fix", ""))


def group_name(group: Group | Inspection) -> str:
    """Name a group: "MR volumes (DICOM)", "Volumes (NIfTI)"."""
    what = f"{group.modality} {group.kind}s" if group.modality else f"{group.kind}s".capitalize()
    return f"{what} ({FORMATS[group.format].TITLE})"


def describe_group(group: Group) -> dict[str, str]:
    """Describe a group for a page or a terminal: name -> text, without what is unknown."""
    facts = {
        "Body parts": _counts_text(group.body_parts),
        "Views": _counts_text(group.views),
        "Matrix": _sizes_text(group.matrices),
        "Spacing in mm": _spacing_text(group),
        "Photometric": _counts_text(group.photometric),
        "Intent": _counts_text(group.intents),
        "Bits stored": _counts_text(group.bits),
        "Values": _values_text(group),
        "Windows": f"{group.windowed:,} of {group.count:,} have one" if group.format == "dicom" else "",
        "Transfer syntax": _counts_text(group.transfer_syntaxes),
        "Decoder": _counts_text(group.decoders),
        "Missing": _counts_text(group.missing),
    }
    return {name: text for name, text in facts.items() if text}


def patients_text(patients: int, unidentified: int) -> str:
    """Write how many patients are named: "5", "5 + 2 without id", "no patient ids"."""
    if not patients:
        return "no patient ids"
    return f"{patients:,}" + (f" + {unidentified:,} without id" if unidentified else "")


def _inspect(series: Series, headers_only: bool) -> tuple[Inspection, Image | None] | ReadError:
    try:
        if headers_only:
            return inspect_header(series), None
        image = read_series(series)
        return inspect_image(series, image), image
    except ReadError as error:
        return error


def _outcome(
    inspected: Sequence[tuple[str, Inspection]],
    refused: Sequence[InputIssue],
    skipped: dict[str, int],
    *,
    pixels_read: bool,
) -> InspectOutcome:
    inspections = [inspection for _, inspection in inspected]
    kinds = Counter(one.kind for one in inspections)
    return InspectOutcome(
        images=kinds["image"],
        volumes=kinds["volume"],
        items=kinds["item"],
        studies=len({one.study_key for one in inspections} - {""}),
        series=len({one.series_key for one in inspections} - {""}),
        patients=len({one.patient_key for one in inspections} - {""}),
        unidentified=sum(not one.patient_key for one in inspections),
        pixels_read=pixels_read,
        groups=group_inspections(inspections),
        refused=tuple(refused),
        refused_codes=dict(Counter(issue.code for issue in refused).most_common()),
        warnings=tuple(_issue(source, one.warning) for source, one in inspected if one.warning),
        notes=count_notes(inspections),
        skipped=skipped,
    )


def _badges(inspection: Inspection) -> tuple[str, ...]:
    codes = [inspection.warning.code] if inspection.warning else []
    return tuple(BADGES[code] for code in (*codes, *inspection.notes) if code in BADGES)


def _tile(source: str, inspection: Inspection, image: Image) -> Tile:
    from medtl.imaging.display import make_display  # loads torch, which nothing else here needs

    thumbnail, withheld = None, "it may name the patient" if BURNED_IN in inspection.notes else ""
    if not withheld:
        display = make_display(image, longest_side=THUMBNAIL_SIDE)
        thumbnail = make_thumbnail(display.grey, display.spacing_mm)
    spacing = inspection.spacing_mm
    return Tile(
        sample_id=sample_key(source),
        group=group_name(inspection),
        matrix=size_text(inspection.matrix),
        spacing="" if spacing is None else f"{size_text(spacing)} mm",
        thumbnail=thumbnail,
        withheld=withheld,
        problems=_badges(inspection),
        notes=inspection.notes,
    )


def _write_page(outcome: InspectOutcome, out: Path, tiles: Sequence[Tile]) -> Path:
    """Write the sheet; it explains a refusal's code, since the reason itself may name a file."""
    facts = {
        "Images": f"{outcome.images:,}",
        "Volumes": f"{outcome.volumes:,}",
        "Patients": patients_text(outcome.patients, outcome.unidentified),
        "Refused": f"{len(outcome.refused):,}",
    }
    groups = {group_name(group): describe_group(group) for group in outcome.groups}
    refusals = [
        Refusal(sample_key(one.source), one.code, CODES[one.code], one.fix) for one in outcome.refused
    ]
    return write_contact_sheet(
        out, ContactSheet(facts, groups, tiles, refusals, outcome.images + outcome.volumes)
    )


def _counts_text(counts: Mapping[str, int]) -> str:
    """Write the most common names: "BRAIN (20), HEAD (2), 3 others"."""
    named = [f"{name} ({count:,})" for name, count in list(counts.items())[:MOST_NAMED]]
    rest = len(counts) - len(named)
    return ", ".join([*named, *([f"{rest} other{'s' * (rest > 1)}"] if rest else [])])


def _sizes_text(sizes: Sizes) -> str:
    """Write sizes, and their range where there are many."""
    common = _counts_text(sizes.counts)
    if len(sizes.counts) <= MOST_NAMED:
        return common
    return f"{size_text(sizes.lowest)} to {size_text(sizes.highest)}: {common}"


def _spacing_text(group: Group) -> str:
    """Write spacings; nothing where only pixels would tell them."""
    known = _sizes_text(group.spacings_mm)
    if not group.matrices.counts or not group.unknown_spacing:
        return known
    return f"{known}, not named ({group.unknown_spacing:,})" if known else "not named"


def _values_text(group: Group) -> str:
    """Write the range of all values, and how those of the median image are spread."""
    if group.extremes is None or group.typical is None:
        return ""
    lowest, highest = group.extremes
    typical = [f"{value:.4g}" for value in group.typical]
    spread = f"{typical[0]} to {typical[-1]}, percentiles 1, 50, 99: {', '.join(typical[1:-1])}"
    return f"{lowest:.6g} to {highest:.6g}; median image {spread}"
