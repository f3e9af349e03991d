"""HEADERS -> series; a series -> one volume; a projection or single slice -> one image."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from pydicom.uid import JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLSNearLossless

from medtl.core.ids import hash_identifier
from medtl.errors import ReadError
from medtl.imaging.containers import open_file, read_bytes, size_and_time
from medtl.imaging.dicom.fast_header import walk_header
from medtl.imaging.dicom.frames import planes_of
from medtl.imaging.dicom.header import read_dataset, read_header
from medtl.imaging.dicom.identity import identity_of, read_identity
from medtl.imaging.dicom.instance import Instance
from medtl.imaging.dicom.pixels import Pixels, check_decodable, decode, decode_directly
from medtl.imaging.dicom.volumes import PlaneSet, arrange, split_planes
from medtl.imaging.image import Image, ImageFacts, VoiTable
from medtl.imaging.incomplete import DAMAGE_CODES
from medtl.imaging.series import DICOM, EXACT, SLICED_MODALITIES, Reading, Scan, Series, read_headers

# Transfer syntaxes that lose detail whatever the header says.
LOSSY = frozenset({JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLSNearLossless})
BURNED_IN = "has burned-in annotation"
COPIES = "exact copies of other files"
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
            series.append(_series(group.planes, where, item, notes))
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
    decoded = [pixels for path, planes in by_file.items() for pixels in _decode_file(path, planes, digest)]
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
        patient_key=hash_identifier(first.patient_id),
        study_key=hash_identifier(first.study_uid),
        series_key=hash_identifier(first.series_uid),
        notes=(*series.notes, *dict.fromkeys(_notes_of_slices(decoded))),
    )
    if len(decoded) == 1:
        return Image(np.ascontiguousarray(pixels.values, np.float32), None, first.flat_spacing, facts)
    stack = arrange([one.plane for one in decoded], str(series.path))
    values = {(one.plane.path, one.plane.frame): one.values for one in decoded}
    slices = [values[one.path, one.frame] for one in stack.instances]
    volume = np.stack(slices, axis=1, dtype=np.float32, casting="same_kind")  # (C, D, H, W)
    return Image(volume, stack.affine, stack.spacing_mm, facts)


def notes_of(plane: Instance) -> Iterator[str]:
    """Yield what a user should know about a header, one phrase each."""
    if plane.photometric == "MONOCHROME1":
        yield "inverted from MONOCHROME1"
    if plane.burned_in == "YES":
        yield BURNED_IN
    if plane.lossy == "01" or plane.transfer_syntax in LOSSY:
        yield "was compressed with loss"
    if "DERIVED" in plane.image_type and plane.modality in SLICED_MODALITIES:  # most radiographs are
        yield "was derived from other images"


def _notes_of_slices(decoded: Sequence[Pixels]) -> Iterator[str]:
    """Yield the notes of each header, and where slices differ so that the first one decides."""
    for one in decoded:
        yield from notes_of(one.plane)
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
    unique: list[list[Instance]] = []
    seen: dict[str, list[Instance]] = defaultdict(list)
    copies: Counter[Path] = Counter()
    for planes in files:
        instance = planes[0]
        twins = seen[instance.sop_uid] if instance.sop_uid else []
        original = next((twin for twin in twins if _same_content(twin, instance)), None)
        if original is not None:
            copies[original.path] += 1
        else:
            twins.append(instance)
            unique.append(planes)
    return unique, copies


def _same_content(one: Instance, other: Instance) -> bool:
    """Compare two files by bytes, then element by element: a copy may have a new file meta group."""
    first, second = read_bytes(one.path), read_bytes(other.path)
    if first == second:
        return True
    return read_dataset(one.path, first).dataset == read_dataset(other.path, second).dataset


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


def _series(planes: Sequence[Instance], where: Path, item: str | None, notes: Sequence[str]) -> Series:
    """Turn planes into a Series, in slice order. Raises ReadError where they cannot become one image."""
    first = planes[0]
    for plane in planes:
        check_decodable(plane, str(where), len(planes))
    ordered = arrange(planes, str(where)).instances if len(planes) > 1 else planes
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
        notes=tuple(notes),
    )


def _decode_file(path: Path, planes: Sequence[Instance], digest: "hashlib._Hash") -> list[Pixels]:
    """Decode the planes of a series that one file holds; parse it again where it has changed."""
    with open_file(path) as file:
        facts, data = size_and_time(file), file.read()
    if not data:
        raise ReadError("file-empty", "has no bytes", where=path, fix="copy it again from its source")
    digest.update(data)
    place = planes[0].place
    if place and (place.size, place.time_ns) == facts:
        direct = decode_directly(data, planes, place)
        if direct is not None:
            return direct
    parsed = read_dataset(path, data)
    now = planes_of(parsed)
    if max(plane.frame for plane in planes) >= len(now):
        raise ReadError("dicom-header", "has changed since it was listed", where=path, fix="read it again")
    planes = [now[plane.frame] for plane in planes]
    for plane in planes:
        check_decodable(plane, str(path), len(planes))
    return decode(parsed.dataset, planes)
