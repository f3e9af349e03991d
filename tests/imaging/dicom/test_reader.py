"""DICOM instances and series: read exactly, or refused by name."""

import warnings
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom import Dataset
from pydicom.pixels import pixel_array
from pydicom.sequence import Sequence
from pydicom.uid import (
    MPEG2MPML,
    UID,
    EncapsulatedPDFStorage,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    JPIPHTJ2KReferenced,
    RLELossless,
    RTDoseStorage,
    SegmentationStorage,
)

from medtl.errors import ReadError
from medtl.imaging.dicom.elements import silence_warnings
from medtl.imaging.image import Image, Window
from medtl.imaging.reader import read_images, read_series, scan
from medtl.imaging.series import Reading
from tests.imaging.conftest import build_dataset, fixed_uid, pattern, refusal, save

OBLIQUE = (0.8, 0.6, 0.0, -0.36, 0.48, 0.8)


def read_one(source: Path | list[Path]) -> Image:
    (image,) = read_images(source)
    return image


def to_ras(position: Any) -> np.ndarray:
    return np.array([float(v) for v in position]) * [-1, -1, 1]


# One instance


@pytest.mark.parametrize(
    ("pixels", "bits"),
    [
        (pattern(12, 10, dtype="uint8", top=255), 8),
        (pattern(12, 10, dtype="uint16", top=4095), 12),
        (pattern(12, 10, dtype="uint16", top=65535), 16),
        ((pattern(12, 10, top=4000) - 2000.0).astype("int16"), 16),
        (pattern(11, 9, dtype="uint8", top=255), 8),
    ],
    ids=["8 bits", "12 bits", "16 bits", "signed", "odd number of bytes"],
)
def test_a_radiograph_has_the_stored_values(make_radiograph: Callable, pixels: np.ndarray, bits: int) -> None:
    image = read_one(make_radiograph(pixels, BitsStored=bits))
    assert image.pixels.dtype == np.float32
    np.testing.assert_array_equal(image.pixels[0], pixels)
    assert image.affine is None
    assert image.spacing_mm == (0.5, 0.25)
    assert image.facts.bits == bits


@pytest.mark.parametrize(
    ("syntax", "colour", "decoder"),
    [
        (RLELossless, False, "pylibjpeg-rle"),
        (RLELossless, True, "pylibjpeg-rle"),
        (JPEG2000Lossless, False, "pillow"),
        (JPEG2000Lossless, True, "pylibjpeg-openjpeg"),
        (JPEGLSLossless, False, "pyjpegls"),
        (JPEGLSLossless, True, "pyjpegls"),
    ],
)
def test_lossless_compression_keeps_every_value(
    make_radiograph: Callable, syntax: UID, colour: bool, decoder: str
) -> None:
    pixels = pattern(70, 64, 3, dtype="uint8", top=255) if colour else pattern(70, 64, top=4095)
    image = read_one(make_radiograph(pixels, syntax=syntax))
    expected = np.moveaxis(pixels, -1, 0) if colour else pixels[None]
    np.testing.assert_array_equal(image.pixels, expected)
    assert image.facts.decoder.startswith(decoder)


def test_a_codestream_that_is_signed_where_its_header_is_not_is_decoded_as_pydicom_does(
    make_radiograph: Callable,
) -> None:
    """The byte at 42 of a codestream says how deep its first component is, and whether it is signed."""
    path = make_radiograph(pattern(70, 64, top=2047), syntax=JPEG2000Lossless)
    content = bytearray(path.read_bytes())
    place = content.index(b"\xff\x4f\xff\x51") + 42
    assert content[place] == 11
    content[place] |= 0x80
    path.write_bytes(content)
    image = read_one(path)
    assert image.facts.decoder.startswith("pylibjpeg-openjpeg")
    expected = pixel_array(path, decoding_plugin="pylibjpeg")
    np.testing.assert_array_equal(image.pixels[0], expected)


