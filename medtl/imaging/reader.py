"""The formats that medtl reads, in the order in which a file is offered to them.

A format is a module with the four names of `Format`. Files are told apart by content, never by extension.
"""

import os
import stat
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from medtl.errors import ReadError
from medtl.imaging import medmnist, nifti, raster
from medtl.imaging.dicom import reader as dicom
from medtl.imaging.image import Image
from medtl.imaging.series import HEAD_BYTES, SLICED_MODALITIES, Scan, Series, log, unreadable

# pydicom imports gdcm, which takes any folder named dl in the working directory for a module that it needs.
sys.modules.setdefault("dl", None)  # type: ignore[arg-type]

# A file with one of these names is meant to be an image: of other content it is refused, not skipped.
OTHER_SUFFIXES = (".nii", ".nii.gz", ".png", ".jpg", ".jpeg", ".npz")
IMAGE_SUFFIXES = (".dcm", *OTHER_SUFFIXES)

# Normal company of images in a folder: counted, and refused only where the user named the very file.
COMPANY_CODES = frozenset({"dicom-no-image", "dicom-localizer"})

# What files are that are skipped, by the code that a file of this kind has where it is refused.
SKIPPED_NAMES = {
    "dicom-localizer": "localizers",
    "dicom-no-image": "DICOM objects that are no images",
    "file-empty": "empty files",
    "file-missing": "files that are gone",
    "file-unknown": "files of other formats",
    "file-unreadable": "files that cannot be read",
}

# Refusals of a file that may have been a slice of the series beside it.
DAMAGE_CODES = frozenset(
    {
        "dicom-header",
        "dicom-transfer-syntax",
        "dicom-truncated",
        "file-empty",
        "file-unknown",
        "file-unreadable",
    }
)


class Format(Protocol):
    """What a module in this folder offers."""

    NAME: str

    def recognises(self, path: Path, head: bytes) -> bool:
        """Say whether the content is of this format; head is the first HEAD_BYTES of the file."""

    def scan(self, files: Sequence[Path], workers: int | None = None) -> Scan:
        """List the series in files of this format from their headers alone; workers as for work_in_order."""

    def read(self, series: Series) -> Image:
        """Read one series. Raises ReadError."""


FORMATS: tuple[Format, ...] = (dicom, nifti, raster, medmnist)


def read_images(
    source: str | Path | Sequence[str | Path], *, refusals: list[ReadError] | None = None
) -> list[Image]:
    """Read every image in a file, a folder or a list of files.

    Raises ReadError for the first thing that cannot be read exactly; with a list in `refusals`, appends each
    such error to it and goes on.
    """
    found = scan(source)
    images = []
    for refusal in found.refusals:
        _raise_or_collect(refusal, refusals)
    for series in found.series:
        try:
            images.append(read_series(series))
        except ReadError as error:
            _raise_or_collect(error, refusals)
    return images


def scan(source: str | Path | Sequence[str | Path], *, workers: int | None = None) -> Scan:
    """List the series in a file, a folder or a list of them, by reading headers only.

    The result is sorted by path. In folders hidden files and links that lead out of the folder are left
    out. workers: 1 stays in this process, more are so many child processes; by default children come in
    where a folder proves large. Raises ReadError file-missing for an absent path, folder-empty where there
    is nothing to read; TrainingError worker-lost.
    """
    roots = [Path(source)] if isinstance(source, str | Path) else [Path(path) for path in source]
    refusals: list[ReadError] = []
    files, named = _list_files(roots, refusals)
    claimed, left_out = _claim(files, named, refusals)
    series: list[Series] = []
    for reader, paths in claimed:
        part = reader.scan(paths, workers)
        series += part.series
        refusals += [error for error in part.refusals if not _is_company(error, named)]
        left_out.update(part.left_out)
        left_out.update(SKIPPED_NAMES[error.code] for error in part.refusals if _is_company(error, named))
    if not series and not refusals:
        reason = f"holds no readable image ({left_out.total()} other files)"
        where = roots[0] if roots else ""
        raise ReadError("folder-empty", reason, where=where, fix="name a folder of DICOM, NIfTI, PNG or JPEG")
    series, refusals = _refuse_incomplete(series, refusals)
    return Scan(
        tuple(sorted(series, key=lambda one: one.path.parts)),
        tuple(sorted(refusals, key=lambda error: Path(error.where).parts)),
        dict(left_out.most_common()),
    )


def read_series(series: Series) -> Image:
    """Read a series into one Image. Raises ReadError where it cannot be read exactly."""

    reader = next((candidate for candidate in FORMATS if series.format == candidate.NAME), None)
    if reader is None:
        reason = "is a sample of a prepared dataset, whose source is not here"
        raise ReadError("file-missing", reason, where=series.path, fix="name the folder of its source")
    try:
        return reader.read(series)
    except OSError as error:
        raise unreadable(Path(error.filename or series.path), error) from error
    except ReadError as error:
        # Refusals are collected: with its frames and cause, each would keep the bytes of a file in memory.
        error.__cause__ = error.__context__ = None
        raise error.with_traceback(None)  # noqa: B904


def _raise_or_collect(error: ReadError, refusals: list[ReadError] | None) -> None:
    if refusals is None:
        raise error
    refusals.append(error)


def _is_company(error: ReadError, named: set[Path]) -> bool:
    return error.code in COMPANY_CODES and Path(error.where) not in named


def _list_files(roots: Iterable[Path], refusals: list[ReadError]) -> tuple[list[Path], set[Path]]:
    """Return all files, sorted and without repeats, and those among them that the user named one by one."""
    files: set[Path] = set()
    named: set[Path] = set()
    for root in roots:
        if root.is_dir():
            files.update(_walk(root, refusals))
        elif root.exists():
            named.add(root)
        else:
            raise ReadError("file-missing", "does not exist", where=root, fix="check the path")
    return sorted(files | named, key=lambda path: path.parts), named


