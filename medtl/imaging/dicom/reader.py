"""HEADERS -> series; a series -> one volume; a projection or single slice -> one image."""

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.uid import JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLSNearLossless

from medtl.core.ids import hash_identifier
from medtl.errors import ReadError
from medtl.imaging.containers import open_file, size_and_time
from medtl.imaging.dicom.contents import contents_by_header
from medtl.imaging.dicom.fast_header import walk_header
from medtl.imaging.dicom.frames import planes_of, several_frames
from medtl.imaging.dicom.header import read_dataset, read_header
from medtl.imaging.dicom.identity import identity_of, read_identity
from medtl.imaging.dicom.instance import FOR_PROCESSING, Instance
from medtl.imaging.dicom.pixels import MOST_VALUES, Pixels, check_decodable, decode, decode_directly
from medtl.imaging.dicom.resampling import resample
from medtl.imaging.dicom.stacks import Stack, arrange, short_name
from medtl.imaging.dicom.syntaxes import GREY
from medtl.imaging.dicom.tiles import check_no_sheet
from medtl.imaging.dicom.volumes import PlaneSet, split_planes
from medtl.imaging.image import RAW_VALUES, Image, ImageFacts, VoiTable, fill_nan, without_padding
from medtl.imaging.incomplete import DAMAGE_CODES
from medtl.imaging.series import DICOM, EXACT, SLICED_MODALITIES, Reading, Scan, Series, read_headers

# Transfer syntaxes that lose detail whatever the header says.
LOSSY = frozenset({JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLSNearLossless})
BURNED_IN = "has burned-in annotation"
COPIES = "exact copies of other files"
PICTURES = "screen saves and other pictures beside slices"
SHARED_UID = "another file has the same SOPInstanceUID"


def scan(files: Sequence[Path], workers: int | None = None, reading: Reading = EXACT) -> Scan:
    """Group the planes in files into series, from headers alone."""
    instances, refusals = read_headers(_read_planes, files, workers)
    unique, copies = _drop_copies(instances)
    damaged = [error.where for error in refusals if error.code in DAMAGE_CODES]
    named = ((where, read_identity(Path(where))) for where in damaged)
    owners = {where: owner for where, owner in named if owner is not None}
    uses = Counter(planes[0].sop_uid for planes in unique)
    groups = split_planes([plane for planes in unique for plane in planes])
    series: list[Series] = []
    for group, (where, item) in zip(groups, _name_groups(groups), strict=True):
        left_out = sum(copies[path] for path in {plane.path for plane in group.planes})
        notes = [*group.notes, *([f"exact copies left out: {left_out}"] if left_out else [])]
        if any(one.sop_uid and uses[one.sop_uid] > 1 for one in group.planes):
            notes.append(SHARED_UID)
        try:
            series.append(_series(replace(group, notes=tuple(notes)), where, item, reading))
        except ReadError as error:
            refusals.append(error)
            owners[error.where] = identity_of(group.planes[0])
    repeated = {COPIES: copies.total()} if copies else {}
    return Scan(tuple(series), tuple(refusals), repeated, owners)


def read(series: Series) -> Image:
    """Read one series. Raises ReadError dicom-* for a plane, series-* for a stack."""
    digest = hashlib.sha256()
    by_file: dict[Path, list[Instance]] = defaultdict(list)
    for plane in series.planes:
        by_file[plane.path].append(plane)
    inverting = series.reading.invert_by_lut_shape
    decoded = [
        pixels for path, planes in by_file.items() for pixels in _decode_file(path, planes, digest, inverting)
    ]
    pixels, first = decoded[0], decoded[0].plane
    facts = ImageFacts(
        source=series.source,
        format=DICOM,
        modality=first.modality,
        body_part=first.body_part,
        view=first.view,
        decoder=pixels.decoder,
        sha256=digest.hexdigest(),
        photometric=first.photometric,
        bits=first.bits_stored,
        voi=pixels.voi,
        padding=pixels.padding,
        pixel_aspect=first.flat_aspect if len(decoded) == 1 else None,
        patient_key=hash_identifier(first.patient_id),
        study_key=hash_identifier(first.study_uid),
        series_key=hash_identifier(first.series_uid),
        notes=(*series.notes, *dict.fromkeys(_notes_of_slices(decoded, inverting))),
    )
    missing = any(one.missing for one in decoded)
    if len(decoded) == 1:
        image = Image(np.ascontiguousarray(pixels.values, np.float32), None, first.flat_spacing, facts)
        return _without_nan(image, series) if missing else image
    stack = arrange([one.plane for one in decoded], str(series.path), series.reading.resample_uneven)
    values = {(one.plane.path, one.plane.frame): one.values for one in decoded}
    slices = [values[one.path, one.frame] for one in stack.instances]
    volume = np.stack(slices, axis=1, dtype=np.float32, casting="same_kind")  # (C, D, H, W)
    image = Image(volume, stack.affine, stack.spacing_mm, facts)
    image = _without_nan(image, series) if missing else image
    return image if stack.offsets is None else _resampled(image, stack, stack.offsets)


