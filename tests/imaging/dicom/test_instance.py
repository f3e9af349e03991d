"""What single elements of a header mean, where real files write them in several ways."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.uid import (
    UID,
    DigitalMammographyXRayImageStorageForPresentation,
    DigitalMammographyXRayImageStorageForProcessing,
)

from medtl.imaging.display import make_display
from medtl.imaging.image import RAW_VALUES, find_warning
from medtl.imaging.inspection import group_inspections, inspect_header
from medtl.imaging.preprocessing import PreprocessingConfig, prepare_image
from medtl.imaging.reader import read_images, read_series, scan
from medtl.imaging.series import EXACT
from medtl.workflows.inspect import inspect_folder
from tests.imaging.conftest import build_dataset, pattern, save

INVERSE = "PresentationLUTShape INVERSE contradicts MONOCHROME2: {} counts"
IDENTITY = "PresentationLUTShape IDENTITY contradicts MONOCHROME1: {} counts"
BY_SHAPE = PreprocessingConfig(size=(8, 8), invert_by_lut_shape=True).reading


# PixelPaddingValue: two bytes, whose sign writers get wrong

PADDINGS: dict[str, tuple[str, int, str, tuple[int, ...], tuple[float, float]]] = {
    "signed": ("int16", 16, "SS", (-2000,), (-2000, -2000)),
    "signed, as unsigned": ("int16", 16, "US", (63536,), (-2000, -2000)),
    "signed of 12 bits, as unsigned": ("int16", 12, "US", (63536,), (-2000, -2000)),
    "signed of 12 bits, as 12 bits": ("int16", 12, "US", (2096,), (-2000, -2000)),
    "signed, of a positive value": ("int16", 16, "US", (2000,), (2000, 2000)),
    "unsigned": ("uint16", 16, "US", (63536,), (63536, 63536)),
    "unsigned, as signed": ("uint16", 16, "SS", (-2000,), (63536, 63536)),
    "a signed range, as unsigned": ("int16", 16, "US", (65486, 10), (-50, 10)),
    "a range the other way round": ("int16", 16, "SS", (10, -50), (-50, 10)),
    "an unsigned range, as signed": ("uint16", 16, "SS", (-36, -1), (65500, 65535)),
    "bytes": ("uint8", 8, "US", (255,), (255, 255)),
}


@pytest.mark.parametrize(("dtype", "bits", "vr", "coded", "meant"), PADDINGS.values(), ids=PADDINGS)
@pytest.mark.parametrize("photometric", ["MONOCHROME2", "MONOCHROME1"])
def test_padding_has_the_sign_of_the_pixels(
    tmp_path: Path,
    dtype: str,
    bits: int,
    vr: str,
    coded: tuple[int, ...],
    meant: tuple[float, float],
    photometric: str,
) -> None:
    dataset = build_dataset(pattern(8, 6, dtype=dtype, top=100), UID("1.2.840.10008.5.1.4.1.1.1"))
    dataset.BitsStored, dataset.HighBit, dataset.PhotometricInterpretation = bits, bits - 1, photometric
    dataset.RescaleSlope, dataset.RescaleIntercept = 2, -7
    for tag, value in zip((0x00280120, 0x00280121), coded, strict=False):
        dataset.add_new(tag, vr, value)
    (image,) = read_images(save(dataset, tmp_path / "a.dcm"))
    expected = [2.0 * value - 7 for value in meant]
    if photometric == "MONOCHROME1":
        ends = (-1 if dtype == "int16" else 2**bits - 1) * 2 - 14
        expected = [ends - value for value in reversed(expected)]
    assert image.facts.padding == tuple(expected)


def test_padding_that_no_pixel_can_have_is_noted(make_radiograph: Callable) -> None:
    (image,) = read_images(make_radiograph(PixelPaddingValue=65535))
    assert "its padding value is one that no pixel can have" in image.facts.notes


# PresentationLUTShape beside another PhotometricInterpretation


@pytest.mark.parametrize("compressed", [False, True], ids=["native", "RLE"])
@pytest.mark.parametrize("shape", ["INVERSE", "IDENTITY", "LIN OD", None])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_the_recipe_says_whether_the_lut_shape_decides(
    make_radiograph: Callable, photometric: str, shape: str | None, compressed: bool
) -> None:
    pixels = pattern(12, 10)
    path = make_radiograph(
        pixels,
        syntax=pydicom.uid.RLELossless if compressed else None,
        PhotometricInterpretation=photometric,
        PresentationLUTShape=shape,
        WindowCenter=1000,
        WindowWidth=500,
        PixelPaddingValue=7,
    )
    inverted = 4095.0 - pixels
    by_photometric = inverted if photometric == "MONOCHROME1" else pixels
    by_shape = {"INVERSE": inverted, "IDENTITY": pixels}.get(shape or "", by_photometric)
    notes = {("MONOCHROME2", "INVERSE"): INVERSE, ("MONOCHROME1", "IDENTITY"): IDENTITY}
    note = notes.get((photometric, shape or ""), "")
    for reading, expected, counts in ((EXACT, by_photometric, photometric), (BY_SHAPE, by_shape, shape)):
        (series,) = scan(path, reading=reading).series
        image = read_series(series)
        np.testing.assert_array_equal(image.pixels[0], expected)
        mirrored = expected is inverted
        assert image.facts.padding == ((4088, 4088) if mirrored else (7, 7))
        assert image.facts.voi is not None and image.facts.voi.centre == (3096 if mirrored else 1000)  # type: ignore[union-attr]
        assert (note.format(counts) in image.facts.notes) == bool(note)


# PixelAspectRatio, and the spacing of scanned films


@pytest.mark.parametrize(
    ("ratio", "aspect"), [(["2", "1"], 2.0), (["1", "3"], 1 / 3), (["1", "1"], None), (["0", "1"], None)]
)
def test_the_ratio_of_a_pixel_keeps_proportions_where_its_spacing_is_unknown(
    make_radiograph: Callable, ratio: list[str], aspect: float | None
) -> None:
    (image,) = read_images(make_radiograph(pattern(60, 90), PixelSpacing=None, PixelAspectRatio=ratio))
    assert image.spacing_mm is None and image.facts.pixel_aspect == aspect
    tall = 60 * (aspect or 1.0)
    prepared = prepare_image(image, PreprocessingConfig(size=(64, 64)))
    rows, columns = (np.flatnonzero(prepared.pixels[0].any(axis=axis)) for axis in (1, 0))
    shown = (np.ptp(rows) + 1) / (np.ptp(columns) + 1)
    assert shown == pytest.approx(tall / 90, rel=0.1)
    height, width = make_display(image).values.shape
    assert height / width == pytest.approx(tall / 90, rel=0.02)
    assert any("times as high as wide" in note for note in image.facts.notes) == (aspect is not None)


@pytest.mark.parametrize("keyword", ["PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing"])
def test_a_spacing_in_mm_precedes_the_ratio(make_radiograph: Callable, keyword: str) -> None:
    elements = {"PixelSpacing": None, keyword: [0.5, 0.25], "PixelAspectRatio": ["1", "3"]}
    (image,) = read_images(make_radiograph(**elements))
    assert image.spacing_mm == (0.5, 0.25) and image.facts.pixel_aspect is None


# FOR PROCESSING and FOR PRESENTATION

PROCESSING = DigitalMammographyXRayImageStorageForProcessing
PRESENTATION = DigitalMammographyXRayImageStorageForPresentation
INTENTS: dict[str, tuple[UID, str | None, str]] = {
    "a class for processing": (PROCESSING, None, "for processing"),
    "a class for presentation": (PRESENTATION, None, "for presentation"),
    "an element that contradicts its class": (PRESENTATION, "FOR PROCESSING", "for processing"),
    "computed radiography": (UID("1.2.840.10008.5.1.4.1.1.1"), None, ""),
    "computed radiography for processing": (
        UID("1.2.840.10008.5.1.4.1.1.1"),
        "FOR PROCESSING",
        "for processing",
    ),
    "what a person typed": (UID("1.2.840.10008.5.1.4.1.1.1"), "CANARY", ""),
}


@pytest.mark.parametrize(("sop_class", "element", "intent"), INTENTS.values(), ids=INTENTS)
def test_raw_detector_values_are_told_apart(
    tmp_path: Path, sop_class: UID, element: str | None, intent: str
) -> None:
    dataset = build_dataset(pattern(8, 6), sop_class, PresentationIntentType=element)
    path = save(dataset, tmp_path / "a.dcm")
    (image,), (series,) = read_images(path), scan(path).series
    raw = intent == "for processing"
    assert inspect_header(series).intent == intent
    assert (RAW_VALUES in image.facts.notes) == raw
    warning = find_warning(image)
    assert (warning.code if warning else "") == ("image-raw" if raw else "")


def test_a_folder_that_mixes_both_is_counted(tmp_path: Path) -> None:
    for name, sop_class in (("a", PROCESSING), ("b", PRESENTATION), ("c", PRESENTATION)):
        save(build_dataset(pattern(8, 6), sop_class, Modality="MG"), tmp_path / f"{name}.dcm")
    (group,) = group_inspections(map(inspect_header, scan(tmp_path).series))
    assert group.intents == {"for presentation": 2, "for processing": 1}
    outcome = inspect_folder(tmp_path)
    assert [(one.code, one.source) for one in outcome.warnings] == [("image-raw", "a.dcm")]


def test_raw_mammograms_are_inverted_as_their_photometric_says(tmp_path: Path) -> None:
    pixels = pattern(8, 6)
    dataset = build_dataset(pixels, PROCESSING, PhotometricInterpretation="MONOCHROME1", BitsStored=14)
    (image,) = read_images(save(dataset, tmp_path / "a.dcm"))
    np.testing.assert_array_equal(image.pixels[0], 2**14 - 1 - pixels.astype(float))