def _walk(root: Path, refusals: list[ReadError]) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        refusals.append(unreadable(Path(error.filename or root), error))

    bounds = root.resolve()
    for folder, folders, names in os.walk(root, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            path = Path(folder, name)
            if not name.startswith(".") and (not path.is_symlink() or _stays_inside(path, bounds)):
                yield path


def _stays_inside(link: Path, bounds: Path) -> bool:
    """Say whether a link has a target, and that below the folder that is being read."""
    inside = link.exists() and link.resolve().is_relative_to(bounds)
    if not inside:
        log.warning("left out a link that leads nowhere or out of the folder: %s", link)
    return inside


def _claim(
    files: Sequence[Path], named: set[Path], refusals: list[ReadError]
) -> tuple[list[tuple["Format", list[Path]]], Counter[str]]:
    """Give each file to the format that recognises it; refuse the others, or count what they are."""

    claimed: list[tuple[Format, list[Path]]] = [(candidate, []) for candidate in FORMATS]
    strangers: list[ReadError] = []
    for path in files:
        try:
            head = _read_head(path)
            owner = next((paths for reader, paths in claimed if reader.recognises(path, head)), None)
        except OSError as error:
            strangers.append(unreadable(path, error))
        except ReadError as error:
            strangers.append(error)
        else:
            owner.append(path) if owner is not None else strangers.append(_unknown(path, head))
    homes = {(path.parent, path.suffix) for _, paths in claimed for path in paths}
    left_out: Counter[str] = Counter()
    for stranger in strangers:
        if _is_meant_as_image(stranger, named, homes):
            refusals.append(stranger)
        else:
            left_out[_skipped_name(stranger)] += 1
    return claimed, left_out


def _skipped_name(error: ReadError) -> str:
    """Say what a file is that is skipped; of another format, by its suffix."""
    suffix = Path(error.where).suffix.lower() if error.code == "file-unknown" else ""
    return SKIPPED_NAMES[error.code] + (f" ({suffix})" if suffix else "")


def _read_head(path: Path) -> bytes:
    if not stat.S_ISREG(path.stat().st_mode):
        # Opening a pipe or a device could block for ever.
        raise ReadError("file-unknown", "is a pipe, socket or device", where=path, fix="remove it")
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    if not head:
        raise ReadError("file-empty", "has no bytes", where=path, fix="copy it again from its source")
    return head


def _is_meant_as_image(error: ReadError, named: set[Path], homes: set[tuple[Path, str]]) -> bool:
    """Tell an image that was damaged from a file that happens to lie beside images.

    An empty file that is named like the images in its folder is taken for one of them.
    """
    path = Path(error.where)
    if path in named or path.name.lower().endswith(IMAGE_SUFFIXES):
        return True
    return error.code == "file-empty" and (path.parent, path.suffix) in homes


def _unknown(path: Path, head: bytes) -> ReadError:
    reason = f"is {_describe(head)}, not a DICOM, NIfTI, PNG, JPEG or MedMNIST image"
    fix = "run `git lfs pull`" if head.startswith(b"version https://git-lfs") else "replace or remove it"
    return ReadError("file-unknown", reason, where=path, fix=fix)


def _describe(head: bytes) -> str:
    start = head.lstrip().lower()
    known = {
        b"version https://git-lfs": "a Git LFS pointer",
        b"<!doctype": "an HTML page",
        b"<html": "an HTML page",
        b"<?xml": "XML",
        b"\x1f\x8b": "damaged gzip, or gzip of something else",
        b"pk\x03\x04": "a zip archive of something else",
        b"%pdf": "a PDF",
        b"\x7felf": "a program",
        b"mz": "a program",
        b"ii*\x00": "TIFF",
        b"mm\x00*": "TIFF",
        b"bm": "BMP",
        b"gif8": "GIF",
    }
    return next((name for magic, name in known.items() if start.startswith(magic)), "unknown content")


def _refuse_incomplete(
    series: Sequence[Series], refusals: Sequence[ReadError]
) -> tuple[list[Series], list[ReadError]]:
    """Refuse sliced series that have a damaged file beside them: it may have been one of their slices.

    The refusal of the file then becomes the refusal of the series, so that each study is reported once.
    """
    damage = {Path(error.where).parent: error for error in reversed(refusals) if _may_be_slice(error)}
    torn: dict[Path, ReadError] = {}
    for one in series:
        homes = {path.parent for path in one.files} if one.modality in SLICED_MODALITIES else set()
        for home in sorted(homes & damage.keys()):
            torn.setdefault(one.path, damage[home])
    for error in refusals:
        home = _home(error)
        if error.code.startswith("series-") and home in damage:
            torn[Path(error.where)] = damage[home]
    explained = {Path(error.where).parent for error in torn.values()}
    left = [one for one in refusals if not (_may_be_slice(one) and Path(one.where).parent in explained)]
    left = [one for one in left if Path(one.where) not in torn]
    return [one for one in series if one.path not in torn], left + [_torn(*pair) for pair in torn.items()]


def _may_be_slice(error: ReadError) -> bool:
    path = Path(error.where)
    return error.code in DAMAGE_CODES and not (path.is_dir() or path.name.lower().endswith(OTHER_SUFFIXES))


def _home(error: ReadError) -> Path:
    where = Path(error.where)
    return where if where.is_dir() else where.parent


def _torn(path: Path, damage: ReadError) -> ReadError:
    reason = f"a slice may be missing: {Path(damage.where).name} {damage.reason}"
    return ReadError(damage.code, reason, where=path, fix=damage.fix)