def test_facts_say_what_the_file_is_and_never_whose(make_radiograph: Callable) -> None:
    path = make_radiograph(
        BodyPartExamined="CHEST", ViewPosition="PA", WindowCenter=[40, 1], WindowWidth=[400, 2]
    )
    facts = read_one(path).facts
    assert (facts.modality, facts.body_part, facts.view, facts.voi) == ("CR", "CHEST", "PA", Window(40, 400))
    assert len(facts.sha256) == 64 and facts.format == "dicom" and facts.photometric == "MONOCHROME2"
    assert facts.patient_key and facts.study_key and facts.series_key
    assert "CANARY" not in repr(facts) and str(fixed_uid("study")) not in repr(facts)


@pytest.mark.parametrize(
    ("dtype", "bits", "ends"), [("uint16", 12, 4095), ("uint8", 8, 255), ("int16", 16, -1)]
)
def test_monochrome1_twin_reads_to_the_same_values_and_window(
    make_radiograph: Callable, dtype: str, bits: int, ends: int
) -> None:
    pixels = pattern(12, 10, dtype=dtype, top=200)
    rescale = {"BitsStored": bits, "RescaleSlope": 2, "RescaleIntercept": -100, "WindowWidth": 50}
    plain = read_one(make_radiograph(pixels, "a.dcm", WindowCenter=30, **rescale))
    twin = make_radiograph(
        (ends - pixels.astype(int)).astype(dtype),
        "b.dcm",
        PhotometricInterpretation="MONOCHROME1",
        # one more than the mirror image: LINEAR windows are not symmetric (PS3.3 C.11.2.1.2.1)
        WindowCenter=2 * ends - 200 - 30 + 1,
        **rescale,
    )
    inverted = read_one(twin)
    np.testing.assert_array_equal(inverted.pixels, plain.pixels)
    np.testing.assert_array_equal(plain.pixels[0], pixels * 2.0 - 100)
    assert inverted.facts.voi == plain.facts.voi == Window(30, 50)
    assert inverted.facts.notes == ("inverted from MONOCHROME1",)


def test_a_slope_without_an_intercept_is_applied(make_radiograph: Callable) -> None:
    pixels = pattern(12, 10)
    image = read_one(make_radiograph(pixels, RescaleSlope=0.5))
    np.testing.assert_array_equal(image.pixels[0], pixels * 0.5)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_a_modality_table_is_applied_before_the_inversion(
    make_radiograph: Callable, photometric: str
) -> None:
    table = Dataset()
    table.LUTDescriptor, table.LUTData = [4, 0, 16], [10, 200, 3000, 65000]
    table["LUTDescriptor"].VR, table["LUTData"].VR = "US", "US"
    table.ModalityLUTType = "US"
    pixels = pattern(12, 10, dtype="uint8", top=3)
    path = make_radiograph(
        pixels, PhotometricInterpretation=photometric, ModalityLUTSequence=Sequence([table]), WindowWidth=None
    )
    expected = np.array([10, 200, 3000, 65000])[pixels]
    expected = 65535 - expected if photometric == "MONOCHROME1" else expected
    np.testing.assert_array_equal(read_one(path).pixels[0], expected)


def test_a_palette_becomes_rgb(make_radiograph: Callable) -> None:
    pixels = pattern(12, 10, dtype="uint8", top=3)
    tables = {}
    for offset, colour in enumerate(("Red", "Green", "Blue")):
        tables[f"{colour}PaletteColorLookupTableDescriptor"] = [4, 0, 16]
        tables[f"{colour}PaletteColorLookupTableData"] = (np.arange(4, dtype="<u2") * 256 + offset).tobytes()
    image = read_one(make_radiograph(pixels, PhotometricInterpretation="PALETTE COLOR", **tables))
    np.testing.assert_array_equal(image.pixels, np.stack([pixels * 256.0 + offset for offset in range(3)]))


def test_ybr_becomes_rgb(make_radiograph: Callable) -> None:
    grey = np.repeat(pattern(12, 10, 1, dtype="uint8", top=255), 3, axis=2)
    grey[..., 1:] = 128  # no chroma: R = G = B = Y
    image = read_one(make_radiograph(grey, PhotometricInterpretation="YBR_FULL"))
    np.testing.assert_array_equal(image.pixels, np.stack([grey[..., 0]] * 3))


