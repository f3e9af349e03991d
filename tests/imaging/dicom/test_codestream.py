"""Frames of encapsulated pixel data, and what their codestreams say of themselves."""

import struct
from collections.abc import Callable
from pathlib import Path

import jpeg_ls
import numpy as np
import pytest
from pydicom.uid import ComputedRadiographyImageStorage, JPEGLSLossless, RLELossless

from medtl.imaging.dicom.codestream import read_codestream
from medtl.imaging.reader import read_images
from tests.imaging.conftest import (
    AXIAL,
    build_dataset,
    build_enhanced,
    encapsulate_frames,
    pattern,
    refusal,
    save,
)

PLANES = pattern(4, 24, 20)
REPAIRED = "its offset table is wrong: fragments show where its frames begin"


def compress(plane: np.ndarray, precision: int = 12) -> bytes:
    """Return JPEG-LS of an even length."""
    stream = bytes(jpeg_ls.encode_buffer(plane.tobytes(), *plane.shape, 1, precision))
    return stream + b"\0" * (len(stream) % 2)


def item(content: bytes) -> bytes:
    """Return an item of encapsulated pixel data."""
    return struct.pack("<HHL", 0xFFFE, 0xE000, len(content)) + content


def table(*offsets: int) -> bytes:
    """Return a Basic Offset Table."""
    return item(struct.pack(f"<{len(offsets)}L", *offsets))


STREAMS = [compress(plane) for plane in PLANES]
WHOLE = [item(stream) for stream in STREAMS]
PARTS = [item(part) for stream in STREAMS for part in (stream[:200], stream[200:400], stream[400:])]
AT_WHOLE = [sum(map(len, WHOLE[:number])) for number in range(4)]
AT_PARTS = [sum(map(len, PARTS[: 3 * number])) for number in range(4)]

READABLE: dict[str, tuple[bytes, bool]] = {
    "a right table": (table(*AT_WHOLE), False),
    "no table": (table(), False),
    "offsets between fragments": (table(*(offset + 2 for offset in AT_WHOLE)), True),
    "offsets of zero": (table(0, 0, 0, 0), True),
    "too few offsets": (table(*AT_WHOLE[:3]), True),
}


@pytest.mark.parametrize(("offsets", "wrong"), READABLE.values(), ids=READABLE)
def test_frames_of_one_fragment_each_need_no_table(tmp_path: Path, offsets: bytes, wrong: bool) -> None:
    check_frames(tmp_path, offsets + b"".join(WHOLE), wrong)


SPLIT: dict[str, tuple[bytes, bool]] = {
    "a right table": (table(*AT_PARTS), False),
    "no table": (table(), False),
    "offsets of the first four fragments": (table(*(sum(map(len, PARTS[:n])) for n in range(4))), True),
}


@pytest.mark.parametrize(("offsets", "wrong"), SPLIT.values(), ids=SPLIT)
def test_frames_of_several_fragments_begin_where_a_codestream_does(
    tmp_path: Path, offsets: bytes, wrong: bool
) -> None:
    check_frames(tmp_path, offsets + b"".join(PARTS), wrong)


def test_empty_fragments_are_no_frames(tmp_path: Path) -> None:
    check_frames(tmp_path, table() + item(b"").join([*WHOLE, b""]), wrong=False)


@pytest.mark.parametrize(("offsets", "wrong"), [(AT_PARTS, False), ([7, 8, 9, 10], True)], ids=str)
def test_an_extended_offset_table_is_checked_too(tmp_path: Path, offsets: list[int], wrong: bool) -> None:
    check_frames(tmp_path, table() + b"".join(PARTS), wrong, ExtendedOffsetTable=struct.pack("<4Q", *offsets))


def check_frames(folder: Path, data: bytes, wrong: bool, **elements: bytes) -> None:
    """Read an enhanced image of these frames; compare it, and whether its note says they were repaired."""
    dataset = build_enhanced(PLANES, [(0, 0, 2.5 * place) for place in range(4)], AXIAL, **elements)
    (image,) = read_images(save(encapsulate_frames(dataset, data, JPEGLSLossless), folder / "a.dcm"))
    np.testing.assert_array_equal(image.pixels[0], PLANES)
    assert (REPAIRED in image.facts.notes) == wrong


SINGLE: dict[str, bytes] = {
    "a wrong offset": table(100) + WHOLE[0],
    "two offsets": table(0, 100) + WHOLE[0],
    "fragments and a wrong offset": table(8) + b"".join(PARTS[:3]),
    "empty fragments": table() + item(b"") + WHOLE[0] + item(b""),
}