def _without_nan(image: Image, series: Series) -> Image:
    pixels = image.pixels.copy()
    allowed, source = series.reading.fill_nan, series.source
    notes = fill_nan(pixels, allowed=allowed, code="dicom-not-finite", source=source)
    return replace(image, pixels=pixels, facts=replace(image.facts, notes=(*image.facts.notes, *notes)))


def _resampled(image: Image, stack: Stack, offsets: NDArray[np.float64]) -> Image:
    """Resample slices to the grid of their stack; padding, and what no slice covers, get the lowest value.

    To interpolate between padding and its neighbours would make values that are neither.
    """
    pixels = without_padding(image)
    volume = resample(pixels, offsets, stack.shape, float(pixels.min()))
    return replace(image, pixels=volume, facts=replace(image.facts, padding=None))


def notes_of(plane: Instance, by_lut_shape: bool = False) -> Iterator[str]:
    """Yield what a user should know about a header, one phrase each."""
    yield from plane.repairs
    yield from _notes_of_polarity(plane, by_lut_shape)
    yield from _notes_of_bits(plane)
    if plane.intent == FOR_PROCESSING:
        yield RAW_VALUES
    if plane.flat_aspect is not None:
        yield f"pixels {plane.flat_aspect:.4g} times as high as wide, of unknown spacing"
    if plane.burned_in == "YES":
        yield BURNED_IN
    if plane.lossy == "01" or plane.transfer_syntax in LOSSY:
        yield "was compressed with loss"
    if "DERIVED" in plane.image_type and plane.modality in SLICED_MODALITIES:  # most radiographs are
        yield "was derived from other images"


def _notes_of_polarity(plane: Instance, by_lut_shape: bool) -> Iterator[str]:
    inverted = plane.is_inverted(by_lut_shape)
    if plane.photometric in GREY and inverted != plane.is_inverted(not by_lut_shape):
        counted = plane.lut_shape if by_lut_shape else plane.photometric
        yield f"PresentationLUTShape {plane.lut_shape} contradicts {plane.photometric}: {counted} counts"
    elif plane.photometric == "MONOCHROME1":
        yield "inverted from MONOCHROME1"


def _notes_of_bits(plane: Instance) -> Iterator[str]:
    if plane.stated_frames < 1:
        yield "NumberOfFrames is 0: it has one frame"
    if plane.high_bit >= plane.bits_stored:
        yield "its values are in the upper bits of their words, as HighBit says"
    low, high = plane.stored_range
    if plane.padding is not None and not (low <= plane.padding[1] and plane.padding[0] <= high):
        yield "its padding value is one that no pixel can have"


def _notes_of_slices(decoded: Sequence[Pixels], by_lut_shape: bool) -> Iterator[str]:
    """Yield the notes of each header, and where slices differ so that the first one decides."""
    for one in decoded:
        yield from notes_of(one.plane, by_lut_shape)
        yield from one.notes
    windows = {one.voi for one in decoded if not isinstance(one.voi, VoiTable)}
    for what, values in (("window", windows), ("padding", {one.padding for one in decoded})):
        if len(values) > 1:
            yield f"its slices differ in {what}: that of the first one counts"


def _read_planes(path: Path) -> list[Instance]:
    """Return the planes of a file, in order, from its header."""
    plain = walk_header(path)
    planes = [plain] if plain is not None else planes_of(read_header(path))
    if "LOCALIZER" in planes[0].image_type:
        raise ReadError("dicom-localizer", "is a localizer", where=path, fix="name image files only")
    return planes


def _drop_copies(files: Sequence[list[Instance]]) -> tuple[list[list[Instance]], Counter[Path]]:
    """Drop files that repeat an instance exactly; return the others, and how many copies each has."""
    uses = Counter(planes[0].sop_uid for planes in files)
    unique: list[list[Instance]] = []
    seen = contents_by_header()
    copies: Counter[Path] = Counter()
    for planes in files:
        first = planes[0]
        original = None
        if first.sop_uid and uses[first.sop_uid] > 1:  # others have no copies
            header = (first.sop_uid, first.series_uid, first.number, first.position, first.frames)
            original = seen[header].find_or_keep(first.path)
        if original is not None:
            copies[original] += 1
        else:
            unique.append(planes)
    return unique, copies


