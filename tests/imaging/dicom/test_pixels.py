"""Every transfer syntax: each image among pydicom's files is read as pydicom reads it, or refused by name.

pydicom ships no file in HTJ2K: those are written here, by OpenJPH in imagecodecs, which medtl does not need.
"""

import warnings
from collections.abc import Callable
from pathlib import Path

import gdcm
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.data import get_testdata_files
from pydicom.pixels import apply_color_lut, apply_modality_lut, pixel_array
from pydicom.uid import (
    HTJ2K,
    UID,
    ComputedRadiographyImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from medtl.imaging.dicom.syntaxes import DECODERS, NATIVE
from medtl.imaging.reader import read_images
from tests.imaging.conftest import (
    build_dataset,
    compress_with_extended_jpeg,
    compress_with_htj2k,
    compress_with_jpeg,
    compress_with_lossless_jpeg,
    pattern,
    refusal,
    save,
)

# Images that are refused, and why; any other image of pydicom's files has to be read.
REFUSED = {
    "JPEG2000-embedded-sequence-delimiter.dcm": "dicom-pixels",
    "MR_truncated.dcm": "dicom-truncated",
    "SC_rgb_rle_16bit_2frame.dcm": "dicom-multiframe",
    "SC_rgb_rle_2frame.dcm": "dicom-multiframe",
    "SC_rgb_rle_32bit_2frame.dcm": "dicom-multiframe",
    "examples_ybr_color.dcm": "dicom-multiframe",
    "6293": "dicom-localizer",
    "6924": "dicom-localizer",
    "badVR.dcm": "dicom-no-image",
    "liver_1frame.dcm": "dicom-no-image",
    "liver_expb_1frame.dcm": "dicom-no-image",
    "rtdose.dcm": "dicom-no-image",
    "rtdose_1frame.dcm": "dicom-no-image",
    "rtdose_expb.dcm": "dicom-no-image",
    "rtdose_expb_1frame.dcm": "dicom-no-image",
    "rtdose_rle.dcm": "dicom-no-image",
    "rtdose_rle_1frame.dcm": "dicom-no-image",
}


def list_images() -> list[Path]:
    """Return the files that have rows and a transfer syntax."""
    found = []
    for path in sorted({Path(name) for name in get_testdata_files()}):
        if path.is_file() and _is_image(path):
            found.append(path)
    return found


def _is_image(path: Path) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = pydicom.dcmread(path, force=True, stop_before_pixels=True)
        return "Rows" in dataset and "TransferSyntaxUID" in dataset.file_meta


IMAGES = list_images()


def test_the_table_names_files_that_exist() -> None:
    assert set(REFUSED) <= {path.name for path in IMAGES} and len(IMAGES) >= 70


@pytest.mark.parametrize("path", IMAGES, ids=lambda path: path.name)
def test_an_image_of_pydicom_is_read_as_pydicom_reads_it(path: Path) -> None:
    if path.name in REFUSED:
        assert refusal(path).code == REFUSED[path.name]
        return
    (image,) = read_images(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = read_with_pydicom(path)
    np.testing.assert_array_equal(image.pixels, expected)


def read_with_pydicom(path: Path) -> NDArray[np.float32]:
    """Return the values (C, H, W) of a file as pydicom decodes them, with the decoder that medtl uses."""
    dataset = pydicom.dcmread(path)
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax == JPEGExtended12Bit:
        stored = _read_with_gdcm(path, dataset)
    else:
        plugin = DECODERS[syntax][0] if syntax in DECODERS else ""
        stored = pixel_array(dataset, decoding_plugin=plugin)
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        stored = apply_color_lut(stored, dataset)
    if stored.ndim == 3:
        return np.moveaxis(stored, -1, 0).astype(np.float32)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        assert dataset.PixelRepresentation == 0
        stored = 2**dataset.BitsStored - 1 - stored
    return apply_modality_lut(stored, dataset).astype(np.float32)[None]


def _read_with_gdcm(path: Path, dataset: Dataset) -> NDArray:
    """Read 12-bit JPEG by gdcm's own reader of files: no plugin of pydicom decodes it."""
    reader = gdcm.ImageReader()
    reader.SetFileName(str(path))
    assert reader.Read()
    stored = reader.GetImage().GetBuffer().encode("utf-8", "surrogateescape")
    return np.frombuffer(stored, "<u2").reshape(dataset.Rows, dataset.Columns)


def test_signed_twelve_bit_jpeg_has_negative_values(tmp_path: Path) -> None:
    ramp = np.linspace(0, 4000, 64 * 64).reshape(64, 64).astype(np.uint16)
    dataset = build_dataset(ramp, ComputedRadiographyImageStorage, BitsStored=12)
    path = save(compress_with_extended_jpeg(dataset), tmp_path / "a.dcm")
    stored = _read_with_gdcm(path, dataset).astype(np.int32)
    assert abs(stored - ramp).max() < 100
    dataset.PixelRepresentation = 1
    (image,) = read_images(save(dataset, path))
    np.testing.assert_array_equal(image.pixels[0], np.where(stored >= 2**11, stored - 2**12, stored))


def test_the_files_cover_the_syntaxes_that_are_decoded() -> None:
    seen = {pydicom.dcmread(path, stop_before_pixels=True).file_meta.TransferSyntaxUID for path in IMAGES}
    unseen = {uid.name for uid in {*DECODERS, *NATIVE} - seen}
    assert unseen == {
        "JPEG Lossless, Non-Hierarchical (Process 14)",
        "High-Throughput JPEG 2000 Image Compression (Lossless Only)",
        "High-Throughput JPEG 2000 with RPCL Options Image Compression (Lossless Only)",
        "High-Throughput JPEG 2000 Image Compression",
    }


# Twins: what was compressed without loss equals what was not


COMPRESSIONS: dict[str, Callable[[Dataset], object]] = {
    # Encoders by name: gdcm's aborts the process on RLE of 10 bits.
    "RLE": lambda dataset: dataset.compress(RLELossless, encoding_plugin="pylibjpeg"),
    "JPEG 2000": lambda dataset: dataset.compress(JPEG2000Lossless, encoding_plugin="pylibjpeg"),
    "JPEG-LS": lambda dataset: dataset.compress(JPEGLSLossless, encoding_plugin="pyjpegls"),
    "JPEG Lossless": compress_with_lossless_jpeg,
    "deflated": lambda dataset: setattr(
        dataset.file_meta, "TransferSyntaxUID", DeflatedExplicitVRLittleEndian
    ),
}


@pytest.mark.parametrize("compress", COMPRESSIONS.values(), ids=COMPRESSIONS)
@pytest.mark.parametrize(
    ("dtype", "bits"), [("uint8", 8), ("uint16", 10), ("uint16", 12), ("uint16", 16)], ids=str
)
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_a_lossless_twin_has_the_same_values(
    make_radiograph: Callable, tmp_path: Path, compress: Callable, dtype: str, bits: int, photometric: str
) -> None:
    elements = {"RescaleSlope": 0.5, "RescaleIntercept": -7, "PhotometricInterpretation": photometric}
    pixels = pattern(38, 51, dtype=dtype, top=2**bits - 1)
    path = make_radiograph(pixels, BitsStored=bits, **elements)
    dataset = pydicom.dcmread(path)
    compress(dataset)
    (twin,), (plain,) = read_images(save(dataset, tmp_path / "twin" / "a.dcm")), read_images(path)
    np.testing.assert_array_equal(twin.pixels, plain.pixels)
    stored = 2**bits - 1 - pixels.astype(float) if photometric == "MONOCHROME1" else pixels
    np.testing.assert_array_equal(plain.pixels[0], stored * 0.5 - 7)


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless, JPEGLSLossless], ids=lambda uid: uid.name)
def test_signed_values_survive_compression(make_radiograph: Callable, syntax: pydicom.uid.UID) -> None:
    pixels = (pattern(33, 40, top=4000) - 2000.0).astype("int16")
    (image,) = read_images(make_radiograph(pixels, BitsStored=16, syntax=syntax))
    np.testing.assert_array_equal(image.pixels[0], pixels)


