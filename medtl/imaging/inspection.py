"""SERIES AND IMAGES -> Inspections -> a Group for each modality, format and kind: what a folder holds.

Nothing in them identifies a patient.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from medtl.imaging.dicom import reader as dicom
from medtl.imaging.dicom import terms
from medtl.imaging.dicom.instance import Instance
from medtl.imaging.dicom.stacks import arrange
from medtl.imaging.image import Image, ImageWarning, find_warning
from medtl.imaging.reader import FORMATS
from medtl.imaging.series import Kind, Series

BURNED_IN = dicom.BURNED_IN
PERCENTILES = (1.0, 50.0, 99.0)
# Percentiles come from this many values at most, evenly spread; minimum and maximum from all.
SAMPLED_VALUES = 2**20


class Intensity(NamedTuple):
    """The spread of an image's values without its padding, in the units of the pixels."""

    lowest: float
    percentile_1: float
    median: float
    percentile_99: float
    highest: float


@dataclass(frozen=True)
class Inspection:
    """What is worth knowing about one series; keys are salted hashes.

    kind: "item" where only pixels show whether it is an image or a volume. intent: "for processing" where
    the values are those of the detector, "for presentation", or "" where unknown. matrix and spacing_mm
    follow the spatial axes of the image; empty and None where unknown. missing: DICOM keywords that the file
    lacks.
    """

    format: str
    kind: Kind
    modality: str = ""
    body_part: str = ""
    view: str = ""
    transfer_syntax: str = ""
    decoder: str = ""
    photometric: str = ""
    intent: str = ""
    bits: int = 0
    matrix: tuple[int, ...] = ()
    spacing_mm: tuple[float, ...] | None = None
    windowed: bool = False
    intensity: Intensity | None = None
    patient_key: str = ""
    study_key: str = ""
    series_key: str = ""
    missing: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    warning: ImageWarning | None = None


@dataclass(frozen=True)
class Sizes:
    """Distinct sizes with their counts, most common first, and the range along each axis."""

    counts: dict[str, int]
    lowest: tuple[float, ...] = ()
    highest: tuple[float, ...] = ()


@dataclass(frozen=True)
class Group:
    """All images, volumes or items of one modality and format.

    Counts by name have the most common first and leave out what is unknown. studies and series: 0 where the
    format has none. unidentified: how many name no patient. extremes: the lowest and highest value of all;
    typical: medians over the images; both None where no pixels were read.
    """

    modality: str
    format: str
    kind: Kind
    count: int
    studies: int
    series: int
    patients: int
    unidentified: int
    body_parts: dict[str, int]
    views: dict[str, int]
    matrices: Sizes
    spacings_mm: Sizes
    unknown_spacing: int
    transfer_syntaxes: dict[str, int]
    decoders: dict[str, int]
    photometric: dict[str, int]
    intents: dict[str, int]
    bits: dict[str, int]
    windowed: int
    extremes: tuple[float, float] | None
    typical: Intensity | None
    missing: dict[str, int]


def inspect_header(series: Series) -> Inspection:
    """Inspect a series by its header alone: for DICOM much, for other formats what kind it is."""
    reader = FORMATS.get(series.format)  # none for a sample of a prepared dataset
    inspection = Inspection(
        format=series.format,
        kind=reader.KIND if reader else "item",
        modality=terms.shown_modality(series.modality),
        patient_key=series.patient_key,
        study_key=series.study_key,
        series_key=series.series_key,
        notes=series.notes,
    )
    return _with_plane(inspection, series) if series.planes else inspection


def inspect_image(series: Series, image: Image) -> Inspection:
    """Inspect a series by its header and pixels."""
    facts = image.facts
    return replace(
        inspect_header(series),
        kind="volume" if image.spatial_dims == 3 else "image",
        decoder=facts.decoder,
        photometric=terms.shown_photometric(facts.photometric),
        bits=facts.bits,
        matrix=image.pixels.shape[1:],
        spacing_mm=image.spacing_mm,
        windowed=facts.voi is not None,
        intensity=measure_intensity(image),
        notes=facts.notes,
        warning=find_warning(image),
    )