def test_rgb_by_plane_equals_rgb_by_pixel(make_radiograph: Callable, tmp_path: Path) -> None:
    pixels = pattern(12, 10, 3, dtype="uint8", top=255)
    dataset = pydicom.dcmread(make_radiograph(pixels))
    dataset.PlanarConfiguration = 1
    dataset.PixelData = np.ascontiguousarray(np.moveaxis(pixels, -1, 0)).tobytes()
    np.testing.assert_array_equal(
        read_one(save(dataset, tmp_path / "planar.dcm")).pixels, np.moveaxis(pixels, -1, 0)
    )


def test_bits_above_those_stored_are_ignored(make_radiograph: Callable) -> None:
    pixels = pattern(12, 10, top=4095)
    image = read_one(make_radiograph(pixels | np.uint16(0xF000), BitsStored=12))
    np.testing.assert_array_equal(image.pixels[0], pixels)


@pytest.mark.parametrize(
    ("elements", "spacing"),
    [
        ({"PixelSpacing": None, "ImagerPixelSpacing": [0.2, 0.3]}, (0.2, 0.3)),
        ({"PixelSpacing": None}, None),
        ({"PixelSpacing": [0, 0]}, None),
    ],
    ids=["at the detector", "unknown", "zero"],
)
def test_a_projection_needs_no_spacing(make_radiograph: Callable, elements: dict, spacing: object) -> None:
    assert read_one(make_radiograph(**elements)).spacing_mm == spacing


def test_a_file_without_preamble_is_read(make_radiograph: Callable, tmp_path: Path) -> None:
    path = make_radiograph()
    bare = tmp_path / "bare" / "IM0001"
    bare.parent.mkdir()
    bare.write_bytes(path.read_bytes()[132:])
    np.testing.assert_array_equal(read_one(bare).pixels, read_one(path).pixels)


def test_implicit_and_big_endian_are_read(make_radiograph: Callable, tmp_path: Path) -> None:
    path = make_radiograph()
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    np.testing.assert_array_equal(
        read_one(save(dataset, tmp_path / "implicit")).pixels, read_one(path).pixels
    )
    big = pydicom.data.get_testdata_file("MR_small_bigendian.dcm", download=False)
    little = pydicom.data.get_testdata_file("MR_small.dcm", download=False)
    np.testing.assert_array_equal(read_one(Path(big)).pixels, read_one(Path(little)).pixels)


def test_overlong_numbers_and_a_broken_character_set_are_read(
    make_radiograph: Callable, recwarn: Any
) -> None:
    path = make_radiograph(SpecificCharacterSet="ISO_IR 100", WindowWidth="400", WindowCenter="40")
    data = path.read_bytes().replace(b"ISO_IR 100", b"NOT_A_SET ")
    path.write_bytes(data)
    assert read_one(path).facts.voi == Window(40, 400)
    assert not recwarn.list


def test_a_lone_slice_is_a_flat_image(make_series: Callable) -> None:
    image = read_one(make_series(instances=1)[0])
    np.testing.assert_array_equal(image.pixels[0], pattern(6, 5, seed=0))
    assert image.affine is None and image.spacing_mm == (0.5, 0.25) and image.facts.modality == "MR"


REFUSED_ELEMENTS = {
    "several frames": ({"NumberOfFrames": 2}, "dicom-multiframe"),
    "frames that lie": ({"NumberOfFrames": 2_000_000_000}, "dicom-multiframe"),
    "mosaic": ({"ImageType": ["ORIGINAL", "PRIMARY", "M", "MOSAIC"]}, "dicom-mosaic"),
    "a size that lies": ({"Rows": 65535, "Columns": 65535}, "dicom-too-large"),
    "more rows than pixels": ({"Rows": 500}, "dicom-truncated"),
    "fewer rows than pixels": ({"Rows": 3}, "dicom-pixels"),
    "no rows": ({"Rows": 0}, "dicom-header"),
    "unknown photometric": ({"PhotometricInterpretation": "CANARY"}, "dicom-photometric"),
    "no photometric": ({"PhotometricInterpretation": None}, "dicom-photometric"),
    "grey called colour": ({"PhotometricInterpretation": "RGB"}, "dicom-photometric"),
    "high bit": ({"BitsStored": 12, "HighBit": 15}, "dicom-bits"),
    "zero slope": ({"RescaleSlope": 0, "RescaleIntercept": 0}, "dicom-rescale"),
    "a slope that is no number": ({"RescaleSlope": "nan", "RescaleIntercept": "0"}, "dicom-rescale"),
}