HTJ2K_KINDS = [("uint8", 8), ("int8", 8), ("uint16", 12), ("int16", 12), ("uint16", 16), ("int16", 16)]


def over_the_range(dtype: str, bits: int) -> NDArray:
    """Return values (38, 51) over all that so many bits hold, both ends among them."""
    lowest = -(2 ** (bits - 1)) if dtype.startswith("i") else 0
    values = np.random.default_rng(bits).integers(lowest, lowest + 2**bits, (38, 51))
    values[0, :2] = lowest, lowest + 2**bits - 1
    return values.astype(dtype)


@pytest.mark.parametrize("syntax", [HTJ2KLossless, HTJ2KLosslessRPCL], ids=["lossless", "RPCL"])
@pytest.mark.parametrize(("dtype", "bits"), HTJ2K_KINDS, ids=str)
def test_htj2k_of_any_depth_and_sign_is_read_exactly(
    tmp_path: Path, dtype: str, bits: int, syntax: UID
) -> None:
    pytest.importorskip("imagecodecs", reason="imagecodecs writes HTJ2K")
    pixels = over_the_range(dtype, bits)
    dataset = build_dataset(pixels, ComputedRadiographyImageStorage, BitsStored=bits)
    (image,) = read_images(save(compress_with_htj2k(dataset, syntax), tmp_path / "a.dcm"))
    np.testing.assert_array_equal(image.pixels[0], pixels)
    assert image.facts.decoder.startswith("pylibjpeg-openjpeg ")