def measure_intensity(image: Image) -> Intensity | None:
    """Return the spread of the values, None where all of them are padding."""
    values = image.pixels.ravel()
    if image.facts.padding is not None:
        low, high = image.facts.padding
        values = values[(values < low) | (values > high)]
    if values.size == 0:
        return None
    sample = values[:: -(-values.size // SAMPLED_VALUES)]
    # "nearest" returns values of the image: between the largest floats there is nothing to interpolate.
    first, median, last = np.percentile(sample, PERCENTILES, method="nearest")
    return Intensity(float(values.min()), float(first), float(median), float(last), float(values.max()))


def count_notes(inspections: Iterable[Inspection]) -> dict[str, int]:
    """Count notes, most frequent first; those of all parts of a series are one."""
    notes = (note for one in inspections for note in one.notes)
    alike = (re.sub(r"^part \d+ of (\d+) of", r"one of \1 parts of", note) for note in notes)
    return dict(Counter(alike).most_common())


def group_inspections(inspections: Iterable[Inspection]) -> tuple[Group, ...]:
    """Return a group for each modality, format and kind, in this order."""
    members: dict[tuple[str, str, Kind], list[Inspection]] = defaultdict(list)
    for one in inspections:
        members[one.modality, one.format, one.kind].append(one)
    return tuple(_group(members[key]) for key in sorted(members))


def size_text(size: Sequence[float]) -> str:
    """Write a matrix or a spacing: "22 x 320 x 280"."""
    return " x ".join(f"{extent:.4g}" if extent % 1 else f"{extent:.0f}" for extent in size)


def _with_plane(inspection: Inspection, series: Series) -> Inspection:
    plane: Instance = series.planes[0]
    count = len(series.planes)
    stack = arrange(series.planes, str(series.path), series.reading.resample_uneven) if count > 1 else None
    return replace(
        inspection,
        kind="volume" if count > 1 else "image",
        body_part=terms.shown_body_part(plane.body_part),
        view=terms.shown_view(plane.view),
        transfer_syntax=plane.transfer_syntax.name if plane.transfer_syntax.keyword else terms.NOT_SHOWN,
        photometric=terms.shown_photometric(plane.photometric),
        intent=plane.intent.lower(),
        bits=plane.bits_stored,
        matrix=stack.shape if stack else (plane.rows, plane.columns),
        spacing_mm=stack.spacing_mm if stack else plane.flat_spacing,
        windowed=plane.voi is not None,
        missing=tuple(keyword for keyword, absent in _expected(plane, count) if absent),
        notes=(*inspection.notes, *dicom.notes_of(plane)),
    )


def _expected(plane: Instance, count: int) -> Iterator[tuple[str, bool]]:
    """Yield the elements that a careful archive fills in, and whether this file lacks them."""
    yield "Modality", not plane.modality
    yield "PatientID", not plane.patient_id
    yield "StudyInstanceUID", not plane.study_uid
    yield "SeriesInstanceUID", not plane.series_uid
    yield "SOPInstanceUID", not plane.sop_uid
    yield "BodyPartExamined", not plane.body_part
    if count == 1:
        yield "PixelSpacing", plane.pixel_spacing is None and plane.imager_spacing is None
    if plane.position is None:  # a projection
        yield "ViewPosition", not plane.view


def _group(members: Sequence[Inspection]) -> Group:
    first = members[0]
    spacings = [one.spacing_mm for one in members if one.spacing_mm is not None]
    intensities = [one.intensity for one in members if one.intensity is not None]
    return Group(
        modality=first.modality,
        format=first.format,
        kind=first.kind,
        count=len(members),
        studies=len({one.study_key for one in members} - {""}),
        series=len({one.series_key for one in members} - {""}),
        patients=len({one.patient_key for one in members} - {""}),
        unidentified=sum(not one.patient_key for one in members),
        body_parts=_tally(one.body_part for one in members),
        views=_tally(one.view for one in members),
        matrices=_sizes([one.matrix for one in members if one.matrix]),
        spacings_mm=_sizes(spacings),
        unknown_spacing=len(members) - len(spacings),
        transfer_syntaxes=_tally(one.transfer_syntax for one in members),
        decoders=_tally(one.decoder for one in members),
        photometric=_tally(one.photometric for one in members),
        intents=_tally(one.intent for one in members),
        bits=_tally(str(one.bits or "") for one in members),
        windowed=sum(one.windowed for one in members),
        extremes=(min(intensities).lowest, max(one.highest for one in intensities)) if intensities else None,
        typical=Intensity(*np.median(intensities, axis=0).tolist()) if intensities else None,
        missing=_tally(keyword for one in members for keyword in one.missing),
    )


def _tally(names: Iterable[str]) -> dict[str, int]:
    counts = Counter(name for name in names if name)
    return dict(sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])))


def _sizes(sizes: Sequence[tuple[float, ...]]) -> Sizes:
    if not sizes:
        return Sizes({})
    lowest, highest = np.min(sizes, axis=0).tolist(), np.max(sizes, axis=0).tolist()
    return Sizes(_tally(map(size_text, sizes)), tuple(lowest), tuple(highest))