@pytest.mark.parametrize(("elements", "code"), REFUSED_ELEMENTS.values(), ids=REFUSED_ELEMENTS)
def test_elements_that_cannot_be_read_exactly_are_refused(
    make_radiograph: Callable, elements: dict, code: str
) -> None:
    assert refusal(make_radiograph(**elements)).code == code


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(
    make_radiograph: Callable, tmp_path: Path, value: float
) -> None:
    dataset = pydicom.dcmread(make_radiograph())
    values = np.ones((12, 10), dtype="<f4")
    values[3, 4] = value
    del dataset.PixelData, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation
    dataset.BitsAllocated, dataset.FloatPixelData = 32, values.tobytes()
    path = save(dataset, tmp_path / "float.dcm")
    error = refusal(path)
    assert error.code == "dicom-not-finite" and ("fill_nan=true" in error.fix) == np.isnan(value)
    (series,) = scan(path, reading=Reading(fill_nan=True)).series
    if np.isnan(value):
        image = read_series(series)
        assert (image.pixels == 1).all() and "1 NaN was given the lowest value" in image.facts.notes
    else:
        with pytest.raises(ReadError, match="infinite"):
            read_series(series)


@pytest.mark.parametrize("syntax", [None, RLELossless, JPEG2000Lossless, JPEGLSLossless], ids=str)
@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_refused_by_name(
    make_radiograph: Callable, syntax: UID | None, kept: float
) -> None:
    path = make_radiograph(pattern(64, 64), syntax=syntax)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    error = refusal(path)
    assert error.code in (
        "dicom-truncated",
        "dicom-header",
        "dicom-transfer-syntax",
        "dicom-no-image",
        "file-unknown",
    )
    assert error.where == str(path)


def test_a_codestream_of_another_size_is_refused_before_it_is_decoded(
    make_radiograph: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medtl.imaging.dicom.stored.decode_frame", lambda *a, **k: pytest.fail("decoded"))
    for syntax in (JPEG2000Lossless, JPEGLSLossless):
        dataset = pydicom.dcmread(make_radiograph(pattern(64, 64), syntax=syntax))
        dataset.Rows, dataset.Columns = 32, 32
        assert refusal(save(dataset, tmp_path / "lies.dcm")).code == "dicom-pixels"


@pytest.mark.parametrize("syntax", [None, RLELossless], ids=["uncompressed", "compressed"])
def test_without_a_transfer_syntax_the_bytes_decide_what_is_not_compressed(
    make_radiograph: Callable, syntax: UID | None
) -> None:
    path = make_radiograph(syntax=syntax)
    dataset = pydicom.dcmread(path)
    del dataset.file_meta.TransferSyntaxUID
    buffer = BytesIO()
    dataset.save_as(buffer, implicit_vr=False, little_endian=True, enforce_file_format=False)
    path.write_bytes(buffer.getvalue())
    if syntax is None:
        image = read_one(path)
        np.testing.assert_array_equal(image.pixels[0], pattern(12, 10))
        assert image.facts.notes == ("names no transfer syntax: its bytes say which",)
    else:
        assert refusal(path).code == "dicom-transfer-syntax"


@pytest.mark.parametrize("syntax", [MPEG2MPML, JPIPHTJ2KReferenced, UID("1.2.3.4")], ids=str)
def test_a_transfer_syntax_that_is_not_decoded_is_refused(
    make_radiograph: Callable, tmp_path: Path, syntax: UID
) -> None:
    path = make_radiograph()
    old = b"1.2.840.10008.1.2.1\0"
    data = path.read_bytes()
    value = str(syntax).encode()
    value += b"\0" * (len(value) % 2)
    start = data.index(old) - 2
    data = data[:start] + len(value).to_bytes(2, "little") + value + data[start + 2 + len(old) :]
    group = int.from_bytes(data[140:144], "little") + len(value) - len(old)
    path.write_bytes(data[:140] + group.to_bytes(4, "little") + data[144:])
    assert refusal(path).code == "dicom-undecoded"


@pytest.mark.parametrize("sop_class", [EncapsulatedPDFStorage, SegmentationStorage, RTDoseStorage], ids=str)
def test_objects_that_are_no_images_are_counted_in_folders_and_refused_by_name(
    make_radiograph: Callable, tmp_path: Path, sop_class: UID
) -> None:
    make_radiograph(name="study/cr.dcm")
    other = save(build_dataset(pattern(4, 4), sop_class), tmp_path / "study" / "other.dcm")
    found = scan(tmp_path / "study")
    assert (len(found.series), found.refusals, found.skipped) == (1, (), 1)
    assert refusal(other).code == "dicom-no-image"


def test_localizers_are_left_out(make_series: Callable) -> None:
    def localize(k: int, dataset: Dataset) -> None:
        if k == 0:
            dataset.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]

    found = scan(make_series(instances=4, change=localize)[0].parent)
    assert [len(series.files) for series in found.series] == [3]
    assert found.skipped == 1


