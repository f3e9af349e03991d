"""Names of what is read: a Series -> its path in the folder, and on pages a salted hash of that; and back.

splits.csv, scores.csv and reports agree on the ids of a folder because each of them asks here. A cell of a
label table, a path or UID, leads back to the one Series that it names.
"""

import os
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

from medtl.core.ids import hash_identifier
from medtl.errors import ReadError
from medtl.imaging.containers import exists
from medtl.imaging.series import DICOM, Scan, Series


def source_name(series: Series, root: Path) -> str:
    """Name a series by its path relative to `root` (to its folder, where it is a file), with its item.

    A root that is itself the series is "./" and its own name, which nothing below it is called.
    """
    name = _name(series.path, _base_folder(root))
    return f"{name}#{series.item}" if series.item else name


def refused_name(error: ReadError, root: Path) -> str:
    """Name a refused input as source_name names a series."""
    return _name(Path(error.where), _base_folder(root))


def check_names(series: Iterable[Series], root: Path) -> None:
    """Raise ReadError name-repeated where two series have one name: "a#1" may be a file or an item of "a"."""
    seen: set[str] = set()
    for one in series:
        name = source_name(one, root)
        if name in seen:
            reason, fix = f"has the name {name!r} of another series", "rename it"
            raise ReadError("name-repeated", reason, where=one.path, fix=fix)
        seen.add(name)


def sample_key(source: str) -> str:
    """Return the salted id under which tables and pages that others read show a source."""
    return "s" + hash_identifier(source, length=10)


def _base_folder(root: Path) -> Path:
    """Return the folder that names are relative to: `root`, or the folder of a file."""
    return root if root.is_dir() else root.parent


def relative_name(path: Path, base: Path) -> str:
    """Return a path relative to a folder, with forward slashes; absolute where it lies elsewhere."""
    path, base = path.absolute(), base.absolute()
    return (path.relative_to(base) if path.is_relative_to(base) else path).as_posix()


def _name(path: Path, base: Path) -> str:
    name = relative_name(path, base)
    name = f"./{base.absolute().name}" if name == "." else name
    return name.encode("utf-8", "backslashreplace").decode()  # bytes of a file name that are no text


class NoSeriesError(LookupError):
    """A cell names no series; its text says why, as one phrase."""


