"""Stored values: whoever decodes them, they are what BitsStored, HighBit and PixelRepresentation say."""

from collections.abc import Callable
from pathlib import Path

import jpeg_ls
import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.pixels import get_encoder
from pydicom.uid import (
    ComputedRadiographyImageStorage,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from medtl.imaging.reader import read_images
from tests.imaging.conftest import (
    build_dataset,
    compress_with_extended_jpeg,
    compress_with_htj2k,
    compress_with_lossless_jpeg,
    encapsulate_frames,
    pattern,
    refusal,
    save,
)

ROWS, COLUMNS = 34, 40


def build(words: NDArray, bits: int, signed: bool, **elements: int) -> Dataset:
    """Return a radiograph whose words are these, whatever is in their unused bits."""
    described = {"BitsStored": bits, "PixelRepresentation": int(signed), **elements}
    return build_dataset(words, ComputedRadiographyImageStorage, **described)


def all_values(bits: int, signed: bool) -> NDArray:
    """Return values over all that so many bits hold, both ends among them."""
    lowest = -(2 ** (bits - 1)) if signed else 0
    values = lowest + pattern(ROWS, COLUMNS, dtype="int64", top=2**bits - 1)
    values[0, :2] = lowest, lowest + 2**bits - 1
    return values


def words_of(values: NDArray, bits: int, allocated: int, unused: str) -> NDArray:
    """Return the words of values, with zeros, an overlay or copies of the sign in their unused bits."""
    words = values & (2 ** (allocated if unused == "sign" else bits) - 1)
    if unused == "overlay" and allocated > bits:
        words = words | pattern(ROWS, COLUMNS, dtype="int64", top=1, seed=1) << (allocated - 1)
    return words.astype(f"uint{allocated}")


def with_rle(dataset: Dataset) -> Dataset:
    """Compress the words whole, as bytes of RLE are."""
    stored = dataset.BitsStored
    dataset.BitsStored = dataset.BitsAllocated
    dataset.compress(RLELossless, encoding_plugin="pylibjpeg")
    dataset.BitsStored = stored
    return dataset


def with_jpeg_ls(dataset: Dataset) -> Dataset:
    """Compress the words whole, with JPEG-LS of the precision of a word."""
    stream = jpeg_ls.encode_buffer(dataset.PixelData, ROWS, COLUMNS, 1, dataset.BitsAllocated)
    return encapsulate_frames(dataset, bytes(stream), JPEGLSLossless)


def with_jpeg_2000(dataset: Dataset, signed_stream: bool = False, precision: int | None = None) -> Dataset:
    """Compress the words, or what they mean in two's complement, with JPEG 2000 of some precision."""
    words = np.frombuffer(dataset.PixelData, f"uint{dataset.BitsAllocated}").reshape(ROWS, COLUMNS)
    precision = precision or dataset.BitsAllocated
    if signed_stream:
        unused = dataset.BitsAllocated - precision
        words = (words.view(f"int{dataset.BitsAllocated}") << unused) >> unused
    stream = get_encoder(JPEG2000Lossless).encode(
        words,
        encoding_plugin="pylibjpeg",
        rows=ROWS,
        columns=COLUMNS,
        number_of_frames=1,
        samples_per_pixel=1,
        photometric_interpretation="MONOCHROME2",
        bits_allocated=dataset.BitsAllocated,
        bits_stored=precision,
        pixel_representation=int(signed_stream),
    )
    return encapsulate_frames(dataset, stream, JPEG2000Lossless)


WHOLE_WORDS: dict[str, Callable[[Dataset], Dataset]] = {
    "native": lambda dataset: dataset,
    "RLE": with_rle,
    "JPEG-LS": with_jpeg_ls,
    "JPEG 2000": with_jpeg_2000,
    "signed JPEG 2000": lambda dataset: with_jpeg_2000(dataset, signed_stream=True),
}
DEPTHS = [(8, 8), (8, 6), (16, 16), (16, 12), (16, 10), (16, 8)]


@pytest.mark.parametrize("unused", ["zeros", "overlay", "sign"])
@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
@pytest.mark.parametrize(("allocated", "bits"), DEPTHS, ids=str)
@pytest.mark.parametrize("write", WHOLE_WORDS.values(), ids=WHOLE_WORDS)
def test_unused_bits_and_the_sign_of_a_codestream_do_not_matter(
    tmp_path: Path, write: Callable, allocated: int, bits: int, signed: bool, unused: str
) -> None:
    values = all_values(bits, signed)
    dataset = write(build(words_of(values, bits, allocated, unused), bits, signed))
    (image,) = read_images(save(dataset, tmp_path / "a.dcm"))
    np.testing.assert_array_equal(image.pixels[0], values)


@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
@pytest.mark.parametrize("signed_stream", [False, True], ids=["unsigned stream", "signed stream"])
@pytest.mark.parametrize("precision", [12, 13, 16])
def test_the_precision_of_a_codestream_may_exceed_bits_stored(
    tmp_path: Path, precision: int, signed_stream: bool, signed: bool
) -> None:
    values = all_values(12, signed)
    dataset = build(words_of(values, 12, 16, "zeros"), 12, signed)
    (image,) = read_images(save(with_jpeg_2000(dataset, signed_stream, precision), tmp_path / "a.dcm"))
    np.testing.assert_array_equal(image.pixels[0], values)


@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
def test_a_shallower_codestream_of_another_sign_is_refused_where_its_sign_matters(
    tmp_path: Path, signed: bool
) -> None:
    values = pattern(ROWS, COLUMNS, top=511)
    dataset = with_jpeg_2000(build(values, 12, signed), signed_stream=not signed, precision=10)
    (image,) = read_images(save(dataset, tmp_path / "a.dcm"))
    np.testing.assert_array_equal(image.pixels[0], values)
    values[3, 4] = 512
    dataset = with_jpeg_2000(build(values, 12, signed), signed_stream=not signed, precision=10)
    assert refusal(save(dataset, tmp_path / "b.dcm")).code == "dicom-bits"


def test_a_codestream_shallower_than_bits_stored_keeps_its_values(tmp_path: Path) -> None:
    values = pattern(ROWS, COLUMNS, top=1023)
    for dataset in (build(values, 16, True), build(values, 12, True)):
        stream = jpeg_ls.encode_buffer(values.tobytes(), ROWS, COLUMNS, 1, 10)
        (image,) = read_images(
            save(encapsulate_frames(dataset, bytes(stream), JPEGLSLossless), tmp_path / "a.dcm")
        )
        np.testing.assert_array_equal(image.pixels[0], values)


@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
@pytest.mark.parametrize(
    "compress", [compress_with_lossless_jpeg, compress_with_htj2k], ids=["JPEG", "HTJ2K"]
)
def test_other_lossless_syntaxes_agree_with_native(tmp_path: Path, compress: Callable, signed: bool) -> None:
    if compress is compress_with_htj2k:
        pytest.importorskip("imagecodecs", reason="imagecodecs writes HTJ2K")
    values = all_values(12, signed)
    dataset = build(words_of(values, 12, 16, "zeros"), 12, signed)
    (image,) = read_images(save(compress(dataset), tmp_path / "a.dcm"))
    np.testing.assert_array_equal(image.pixels[0], values)


def test_extended_jpeg_of_signed_values_is_close_to_them(tmp_path: Path) -> None:
    values = np.add.outer(np.arange(ROWS) * 30, np.arange(COLUMNS) * 20) - 1000
    dataset = build(words_of(values, 12, 16, "zeros"), 12, signed=True)
    (image,) = read_images(save(compress_with_extended_jpeg(dataset), tmp_path / "a.dcm"))
    smooth = abs(values) > 100  # around zero, two's complement has a cliff that JPEG blurs
    assert np.abs(image.pixels[0] - values)[smooth & (values < 700)].mean() < 100


@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
@pytest.mark.parametrize(("allocated", "bits", "high"), [(16, 12, 15), (16, 10, 13), (8, 6, 7)], ids=str)
@pytest.mark.parametrize("write", WHOLE_WORDS.values(), ids=WHOLE_WORDS)
@pytest.mark.parametrize("below", [0, 1], ids=["clean", "with bits below"])
def test_values_in_the_upper_bits_are_shifted_down(
    tmp_path: Path, write: Callable, allocated: int, bits: int, high: int, signed: bool, below: int
) -> None:
    values = all_values(bits, signed)
    words = words_of(values, bits, allocated, "zeros") << (high + 1 - bits) | below
    dataset = write(build(words.astype(f"uint{allocated}"), bits, signed, HighBit=high))
    (image,) = read_images(save(dataset, tmp_path / "a.dcm"))
    np.testing.assert_array_equal(image.pixels[0], values)
    assert "its values are in the upper bits of their words, as HighBit says" in image.facts.notes


def test_a_codestream_of_bits_stored_holds_values_whatever_high_bit_says(tmp_path: Path) -> None:
    values = all_values(12, signed=False)
    stream = jpeg_ls.encode_buffer(values.astype("uint16").tobytes(), ROWS, COLUMNS, 1, 12)
    dataset = build(values.astype("uint16"), 12, signed=False, HighBit=15)
    path = save(encapsulate_frames(dataset, bytes(stream), JPEGLSLossless), tmp_path / "a.dcm")
    np.testing.assert_array_equal(read_images(path)[0].pixels[0], values)


def test_values_below_the_bits_that_high_bit_names_are_refused(tmp_path: Path) -> None:
    values = all_values(12, signed=False).astype("uint16")
    assert refusal(save(build(values, 12, False, HighBit=15), tmp_path / "a.dcm")).code == "dicom-bits"
    stream = jpeg_ls.encode_buffer(values.tobytes(), ROWS, COLUMNS, 1, 14)
    dataset = encapsulate_frames(build(values, 12, False, HighBit=15), bytes(stream), JPEGLSLossless)
    assert refusal(save(dataset, tmp_path / "b.dcm")).code == "dicom-bits"


@pytest.mark.parametrize(("bits", "signed"), [(32, False), (32, True), (20, True), (12, False)], ids=str)
def test_words_of_four_bytes_say_where_float32_rounds_them(tmp_path: Path, bits: int, signed: bool) -> None:
    values = all_values(bits, signed)
    (image,) = read_images(save(build(words_of(values, bits, 32, "zeros"), bits, signed), tmp_path / "a.dcm"))
    np.testing.assert_array_equal(image.pixels[0], values.astype("float32"))
    assert [note for note in image.facts.notes if "2^24" in note] == (
        ["values beyond 2^24 were rounded to the 24 bits of float32"] if bits > 24 else []
    )


def test_pixels_that_their_transfer_syntax_contradicts_are_named(tmp_path: Path) -> None:
    plain = build(all_values(12, signed=False).astype("uint16"), 12, False)
    native, compressed = save(plain, tmp_path / "native.dcm"), save(with_rle(plain), tmp_path / "rle.dcm")
    for path, wrong in ((native, RLELossless), (compressed, ExplicitVRLittleEndian)):
        right = RLELossless if path == compressed else ExplicitVRLittleEndian
        path.write_bytes(path.read_bytes().replace(right.encode(), wrong.encode(), 1))
    refused = [refusal(native), refusal(compressed)]
    assert [(error.code, error.reason) for error in refused] == [
        ("dicom-transfer-syntax", "has uncompressed pixel data, but names RLE Lossless"),
        ("dicom-transfer-syntax", "has compressed pixel data, but names an uncompressed transfer syntax"),
    ]


def test_bits_allocated_that_fill_no_bytes_are_named(tmp_path: Path) -> None:
    dataset = build(all_values(12, signed=False).astype("uint16"), 12, False)
    dataset.BitsAllocated = 12
    error = refusal(save(dataset, tmp_path / "a.dcm"))
    assert (error.code, error.reason) == ("dicom-bits", "has BitsAllocated 12, which is not decoded")


def test_doubles_beyond_float32_are_refused(tmp_path: Path) -> None:
    dataset = build(all_values(12, signed=False).astype("uint16"), 12, False)
    dataset.BitsAllocated, dataset.DoubleFloatPixelData = 64, (all_values(12, False) * 1e300).tobytes()
    dataset.BitsStored, dataset.HighBit = 64, 63
    del dataset.PixelData
    assert refusal(save(dataset, tmp_path / "a.dcm")).code == "dicom-not-finite"