# Series


@pytest.mark.parametrize(
    "orientation", [(1, 0, 0, 0, 1, 0), (0, 1, 0, 0, 0, -1), OBLIQUE], ids=["axial", "sagittal", "oblique"]
)
def test_a_volume_has_its_slices_in_order_and_its_affine_in_ras(
    make_series: Callable, orientation: tuple
) -> None:
    paths = make_series(instances=4, orientation=orientation)
    image = read_one(paths[0].parent)
    np.testing.assert_array_equal(image.pixels, np.stack([pattern(6, 5, seed=k) for k in range(4)])[None])
    assert image.spacing_mm == pytest.approx((2.5, 0.5, 0.25))
    assert image.affine is not None
    for k, path in enumerate(paths):
        position = pydicom.dcmread(path).ImagePositionPatient
        np.testing.assert_allclose(image.affine @ [k, 0, 0, 1], [*to_ras(position), 1], atol=1e-4)
    row, column = np.array(orientation[:3]), np.array(orientation[3:])
    origin = image.affine @ [0, 0, 0, 1]
    np.testing.assert_allclose((image.affine @ [0, 0, 1, 1] - origin)[:3], to_ras(row) * 0.25, atol=1e-6)
    np.testing.assert_allclose((image.affine @ [0, 1, 0, 1] - origin)[:3], to_ras(column) * 0.5, atol=1e-6)


def test_each_slice_has_its_own_slope(make_series: Callable) -> None:
    def rescale(k: int, dataset: Dataset) -> None:
        dataset.RescaleSlope, dataset.RescaleIntercept = k + 1, -10 * k

    image = read_one(make_series(change=rescale)[0].parent)
    for k in range(3):
        np.testing.assert_array_equal(image.pixels[0, k], pattern(6, 5, seed=k) * (k + 1.0) - 10 * k)


def test_a_series_is_named_by_the_folder_that_it_has_to_itself(make_series: Callable, tmp_path: Path) -> None:
    own = make_series(folder="own")[0].parent
    make_series(patient=2, folder="both", instances=2)
    make_series(patient=3, folder="both", instances=3, origin=(0, 0, 0))
    names = {series.path for series in scan(tmp_path).series}
    assert own in names and tmp_path / "both" not in names and len(names) == 3


def test_several_series_and_patients_in_one_folder_stay_apart(make_series: Callable, tmp_path: Path) -> None:
    for patient in (1, 2):
        make_series(patient=patient, folder="both")
    found = scan(tmp_path)
    assert [len(series.files) for series in found.series] == [3, 3]
    assert len({series.patient_key for series in found.series}) == 2