def _name_groups(groups: Sequence[PlaneSet]) -> list[tuple[Path, str | None]]:
    """Name each group by the folder that its slices have to themselves, otherwise by its first file.

    Where several groups come from one file they are its items, "volume/0" and so on.
    """
    folders = Counter(folder for group in groups for folder in {one.path.parent for one in group.planes})
    paths = []
    for group in groups:
        files = {plane.path for plane in group.planes}
        first = group.planes[0].path
        alone = folders[first.parent] == 1 and all(path.parent == first.parent for path in files)
        paths.append(first.parent if len(files) > 1 and alone else first)
    uses, numbers = Counter(paths), Counter[Path]()
    names: list[tuple[Path, str | None]] = []
    for path in paths:
        names.append((path, f"volume/{numbers[path]}" if uses[path] > 1 else None))
        numbers[path] += 1
    return names


def _series(group: PlaneSet, where: Path, item: str | None, reading: Reading) -> Series:
    """Turn planes into a Series, in slice order. Raises ReadError where they cannot become one image."""
    planes, first = group.planes, group.planes[0]
    if first.is_picture and first.frames > 1:
        raise _several_pictures(group)
    for plane in planes:
        _check_decodable(plane, where, len(planes))
    ordered, repairs = planes, tuple[str, ...]()
    if len(planes) > 1:
        stack = arrange(planes, str(where), reading.resample_uneven)
        ordered, repairs = stack.instances, stack.notes
        _check_size(stack, where)
    else:
        check_no_sheet(first)
    return Series(
        path=where,
        files=tuple(dict.fromkeys(plane.path for plane in ordered)),
        format=DICOM,
        item=item,
        planes=tuple(ordered),
        modality=first.modality,
        patient_key=hash_identifier(first.patient_id),
        study_key=hash_identifier(first.study_uid),
        series_key=hash_identifier(first.series_uid),
        notes=(*group.notes, *repairs),
        company=PICTURES if group.beside_slices else "",
    )


def _check_decodable(plane: Instance, where: Path, count: int) -> None:
    """Refuse what cannot be decoded; where it is not the file by which its series is known, name it."""
    try:
        check_decodable(plane, str(where), count)
    except ReadError as error:
        if plane.path == where or error.code == "dicom-too-large":
            raise
        reason = f"a slice, {short_name(plane.path)}, {error.reason}"
        raise ReadError(error.code, reason, where=where, fix=error.fix) from error


def _several_pictures(group: PlaneSet) -> ReadError:
    """Return the refusal of a Secondary Capture of several frames; beside slices it is skipped."""
    first = group.planes[0]
    if not group.beside_slices:
        return several_frames(first)
    reason = f"is no image of its study but {first.frames} pictures of others"
    error = ReadError("dicom-no-image", reason, where=first.path, fix="name image files only")
    error.kind = "Secondary Capture of several frames"
    return error


def _check_size(stack: Stack, where: Path) -> None:
    size = math.prod(stack.shape) * stack.instances[0].samples
    if size > MOST_VALUES:
        reason = f"would have {size} values once resampled, more than {MOST_VALUES}"
        raise ReadError("dicom-too-large", reason, where=where, fix="split it or leave slices out")


def _decode_file(
    path: Path, planes: Sequence[Instance], digest: "hashlib._Hash", by_lut_shape: bool
) -> list[Pixels]:
    """Decode the planes of a series that one file holds; parse it again where it has changed."""
    with open_file(path) as file:
        facts, data = size_and_time(file), file.read()
    if not data:
        raise ReadError("file-empty", "has no bytes", where=path, fix="copy it again from its source")
    digest.update(data)
    place = planes[0].place
    if place and (place.size, place.time_ns) == facts:
        direct = decode_directly(data, planes, place, by_lut_shape)
        if direct is not None:
            return direct
    parsed = read_dataset(path, data)
    now = planes_of(parsed)
    if max(plane.frame for plane in planes) >= len(now):
        raise ReadError("dicom-header", "has changed since it was listed", where=path, fix="read it again")
    planes = [now[plane.frame] for plane in planes]
    for plane in planes:
        check_decodable(plane, str(path), len(planes))
    return decode(parsed.dataset, planes, by_lut_shape)
