"""FILES WITH ONE HEADER -> which of them hold the same: by their bytes, then by their elements."""

import hashlib
from collections import defaultdict
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from pydicom import Dataset
from pydicom import Sequence as Items

from medtl.errors import ReadError
from medtl.imaging.containers import open_file, read_bytes, size_and_time
from medtl.imaging.dicom.elements import reporting_malformed
from medtl.imaging.dicom.header import read_dataset


class Contents:
    """Contents of files that say the same about themselves, each with the first file that has it.

    Elements are compared only where bytes differ: a copy may have a new file meta group. Exact copies of the
    first file are compared with it; of others, digests are, so that no file is read more than three times.
    load returns the content of a file, and may keep it while copies of it are compared.
    """

    def __init__(self, load: Callable[[Path], bytes]) -> None:
        self._load = load
        self._first: Path | None = None
        self._by_bytes: dict[bytes, Path] = {}
        self._by_elements: dict[bytes, Path] = {}
        self._uncompared: list[Path] = []

    def find_or_keep(self, path: Path) -> Path | None:
        """Return the file of which `path` is a copy; keep its content where there is none."""
        if self._first is None:
            self._first = path
            self._uncompared.append(path)
            return None
        try:
            if _holds(path, self._load(self._first)):
                return self._first
            digest = hashlib.sha256(read_bytes(path)).digest()
        except (OSError, ReadError):
            return None  # reading it says why
        if digest in self._by_bytes:
            return self._by_bytes[digest]
        self._uncompared.append(path)
        original = self._compare_elements(path)
        self._by_bytes[digest] = original or path
        return original

    def _compare_elements(self, last: Path) -> Path | None:
        found = last
        for path in self._uncompared:
            elements = _digest_of_elements(path)
            if elements is not None:
                found = self._by_elements.setdefault(elements, path)
        self._uncompared.clear()
        return None if found == last else found


def contents_by_header() -> defaultdict[tuple, Contents]:
    """Return contents for each header; the file that copies are compared with is kept meanwhile."""
    load = lru_cache(maxsize=1)(read_bytes)
    return defaultdict(lambda: Contents(load))


def _holds(path: Path, content: bytes) -> bool:
    with open_file(path) as file:
        return size_and_time(file)[0] == len(content) and file.read() == content


def _digest_of_elements(path: Path) -> bytes | None:
    """Return a digest of all elements but the file meta group; None where they cannot be parsed."""
    digest = hashlib.sha256()
    try:
        with reporting_malformed(path):
            _add(digest, read_dataset(path, read_bytes(path)).dataset)
    except (OSError, ReadError):
        return None
    return digest.digest()


def _add(digest: "hashlib._Hash", dataset: Dataset) -> None:
    for element in dataset:
        digest.update(f"{element.tag} {element.VR} ".encode())
        if isinstance(element.value, Items):
            for item in element.value:
                digest.update(b"(")
                _add(digest, item)
                digest.update(b")")
        else:
            value = element.value
            digest.update(value if isinstance(value, bytes) else repr(value).encode())
