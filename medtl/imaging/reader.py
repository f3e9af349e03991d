"""FILES -> IMAGES: scan lists the series of a folder by their headers, read_series reads one into an Image.

Formats are recognised by content, never by extension. To add one, write a module that offers what Format
names, and add it to FORMATS.
"""

import logging
import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from medtl.errors import ReadError
from medtl.imaging import dicom, medmnist, nifti, raster
from medtl.imaging.image import Image
from medtl.imaging.series import (
    EXACT,
    HEAD_BYTES,
    SLICED_MODALITIES,
    Kind,
    Reading,
    Scan,
    Series,
    read_headers,
    unreadable,
)

log = logging.getLogger(__name__)

# Objects that are normal beside images in a folder: skipped, and refused only where the user names the file.
COMPANY_CODES = frozenset({"dicom-no-image", "dicom-localizer"})

# What skipped files are, by the code that a file of this kind has where it is refused.
SKIPPED_NAMES = {
    "dicom-localizer": "localizers",
    "dicom-no-image": "DICOM objects other than images",
    "file-empty": "empty files",
    "file-missing": "files that are gone",
    "file-unknown": "files of other formats",
    "file-unreadable": "files that cannot be read",
}

# Refusals of a file that may have been a slice of the series beside it.
DAMAGE_CODES = frozenset(
    {"dicom-header", "dicom-transfer-syntax", "dicom-truncated"}
    | {"file-empty", "file-unknown", "file-unreadable"}
)

# How content that medtl does not read begins.
OTHER_CONTENT = {
    (b"version https://git-lfs",): "a Git LFS pointer",
    (b"<!doctype", b"<html"): "an HTML page",
    (b"<?xml",): "XML",
    (b"\x1f\x8b",): "damaged gzip, or gzip of something else",
    (b"pk\x03\x04",): "a zip archive of something else",
    (b"%pdf",): "a PDF",
    (b"\x7felf", b"mz"): "a program",
    (b"gif8",): "GIF",
}


class Format(Protocol):
    """What a module that reads one format offers.

    NAME is what Series.format holds, TITLE what users see, KIND what a series is by its header. A file whose
    name ends in one of SUFFIXES is meant to be an image: with other content it is refused, not skipped.
    """

    NAME: str
    TITLE: str
    KIND: Kind
    SUFFIXES: tuple[str, ...]

    def recognises(self, path: Path, head: bytes) -> bool:
        """Say whether the content is of this format; head is the first HEAD_BYTES of the file."""

    def scan(self, files: Sequence[Path], workers: int | None = None, reading: Reading = EXACT) -> Scan:
        """List the series in files of this format by their headers; workers as for work_in_order.

        The reader gives `reading` to each series.
        """

    def read(self, series: Series) -> Image:
        """Read one series. Raises ReadError."""


# In the order in which a file is offered to them.
FORMATS: dict[str, Format] = {one.NAME: one for one in (dicom, nifti, raster, medmnist)}


def read_images(
    source: str | Path | Sequence[str | Path], *, refusals: list[ReadError] | None = None
) -> list[Image]:
    """Read every image in a file, a folder or a list of files.

    Raises ReadError for the first thing that cannot be read exactly; with a list in `refusals`, appends each
    such error to it and reads the rest.
    """
    found = scan(source)
    if refusals is not None:
        refusals += found.refusals
    elif found.refusals:
        raise found.refusals[0]
    images = []
    for series in found.series:
        try:
            images.append(read_series(series))
        except ReadError as error:
            if refusals is None:
                raise
            refusals.append(error)
    return images


def scan(
    source: str | Path | Sequence[str | Path], *, workers: int | None = None, reading: Reading = EXACT
) -> Scan:
    """List the series in a file, a folder or a list of them, by reading headers only.

    The result is sorted by path. Hidden files in folders, and links that lead out of the folder, are skipped.
    workers: 1 stays in this process, more are so many child processes; by default children start where a
    folder proves large. Raises ReadError file-missing for an absent path, folder-empty where there is nothing
    to read; TrainingError worker-lost. reading: what a recipe asks of readers, PreprocessingConfig.reading.
    """
    roots = [Path(source)] if isinstance(source, str | Path) else [Path(path) for path in source]
    refusals: list[ReadError] = []
    files, named = _list_files(roots, refusals)
    owned, unclaimed = read_headers(_owner, files, workers=1)
    claimed = {name: [path for owner, path in owned if owner == name] for name in FORMATS}
    refused, left_out = _skip_others(unclaimed, named, [path for _, path in owned])
    refusals += refused
    series: list[Series] = []
    for part in (FORMATS[name].scan(paths, workers, reading) for name, paths in claimed.items() if paths):
        company = [one.company for one in part.series if one.company and one.path not in named]
        kept = [one for one in part.series if not one.company or one.path in named]
        series += [replace(one, reading=reading) for one in kept]
        left_out.update(part.left_out)
        left_out.update(company)
        for error in part.refusals:
            if error.code in COMPANY_CODES and Path(error.where) not in named:
                left_out[SKIPPED_NAMES[error.code]] += 1
            else:
                refusals.append(error)
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
    if series.format not in FORMATS:
        reason = "is a sample of a prepared dataset, whose source is not here"
        raise ReadError("file-missing", reason, where=series.path, fix="name the folder of its source")
    try:
        return FORMATS[series.format].read(series)
    except OSError as error:
        raise unreadable(Path(error.filename or series.path), error) from error
    except ReadError as error:
        # Refusals are collected: with its frames and cause, each would keep the bytes of a file in memory.
        error.__cause__ = error.__context__ = None
        raise error.with_traceback(None)  # noqa: B904


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
        for path in (Path(folder, name) for name in names if not name.startswith(".")):
            if path.is_symlink() and not (path.exists() and path.resolve().is_relative_to(bounds)):
                log.warning("skipped a link that leads nowhere or out of the folder: %s", path)
            else:
                yield path


