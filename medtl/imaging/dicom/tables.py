"""LOOK-UP TABLES of a file -> what they make of its values (PS3.3 C.11.1.1, C.11.2.1.1).

Real ones lie about their sign, their depth and how their entries are packed; what the entries themselves do
not decide is left out with a note (VOI LUT), or refused (Modality LUT).
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from medtl.errors import ReadError
from medtl.imaging.dicom.elements import FRAME_GROUP_KEYWORDS, reporting_malformed
from medtl.imaging.dicom.instance import Instance
from medtl.imaging.image import Voi, VoiTable

EMPTY_MODALITY = "an empty Modality LUT was left out"
EMPTY_VOI = "an empty VOI LUT was left out"
DAMAGED_VOI = "a damaged VOI LUT was left out"
SEVERAL_VOI = "has several VOI LUTs: the first one counts"
MODALITY_UNUSABLE = ("dicom-rescale", "a Modality LUT that cannot be applied", "export it again")
MOST_ENTRIES = 2**16
BYTE_BITS, WORD_BITS = 8, 16


class EmptyTableError(Exception):
    """A look-up table without a descriptor and entries, as some writers leave it."""


@dataclass(frozen=True, eq=False)
class Table:
    """A look-up table: what whole values from `first` on become, in so many bits."""

    first: int
    entries: NDArray[np.uint16]
    bits: int

    def apply(self, values: NDArray) -> NDArray[np.uint16]:
        """Map whole values; those beyond the table become what its ends become."""
        places = np.clip(values.astype(np.int64) - self.first, 0, len(self.entries) - 1)
        return self.entries[places]

    def apply_range(self, low: float, high: float) -> tuple[float, float]:
        """Return the range of what the whole values from low to high become."""
        start, end = (int(np.clip(value - self.first, 0, len(self.entries) - 1)) for value in (low, high))
        part = self.entries[start : end + 1]
        return float(part.min()), float(part.max())


def modality_table(dataset: Dataset, plane: Instance) -> tuple[Table | None, tuple[str, ...]]:
    """Return the Modality LUT of a plane or None, and notes. Raises ReadError dicom-rescale."""
    with reporting_malformed(plane.path, *MODALITY_UNUSABLE):
        items = _items(dataset, plane, "ModalityLUTSequence") if plane.has_tables else []
        if not items:
            return None, ()
        try:
            table, left_over = _read(items[0], dataset, plane.stored_range)
        except EmptyTableError:
            return None, (EMPTY_MODALITY,)
        if left_over:
            raise ValueError("more entries than it says")
    return table, ()


def voi_of(
    dataset: Dataset, plane: Instance, values: tuple[float, float]
) -> tuple[Voi | None, tuple[str, ...]]:
    """Return the VOI of a plane, of which a table precedes a window, and notes; `values` is their range."""
    try:
        with reporting_malformed(plane.path):
            items = _items(dataset, plane, "VOILUTSequence") if plane.has_tables else []
            if not items:
                return plane.voi, ()
            table, left_over = _read(items[0], dataset, values)
    except ReadError as error:
        empty = isinstance(error.__cause__, EmptyTableError)
        return plane.voi, (EMPTY_VOI if empty else DAMAGED_VOI,)
    highest = int(table.entries.max())
    if highest == int(table.entries.min()):
        return plane.voi, (DAMAGED_VOI,)
    # A quarter of the range is what a table of 14 bits fills that claims 16.
    bits = highest.bit_length() if highest < 2 ** (table.bits - 2) else table.bits
    notes = [SEVERAL_VOI] if len(items) > 1 else []
    if left_over:
        notes.append(f"its VOI LUT has {left_over} entries more than it says, which are left out")
    if bits != (stated := _descriptor(items[0])[2]):
        notes.append(f"its VOI LUT says {stated} bits and uses {bits}, by which it is scaled")
    levels = (table.entries / (2.0**bits - 1)).astype(np.float32)
    return VoiTable(float(table.first), levels), tuple(notes)


def _items(dataset: Dataset, plane: Instance, keyword: str) -> list[Dataset]:
    """Return the items of a table's sequence: the frame's own, those of all frames, or the file's."""
    for home in _homes(dataset, plane):
        if keyword in home:
            return list(home[keyword].value or ())
    return []


def _homes(dataset: Dataset, plane: Instance) -> Iterator[Dataset]:
    shared, own = (list(dataset.get(keyword) or ()) for keyword in FRAME_GROUP_KEYWORDS)
    for groups in (*own[plane.frame : plane.frame + 1], *shared[:1]):
        yield groups
        for element in groups:
            if element.VR == "SQ":
                yield from element.value[:1]
    yield dataset


def _descriptor(item: Dataset) -> tuple[int, int, int]:
    """Return the number of entries, the first value mapped, and the bits of an entry, as unsigned words."""
    stated = item.get("LUTDescriptor")
    if stated is None or (hasattr(stated, "__len__") and not len(stated)):
        raise EmptyTableError
    count, first, bits = struct.unpack("<3H", stated) if isinstance(stated, bytes) else stated
    return int(count) % 2**16 or MOST_ENTRIES, int(first) % 2**16, int(bits) % 2**16


def _read(item: Dataset, dataset: Dataset, values: tuple[float, float]) -> tuple[Table, int]:
    """Return a table that maps values of a range, and how many entries it has beyond those that it says.

    Raises EmptyTableError, ValueError and what pydicom raises.
    """
    count, first, bits = _descriptor(item)
    found = _entries(item, count, bits, little_endian=dataset.original_encoding[1] is not False)
    entries = found[:count]
    # Values of two bytes that are coded as unsigned, or as signed, although they are not.
    overlaps = {
        start: min(values[1], start + count - 1) - max(values[0], start)
        for start in {first, first - 2**16 if first >= 2**15 else first}
    }
    order = sorted(overlaps, reverse=values[0] >= 0)
    first = max(order, key=lambda start: overlaps[start])
    stated = bits if bits <= WORD_BITS else 0
    return Table(first, entries, max(stated, int(entries.max()).bit_length(), 1)), len(found) - count


def _entries(item: Dataset, count: int, bits: int, *, little_endian: bool) -> NDArray[np.uint16]:
    """Return the entries, which are words, or bytes of which the lower one of a word comes first."""
    data = item["LUTData"].value
    if count == MOST_ENTRIES and (data is None or data == b""):
        raise EmptyTableError
    if isinstance(data, bytes):
        order = "<" if little_endian or item["LUTData"].VR == "OB" else ">"
        words = np.frombuffer(data + b"\0" * (len(data) % 2), f"{order}u2").astype("<u2")
    else:
        words = (np.atleast_1d(np.array(data, dtype=np.int64)) % 2**16).astype("<u2")
    if len(words) >= count:
        return words
    if bits > BYTE_BITS or len(words) != (count + 1) // 2:
        raise ValueError("another number of entries")
    return words.view(np.uint8)[:count].astype(np.uint16)