def test_htj2k_in_colour_is_read_exactly(tmp_path: Path) -> None:
    pytest.importorskip("imagecodecs", reason="imagecodecs writes HTJ2K")
    pixels = pattern(38, 51, 3, dtype="uint8", top=255)
    dataset = build_dataset(pixels, ComputedRadiographyImageStorage)
    (image,) = read_images(save(compress_with_htj2k(dataset), tmp_path / "a.dcm"))
    np.testing.assert_array_equal(image.pixels, np.moveaxis(pixels, -1, 0))


def test_htj2k_with_loss_is_read_as_another_decoder_reads_it(tmp_path: Path) -> None:
    imagecodecs = pytest.importorskip("imagecodecs", reason="imagecodecs writes HTJ2K")
    smooth = np.add.outer(np.arange(64) * 30, np.arange(80) * 20).astype("uint16")
    dataset = compress_with_htj2k(
        build_dataset(smooth, ComputedRadiographyImageStorage, BitsStored=12), HTJ2K
    )
    stream = pydicom.encaps.get_frame(dataset.PixelData, 0, number_of_frames=1)
    (image,) = read_images(save(dataset, tmp_path / "a.dcm"))
    assert np.abs(image.pixels[0] - imagecodecs.htj2k_decode(stream)).max() <= 1
    assert 0 < np.abs(image.pixels[0] - smooth).max() < 64


def test_damaged_htj2k_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("imagecodecs", reason="imagecodecs writes HTJ2K")
    dataset = compress_with_htj2k(
        build_dataset(over_the_range("uint16", 12), ComputedRadiographyImageStorage, BitsStored=12)
    )
    stream = pydicom.encaps.get_frame(dataset.PixelData, 0, number_of_frames=1)
    dataset.PixelData = pydicom.encaps.encapsulate([stream[:300]])
    assert refusal(save(dataset, tmp_path / "a.dcm")).code == "dicom-pixels"


@pytest.mark.parametrize("samples", [1, 3], ids=["grey", "colour"])
def test_baseline_jpeg_equals_pillow(make_radiograph: Callable, tmp_path: Path, samples: int) -> None:
    shape = (40, 48) if samples == 1 else (40, 48, 3)
    ramp = np.broadcast_to(np.linspace(0, 255, 48).astype("uint8")[:, None], (40, 48, 3))
    pixels = np.ascontiguousarray(ramp[..., 0] if samples == 1 else ramp).reshape(shape)
    dataset = compress_with_jpeg(pydicom.dcmread(make_radiograph(pixels)))
    path = save(dataset, tmp_path / "jpeg" / "a.dcm")
    (image,) = read_images(path)
    assert image.pixels.shape == (samples, 40, 48)
    np.testing.assert_array_equal(image.pixels, read_with_pydicom(path))
    assert np.abs(image.pixels - pixels.reshape(40, 48, samples).transpose(2, 0, 1)).max() <= 4
    assert dataset.file_meta.TransferSyntaxUID == JPEGBaseline8Bit


def test_lossless_jpeg_says_which_decoder_read_it(make_radiograph: Callable, tmp_path: Path) -> None:
    dataset = compress_with_lossless_jpeg(pydicom.dcmread(make_radiograph(pattern(20, 30))))
    (image,) = read_images(save(dataset, tmp_path / "jpeg" / "a.dcm"))
    assert image.facts.decoder.startswith("python-gdcm ")
    assert dataset.file_meta.TransferSyntaxUID == JPEGLosslessSV1


def test_big_endian_of_sixteen_bits_equals_little_endian(make_radiograph: Callable, tmp_path: Path) -> None:
    path = make_radiograph(pattern(12, 10))
    dataset = pydicom.dcmread(path)
    dataset.PixelData = dataset.pixel_array.astype(">u2").tobytes()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    swapped = tmp_path / "big" / "a.dcm"
    swapped.parent.mkdir()
    pydicom.dcmwrite(swapped, dataset, implicit_vr=False, little_endian=False, enforce_file_format=True)
    np.testing.assert_array_equal(read_images(swapped)[0].pixels, read_images(path)[0].pixels)
