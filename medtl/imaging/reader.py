"""FILES -> IMAGES: scan lists the series of a folder by their headers, read_series reads one into an Image.

Formats are recognised by content, never by extension. To add one, write a module that offers what Format
names, and add it to FORMATS.
"""

import stat
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from medtl.core.progress import SILENT, Watcher
from medtl.errors import ReadError
from medtl.imaging import dicom, medmnist
from medtl.imaging.containers import UNPACK, ZIP_MAGIC, list_members, open_file, other_kind
from medtl.imaging.image import Image
from medtl.imaging.incomplete import ARCHIVE_CODES, DAMAGE_CODES, is_whole_archive, refuse_incomplete
from medtl.imaging.listing import OUTSIDE, Listing
from medtl.imaging.other_content import TEXT, UNKNOWN, ZEROS, Content, describe
from medtl.imaging.rasters import raster
from medtl.imaging.series import (
    EXACT,
    HEAD_BYTES,
    Kind,
    Reading,
    Scan,
    Series,
    read_headers,
    unreadable,
    watching,
)
from medtl.imaging.volumes import analyze, metaimage, mgh, nifti, nrrd

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
# Refusals of an archive that may hold images: never only counted.
ARCHIVED_LINKS = "links in zip archives"
ZIP = "zip"

# Kinds of skipped files that a line names before it counts the others.
MOST_KINDS = 3


# Refusals of files of which nothing is known but their names.
BLANK_CODES = frozenset({"archive-damaged", "file-empty", "file-missing", "file-unreadable"})


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
FORMATS: dict[str, Format] = {
    one.NAME: one for one in (dicom, nifti, nrrd, metaimage, mgh, analyze, raster, medmnist)
}


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
    source: str | Path | Sequence[str | Path],
    *,
    workers: int | None = None,
    reading: Reading = EXACT,
    watcher: Watcher = SILENT,
) -> Scan:
    """List the series in a file, a folder or a list of them, by reading headers only.

    The result is sorted by path. A zip archive is a folder. Hidden files in folders are skipped, and links
    that lead out of the folder. workers: 1 stays in this process, more are so many child processes; by
    default children start where a folder proves large. reading: what a recipe asks of readers,
    PreprocessingConfig.reading. Raises ReadError file-missing for an absent path, folder-empty where there is
    nothing to read; TrainingError worker-lost.
    """
    roots = [Path(source)] if isinstance(source, str | Path) else [Path(path) for path in source]
    listing = Listing(roots)
    claimed, unclaimed = _claim(listing.files, listing.left_out, watcher)
    held = {name: paths for name, paths in claimed.items() if paths}
    with watching(watcher, "reading headers", sum(map(len, held.values()))):
        parts = {name: FORMATS[name].scan(paths, workers, reading) for name, paths in held.items()}
    companions = _companions(parts.values())
    unclaimed = [error for error in unclaimed if error.where not in companions]
    others, left_out = _sort_out(unclaimed, listing.named, claimed)
    left_out.update(listing.left_out)
    found, refused = _gather(parts.values(), listing.named, companions, left_out)
    series = [replace(one, reading=reading) for one in found]
    refusals = [*listing.refusals, *others, *refused]
    if not series and not refusals:
        raise _nothing_in(roots, left_out, unclaimed)
    planes = parts.get(dicom.NAME, Scan((), ()))
    damaged = _list_damaged([*others, *listing.not_followed], claimed[dicom.NAME])
    damaged += [error for error in planes.refusals if error.code in DAMAGE_CODES]
    folders = {path.parent for path in claimed[dicom.NAME]}
    series, refusals = refuse_incomplete(series, refusals, damaged, planes.owners, folders)
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


def _claim(
    files: Sequence[Path], left_out: Counter[str], watcher: Watcher
) -> tuple[dict[str, list[Path]], list[ReadError]]:
    """Return the files of each format, those in zip archives included, and refusals of what is in none.

    left_out counts links in the archives.
    """
    with watching(watcher, "looking at files", len(files)):
        owned, unclaimed = read_headers(_owner, files, workers=1)
    claimed: dict[str, list[Path]] = {name: [] for name in (*FORMATS, ZIP)}
    for name, path in owned:
        claimed[name].append(path)
    for archive in claimed.pop(ZIP):
        try:
            members, others = _claim_members(archive, left_out, watcher)
        except (ReadError, OSError) as error:
            members = []
            others = [error if isinstance(error, ReadError) else unreadable(archive, error)]
        claimed[dicom.NAME] += members
        unclaimed += others
    return claimed, unclaimed


