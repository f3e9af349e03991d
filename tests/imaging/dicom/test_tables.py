"""Modality and VOI LUTs as real files write them; dcmtk's dcm2pnm 3.6.9 shows the same levels."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.uid import ExplicitVRBigEndian, ImplicitVRLittleEndian, RLELossless

from medtl.imaging.image import Image, VoiTable, Window
from medtl.imaging.reader import read_images
from tests.imaging.conftest import AXIAL, build_enhanced, pattern, refusal, save

STORED = pattern(12, 10, top=4095)
CURVE = np.sqrt(np.arange(4096) / 4095)  # from 0 to 1
TWELVE, EIGHT = (4095 * CURVE).astype("<u2"), (255 * CURVE).astype("u1")


def lut(count: Any, first: Any, bits: Any, data: Any, vr: str = "OW", first_vr: str = "US") -> Dataset:
    """Return the item of a look-up table; numbers as they are coded."""
    table = Dataset()
    table.add_new("LUTDescriptor", first_vr, [count, first, bits] if count is not None else None)
    table.add_new("LUTData", vr, data)
    return table


@pytest.fixture
def read(make_radiograph: Callable, tmp_path: Path) -> Callable[..., Image]:
    """Return a reader of a radiograph with elements, of some transfer syntax."""

    def read_it(pixels: NDArray = STORED, syntax: Any = None, **elements: Any) -> Image:
        dataset = pydicom.dcmread(make_radiograph(pixels, WindowWidth=None, **elements))
        little = syntax != ExplicitVRBigEndian
        if syntax is not None:
            dataset.file_meta.TransferSyntaxUID = syntax
            dataset.PixelData = pixels.astype(pixels.dtype.newbyteorder("<" if little else ">")).tobytes()
        path = tmp_path / "written.dcm"
        implicit = syntax == ImplicitVRLittleEndian
        pydicom.dcmwrite(path, dataset, implicit_vr=implicit, little_endian=little, enforce_file_format=True)
        (image,) = read_images(path)
        return image

    return read_it


# VOI LUTs


def check_voi(image: Image, first: float, levels: NDArray, *notes: str) -> None:
    """Compare the table of an image, and what it says of it."""
    voi = image.facts.voi
    assert isinstance(voi, VoiTable) and voi.first == first
    np.testing.assert_allclose(voi.levels, levels, atol=1e-6)
    assert image.facts.notes == notes


PACKED = EIGHT.view("<u2")
WRITTEN: dict[str, tuple[Any, str, int, NDArray]] = {
    "words": (TWELVE.tobytes(), "OW", 12, TWELVE / 4095),
    "a list of words": (TWELVE.tolist(), "US", 12, TWELVE / 4095),
    "bytes, two to a word": (EIGHT.tobytes(), "OW", 8, EIGHT / 255),
    "bytes, two to a number": (PACKED.tolist(), "US", 8, EIGHT / 255),
    "bytes": (EIGHT.tobytes(), "OB", 8, EIGHT / 255),
    "bytes, one to a word": (EIGHT.astype("<u2").tobytes(), "OW", 8, EIGHT / 255),
}


@pytest.mark.parametrize(("data", "vr", "bits", "levels"), WRITTEN.values(), ids=WRITTEN)
@pytest.mark.parametrize("syntax", [None, ImplicitVRLittleEndian], ids=["explicit", "implicit"])
def test_entries_are_read_however_they_are_packed(
    read: Callable, data: Any, vr: str, bits: int, levels: NDArray, syntax: Any
) -> None:
    check_voi(read(syntax=syntax, VOILUTSequence=[lut(4096, 0, bits, data, vr)]), 0, levels)


SWAPPED: dict[str, tuple[Any, str, int, NDArray]] = {
    "words": (TWELVE.byteswap().tobytes(), "OW", 12, TWELVE / 4095),
    "a list of words": (TWELVE.tolist(), "US", 12, TWELVE / 4095),
    "bytes, two to a word": (PACKED.byteswap().tobytes(), "OW", 8, EIGHT / 255),
    "bytes, two to a number": (PACKED.tolist(), "US", 8, EIGHT / 255),
    "bytes": (EIGHT.tobytes(), "OB", 8, EIGHT / 255),
}


@pytest.mark.parametrize(("data", "vr", "bits", "levels"), SWAPPED.values(), ids=SWAPPED)
def test_a_table_of_a_big_endian_file_is_swapped(
    read: Callable, data: Any, vr: str, bits: int, levels: NDArray
) -> None:
    image = read(syntax=ExplicitVRBigEndian, VOILUTSequence=[lut(4096, 0, bits, data, vr)])
    check_voi(image, 0, levels)
    np.testing.assert_array_equal(image.pixels[0], STORED)


def test_zero_entries_are_65536_of_them(read: Callable) -> None:
    levels = np.arange(65536, dtype="<u2")
    table = lut(0, 0, 16, levels.tobytes())
    check_voi(read(BitsStored=16, VOILUTSequence=[table]), 0, levels / 65535)


SIGNED = (STORED.astype(int) - 2048).astype("int16")
FIRSTS: dict[str, tuple[dict, float, str, float]] = {
    "signed pixels, as unsigned": ({"pixels": SIGNED, "BitsStored": 16}, 63488, "US", -2048),
    "signed pixels": ({"pixels": SIGNED, "BitsStored": 16}, -2048, "SS", -2048),
    "signed pixels of 12 bits, as unsigned": ({"pixels": SIGNED}, 63488, "US", -2048),
    "unsigned pixels, as signed": (
        {"pixels": STORED + np.uint16(40000), "BitsStored": 16},
        40000 - 65536,
        "SS",
        40000,
    ),
    "unsigned pixels": ({"pixels": STORED + np.uint16(40000), "BitsStored": 16}, 40000, "US", 40000),
    "rescaled pixels, as unsigned": ({"RescaleSlope": 1, "RescaleIntercept": -1024}, 64512, "US", -1024),
    "rescaled pixels": ({"RescaleSlope": 1, "RescaleIntercept": -1024}, -1024, "SS", -1024),
}


@pytest.mark.parametrize(("file", "coded", "vr", "first"), FIRSTS.values(), ids=FIRSTS)
def test_the_first_value_has_the_sign_of_the_values_that_it_is_one_of(
    read: Callable, file: dict, coded: int, vr: str, first: float
) -> None:
    table = lut(4096, coded, 12, TWELVE.tobytes(), first_vr=vr)
    check_voi(read(**file, VOILUTSequence=[table]), first, TWELVE / 4095)


@pytest.mark.parametrize("used", [8, 10, 12, 14])
def test_a_table_that_uses_fewer_bits_than_it_says_is_scaled_by_these(read: Callable, used: int) -> None:
    entries = ((2**used - 1) * CURVE).astype("<u2")
    image = read(VOILUTSequence=[lut(4096, 0, 16, entries.tobytes())])
    note = f"its VOI LUT says 16 bits and uses {used}, by which it is scaled"
    check_voi(image, 0, entries / (2.0**used - 1), note)


@pytest.mark.parametrize(("stated", "highest"), [(16, 40000), (16, 20000), (12, 3000), (12, 1500), (8, 200)])
def test_a_table_that_does_not_reach_white_stays_as_it_is(read: Callable, stated: int, highest: int) -> None:
    entries = (highest * CURVE).astype("<u2")
    image = read(VOILUTSequence=[lut(4096, 0, stated, entries.tobytes())])
    check_voi(image, 0, entries / (2.0**stated - 1))


@pytest.mark.parametrize("stated", [0, 7, 10, 17])
def test_entries_deeper_than_the_table_says_count(read: Callable, stated: int) -> None:
    image = read(VOILUTSequence=[lut(4096, 0, stated, TWELVE.tobytes())])
    check_voi(image, 0, TWELVE / 4095, f"its VOI LUT says {stated} bits and uses 12, by which it is scaled")


def test_entries_beyond_those_that_a_table_says_are_left_out(read: Callable) -> None:
    image = read(VOILUTSequence=[lut(4095, 0, 12, TWELVE.tobytes())])
    check_voi(image, 0, TWELVE[:-1] / 4095, "its VOI LUT has 1 entries more than it says, which are left out")


def test_the_first_of_several_tables_counts(read: Callable) -> None:
    tables = [lut(4096, 0, 12, TWELVE.tobytes()), lut(4096, 0, 12, TWELVE[::-1].tobytes())]
    note = "has several VOI LUTs: the first one counts"
    check_voi(read(VOILUTSequence=tables), 0, TWELVE / 4095, note)


LEFT_OUT: dict[str, tuple[Dataset, str]] = {
    "too few entries": (lut(4096, 0, 12, TWELVE[:4000].tobytes()), "a damaged VOI LUT was left out"),
    "one level": (lut(4096, 0, 12, bytes(8192)), "a damaged VOI LUT was left out"),
    "no entries": (lut(4096, 0, 12, None), "a damaged VOI LUT was left out"),
    "nothing": (lut(None, 0, 12, None, "US"), "an empty VOI LUT was left out"),
}


@pytest.mark.parametrize(("table", "note"), LEFT_OUT.values(), ids=LEFT_OUT)
def test_a_table_that_cannot_be_used_is_left_out_with_a_note(
    make_radiograph: Callable, table: Dataset, note: str
) -> None:
    window = {"WindowCenter": 2000, "WindowWidth": 4000}
    (image,) = read_images(make_radiograph(STORED, VOILUTSequence=[table], **window))
    assert image.facts.voi == Window(2000, 4000) and image.facts.notes == (note,)


def test_a_table_of_each_frame_is_found(tmp_path: Path) -> None:
    planes, positions = pattern(2, 8, 6), [(0, 0, 0), (0, 0, 2.5)]
    dataset = build_enhanced(planes, positions, AXIAL)
    for groups, entries in zip(dataset.PerFrameFunctionalGroupsSequence, (TWELVE, TWELVE[::-1]), strict=True):
        item = Dataset()
        item.VOILUTSequence = [lut(4096, 0, 12, entries.tobytes())]
        groups.FrameVOILUTSequence = [item]
    (image,) = read_images(save(dataset, tmp_path / "a.dcm"))
    check_voi(image, 0, TWELVE / 4095)


# Modality LUTs


@pytest.mark.parametrize(("data", "vr", "bits", "levels"), WRITTEN.values(), ids=WRITTEN)
@pytest.mark.parametrize("photometric", ["MONOCHROME2", "MONOCHROME1"])
def test_values_are_mapped_exactly(
    read: Callable, data: Any, vr: str, bits: int, levels: NDArray, photometric: str
) -> None:
    top = 2**bits - 1
    image = read(ModalityLUTSequence=[lut(4096, 0, bits, data, vr)], PhotometricInterpretation=photometric)
    expected = np.rint(levels * top)[STORED]
    np.testing.assert_array_equal(
        image.pixels[0], top - expected if photometric == "MONOCHROME1" else expected
    )


@pytest.mark.parametrize(("data", "vr", "bits", "levels"), SWAPPED.values(), ids=SWAPPED)
def test_values_of_a_big_endian_file_are_mapped_exactly(
    read: Callable, data: Any, vr: str, bits: int, levels: NDArray
) -> None:
    image = read(syntax=ExplicitVRBigEndian, ModalityLUTSequence=[lut(4096, 0, bits, data, vr)])
    np.testing.assert_array_equal(image.pixels[0], np.rint(levels * (2**bits - 1))[STORED])


@pytest.mark.parametrize(("coded", "vr"), [(63488, "US"), (-2048, "SS")])
def test_a_modality_table_may_begin_with_a_negative_value(read: Callable, coded: int, vr: str) -> None:
    table = lut(4096, coded, 12, TWELVE.tobytes(), first_vr=vr)
    image = read(SIGNED, BitsStored=16, ModalityLUTSequence=[table])
    np.testing.assert_array_equal(image.pixels[0], TWELVE[STORED])


def test_values_beyond_a_table_have_those_of_its_ends(read: Callable) -> None:
    table = lut(1000, 500, 12, TWELVE[:1000].tobytes())
    image = read(ModalityLUTSequence=[table])
    expected = TWELVE[np.clip(STORED.astype(int) - 500, 0, 999)]
    np.testing.assert_array_equal(image.pixels[0], expected)
    assert (STORED < 500).any() and (STORED >= 1500).any()


def test_padding_goes_through_the_table_too(read: Callable) -> None:
    table = lut(4096, 0, 12, TWELVE.tobytes())
    image = read(ModalityLUTSequence=[table], PixelPaddingValue=100, PixelPaddingRangeLimit=200)
    assert image.facts.padding == (TWELVE[100], TWELVE[200])


EMPTY: dict[str, tuple[list, tuple[str, ...]]] = {
    "no item": ([], ()),
    "an item of empty elements": (
        [lut(None, 0, 0, None, "US")],
        ("an empty Modality LUT was left out",),
    ),
    "an item of no elements": ([Dataset()], ("an empty Modality LUT was left out",)),
    "an item of zeros": ([lut(0, 0, 0, b"")], ("an empty Modality LUT was left out",)),
}


@pytest.mark.parametrize(("items", "notes"), EMPTY.values(), ids=EMPTY)
@pytest.mark.parametrize("compressed", [False, True], ids=["native", "RLE"])
def test_an_empty_table_leaves_the_rescale(
    make_radiograph: Callable, items: list, notes: tuple[str, ...], compressed: bool
) -> None:
    path = make_radiograph(
        STORED, syntax=RLELossless if compressed else None, ModalityLUTSequence=items, RescaleSlope=2
    )
    (image,) = read_images(path)
    np.testing.assert_array_equal(image.pixels[0], STORED * 2.0)
    assert image.facts.notes == notes


DAMAGED: dict[str, Dataset] = {
    "too few entries": lut(4096, 0, 12, TWELVE[:4000].tobytes()),
    "too many entries": lut(4000, 0, 12, TWELVE.tobytes()),
    "no entries": lut(4096, 0, 12, None),
    "entries of half their bytes": lut(4096, 0, 12, EIGHT.tobytes()),
}


@pytest.mark.parametrize("table", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_modality_table_is_refused(make_radiograph: Callable, table: Dataset) -> None:
    assert refusal(make_radiograph(STORED, ModalityLUTSequence=[table])).code == "dicom-rescale"