def _owner(path: Path) -> tuple[str, Path]:
    """Return the first format that recognises a file, and the file. Raises ReadError where none does."""
    if not stat.S_ISREG(path.stat().st_mode):
        # Opening a pipe or a device could block for ever.
        raise ReadError("file-unknown", "is a pipe, socket or device", where=path, fix="remove it")
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    if not head:
        raise ReadError("file-empty", "has no bytes", where=path, fix="copy it again from its source")
    for name, one in FORMATS.items():
        if one.recognises(path, head):
            return name, path
    raise _unknown(path, head)


def _unknown(path: Path, head: bytes) -> ReadError:
    start = head.lstrip().lower()
    known = (name for magics, name in OTHER_CONTENT.items() if start.startswith(magics))
    *others, last = (one.TITLE for one in FORMATS.values())
    reason = f"is {next(known, 'unknown content')}, not a {', '.join(others)} or {last} image"
    fix = "run `git lfs pull`" if head.startswith(b"version https://git-lfs") else "replace or remove it"
    return ReadError("file-unknown", reason, where=path, fix=fix)


def _skip_others(
    unclaimed: Sequence[ReadError], named: set[Path], images: Sequence[Path]
) -> tuple[list[ReadError], Counter[str]]:
    """Return refusals of what is meant to be an image, and count the files that just lie beside images."""
    suffixes = tuple(suffix for one in FORMATS.values() for suffix in one.SUFFIXES)
    # An empty file that is named like the images in its folder is taken for one of them.
    like_images = {(path.parent, path.suffix) for path in images}
    refused, skipped = [], Counter[str]()
    for error in unclaimed:
        path = Path(error.where)
        empty_image = error.code == "file-empty" and (path.parent, path.suffix) in like_images
        if path in named or path.name.lower().endswith(suffixes) or empty_image:
            refused.append(error)
        else:
            suffix = f" ({path.suffix.lower()})" if error.code == "file-unknown" and path.suffix else ""
            skipped[SKIPPED_NAMES[error.code] + suffix] += 1
    return refused, skipped


def _refuse_incomplete(
    series: Sequence[Series], refusals: Sequence[ReadError]
) -> tuple[list[Series], list[ReadError]]:
    """Refuse sliced series that have a damaged file beside them: it may have been one of their slices.

    The refusal of the file then becomes the refusal of the series, so that each study is reported once.
    """
    damage = {Path(error.where).parent: error for error in reversed(refusals) if _may_be_slice(error)}
    sliced = [one for one in series if one.modality in SLICED_MODALITIES]
    homes = {one.path: {path.parent for path in one.files} for one in sliced}
    for where in (Path(error.where) for error in refusals if error.code.startswith("series-")):
        homes[where] = {where if where.is_dir() else where.parent}
    torn = {path: damage[min(own & damage.keys())] for path, own in homes.items() if own & damage.keys()}
    explained = {Path(error.where).parent for error in torn.values()}
    left = [one for one in refusals if not (_may_be_slice(one) and Path(one.where).parent in explained)]
    left = [one for one in left if Path(one.where) not in torn]
    for path, error in torn.items():
        reason = f"a slice may be missing: {Path(error.where).name} {error.reason}"
        left.append(ReadError(error.code, reason, where=path, fix=error.fix))
    return [one for one in series if one.path not in torn], left


def _may_be_slice(error: ReadError) -> bool:
    path = Path(error.where)
    others = tuple(suffix for one in FORMATS.values() if one is not dicom for suffix in one.SUFFIXES)
    return error.code in DAMAGE_CODES and not (path.is_dir() or path.name.lower().endswith(others))