class Folder:
    """A scanned folder (or file), in which a cell of a table is looked up by path or by UID."""

    def __init__(self, data: Path, scanned: Scan) -> None:
        self.data = data
        self.root = _base_folder(data)
        self.resolved_root = self.root.resolve()
        self.scanned = scanned
        self.by_item: dict[str, Series] = {}
        self.by_file: dict[str, list[Series]] = defaultdict(list)
        self.by_folder: dict[str, list[Series]] = defaultdict(list)
        self.by_uid: dict[str, list[Series]] = defaultdict(list)
        self.by_last_part: dict[str, str] = {}
        for series in scanned.series:
            self._add(series)

    def find_uid(self, uid: str) -> Series:
        """Return the one series of a series or study UID, which is compared by its salted hash.

        Raises NoSeriesError.
        """
        found = self.by_uid.get(hash_identifier(uid))
        if found:
            return self._only(found, "the UID", "by path, as")
        refused = len(self.scanned.refusals)
        more = f"; {refused} inputs of the folder cannot be read" if refused else ""
        raise NoSeriesError(f"no readable series has this UID{more}")

    def find_path(self, cell: str) -> Series:
        """Return the one series that a path names. Raises NoSeriesError, or the ReadError that refused it.

        One of several volumes or images of a file is named after it: "t1.nii.gz#volume/3".
        """
        if cell in self.by_item:
            return self.by_item[cell]
        try:
            name, item = self._split(cell)
            path = self._path_of(name)
            there, inside = exists(path), path.resolve().is_relative_to(self.resolved_root)
        except (OSError, RuntimeError, ValueError) as error:
            raise NoSeriesError(f"{cell} is not a usable path") from error
        if not inside:
            raise NoSeriesError(f"{cell} leads out of the folder")
        if not there:
            near = self.by_last_part.get(name.replace("\\", "/").rsplit("/", 1)[-1].casefold())
            raise NoSeriesError(f"{name} does not exist" + (f" (did you mean {near}?)" if near else ""))
        return self._find_existing(path, name) if item is None else self._find_item(path, name, item)

    def _add(self, series: Series) -> None:
        for file in series.files:
            name = relative_name(file, self.root)
            self.by_file[name].append(series)
            self.by_last_part.setdefault(file.name.casefold(), name)
        if series.item:
            self.by_item[source_name(series, self.data)] = series
            if not self.data.is_dir():
                self.by_item[series.item] = series
        top = Path(relative_name(series.path, self.root))
        for folder in (top, *top.parents):
            self.by_folder[folder.as_posix()].append(series)
        for key in {series.series_key, series.study_key} - {""}:
            self.by_uid[key].append(series)

    def _split(self, cell: str) -> tuple[str, str | None]:
        """Part a path from the item after its last "#", unless that is in the name of a file."""
        name, mark, item = cell.rpartition("#")
        return (name, item) if mark and not exists(self._path_of(cell)) else (cell, None)

    def _path_of(self, cell: str) -> Path:
        """Return the path that a cell means; a table from another system may have backslashes.

        Letters with accents are one character or two: macOS and others differ in which they store.
        """
        slashes = cell.replace("\\", "/")
        spellings = (cell, slashes, *(unicodedata.normalize(form, slashes) for form in ("NFC", "NFD")))
        for spelling in dict.fromkeys(spellings):
            path = Path(os.path.normpath(self.root / spelling))
            if exists(path):
                break
        return path

    def _find_existing(self, path: Path, cell: str) -> Series:
        name = self._name_of(path)
        if name in self.by_file:
            return self._one_of_file(name, cell)
        inside, refusals = self.by_folder.get(name, []), self._refusals_at(path)
        if inside and not refusals:
            return self._only(inside, cell)
        if len(refusals) == 1 and not inside:
            raise refusals[0]
        counts = f"{len(inside)} readable and {len(refusals)} refused series: name one of them"
        raise NoSeriesError(f"{cell} holds {counts if refusals else 'no image that can be read'}")

    def _find_item(self, path: Path, cell: str, item: str) -> Series:
        name = self._name_of(path)
        if f"{name}#{item}" in self.by_item:
            return self.by_item[f"{name}#{item}"]
        if name in self.by_file:
            first = source_name(self.by_file[name][0], self.data)
            raise NoSeriesError(f"{cell} has no item {item!r}: name it as {first}")
        self._find_existing(path, cell)  # a refused file has no items
        raise NoSeriesError(f"{cell} is no file: leave #{item} out")

    def _name_of(self, path: Path) -> str:
        """Return the name by which the scan knows a path that may lead through links."""
        names = relative_name(path, self.root), relative_name(path.resolve(), self.resolved_root)
        known = next((name for name in names if name in self.by_file or name in self.by_folder), None)
        return known or self._by_target.get(path.resolve(), names[0])

    @cached_property
    def _by_target(self) -> dict[Path, str]:
        """The names of files, and of their folders, by the places to which links lead."""
        files = [file for series in self.scanned.series for file in series.files]
        places = [place for file in files for place in (file, file.parent)]
        return {place.resolve(): relative_name(place, self.root) for place in dict.fromkeys(places)}

    def _one_of_file(self, name: str, cell: str) -> Series:
        found = self._only(self.by_file[name], cell)
        # The pixels of a header may be named, too.
        if len(found.files) == 1 or found.format != DICOM or relative_name(found.path, self.root) == name:
            return found
        unit = "its folder" if found.path.is_dir() else source_name(found, self.data)
        raise NoSeriesError(f"{cell} is one of {len(found.files)} files of a series: name {unit}")

    def _refusals_at(self, path: Path) -> list[ReadError]:
        """Return the refusals of a file, or of what lies in a folder."""
        places = tuple(f"{place}{os.sep}" for place in (path, path.absolute(), path.resolve()))
        return [error for error in self.scanned.refusals if f"{error.where}{os.sep}".startswith(places)]

    def _only(self, series: list[Series], what: str, how: str = "as") -> Series:
        """Return the one series; of several say how to name one, items of a file by an example."""
        if len(series) == 1:
            return series[0]
        one = f"one {how} {source_name(series[0], self.data)}" if series[0].item else "one of them"
        raise NoSeriesError(f"{what} holds {len(series)} series: name {one}")
