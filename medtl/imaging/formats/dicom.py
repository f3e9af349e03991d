"""Read DICOM: headers become series, a series becomes one volume, a projection or lone slice one image."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from medtl.errors import ReadError
from medtl.imaging.deidentify import hash_identifier
from medtl.imaging.formats.dicom_headers import Instance, describe, read_dataset, read_header
from medtl.imaging.formats.dicom_pixels import Pixels, check_decodable, decode
from medtl.imaging.formats.dicom_stack import SAME_ORIENTATION, arrange
from medtl.imaging.image import Image, ImageFacts
from medtl.imaging.series import SLICED_MODALITIES, Scan, Series

NAME = "dicom"

PREAMBLE_BYTES = 128
# Value representations that the first elements of a file may have.
FIRST_VRS = frozenset({b"UL", b"OB", b"UI", b"SH", b"AE", b"CS", b"DA", b"TM"})
# Headers are small reads: threads hide the latency of network folders.
HEADER_THREADS = 8


def recognises(path: Path, head: bytes) -> bool:
    """Look for DICM after the preamble, or for a first element where there is none (PS3.10 7.1)."""
    if head[PREAMBLE_BYTES : PREAMBLE_BYTES + 4] == b"DICM":
        return True
    group, length = head[:2], int.from_bytes(head[4:8], "little")
    if group not in (b"\x02\x00", b"\x08\x00") or len(head) < PREAMBLE_BYTES:
        return False
    return head[4:6] in FIRST_VRS or (head[3] == 0 and 0 < length <= 64)


def scan(files: Sequence[Path]) -> Scan:
    """Group the instances in files into series, from headers alone."""
    instances, refusals = _read_headers(files)
    units, copies = _drop_copies(instances)
    series: list[Series] = []
    groups = _group(units)
    uses = Counter(unit.sop_uid for unit in units)
    for group in groups:
        left_out = sum(len(copies.get(one.path, ())) for one in group)
        notes = [f"{left_out} exact copies left out"] if left_out else []
        if any(one.sop_uid and uses[one.sop_uid] > 1 for one in group):
            notes.append("another file has the same SOPInstanceUID")
        try:
            series.append(_series(group, _name_of(group, groups), notes))
        except ReadError as error:
            refusals.append(error)
    return Scan(tuple(series), tuple(refusals), sum(map(len, copies.values())))


def read(series: Series) -> Image:
    """Read one series. Raises ReadError dicom-* for an instance, series-* for a stack."""
    digest = hashlib.sha256()
    decoded = [_decode_file(path, series, digest) for path in series.files]
    first, pixels = decoded[0]
    notes = (*series.notes, *dict.fromkeys(note for _, one in decoded for note in one.notes))
    facts = ImageFacts(
        source=str(series.path),
        format=NAME,
        modality=first.modality,
        body_part=first.body_part,
        view=first.view,
        decoder=pixels.decoder,
        sha256=digest.hexdigest(),
        photometric=first.photometric,
        bits=first.bits_stored,
        window=pixels.window,
        patient_key=hash_identifier(first.patient_id),
        study_key=hash_identifier(first.study_uid),
        series_key=hash_identifier(first.series_uid),
        notes=notes,
    )
    if len(decoded) == 1:
        return Image(pixels.values, None, _flat_spacing(first), facts)
    return _volume(decoded, series, facts)


def _read_headers(files: Sequence[Path]) -> tuple[list[Instance], list[ReadError]]:
    with ThreadPoolExecutor(max_workers=HEADER_THREADS) as pool:
        results = list(pool.map(_header_or_error, files))
    instances = [result for result in results if isinstance(result, Instance)]
    return instances, [result for result in results if isinstance(result, ReadError)]


def _header_or_error(path: Path) -> Instance | ReadError:
    try:
        instance = read_header(path)
    except ReadError as error:
        return error
    except OSError as error:
        reason = f"cannot be read: {(error.strerror or type(error).__name__).lower()}"
        return ReadError("file-unreadable", reason, where=path, fix="check its permissions")
    if "LOCALIZER" in instance.image_type:
        return ReadError("dicom-localizer", "is a localizer", where=path, fix="name image files only")
    return instance


def _drop_copies(instances: Sequence[Instance]) -> tuple[list[Instance], dict[Path, list[Path]]]:
    """Leave out files that repeat an instance exactly; return what is left, and the copies of each."""
    kept: list[Instance] = []
    seen: dict[str, list[Instance]] = defaultdict(list)
    copies: dict[Path, list[Path]] = defaultdict(list)
    for instance in instances:
        twins = seen[instance.sop_uid] if instance.sop_uid else []
        original = next((twin for twin in twins if _same_content(twin, instance)), None)
        if original is not None:
            copies[original.path].append(instance.path)
        else:
            twins.append(instance)
            kept.append(instance)
    return kept, copies


def _same_content(one: Instance, other: Instance) -> bool:
    """Compare two files by bytes, then element by element: a copy may have a new file meta group."""
    first, second = one.path.read_bytes(), other.path.read_bytes()
    return first == second or read_dataset(one.path, first) == read_dataset(other.path, second)


def _group(instances: Sequence[Instance]) -> list[list[Instance]]:
    """Gather the slices of each volume; an instance of another modality is a group by itself."""
    groups: dict[tuple, list[Instance]] = defaultdict(list)
    orientations: dict[tuple, list[Instance]] = defaultdict(list)
    for instance in instances:
        if instance.modality not in SLICED_MODALITIES:
            groups[(instance.path,)].append(instance)
            continue
        series = instance.series_uid or str(instance.path.parent)
        key = (instance.patient_id, instance.study_uid, series, instance.contrast)
        groups[(*key, _orientation_number(instance, orientations[key]))].append(instance)
    return list(groups.values())


def _orientation_number(instance: Instance, known: list[Instance]) -> int:
    """Number the orientations of one series in the order in which they come up."""
    for number, other in enumerate(known):
        if _same_orientation(instance, other):
            return number
    known.append(instance)
    return len(known) - 1


def _same_orientation(one: Instance, other: Instance) -> bool:
    if one.orientation is None or other.orientation is None:
        return one.orientation is other.orientation
    return bool(np.abs(np.subtract(one.orientation, other.orientation)).max() <= SAME_ORIENTATION)


def _name_of(group: Sequence[Instance], groups: Sequence[Sequence[Instance]]) -> Path:
    """Return the folder of slices that have it to themselves, otherwise their first file."""
    first = group[0].path
    if group[0].modality not in SLICED_MODALITIES or len(group) == 1:
        return first
    if any(one.path.parent != first.parent for one in group):
        return first
    alone = not any(
        one.path.parent == first.parent for other in groups if other is not group for one in other
    )
    return first.parent if alone else first


def _series(group: Sequence[Instance], where: Path, notes: Sequence[str]) -> Series:
    """Turn a group into a Series, in slice order. Raises ReadError where it cannot become one image."""
    first = group[0]
    for instance in group:
        check_decodable(instance, str(where), len(group))
    ordered = arrange(group, str(where)).instances if len(group) > 1 else group
    return Series(
        path=where,
        files=tuple(one.path for one in ordered),
        format=NAME,
        modality=first.modality,
        patient_key=hash_identifier(first.patient_id),
        study_key=hash_identifier(first.study_uid),
        series_key=hash_identifier(first.series_uid),
        notes=tuple(notes),
    )


def _decode_file(path: Path, series: Series, digest: "hashlib._Hash") -> tuple[Instance, Pixels]:
    data = path.read_bytes()
    if not data:
        raise ReadError("file-empty", "has no bytes", where=path, fix="copy it again from its source")
    digest.update(data)
    dataset = read_dataset(path, data)
    instance = describe(dataset, path)
    check_decodable(instance, str(path), len(series.files))
    return instance, decode(dataset, instance)


def _volume(decoded: Sequence[tuple[Instance, Pixels]], series: Series, facts: ImageFacts) -> Image:
    stack = arrange([instance for instance, _ in decoded], str(series.path))
    values = {instance.path: pixels.values for instance, pixels in decoded}
    pixels = np.stack([values[one.path] for one in stack.instances], axis=1)  # (C, D, H, W)
    return Image(pixels, stack.affine, stack.spacing_mm, facts)


def _flat_spacing(instance: Instance) -> tuple[float, ...] | None:
    """Return the spacing of rows and columns, at the patient or else at the detector; None if unknown."""
    for spacing in (instance.pixel_spacing, instance.imager_spacing):
        if spacing is not None and min(spacing) > 0:
            return spacing
    return None