def _claim_members(
    archive: Path, left_out: Counter[str], watcher: Watcher
) -> tuple[list[Path], list[ReadError]]:
    """Return the DICOM files in a zip archive, and refusals of its other files.

    An archive without any is refused as a whole. Raises ReadError archive-*.
    """
    kind = other_kind(archive)
    if kind:
        raise _other(archive, Content(kind))
    paths, links = list_members(archive)
    left_out.update({ARCHIVED_LINKS: links} if links else {})
    with watching(watcher, "looking into an archive", len(paths)):
        members, others = read_headers(_checked_member, paths, workers=1)
    if members or any(error.code in ARCHIVE_CODES for error in others):
        return members, others
    names = [Path(error.where).name.lower() for error in others]
    images = Counter(suffix for name in names for suffix in _image_suffixes() if name.endswith(suffix))
    if not images:
        raise _other(archive, Content("a zip archive without images"))
    reason = f"holds {images.most_common(1)[0][0]} files, and only DICOM is read from a zip archive"
    raise ReadError("archive-packed", reason, where=archive, fix=UNPACK)


def _checked_member(path: Path) -> Path:
    """Return a member that is DICOM. Raises ReadError for another."""
    head = _head(path)
    if head.startswith(ZIP_MAGIC) or path.name.lower().endswith(".zip"):
        reason, fix = "is an archive inside an archive", "unpack the outer one, and name the folder"
        raise ReadError("archive-packed", reason, where=path, fix=fix)
    if dicom.recognises(path, head):
        return path
    name = path.name.lower()
    suffix = next((suffix for suffix in _image_suffixes() if name.endswith(suffix)), "")
    if suffix and suffix not in dicom.SUFFIXES:
        reason = f"is a {suffix} file, and only DICOM is read from a zip archive"
        raise ReadError("file-unknown", reason, where=path, fix=UNPACK)
    raise _unknown(path, head)


def _owner(path: Path) -> tuple[str, Path]:
    """Return the first format that recognises a file, and the file. Raises ReadError where none does."""
    if not stat.S_ISREG(path.stat().st_mode):
        # Opening a pipe or a device could block for ever.
        raise ReadError("file-unknown", "is a pipe, socket or device", where=path, fix="remove it")
    head = _head(path)
    for name, one in FORMATS.items():
        if one.recognises(path, head):
            return name, path
    if head.startswith(ZIP_MAGIC):
        return ZIP, path
    raise _unknown(path, head)


def _head(path: Path) -> bytes:
    with open_file(path) as file:
        head = file.read(HEAD_BYTES)
    if not head:
        raise ReadError("file-empty", "has no bytes", where=path, fix="copy it again from its source")
    return head


def _unknown(path: Path, head: bytes) -> ReadError:
    """Return the refusal of content that no format recognises."""
    content = describe(path, head)
    if content not in (TEXT, UNKNOWN):
        return _other(path, content)
    *others, last = (one.TITLE for one in FORMATS.values())
    reason = f"is {content.kind}, not a {', '.join(others)} or {last} image"
    return ReadError("file-unknown", reason, where=path, fix=content.fix)


def _companions(parts: Iterable[Scan]) -> set[str]:
    """Return the files that hold the pixels of a header beside them, whatever their bytes look like."""
    return {str(path) for part in parts for one in part.series if not one.planes for path in one.files[1:]}


def _other(path: Path, content: Content) -> ReadError:
    error = ReadError("file-unknown", f"is {content.kind}, which is not read", where=path, fix=content.fix)
    error.kind = content.kind
    return error


def _image_suffixes() -> tuple[str, ...]:
    return tuple(suffix for one in FORMATS.values() for suffix in one.SUFFIXES)