@pytest.mark.parametrize("data", SINGLE.values(), ids=SINGLE)
@pytest.mark.parametrize("stated", [1, 0, None], ids=["1 frame", "0 frames", "unstated"])
def test_all_fragments_of_one_frame_are_that_frame(tmp_path: Path, data: bytes, stated: int | None) -> None:
    dataset = build_dataset(PLANES[0], ComputedRadiographyImageStorage, BitsStored=12, NumberOfFrames=stated)
    (image,) = read_images(save(encapsulate_frames(dataset, data, JPEGLSLossless), tmp_path / "a.dcm"))
    np.testing.assert_array_equal(image.pixels[0], PLANES[0])
    assert ("NumberOfFrames is 0: it has one frame" in image.facts.notes) == (stated == 0)


def test_rle_split_over_fragments_is_one_frame(tmp_path: Path) -> None:
    dataset = build_dataset(PLANES[0], ComputedRadiographyImageStorage, BitsStored=12)
    dataset.compress(RLELossless, encoding_plugin="pylibjpeg")
    frame = dataset.PixelData[dataset.PixelData.index(b"\xfe\xff\x00\xe0", 4) + 8 :]
    data = table() + item(frame[:100]) + item(frame[100:])
    (image,) = read_images(save(encapsulate_frames(dataset, data, RLELossless), tmp_path / "a.dcm"))
    np.testing.assert_array_equal(image.pixels[0], PLANES[0])


UNREADABLE: dict[str, bytes] = {
    "two frames that are said to be one": table() + WHOLE[0] + WHOLE[1],
    "no fragment": table(),
    "an empty fragment": table() + item(b""),
    "no items": table() + b"abcdefgh",
    "an item beyond the end": table() + WHOLE[0][:40],
}


@pytest.mark.parametrize("data", UNREADABLE.values(), ids=UNREADABLE)
def test_fragments_that_form_other_frames_are_refused(tmp_path: Path, data: bytes) -> None:
    dataset = build_dataset(PLANES[0], ComputedRadiographyImageStorage, BitsStored=12)
    path = save(encapsulate_frames(dataset, data, JPEGLSLossless), tmp_path / "a.dcm")
    assert refusal(path).code in ("dicom-pixels", "dicom-header")


@pytest.mark.parametrize("number", [3, 5])
def test_another_number_of_frames_is_refused(tmp_path: Path, number: int) -> None:
    dataset = build_enhanced(PLANES, [(0, 0, 2.5 * place) for place in range(4)], AXIAL)
    data = table() + b"".join([*WHOLE, WHOLE[0]][:number])
    path = save(encapsulate_frames(dataset, data, JPEGLSLossless), tmp_path / "a.dcm")
    assert refusal(path).code == "dicom-pixels"


TIDIED = "the end of its JPEG-LS codestream was put right"


@pytest.mark.parametrize("zeros", [1, 2, 3, 5, 64])
@pytest.mark.parametrize("behind", [b"", b"\0"], ids=["", "padded"])
def test_zeros_before_the_end_of_jpeg_ls_are_skipped(tmp_path: Path, zeros: int, behind: bytes) -> None:
    stream = STREAMS[0].rstrip(b"\0")
    assert stream.endswith(b"\xff\xd9")
    dataset = build_dataset(PLANES[0], ComputedRadiographyImageStorage, BitsStored=12)
    frame = stream[:-2] + b"\0" * zeros + stream[-2:] + behind
    (image,) = read_images(save(encapsulate_frames(dataset, frame, JPEGLSLossless), tmp_path / "a.dcm"))
    np.testing.assert_array_equal(image.pixels[0], PLANES[0])
    assert TIDIED in image.facts.notes


def test_jpeg_ls_may_lack_its_end_marker(tmp_path: Path) -> None:
    dataset = build_dataset(PLANES[0], ComputedRadiographyImageStorage, BitsStored=12)
    frame = STREAMS[0].rstrip(b"\0")[:-2]
    (image,) = read_images(save(encapsulate_frames(dataset, frame, JPEGLSLossless), tmp_path / "a.dcm"))
    np.testing.assert_array_equal(image.pixels[0], PLANES[0])
    assert TIDIED in image.facts.notes


def test_jpeg_ls_that_lacks_its_last_bytes_stays_refused(tmp_path: Path) -> None:
    dataset = build_dataset(PLANES[0], ComputedRadiographyImageStorage, BitsStored=12)
    for cut in (8, 20, 100):
        frame = STREAMS[0].rstrip(b"\0")[: -2 - cut] + b"\0\0\xff\xd9"
        path = save(encapsulate_frames(dataset, frame, JPEGLSLossless), tmp_path / "a.dcm")
        assert refusal(path).code == "dicom-pixels"


@pytest.mark.parametrize("precision", [12, 16])
def test_a_codestream_says_its_size_and_depth(precision: int) -> None:
    assert read_codestream(compress(PLANES[0], precision)) == (24, 20, precision, None)


def test_a_codestream_within_a_jp2_file_is_found(make_radiograph: Callable) -> None:
    PIL = pytest.importorskip("PIL.Image")
    import io

    stream = io.BytesIO()
    PIL.fromarray(pattern(40, 36)).save(stream, "JPEG2000", irreversible=False)
    assert read_codestream(stream.getvalue()) == (40, 36, 16, False)