@pytest.mark.parametrize("keyword", ["EchoTime", "TemporalPositionIdentifier", "DiffusionBValue"])
def test_echoes_time_points_and_b_values_become_series_of_their_own(
    make_series: Callable, keyword: str
) -> None:
    def contrast(k: int, dataset: Dataset) -> None:
        setattr(dataset, keyword, 1 + k % 2)
        dataset.ImagePositionPatient = [0, 0, 3.0 * (k // 2)]

    images = read_images(make_series(instances=6, change=contrast)[0].parent)
    assert [image.pixels.shape for image in images] == [(1, 3, 6, 5)] * 2
    np.testing.assert_array_equal(images[0].pixels[0, 1], pattern(6, 5, seed=2))


def test_slices_of_two_orientations_are_two_series(make_series: Callable) -> None:
    def turn(k: int, dataset: Dataset) -> None:
        if k >= 3:
            dataset.ImageOrientationPatient = [0, 1, 0, 0, 0, -1]
            dataset.ImagePositionPatient = [4.0 * k, 0, 0]

    images = read_images(make_series(instances=6, change=turn)[0].parent)
    assert sorted(image.spacing_mm[0] for image in images if image.spacing_mm) == pytest.approx([2.5, 4.0])


def test_exact_copies_are_left_out_with_a_note(make_series: Callable) -> None:
    paths = make_series()
    (paths[0].parent / "copy.dcm").write_bytes(paths[1].read_bytes())
    found = scan(paths[0].parent)
    assert found.series[0].files == tuple(paths) or len(found.series[0].files) == 3
    assert found.skipped == 1
    assert read_series(found.series[0]).facts.notes == ("exact copies left out: 1",)


def move(slice_number: int, position: list[float]) -> Callable[[int, Dataset], None]:
    def change(k: int, dataset: Dataset) -> None:
        if k == slice_number:
            dataset.ImagePositionPatient = position

    return change


def override(slice_number: int | None, **elements: Any) -> Callable[[int, Dataset], None]:
    def change(k: int, dataset: Dataset) -> None:
        if slice_number in (None, k):
            for keyword, value in elements.items():
                setattr(dataset, keyword, value) if value is not None else delattr(dataset, keyword)

    return change


def tilt(k: int, dataset: Dataset) -> None:
    dataset.ImagePositionPatient = [0, 0.5 * k, 2.5 * k]


def shrink(k: int, dataset: Dataset) -> None:
    if k == 1:
        dataset.Rows, dataset.PixelData = 4, pattern(4, 5).tobytes()


REFUSED_SERIES = {
    "irregular": (move(2, [-10, -20, 36.0]), "series-irregular"),
    "same position": (move(2, [-10, -20, 32.5]), "series-positions"),
    "moved sideways": (move(2, [-10, -19, 35.0]), "series-irregular"),
    "gantry tilt": (tilt, "series-tilted"),
    "no position": (override(2, ImagePositionPatient=None), "series-geometry"),
    "empty position": (override(2, ImagePositionPatient=[]), "series-geometry"),
    "NaN position": (override(2, ImagePositionPatient=["nan", "0", "0"]), "series-geometry"),
    "no orientation": (override(None, ImageOrientationPatient=None), "series-geometry"),
    "orientation of length two": (
        override(None, ImageOrientationPatient=[2, 0, 0, 0, 1, 0]),
        "series-geometry",
    ),
    "no spacing": (override(None, PixelSpacing=None), "series-spacing"),
    "zero spacing": (override(2, PixelSpacing=[0, 0]), "series-spacing"),
    "negative spacing": (override(None, PixelSpacing=[-1, 1]), "series-spacing"),
    "spacing differs": (override(2, PixelSpacing=[0.6, 0.25]), "series-spacing"),
    "every second slice": (override(None, SpacingBetweenSlices=1.25, SliceThickness=1.25), "series-gap"),
    "one identifier": (override(None, SOPInstanceUID=fixed_uid("same")), "series-duplicate"),
}


@pytest.mark.parametrize(("change", "code"), REFUSED_SERIES.values(), ids=REFUSED_SERIES)
def test_slices_that_form_no_even_volume_are_refused_once(
    make_series: Callable, change: Callable, code: str
) -> None:
    folder = make_series(instances=5, change=change)[0].parent
    error = refusal(folder)
    assert (error.code, error.where) == (code, str(folder))


@pytest.mark.parametrize("missing", [1, 2, 3])
def test_a_missing_slice_is_refused_and_placed(make_series: Callable, missing: int) -> None:
    paths = make_series(instances=6)
    paths[missing].unlink()
    error = refusal(paths[0].parent)
    assert error.code == "series-gap" and paths[missing - 1].name in error.reason


@pytest.mark.parametrize("damaged", [0, 2, 4], ids=["first", "middle", "last"])
@pytest.mark.parametrize("kept", [0, 0.3, 0.97], ids=["empty", "header cut", "pixels cut"])
def test_a_damaged_slice_refuses_its_series_once(make_series: Callable, damaged: int, kept: float) -> None:
    paths = make_series(instances=5)
    data = paths[damaged].read_bytes()
    paths[damaged].write_bytes(data[: int(len(data) * kept)])
    error = refusal(paths[0].parent)
    assert error.where == str(paths[0].parent)
    assert paths[damaged].name in error.reason


def test_a_damaged_slice_leaves_other_folders_alone(make_series: Callable, tmp_path: Path) -> None:
    make_series(patient=1, folder="a")
    make_series(patient=2, folder="b")[0].write_bytes(b"")
    found = scan(tmp_path)
    assert [series.path.name for series in found.series] == ["a"]
    assert [Path(error.where).name for error in found.refusals] == ["b"]


def test_a_sound_series_beside_an_image_that_is_not_read_stays(
    make_series: Callable, make_radiograph: Callable
) -> None:
    folder = make_series()[0].parent
    make_radiograph(name=f"{folder.name}/cine.dcm", NumberOfFrames=5)
    make_series(patient=2, folder=f"{folder.name}/below", change=override(None, HighBit=10))
    found = scan(folder)
    assert [len(series.files) for series in found.series] == [3]
    assert sorted(error.code for error in found.refusals) == ["dicom-bits", "dicom-multiframe"]


def test_positions_rounded_to_hundredths_are_even(make_series: Callable) -> None:
    def rounded(k: int, dataset: Dataset) -> None:
        dataset.ImagePositionPatient = [0, 0, round(k * 1.3333, 2)]

    image = read_one(make_series(instances=9, change=rounded)[0].parent)
    assert image.spacing_mm is not None and image.spacing_mm[0] == pytest.approx(1.3333, abs=1e-3)


def test_a_slice_that_changed_after_the_scan_is_refused(make_series: Callable) -> None:
    paths = make_series()
    (series,) = scan(paths[0].parent).series
    paths[1].write_bytes(paths[1].read_bytes()[:-4])
    with pytest.raises(ReadError) as caught:
        read_series(series)
    assert caught.value.code == "dicom-truncated" and caught.value.where == str(paths[1])


@pytest.mark.parametrize("seed", range(60))
def test_mutated_bytes_are_read_or_refused_but_never_crash(make_radiograph: Callable, seed: int) -> None:
    syntax = [None, RLELossless, JPEG2000Lossless, JPEGLSLossless][seed % 4]
    path = make_radiograph(pattern(64, 64), syntax=syntax)
    generator = np.random.default_rng(seed)
    data = bytearray(path.read_bytes())
    for place in generator.integers(132, len(data), size=6):
        data[place] = generator.integers(256)
    path.write_bytes(data)
    refusals: list[ReadError] = []
    images = read_images(path, refusals=refusals)
    assert len(images) + len(refusals) == 1


# Real images


@pytest.mark.shared
@pytest.mark.parametrize("name", ["11-T1post-18670", "36468-FLAIRreg-58706"])
def test_a_real_series_equals_an_independent_reading(shared_data: Path, name: str) -> None:
    from highdicom import get_volume_from_series

    datasets = [pydicom.dcmread(path) for path in sorted((shared_data / "brain-mri-dicom" / name).iterdir())]
    image = read_one(shared_data / "brain-mri-dicom" / name)
    volume = get_volume_from_series(datasets)
    # highdicom stacks against the normal, to have a right-handed system.
    volume = volume.flip_spatial(0)
    np.testing.assert_array_equal(image.pixels[0], volume.array)
    np.testing.assert_allclose(image.affine, np.diag([-1, -1, 1, 1]) @ volume.affine, atol=1e-4)
    assert image.spacing_mm == pytest.approx((6.5, 0.6875, 0.6875), abs=1e-4)
    first, second = sorted(datasets, key=lambda one: one.ImagePositionPatient[2])[:2]
    assert image.affine is not None
    np.testing.assert_allclose(
        (image.affine @ [0, 0, 0, 1])[:3], to_ras(first.ImagePositionPatient), atol=1e-4
    )
    np.testing.assert_allclose(
        (image.affine @ [1, 0, 0, 1])[:3], to_ras(second.ImagePositionPatient), atol=1e-4
    )
    np.testing.assert_array_equal(image.pixels[0, 1], second.pixel_array)


@pytest.mark.shared
def test_a_real_radiograph_and_its_polarity_twin_are_negatives(shared_data: Path) -> None:
    # The twin holds the same pixel data and only says MONOCHROME1: so it shows the negative.
    plain, twin = (read_one(path) for path in sorted((shared_data / "chest-xray-dicom").glob("*.dcm")))
    assert plain.pixels.shape == (1, 1024, 1024) and plain.spacing_mm == (0.168, 0.168)
    np.testing.assert_array_equal(twin.pixels, 255 - plain.pixels)
    assert plain.facts.decoder.startswith("pillow")


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("syntax", [None, ImplicitVRLittleEndian], ids=["explicit", "implicit"])
@pytest.mark.parametrize(
    ("dtype", "stored"),
    [("uint8", 8), ("uint8", 6), ("uint16", 16), ("uint16", 12), ("int16", 16), ("int16", 10), ("int8", 8)],
)
def test_reading_straight_from_the_bytes_equals_reading_through_pydicom(
    make_radiograph: Callable,
    monkeypatch: pytest.MonkeyPatch,
    photometric: str,
    syntax: UID | None,
    dtype: str,
    stored: int,
) -> None:
    words = np.random.default_rng(0).integers(0, 256, 2 * 11 * 9, dtype=np.uint8).tobytes()
    pixels = np.frombuffer(words, dtype)[: 11 * 9].reshape(11, 9)  # every bit is set somewhere
    path = make_radiograph(
        pixels,
        BitsStored=stored,
        PhotometricInterpretation=photometric,
        RescaleSlope=0.3,
        RescaleIntercept=-7,
    )
    if syntax:
        dataset = pydicom.dcmread(path)
        dataset.file_meta.TransferSyntaxUID = syntax
        save(dataset, path)
    direct = read_one(path)
    monkeypatch.setattr("medtl.imaging.dicom.reader.decode_directly", lambda *_: None)
    parsed = read_one(path)
    np.testing.assert_array_equal(direct.pixels, parsed.pixels)
    assert replace(direct.facts, source="") == replace(parsed.facts, source="")


def test_a_window_or_padding_that_is_not_that_of_every_slice_is_noted(
    make_series: Callable[..., list[Path]], tmp_path: Path
) -> None:
    def change(k: int, dataset: Dataset) -> None:
        dataset.WindowCenter, dataset.WindowWidth, dataset.RescaleIntercept = 40 + k, 400, 0
        dataset.PixelPaddingValue, dataset.RescaleSlope = 3, 1 + k // 2

    make_series(instances=3, change=change)
    (image,) = read_images(tmp_path / "mr")
    assert image.facts.padding == (3.0, 3.0) and image.facts.voi == Window(40, 400)
    assert image.facts.notes == (
        "its slices differ in window: that of the first one counts",
        "its slices differ in padding: that of the first one counts",
    )


def test_a_file_that_was_emptied_since_it_was_listed_is_named(make_radiograph: Callable) -> None:
    (series,) = scan(make_radiograph()).series
    series.path.write_bytes(b"")
    with pytest.raises(ReadError, match="file-empty"):
        read_series(series)


def test_warnings_of_pydicom_stay_silenced_without_a_gap() -> None:
    """To set the filter again would take it away for a moment, in which another thread may warn."""
    with warnings.catch_warnings():
        silence_warnings()
        before = warnings.filters[0]
        silence_warnings()
        assert warnings.filters[0] is before
        warnings.simplefilter("default")
        silence_warnings()
        assert warnings.filters[0] == before


def test_a_slice_that_is_not_decoded_is_named_where_its_series_is_known_by_another(
    make_series: Callable,
) -> None:
    first, _, last = make_series()
    make_series(2)  # beside another series, a series is known by its first file
    dataset = pydicom.dcmread(last)
    dataset.BitsStored, dataset.HighBit = 12, 20
    dataset.save_as(last)
    error = refusal([first, last])
    assert (error.code, error.where) == ("dicom-bits", str(first.parent))
    assert error.reason.startswith(f"a slice, {last.name}, has BitsAllocated")