def _sort_out(
    unclaimed: Sequence[ReadError], named: Set[Path], claimed: Mapping[str, Sequence[Path]]
) -> tuple[list[ReadError], Counter[str]]:
    """Return refusals of what is meant to be an image, and count the files that just lie beside images."""
    suffixes = _image_suffixes()
    # A file without content that is named like the images in its folder is taken for one of them.
    like_images = _namings(path for paths in claimed.values() for path in paths)
    refused, skipped = [], Counter[str]()
    for error in unclaimed:
        path = Path(error.where)
        meant = path.name.lower().endswith(suffixes) or (_is_blank(error) and _naming(path) in like_images)
        if path in named or meant or error.code in ARCHIVE_CODES:
            refused.append(error)
        else:
            skipped[_skipped_name(error)] += 1
    return refused, skipped


def _gather(
    parts: Iterable[Scan], named: Set[Path], companions: Set[str], left_out: Counter[str]
) -> tuple[list[Series], list[ReadError]]:
    """Return what the formats list and refuse; count in left_out what just accompanies images."""
    series, refused = [], []
    for part in parts:
        left_out.update(part.left_out)
        for one in part.series:
            if one.company and one.path not in named:
                left_out[one.company] += 1
            else:
                series.append(one)
        for error in (one for one in part.refusals if one.where not in companions):
            if error.code in COMPANY_CODES and Path(error.where) not in named:
                left_out[_skipped_name(error)] += 1
            else:
                refused.append(error)
    return series, refused


def _list_damaged(others: Sequence[ReadError], dicom_files: Sequence[Path]) -> list[ReadError]:
    """Return refusals that may be of slices: named as DICOM, or without content and named like that."""
    like_slices = _namings(dicom_files)
    return [
        error
        for error in others
        if is_whole_archive(error)
        or (
            error.code in DAMAGE_CODES
            and (
                error.where.lower().endswith(dicom.SUFFIXES)
                or (_is_blank(error) and _naming(Path(error.where)) in like_slices)
            )
        )
    ]


def _is_blank(error: ReadError) -> bool:
    """Say whether only its name tells what a file may be; it does of garbage where no file has an ending."""
    garbage = not _naming(Path(error.where))[1] and UNKNOWN.kind in error.reason
    return error.code in BLANK_CODES or error.kind == ZEROS.kind or garbage


def _namings(paths: Iterable[Path]) -> set[tuple[Path, str]]:
    return set(map(_naming, paths))


def _naming(path: Path) -> tuple[Path, str]:
    """Return the folder and the ending of a file; the number at the end of a UID is none."""
    return path.parent, "" if path.suffix[1:].isdecimal() else path.suffix


def _skipped_name(error: ReadError) -> str:
    suffix = Path(error.where).suffix.lower() if error.code == "file-unknown" else ""
    kind = error.kind or suffix
    return SKIPPED_NAMES[error.code] + (f" ({kind})" if kind else "")


def _nothing_in(roots: Sequence[Path], left_out: Counter[str], unclaimed: Sequence[ReadError]) -> ReadError:
    """Return the error that says what a folder without images holds instead."""
    most = left_out.most_common(MOST_KINDS)
    named = [f"{_short(name)}: {count}" for name, count in most]
    rest = left_out.total() - sum(count for _, count in most)
    held = ", ".join([*named, *([f"others: {rest}"] if rest else [])]) or "no file"
    fixes = {error.fix for error in unclaimed if error.kind}
    if OUTSIDE in left_out:
        fixes.add("name the folder to which they lead")
    fix = fixes.pop() if len(fixes) == 1 else "name a folder of DICOM, NIfTI, PNG or JPEG"
    where = roots[0] if roots else ""
    return ReadError("folder-empty", f"holds no readable image ({held})", where=where, fix=fix)


def _short(skipped_name: str) -> str:
    """Return the kind in the name of skipped files, where it has one: "GIF", "DICOM Basic Text SR"."""
    kind = skipped_name.removeprefix(f"{SKIPPED_NAMES['file-unknown']} (")
    kind = kind.replace(f"{SKIPPED_NAMES['dicom-no-image']} (", "DICOM ")
    return kind if kind == skipped_name else kind.removesuffix(")")
