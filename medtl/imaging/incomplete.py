"""DAMAGED FILES -> the series that may lack a slice because of them, which are refused (decision 0029).

A damaged file belongs to the series that its own header names. One whose header says nothing may have been a
slice of the one series of slices in its folder. Beside several it is refused alone, and they are read with a
note: a gap between their slices would be found, one at an end would not.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence, Set
from dataclasses import replace
from pathlib import Path

from medtl.errors import ReadError
from medtl.imaging.series import SLICED_MODALITIES, Series, SeriesId

ARCHIVE_CODES = frozenset({"archive-damaged", "archive-packed", "archive-too-large"})
# Refusals of a file that may have been a slice.
DAMAGE_CODES = frozenset(
    {"dicom-header", "dicom-transfer-syntax", "dicom-truncated"}
    | {"archive-damaged", "file-empty", "file-missing", "file-unknown", "file-unreadable"}
)
DOUBT = "a file beside it that is not read may have been one of its slices"

Rows = tuple[list[Series], list[ReadError]]


def refuse_incomplete(
    series: Sequence[Series],
    refusals: Sequence[ReadError],
    damaged: Sequence[ReadError],
    owners: Mapping[str, SeriesId],
    folders: Set[Path],
) -> Rows:
    """Return the series that are read, and all refusals: a series that lacks a slice names its damaged file.

    damaged: those refusals that may be of slices; a link that is not followed, or a whole archive, leaves a
    note only. owners: the series that a refused file or series is, by its
    `where`. folders: those of all DICOM files.
    """
    residents = _residents(series, refusals, owners, folders)
    known = set().union(*residents.values())
    torn: dict[SeriesId, list[ReadError]] = defaultdict(list)
    doubtful: set[SeriesId] = set()
    for error in damaged:
        if error.code == "file-missing" or is_whole_archive(error):
            doubtful |= _near(Path(error.where).parent, residents)
            continue
        beside = residents.get(Path(error.where).parent, set())
        owner = owners.get(error.where) or (min(beside) if len(beside) == 1 else None)
        if owner in known:
            torn[owner].append(error)
        elif owner is None:
            doubtful |= beside
    return _rows(series, refusals, owners, torn, doubtful)


def _residents(
    series: Sequence[Series],
    refusals: Sequence[ReadError],
    owners: Mapping[str, SeriesId],
    folders: Set[Path],
) -> dict[Path, set[SeriesId]]:
    """Return the series of slices in each folder, whether they are read or refused."""
    residents: dict[Path, set[SeriesId]] = defaultdict(set)
    for one in series:
        for folder in {path.parent for path in one.files} if _is_sliced(one) else ():
            residents[folder].add(one.identity)
    for error in refusals:
        where = Path(error.where)
        if error.code.startswith("series-") and error.where in owners:
            residents[where if where in folders else where.parent].add(owners[error.where])
    return residents


def is_whole_archive(error: ReadError) -> bool:
    """Say whether a refusal is of a zip archive, and neither of a file in one nor of a .dcm.gz."""
    return error.code in ARCHIVE_CODES and Path(error.where).is_file() and not error.where.endswith(".gz")


def _near(folder: Path, residents: Mapping[Path, set[SeriesId]]) -> set[SeriesId]:
    """Return the series of slices in a folder and in the archives there."""
    return {
        one
        for place, series in residents.items()
        if place == folder or (folder in place.parents and not place.is_dir())
        for one in series
    }


def _is_sliced(series: Series) -> bool:
    return series.modality in SLICED_MODALITIES


def _rows(
    series: Sequence[Series],
    refusals: Sequence[ReadError],
    owners: Mapping[str, SeriesId],
    torn: Mapping[SeriesId, Sequence[ReadError]],
    doubtful: Set[SeriesId],
) -> Rows:
    named = {error.where for errors in torn.values() for error in errors}
    sound: list[Series] = []
    rows: list[ReadError] = []
    for one in series:
        if _is_sliced(one) and one.identity in torn:
            rows.append(_incomplete(one.path, torn[one.identity]))
        elif _is_sliced(one) and one.identity in doubtful:
            sound.append(replace(one, notes=(*one.notes, DOUBT)))
        else:
            sound.append(one)
    for error in refusals:
        lacking = torn.get(owners[error.where]) if error.where in owners else None
        if error.code.startswith("series-") and lacking:
            rows.append(_incomplete(Path(error.where), lacking))
        elif error.where not in named:
            rows.append(error)
    return sound, rows


def _incomplete(where: Path, errors: Sequence[ReadError]) -> ReadError:
    first = errors[0]
    more = f" (1 of {len(errors)} damaged files)" if len(errors) > 1 else ""
    reason = f"a slice may be missing: {Path(first.where).name} {first.reason}{more}"
    return ReadError(first.code, reason, where=where, fix=first.fix)
